"""``ddim evaluate``: what each saved step costs."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ddim.base.checksum import digest
from ddim.base.errors import InputError
from ddim.base.files import refuse_existing
from ddim.base.progress import meter
from ddim.cli.options import listed, numbers, parse
from ddim.cli.reference import ReferenceOptions, held_out, real_images
from ddim.cli.report import print_json, record, table
from ddim.cli.sampler import RunOptions, open_model
from ddim.cli.sweep_report import BITS, sweep_facts, write_sweep

if TYPE_CHECKING:
    from ddim.evaluate.features.extractor import Extractor
    from ddim.evaluate.likelihood.bits import BitsPerDimension
    from ddim.evaluate.sweep.cells import Cell
    from ddim.evaluate.sweep.sweep import Sweep
    from ddim.model.model import Model

__all__ = ["EvaluateOptions", "main"]


@dataclasses.dataclass(frozen=True)
class EvaluateOptions(RunOptions, ReferenceOptions):
    """Measure samplers of a model: quality against steps, η, methods and nodes.

    A cell for every combination of --steps, --eta (DDIM's), --methods and --nodes, each measured on
    -n images for every one of --seeds. --output is a folder: report.html opens offline; results.md,
    .csv and .json have the numbers, quality.png the plot. The same command goes on with a sweep
    that was interrupted, or adds cells to it. Lists are written 5,10,20 or 5 10 20.
    """

    model: str = "mnist"
    """A shipped model's name, a model folder, a training run or its checkpoint."""
    steps: tuple[str, ...] = ("5", "10", "20", "50")
    """Numbers of steps; a number that T is less than is taken for T."""
    eta: tuple[str, ...] = ("0",)
    """DDIM's η, one or more; sigma-hat is DDPM's larger variance."""
    methods: tuple[str, ...] = ("ddim",)
    """Samplers; `METHOD:KEY=VALUE` sets an option, as in dpmpp:order=3."""
    nodes: tuple[str, ...] = ("uniform",)
    """Families of nodes; calibrated are those that `ddim calibrate` found, with their method."""
    n: Annotated[int, tyro.conf.arg(aliases=("-n",))] = 10_000
    """Images of each cell and seed."""
    seeds: tuple[str, ...] = ("0",)
    """Seeds of the noise; with several, means and standard deviations are shown."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network; the states are float32."""
    teacher: int = 16
    """On how many images solver error is measured, against the model's own solution; 0 for none."""
    bits: int = 0
    """Of how many test images of --data bits per dimension are measured; 0 for none."""
    inception: str | None = None
    """The published inception-2015-12-05.pt: measure the FID."""
    features: str | None = None
    """Your own features: MODULE:NAME of a function of images (N, C, H, W) in [-1, 1] that returns
    (N, D), of an Extractor, or of a function that makes one; or the folder of a classifier that
    scripts/train_classifier.py trained."""
    dry_run: bool = False
    """Say what there is to do, and do nothing."""
    output: str = "evaluation"
    """The folder."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`EvaluateOptions`."""
    options = parse(EvaluateOptions, "evaluate", argv)
    steps = numbers(options.steps, int, "--steps")
    seeds = numbers(options.seeds, int, "--seeds")
    etas = numbers(options.eta, float, "--eta", words=("sigma-hat",))
    if options.n < 2:
        raise InputError(f"-n must be at least 2, not {options.n}")
    if not (steps and seeds):
        raise InputError("--steps and --seeds need at least one number each")
    if options.bits < 0:
        raise InputError(f"--bits must not be negative: {options.bits}")
    if options.bits and not options.data:
        raise InputError("--bits is of real test images: give --data")
    if options.bits and options.dtype != "float32":
        # A path's density is a difference of two outputs that are nearly the same.
        raise InputError(f"--bits needs the network in float32, not in {options.dtype}")
    if min(seeds) < 0:
        raise InputError(f"--seeds must not be negative: {min(seeds)}")
    if options.inception and options.features:
        raise InputError("--inception and --features are two kinds of features: give one")
    output = Path(options.output)
    # Real images are measured first: what an interruption left of them is gone on with.
    begun = [path for path in output.glob("*") if path.suffix != ".safetensors"]
    if begun and not (output / "sweep.json").exists():
        refuse_existing(output, force=options.force)

    from ddim.evaluate.likelihood.bits import BitsPerDimension
    from ddim.evaluate.sweep.cells import plan_cells
    from ddim.evaluate.sweep.sweep import Sweep
    from ddim.model.drawing import pick_batch_size

    model = open_model(options.model, options, options.dtype)
    batch_size = pick_batch_size(model, options.batch_size)
    cells = plan_cells(model, steps, etas, listed(options.methods), listed(options.nodes))
    extractor = _extractor(options, model)
    density = None
    if options.bits:
        density = BitsPerDimension(
            model,
            held_out(options, model),
            options.bits,
            output / "bits.json",
            batch_size=batch_size,
            anew=options.force,
        )
    reference, floor, notes = real_images(options, model, extractor)
    notes += _left_out(cells, steps)
    sweep = Sweep(
        model,
        cells,
        output,
        extractor,
        reference,
        n=options.n,
        seeds=seeds,
        floor=floor,
        teacher=options.teacher,
        batch_size=batch_size,
        anew=options.force,
    )
    if options.dry_run:
        print(_ahead(sweep, density, model, batch_size))
        return 0
    sweep.begin()
    record(output, "evaluate", options.resolved(batch_size=batch_size), model=model.name)
    facts = sweep_facts(options, sweep)
    if not options.quiet and (sweep.work() or (density is not None and density.left)):
        print(_ahead(sweep, density, model, batch_size), file=sys.stderr)
    bits = None
    if density is not None:
        _measure_bits(density, options.quiet)
        bits = {name: dataclasses.asdict(f) for name, f in density.figures().items()}
        facts[BITS] = str(density)
    left = sweep.work()
    if left:
        _run(sweep, left, options.quiet, lambda: write_sweep(output, sweep, facts, notes, bits))
    results = sweep.results()
    document = write_sweep(output, sweep, facts, notes, bits)
    if options.json:
        print_json(document)
        return 0
    from ddim.evaluate.sweep import report

    one = report.table_one(results)
    if one:
        print(f"{results[0].summary.distance} by η and steps, N = {options.n:,}\n\n{table(one)}\n")
    print(table(report.compact(results)))
    if bits is not None:
        print(f"\n{BITS}: {facts[BITS]}")
    for note in document["notes"]:
        print(f"\n{note}")
    print(f"\n{output / 'report.html'}: everything, with plots and pictures")
    return 0


def _left_out(cells: Sequence[Cell], steps: Sequence[int]) -> list[str]:
    """A note on numbers of steps that the model is not calibrated for."""
    there = {cell.steps for cell in cells if cell.nodes == "calibrated"}
    missing = ", ".join(str(s) for s in steps if s not in there)
    return [f"The model is not calibrated for {missing} steps."] if there and missing else []


def _extractor(options: EvaluateOptions, model: Model) -> Extractor:
    from ddim.evaluate.features.extractor import Extractor, inception_extractor, lenet_extractor

    if options.inception:
        return inception_extractor(options.inception, model.device)
    if options.features and Path(options.features).is_dir():
        return lenet_extractor(model.device, options.features)
    if options.features:
        module, colon, name = options.features.partition(":")
        if not colon:
            raise InputError(f"--features is MODULE:NAME or a folder, not {options.features!r}")
        sys.path.insert(0, str(Path.cwd()))
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise InputError(f"--features {options.features}: {error}") from None
        finally:
            sys.path.pop(0)
        if callable(found) and not isinstance(found, Extractor):
            found = _called(found, options.features, model)
        if not isinstance(found, Extractor):
            raise InputError(
                f"--features {options.features} is no Extractor (ddim.evaluate.features.extractor)"
            )
        return found
    if model.shape != (1, 28, 28):
        raise InputError(
            f"{model.name} has images of shape {model.shape}, which the shipped classifier "
            "does not read: give --inception or --features"
        )
    return lenet_extractor(model.device)


def _called(function: Any, name: str, model: Model) -> object:
    """What a function without parameters returns; or an extractor made of a function of images."""
    import torch

    from ddim.evaluate.features.extractor import Extractor, Identity

    try:
        parameters = inspect.signature(function).parameters.values()
        needed = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        if not needed:
            return function()
        trial = function(torch.zeros(2, *model.shape, device=model.device))
    except Exception as error:
        raise InputError(f"--features {name}: {type(error).__name__}: {error}") from error
    if not isinstance(trial, torch.Tensor) or trial.ndim != 2 or len(trial) != 2:
        shape = tuple(trial.shape) if isinstance(trial, torch.Tensor) else type(trial).__name__
        raise InputError(f"--features {name} must return features (N, D) of N images, not {shape}")
    # The file that it is in stands for what it does, as the weights do for a network's.
    source = inspect.getsourcefile(inspect.unwrap(function))
    sha256 = digest(Path(source)) if source is not None else ""
    identity = Identity(function.__name__, "images in [-1, 1]", trial.shape[1], sha256=sha256)
    return Extractor(identity, lambda images: (function(images), None))


def _run(sweep: Sweep, left: int, quiet: bool, write) -> None:
    with meter(quiet=quiet, total=left, unit=" calls", unit_scale=True) as progress:
        before = None
        for cell, calls in sweep.run():
            if cell != before and before is not None:
                write()
            before = cell
            progress.set_description("teacher" if cell is None else cell.key, refresh=False)
            progress.update(calls)


def _measure_bits(density: BitsPerDimension, quiet: bool) -> None:
    with meter(quiet=quiet, total=density.left, desc="bits", unit=" images") as progress:
        for done in density.run():
            progress.update(done)


def _ahead(sweep: Sweep, density: BitsPerDimension | None, model: Model, batch_size: int) -> str:
    """The work that is left, in network calls, GFLOP and hours on this machine."""
    import torch

    from ddim.evaluate.likelihood.bits import image_calls
    from ddim.model.inputs import check_labels
    from ddim.nets.unet import UNet, count_flops

    labels = check_labels(model, None if model.classes is None else [0] * batch_size, batch_size)
    denoiser = model.denoiser(None if labels is None else labels.to(model.device))
    x = torch.zeros(batch_size, *model.shape, device=model.device)
    level = model.schedule.level(model.schedule.T)
    times = []
    with torch.no_grad():
        for _ in range(3):
            start = time.perf_counter()
            denoiser(x, level).x0.sum().item()
            times.append(time.perf_counter() - start)
    calls = sweep.work()
    if density is not None:
        calls += density.left * image_calls(model)
    hours = calls / batch_size * min(times) / 3600
    flops = ""
    if isinstance(model.net, UNet):
        flops = f" of {count_flops(model.net) / 1e9:.3g} GFLOP"
        flops += f", {calls * count_flops(model.net) / 1e9:,.0f} GFLOP in all"
    count = f"{len(sweep.cells)} samplers x {len(sweep.seeds)} seeds x {sweep.n:,} images"
    if density is not None:
        count += f", bits of {density.count:,}"
    return f"{count}: {calls:,} network calls{flops}; about {hours:.2g} hours here"
