"""``ddim calibrate``: the best few steps for one network."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from ddim.base.errors import InputError
from ddim.base.files import check_writable, locked
from ddim.base.progress import meter
from ddim.cli.groups import (
    ConditionOptions,
    ForceOptions,
    ModelArgument,
    RunOptions,
    unset,
)
from ddim.cli.options import parse
from ddim.cli.report import print_json, table

if TYPE_CHECKING:
    from ddim.calibration.search import Calibration
    from ddim.model.condition import Condition
    from ddim.model.model import Model

__all__ = ["CalibrateOptions", "main"]


@dataclasses.dataclass(frozen=True)
class CalibrateOptions:
    """Find the nodes, the method and the weights that follow a network best in a few calls.

    Best by one measure: how near their images are (RMS) to those that a fine solver makes of the
    same network and the same noise. Nearness to data is another: `ddim evaluate` measures it. What
    is found is written beside the model (calibrated.json), for a shipped model into the user's
    cache; it is good for these weights alone, and is used by --method calibrated --steps N. The
    errors printed, with those of plain samplers, are of latents that no choice has seen.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "ddim calibrate model/ --calls 5 8 10",
        "ddim calibrate mine.py:model --calls 8 --output mine.json",
    )

    calls: tuple[int, ...] = (10,)
    """Network calls to calibrate for, one or more numbers."""
    latents: int = 64
    """Latents to fit to; as many again choose, and twice as many are reported on."""
    weights: bool = True
    """Fit weights on the last outputs too."""
    moves: int = 100
    """Random moves of single nodes to try."""
    seed: int = 0
    """Seed of the latents and of the moves."""
    model: ModelArgument = dataclasses.field(default_factory=ModelArgument)
    condition: ConditionOptions = ConditionOptions()
    output: Annotated[
        str | None, unset("calibrated.json beside the model, or the user's cache", "FILE")
    ] = None
    """The file to write."""
    force: ForceOptions = ForceOptions()
    run: RunOptions = RunOptions()

    def check(self) -> None:
        """Refuse numbers that are out of range whatever the model.

        Raises:
            InputError: one is.
        """
        if self.latents < 1:
            raise InputError(f"--latents must be at least 1, not {self.latents}")
        if self.moves < 0:
            raise InputError(f"--moves must not be negative: {self.moves}")
        if not self.calls:
            raise InputError("--calls needs a number at least")

    def place(self, model: Model) -> Path:
        """The file to write, if the model and what is there allow it.

        Raises:
            InputError: they do not.
        """
        from ddim.checkpoints.calibration import read_calibration

        T = model.schedule.T
        for calls in self.calls:
            if not 2 <= calls <= T:
                raise InputError(f"--calls are from 2 to T = {T}, not {calls}")
        path = self._kept(model) if self.output is None else Path(self.output)
        if path is None:
            raise InputError(f"{model.name} has no place to keep a calibration: give --output FILE")
        check_writable(path)
        if path.exists() and not self.force.force:
            before = read_calibration(path)
            there = sorted(set(self.calls) & before.samplers.keys())
            if before.identity == model.identity and there:
                raise InputError(
                    f"{path} has a calibration for {', '.join(map(str, there))} calls already: "
                    "give --force to replace it"
                )
        return path

    def _kept(self, model: Model) -> Path | None:
        """Where a model's calibration is looked for first: never in the package."""
        from ddim.checkpoints.calibration import is_shared, user_file

        path = model.calibration
        if path is None or not is_shared(path):
            return path
        path = user_file(model.identity)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path.parent} cannot be made: {error.strerror}") from None
        return path


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`CalibrateOptions`."""
    options = parse(CalibrateOptions, "calibrate", argv)
    options.check()
    model = options.model.open(options.run)
    path = options.place(model)
    condition = options.condition.condition().check(model, 4 * options.latents, every_class=True)
    start = time.perf_counter()
    with locked(path):
        found, work = _calibrate(model, condition, options, path)
    seconds = time.perf_counter() - start
    if options.run.json:
        document = {calls: _json(one) for calls, one in found.items()}
        print_json({"file": str(path), "seconds": round(seconds, 1), "calls": document})
        return 0
    for calls, one in found.items():
        nodes = ", ".join(map(str, one.sampler.nodes))
        print(f"{calls} calls: {one.sampler.method} on {nodes}\n")
        print(table(_rows(one)))
        print()
    steps = len(next(iter(found.values())).teacher) - 1
    own = options.output is None or path == model.calibration
    use = "--method calibrated" if own else f"ddim.Model(…, calibration=Path({str(path)!r}))"
    print(
        f"{path}: RMS to the images of a solver with {steps} steps, on {2 * options.latents} "
        f"latents that no choice has seen; {work:,} network calls, {seconds:.0f} s. It says how "
        f"well a sampler follows this network, not how near to data it is: see ddim evaluate. Use "
        f"it with {use}."
    )
    return 0


def _calibrate(
    model: Model, condition: Condition, options: CalibrateOptions, path: Path
) -> tuple[dict[int, Calibration], int]:
    """What is found for each number of calls, written as it is found; and the network calls."""
    from ddim.calibration.calibration import calibrate, teach, work_of
    from ddim.model.drawing import pick_batch_size

    size = pick_batch_size(model, options.run.batch_size)
    fit: dict[str, Any] = {"weights": options.weights, "moves": options.moves}
    draw: dict[str, Any] = {"seed": options.seed, "condition": condition, "batch_size": size}
    numbers = tuple(dict.fromkeys(options.calls))
    most = work_of(model, numbers, options.latents, size, **fit)
    found: dict[int, Calibration] = {}
    work, stage = 0, ""
    with meter(
        quiet=options.run.quiet, total=most, unit=" calls", unit_scale=True, desc="teacher"
    ) as shown:

        def watch(name: str, done: int) -> None:
            nonlocal work
            work += done
            shown.set_description_str(f"{stage}{name}", refresh=False)
            shown.update(done)

        teachers = teach(model, max(numbers), options.latents, watch=watch, **draw)
        for calls in numbers:
            stage = f"{calls} calls: "
            found[calls] = calibrate(
                model, calls, latents=options.latents, teachers=teachers, watch=watch, **fit, **draw
            )
            _write(path, model, found[calls], options, size)
    return found, work


def _write(
    path: Path, model: Model, found: Calibration, options: CalibrateOptions, size: int
) -> None:
    from ddim.checkpoints.calibration import write_calibration

    condition = options.condition
    facts: dict[str, object] = {
        "rms": {name: [round(v, 6) for v in pair] for name, pair in found.errors.items()},
        "latents": list(found.counts),
        "seed": options.seed,
        "moves": options.moves,
        "teacher": len(found.teacher) - 1,
        "batch_size": size,
        "backend": model.runs_on,
    }
    if condition.labels:
        facts["labels"] = list(condition.labels)
    if condition.guidance != 1:
        facts["guidance"] = condition.guidance
    if condition.clip is not None:
        facts["clip"] = condition.clip
    moments = found.teacher, found.moments, found.counts[0]
    write_calibration(path, model.identity, model.schedule, found.sampler, moments, facts)


def _rows(calibration: Calibration) -> list[dict[str, object]]:
    base = calibration.errors["ddim"][0]
    return [
        {
            "sampler": "ddim, dynamic programming" if name == "dynamic programming" else name,
            "median RMS": round(median, 4),
            # The few images that end as something else decide the mean: it has one digit.
            "mean RMS": float(f"{mean:.1g}"),
            "of ddim": round(median / base, 3),
        }
        for name, (median, mean) in calibration.errors.items()
    ]


def _json(calibration: Calibration) -> dict[str, object]:
    sampler = calibration.sampler
    return {
        "nodes": list(sampler.nodes),
        "method": sampler.method,
        "options": dict(sampler.settings),
        "rms": {name: list(pair) for name, pair in calibration.errors.items()},
        "dynamic_programming": list(calibration.path),
        "latents": list(calibration.counts),
    }
