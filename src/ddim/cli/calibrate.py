"""``ddim calibrate``: the best few steps for one network."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import tyro

from ddim.base.errors import InputError
from ddim.base.files import check_writable
from ddim.base.progress import meter
from ddim.cli.options import parse
from ddim.cli.report import print_json, table
from ddim.cli.sampler import RunOptions, open_model

if TYPE_CHECKING:
    from ddim.calibration.search import Calibration
    from ddim.calibration.trajectory import Group
    from ddim.model.model import Model

__all__ = ["CalibrateOptions", "main"]

SEED = 2**62
"""Added to --seed: the latents must not be those of images that anyone measures."""


@dataclasses.dataclass(frozen=True)
class CalibrateOptions(RunOptions):
    """Find the nodes, the method and the weights that make the most of a few network calls.

    They are those whose images, from the same noise, are nearest to the ones that a fine solver
    makes of the same network. What is found is written beside the model (calibrated.json), is good
    for these weights alone, and is used by --nodes calibrated --steps N. The errors printed are of
    latents that no choice has seen.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = "mnist"
    """A shipped model's name, a model folder, a training run, a checkpoint of any known kind."""
    calls: tuple[int, ...] = (10,)
    """Network calls to calibrate for, one or more numbers."""
    latents: int = 64
    """Latents to fit to; as many again choose, and twice as many are reported on."""
    weights: bool = True
    """Fit weights on the last outputs too."""
    moves: int = 100
    """Random moves of single nodes to try."""
    labels: tuple[int, ...] = ()
    """Classes, repeated in this order; all of them in turn if none is given."""
    seed: int = 0
    """Seed of the latents and of the moves."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`CalibrateOptions`."""
    options = parse(CalibrateOptions, "calibrate", argv)
    if options.latents < 1:
        raise InputError(f"--latents must be at least 1, not {options.latents}")
    if options.moves < 0:
        raise InputError(f"--moves must not be negative: {options.moves}")
    if not options.calls:
        raise InputError("--calls needs a number at least")

    from ddim.calibration.search import calibrate, most_work
    from ddim.calibration.trajectory import TEACHER_STEPS, follow
    from ddim.checkpoints.calibration import read_calibration, write_calibration
    from ddim.model.drawing import pick_batch_size

    model = open_model(options.model, options)
    T, path = model.schedule.T, model.calibration
    assert path is not None  # it was opened from a file
    for calls in options.calls:
        if not 2 <= calls <= T:
            raise InputError(f"--calls are from 2 to T = {T}, not {calls}")
    check_writable(path)
    if path.exists() and not options.force:
        before = read_calibration(path)
        there = sorted(set(options.calls) & before.samplers.keys())
        if before.identity == model.identity and there:
            raise InputError(
                f"{path} has a calibration for {', '.join(map(str, there))} calls already: give "
                "--force to replace it"
            )
    n = options.latents
    batch_size = pick_batch_size(model, options.batch_size)
    parts = [
        _groups(model, options, part, batch_size)
        for part in (range(n), range(n, 2 * n), range(2 * n, 4 * n))
    ]
    start, work, found = time.perf_counter(), 0, {}
    steps = min(T, max(TEACHER_STEPS, 4 * max(options.calls)))
    most = 4 * n * steps + sum(
        most_work(calls, (n, n, 2 * n), batch_size, weights=options.weights, moves=options.moves)
        for calls in options.calls
    )
    settings = {"total": most, "unit": " calls", "unit_scale": True, "desc": "teacher"}
    with meter(quiet=options.quiet, **settings) as progress:

        def watch(stage: str, done: int) -> None:
            nonlocal work
            work += done
            progress.set_description_str(stage, refresh=False)
            progress.update(done)

        teachers = [
            follow(model.schedule, groups, steps, watch=lambda done: watch("teacher", done))
            for groups in parts
        ]
        facts = {
            "seed": options.seed,
            "moves": options.moves,
            "teacher": steps,
            "batch_size": batch_size,
            **({"labels": list(options.labels)} if options.labels else {}),
        }
        for calls in options.calls:
            found[calls] = calibrate(
                calls,
                *teachers,
                weights=options.weights,
                moves=options.moves,
                seed=options.seed,
                watch=lambda stage, done, calls=calls: watch(f"{calls} calls: {stage}", done),
            )
            write_calibration(path, model.identity, model.schedule, found[calls], facts)
    seconds = time.perf_counter() - start
    if options.json:
        document = {calls: _json(c) for calls, c in found.items()}
        print_json({"file": str(path), "seconds": round(seconds, 1), "calls": document})
        return 0
    for calls, calibration in found.items():
        sampler = calibration.sampler
        print(f"{calls} calls: {sampler.method} on {', '.join(map(str, sampler.nodes))}\n")
        print(table(_rows(calibration)))
        print()
    print(
        f"{path}: RMS to the images of a solver with {steps} steps, on {2 * n} latents that no "
        f"choice has seen; {work:,} network calls, {seconds:.0f} s. Use it with --nodes calibrated."
    )
    return 0


def _groups(
    model: Model, options: CalibrateOptions, indices: range, batch_size: int
) -> list[Group]:
    """Latents in batches, each with its denoiser."""
    from ddim.denoisers.network import NetworkDenoiser
    from ddim.model.inputs import check_labels
    from ddim.noise.draws import Noise

    labels = None
    if model.classes is not None:
        cycle = options.labels or tuple(range(model.classes))
        labels = [cycle[i % len(cycle)] for i in indices]
    elif options.labels:
        raise InputError(f"{model.name} has no classes: --labels means nothing to it")
    chosen = check_labels(model, labels, len(indices))
    network = NetworkDenoiser(model.net, model.target)
    groups = []
    for at in range(0, len(indices), batch_size):
        part = indices[at : at + batch_size]
        noise = Noise(SEED + options.seed, part, model.shape, model.device)(0)
        own = None if chosen is None else chosen[at : at + batch_size].to(model.device)
        groups.append((model.denoiser(own, network=network), noise))
    return groups


def _rows(calibration: Calibration) -> list[dict[str, object]]:
    plain = ("uniform", "quadratic", "log-snr", "dynamic programming")
    base = calibration.errors["uniform"][0]
    return [
        {
            "sampler": f"ddim, {name}" if name in plain else name,
            "median RMS": round(median, 4),
            "mean RMS": round(mean, 4),
            "of uniform": round(median / base, 3),
        }
        for name, (median, mean) in calibration.errors.items()
    ]


def _json(calibration: Calibration) -> dict[str, object]:
    return {
        **calibration.sampler.to_json(),
        "rms": {name: list(pair) for name, pair in calibration.errors.items()},
        "dynamic_programming": list(calibration.path),
        "latents": list(calibration.counts),
    }
