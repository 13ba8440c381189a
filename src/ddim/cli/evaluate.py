"""``ddim evaluate``: what each saved step costs."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from ddim.base.checksum import digest
from ddim.base.code import is_named, load_named
from ddim.base.errors import InputError, quoted
from ddim.base.files import refuse_existing
from ddim.base.progress import meter
from ddim.base.ranks import here
from ddim.cli.groups import (
    Count,
    ModelOptions,
    OutputOptions,
    RunOptions,
    SweepOptions,
    Switch,
    unset,
)
from ddim.cli.options import numbers, parse, replaced
from ddim.cli.reference import RealImages, ReferenceOptions
from ddim.cli.report import print_json, record, table
from ddim.cli.sweep_report import BITS, sweep_facts, write_sweep

if TYPE_CHECKING:
    from ddim.evaluate.features.extractor import Extractor
    from ddim.evaluate.likelihood.bits import BitsPerDimension
    from ddim.evaluate.sweep.sweep import Sweep
    from ddim.model.model import Model

__all__ = ["EvaluateOptions", "main"]


@dataclasses.dataclass(frozen=True)
class FeatureOptions:
    """What images are measured by."""

    inception: Annotated[str | None, unset("none", "FILE")] = None
    """The published inception-2015-12-05.pt: measure the FID."""
    features: Annotated[str | None, unset("the shipped classifier", "FILE.py:NAME|FOLDER")] = None
    """Your own features: a function of images (N, C, H, W) in [-1, 1] that returns (N, D), an
    Extractor, or a function that makes one; or the folder of a classifier that
    scripts/train_classifier.py trained."""


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Measure samplers of a model: quality against steps, η, methods and nodes.

    Every combination of --methods, --steps, --nodes and --eta (DDIM's) is measured on -n images for
    every one of --seeds. --output is a folder: report.html opens offline; results.md, .csv and
    .json have the numbers, and, where matplotlib is installed, quality.png the plot. The same
    command resumes a sweep that was interrupted, and others add samplers to it. Lists are written
    5,10,20 or 5 10 20.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "ddim evaluate --steps 5,10,20 --eta 0,1 -n 1000",
        "ddim evaluate --data FOLDER --methods ddim dpmpp:order=3 --steps 10 --seeds 0,1,2",
    )

    n: Count = 10_000
    """Images of each sampler and seed."""
    seeds: Annotated[tuple[int, ...], unset("none", "INT ...")] = (0,)
    """Seeds of the noise; with several, means and standard deviations are shown."""
    teacher: int = 16
    """On how many images solver error is measured, against the model's own solution; 0 for none."""
    bits: int = 0
    """Of how many test images of --data bits per dimension are measured; 0 for none."""
    dry_run: Switch = False
    """Say what there is to do, and do nothing."""
    model: ModelOptions = ModelOptions()
    sweep: SweepOptions = SweepOptions()
    real: ReferenceOptions = dataclasses.field(default_factory=ReferenceOptions)
    extractor: FeatureOptions = dataclasses.field(default_factory=FeatureOptions)
    output: OutputOptions = OutputOptions(output="evaluation")
    run: RunOptions = RunOptions()

    def check(self) -> Path:
        """The folder, if it is one that can be written.

        Raises:
            InputError: it is not, or other options contradict it.
        """
        if self.n < 2:
            raise InputError(f"-n must be at least 2, not {self.n}")
        if not self.seeds:
            raise InputError("--seeds needs at least one number")
        if min(self.seeds) < 0:
            raise InputError(f"--seeds must not be negative: {min(self.seeds)}")
        if self.teacher < 0:
            raise InputError(f"--teacher must not be negative: {self.teacher}")
        if self.bits < 0:
            raise InputError(f"--bits must not be negative: {self.bits}")
        if self.bits and not self.real.data:
            raise InputError("--bits is of real test images: give --data")
        if self.bits and self.model.dtype != "float32":
            # A path's density is a difference of two outputs that are nearly the same.
            raise InputError(f"--bits needs the network in float32, not in {self.model.dtype}")
        if self.extractor.inception and self.extractor.features:
            raise InputError("--inception and --features are two kinds of features: give one")
        output = Path(self.output.output)
        # Real images are measured first: what an interruption left of them is used again.
        begun = [p for p in output.glob("[!.]*") if p.suffix != ".safetensors"]
        if begun and not (output / "sweep.json").exists():
            refuse_existing(output, force=self.output.force)
        return output


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`EvaluateOptions`."""
    options = parse(EvaluateOptions, "evaluate", argv)
    output = options.check()
    model = options.model.open(options.run)
    sweep, density, notes = _prepared(options, output, model)
    if options.dry_run:
        print(_ahead(sweep, density))
        return 0
    sweep.begin()
    resolved = replaced(options, batch_size=sweep.batch_size, backend=sweep.model.runs_on)
    record(output, "evaluate", resolved, model=model.name)
    facts = sweep_facts(options, sweep)
    if not options.run.quiet and (sweep.work() or (density is not None and density.left)):
        print(_ahead(sweep, density), file=sys.stderr)
    bits = None
    if density is not None:
        _measure_bits(density, options.run.quiet)
        bits = {name: dataclasses.asdict(f) for name, f in density.figures().items()}
        facts[BITS] = str(density)

    def write() -> dict[str, Any] | None:
        # What it reads the first process has written, and the others may not see yet.
        return write_sweep(output, sweep, facts, notes, bits) if here().first else None

    _run(sweep, options.run.quiet, write)
    document = write()
    if document is None:
        return 0
    if options.run.json:
        print_json(document)
    else:
        _tell(output, sweep, facts, document["notes"], document["plot"] is not None)
    return 0


def _prepared(
    options: EvaluateOptions, output: Path, model: Model
) -> tuple[Sweep, BitsPerDimension | None, list[str]]:
    """What is to be measured, and notes on it; nothing of a sweep is written yet."""
    from ddim.calibration.calibration import made_for
    from ddim.evaluate.likelihood.bits import BitsPerDimension
    from ddim.evaluate.sweep.plan import left_out
    from ddim.evaluate.sweep.sweep import Sweep
    from ddim.model.condition import Condition
    from ddim.model.drawing import pick_batch_size

    size, force = pick_batch_size(model, options.run.batch_size), options.output.force
    samplers = options.sweep.samplers(model)
    extractor = _extractor(options.extractor, model)
    real = RealImages(options.real, model, extractor, output, force, options.run.quiet)
    density = None
    if options.bits:
        density = BitsPerDimension(
            model, real.held_out(), options.bits, output / "bits.json", batch_size=size, anew=force
        )
    measured = real.planned(options.n) if options.dry_run else real.reference(options.n)
    reference, floor, notes = measured
    counts = numbers(options.sweep.steps, int, "--steps")
    notes += left_out(samplers, options.sweep.methods, counts)
    notes += filter(None, (made_for(model, sampler, Condition()) for sampler in samplers))
    sweep = Sweep(
        model,
        samplers,
        output,
        extractor,
        reference,
        n=options.n,
        seeds=options.seeds,
        floor=floor,
        teacher=options.teacher,
        batch_size=size,
        anew=force,
    )
    return sweep, density, notes


def _extractor(features: FeatureOptions, model: Model) -> Extractor:
    from ddim.evaluate.features.extractor import inception_extractor, lenet_extractor

    if features.inception:
        return inception_extractor(features.inception, model.device)
    if features.features and Path(features.features).is_dir():
        return lenet_extractor(model.device, features.features)
    if features.features:
        return _own_extractor(features.features, model)
    if model.shape != (1, 28, 28):
        raise InputError(
            f"{model.name} has images of shape {model.shape}, which the shipped classifier "
            "does not read: give --inception or --features"
        )
    return lenet_extractor(model.device)


def _own_extractor(source: str, model: Model) -> Extractor:
    """What the user's file has under a name."""
    from ddim.evaluate.features.extractor import Extractor

    if not is_named(source):
        raise InputError(f"--features is FILE.py:NAME or a folder, not {quoted(source)}")
    found, checksum = load_named(source)
    if callable(found) and not isinstance(found, Extractor):
        found = _called(found, source, checksum, model)
    if not isinstance(found, Extractor):
        raise InputError(
            f"--features {source} is no Extractor (ddim.evaluate.features.extractor), and no "
            "function of images"
        )
    return found


def _called(function: Any, source: str, checksum: str, model: Model) -> object:
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
        raise InputError(f"--features {source}: {type(error).__name__}: {error}") from error
    if not isinstance(trial, torch.Tensor) or trial.ndim != 2 or len(trial) != 2:
        shape = tuple(trial.shape) if isinstance(trial, torch.Tensor) else type(trial).__name__
        raise InputError(
            f"--features {source} must return features (N, D) of N images, not {shape}"
        )
    # The file that it is in stands for what it does, as the weights do for a network's.
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:  # an object, or a function in C
        file = None
    identity = Identity(
        getattr(function, "__name__", source.rpartition(":")[2]),
        "images in [-1, 1]",
        trial.shape[1],
        sha256=checksum if file is None else digest(Path(file)),
    )
    return Extractor(identity, lambda images: (function(images), None))


def _run(sweep: Sweep, quiet: bool, write: Callable[[], object]) -> None:
    """Measure what is left, and write what is known after every sampler but the last."""
    left = sweep.work()
    if not left:
        return
    with meter(quiet=quiet, total=left, unit=" calls", unit_scale=True) as progress:
        before = None
        for sampler, calls in sweep.run():
            if sampler != before and before is not None:
                write()
            before = sampler
            label = "teacher" if sampler is None else f"{sampler!s:.60}"
            progress.set_description(label, refresh=False)
            progress.update(calls)


def _measure_bits(density: BitsPerDimension, quiet: bool) -> None:
    with meter(quiet=quiet, total=density.left, desc="bits", unit=" images") as progress:
        for done in density.run():
            progress.update(done)


def _ahead(sweep: Sweep, density: BitsPerDimension | None) -> str:
    """The work that is left, in network calls, GFLOP and hours on this machine."""
    import torch

    from ddim.evaluate.likelihood.bits import image_calls
    from ddim.model.identity import bare
    from ddim.nets.unet import UNet, count_flops

    model, size = sweep.model, sweep.batch_size
    denoiser = model.denoiser(sweep.condition[[0] * size])
    x = torch.zeros(size, *model.shape, device=model.device)
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
    hours = calls / size * min(times) / 3600
    net, flops = bare(model.net), ""
    if isinstance(net, UNet):
        flops = f" of {count_flops(net) / 1e9:.3g} GFLOP"
        flops += f", {calls * count_flops(net) / 1e9:,.0f} GFLOP in all"
    count = f"{len(sweep.samplers)} samplers x {len(sweep.seeds)} seeds x {sweep.n:,} images"
    if density is not None:
        count += f", bits of {density.count:,}"
    return f"{count}: {calls:,} network calls{flops}; about {hours:.2g} hours here"


def _tell(
    output: Path, sweep: Sweep, facts: dict[str, object], notes: Sequence[str], plotted: bool
) -> None:
    from ddim.evaluate.sweep import report

    results = sweep.results()
    one = report.table_one(results)
    if one:
        print(f"{results[0].summary.distance} by η and steps, N = {sweep.n:,}\n\n{table(one)}\n")
    print(table(report.compact(results)))
    if BITS in facts:
        print(f"\n{BITS}: {facts[BITS]}")
    for note in notes:
        print(f"\n{note}")
    plots = "plots and " if plotted else ""
    print(f"\n{output / 'report.html'}: everything, with {plots}pictures")
