"""``ddim train``."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from ddim.base.errors import InputError, RunError
from ddim.base.files import refuse_existing
from ddim.base.progress import meter
from ddim.base.ranks import here
from ddim.cli.groups import OutputOptions, ReportOptions, Switch, unset
from ddim.cli.options import flat, parse, replaced
from ddim.cli.report import print_json, record
from ddim.train.config import (
    PRESETS,
    Data,
    Diffusion,
    Network,
    Optimisation,
    Record,
    TrainConfig,
)

if TYPE_CHECKING:
    from types import FrameType

    from ddim.train.loop import TrainStep
    from ddim.train.run import Run

__all__ = ["TrainOptions", "main"]


@dataclasses.dataclass(frozen=True)
class TrainData(Data):
    """Which images."""

    data: Annotated[str, unset("the preset's")] = ""


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Train a model on images.

    The folder --output gets metrics.jsonl, checkpoints, sample grids and model/, a folder that
    diffusers opens too. A run that was interrupted, or killed, is resumed by --resume and comes to
    the same weights, bit for bit. `ddim train --preset NAME --help` shows a preset's values.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "ddim train --preset mnist --output runs/mnist",
        "ddim train --data photos/ --size 32 --channels 64 128 128 --output runs/photos",
    )

    preset: Annotated[str | None, unset("none", "NAME")] = None
    """Where options start: mnist, mnist-cond, fashion, digits; as published: cifar10, celeba."""
    data: TrainData = TrainData()
    network: Network = Network()
    diffusion: Diffusion = Diffusion()
    optimisation: Optimisation = Optimisation()
    record: Record = Record()
    output: OutputOptions = OutputOptions(output="run")
    resume: Switch = False
    """Resume from the folder's checkpoint, with its configuration."""
    report: ReportOptions = ReportOptions()

    @classmethod
    def of(cls, config: TrainConfig) -> TrainOptions:
        """The options that say a configuration."""
        return replaced(cls(), **flat(config))

    def config(self) -> TrainConfig:
        """What is to be run.

        Raises:
            InputError: as :class:`ddim.TrainConfig`.
        """
        values = flat(self)
        return TrainConfig.from_json({key: values[key] for key in flat(TrainConfig())})

    def check(self) -> None:
        """Refuse a new run without data, or over what is there.

        Raises:
            InputError: either.
        """
        if not self.data.data:
            raise InputError(f"say what to train: --preset ({', '.join(PRESETS)}) or --data")
        refuse_existing(Path(self.output.output), force=self.output.force)


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`TrainOptions`."""
    options = _parsed(argv)
    if options.resume:
        options = _resumed(argv, options)
    else:
        options.check()
    config = options.config()

    from ddim.train.run import Run

    output = Path(options.output.output)
    run = Run(config, output, resume=options.resume)
    record(output, "train", replaced(options, preset=None, resume=False))
    quiet = options.report.quiet or not here().first
    if not quiet:
        _warn(run)
    with _interruptible(quiet) as received, _advising(output):
        for _ in _bar(run, run.steps(lambda: bool(received)), quiet):
            pass
    # A signal may have come to another process alone.
    return 0 if _tell(options, run) else 128 + (received or [signal.SIGTERM])[0]


def _parsed(argv: Sequence[str]) -> TrainOptions:
    """The options, over those of the preset that they name."""
    plain = [argument for argument in argv if argument not in ("-h", "--help")]
    options, base = parse(TrainOptions, "train", plain), None
    if options.preset is not None:
        config = TrainConfig.preset(options.preset)
        if not options.diffusion.has_beta:  # what the preset says of β is of its own schedule
            plain_beta = {"beta_start": Diffusion.beta_start, "beta_end": Diffusion.beta_end}
            config = dataclasses.replace(config, **plain_beta)
        base = TrainOptions.of(config)
    return parse(TrainOptions, "train", argv, base)


def _resumed(argv: Sequence[str], options: TrainOptions) -> TrainOptions:
    """The options of the run that was begun under this call's, if these touch what may change only.

    A run that was killed before its first checkpoint begins again.
    """
    from ddim.train.checkpoint import check_resumed
    from ddim.train.run import CHECKPOINT

    output = Path(options.output.output)
    if options.output.force:
        raise InputError("--resume goes on with what is there, --force begins anew: give one")
    begun = _begun(output)
    if begun is None and not options.data.data:
        raise InputError(f"there is nothing to resume: {output / CHECKPOINT} does not exist")
    speaks = here().first and not options.report.quiet
    if speaks and not (output / CHECKPOINT).exists():
        print(f"ddim train: {output} has no checkpoint yet: it begins at step 0", file=sys.stderr)
    if begun is None:
        return options
    again = parse(TrainOptions, "train", argv, TrainOptions.of(begun))
    check_resumed(begun, (again if options.preset is None else options).config())
    return again


def _begun(output: Path) -> TrainConfig | None:
    """The configuration of the run in a folder: of its checkpoint, or as it was recorded first.

    Raises:
        InputError: something else stands there.
    """
    from ddim.checkpoints.training import read_training
    from ddim.train.checkpoint import saved_config
    from ddim.train.run import CHECKPOINT, RECORD

    if (output / CHECKPOINT).exists():
        return saved_config(read_training(output / CHECKPOINT))
    if (output / RECORD).exists():
        return parse(TrainOptions, "train", ["--config", str(output / RECORD)]).config()
    if output.is_file() or (output.is_dir() and any(p.name[0] != "." for p in output.iterdir())):
        raise InputError(f"{output} is no training that could be resumed: give another --output")
    return None


def _warn(run: Run) -> None:
    """Say what makes the run slower than it need be."""
    from ddim.base.device import slow_in_bfloat16

    if run.config.precision == "bfloat16" and slow_in_bfloat16(run.device):
        print(
            "ddim train: this CPU has no bfloat16 arithmetic, and training takes some ten times as "
            "long as with --precision float32",
            file=sys.stderr,
        )


@contextlib.contextmanager
def _advising(output: Path) -> Iterator[None]:
    """Name the command by which a run that was too large for the memory goes on."""
    from ddim.train.memory import OutOfMemory

    try:
        yield
    except OutOfMemory as error:
        if error.accumulate is None:
            raise
        command = f"ddim train --resume --accumulate {error.accumulate} --output {output}"
        raise RunError(f"{error}: {command}") from error


def _tell(options: TrainOptions, run: Run) -> bool:
    """Say how far the run has come; whether that is the end."""
    output, step, total = options.output.output, run.state.step, run.config.steps
    images = step * run.config.batch_size
    if options.report.json:
        loss = None if math.isnan(run.metrics.loss) else run.metrics.loss
        facts = {"output": output, "finished": step >= total, "steps": step}
        if run.config.skip_bad_batches:
            facts["skipped"] = run.state.skipped
        print_json({**facts, "images": images, "loss": loss})
    elif step >= total:
        skipped = f", {run.state.skipped} steps skipped" if run.config.skip_bad_batches else ""
        print(f"{output}: trained on {images} images{skipped}")
    if step >= total:
        return True
    if not here().first:
        return False
    print(
        f"ddim train: stopped at step {step} of {total}; "
        f"resume with: ddim train --resume --output {output}",
        file=sys.stderr,
    )
    return False


def _bar(run: Run, steps: Iterator[TrainStep], quiet: bool) -> Iterator[TrainStep]:
    size, total = run.config.batch_size, run.config.steps
    progress = meter(
        quiet=quiet,
        desc="train",
        total=total * size,
        initial=run.state.step * size,
        unit=" images",
        unit_scale=True,
    )
    with progress:
        for step in steps:
            progress.set_postfix(step=step.step, loss=round(run.metrics.loss, 5), refresh=False)
            progress.update(size)
            yield step


@contextlib.contextmanager
def _interruptible(quiet: bool) -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, so that the step in hand is finished; a second one ends that.

    Of several processes each may be sent SIGTERM twice, by the batch system and by torchrun: there
    only a second SIGINT does.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if not quiet:
            print("\nddim train: finishing the step and saving", file=sys.stderr)
        if here().count == 1 or number == signal.SIGINT:
            signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
