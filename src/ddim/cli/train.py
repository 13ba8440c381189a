"""``ddim train``."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ddim.base.errors import InputError
from ddim.base.files import refuse_existing
from ddim.base.progress import meter
from ddim.cli.options import parse
from ddim.cli.report import print_json, record
from ddim.train.config import PRESETS, TrainConfig

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["TrainOptions", "main"]


@dataclasses.dataclass(frozen=True)
class TrainOptions(TrainConfig):
    """Train a model on images.

    --preset NAME sets every option below to that preset's: mnist, mnist-cond, fashion, digits,
    cifar10, celeba (the last two are the official configurations). The folder --output gets
    metrics.jsonl, checkpoints, sample grids and model/, a folder that diffusers opens too. A run
    that was interrupted, or killed, goes on with --resume to the same weights, bit for bit.
    """

    output: str = "run"
    """The run's folder."""
    resume: bool = False
    """Go on from the folder's checkpoint, with its configuration."""
    force: bool = False
    """Begin anew in a folder that holds a run."""
    json: bool = False
    """Print a JSON document at the end."""
    quiet: bool = False
    """No progress bar."""


_RUN = ("output", "resume", "force", "json", "quiet")
# What may change when a run goes on: none of it touches what has been learnt. More images move the
# end, and with it the fall of the learning rate.
_FREE = ("data_root", "data", "images", "save_every", "sample_every", "tensorboard")


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`TrainOptions`."""
    argv, preset = _take(list(argv), "--preset")
    base = TrainConfig() if preset is None else TrainConfig.preset(preset)
    options = parse(TrainOptions, "train", argv, TrainOptions(**base.to_json()))
    if options.resume:
        options = _resumed(argv, preset, options)
    else:
        if preset is None and not any(a.startswith(("--data", "--config")) for a in argv):
            raise InputError(f"say what to train: --preset ({', '.join(PRESETS)}) or --data")
        refuse_existing(Path(options.output), force=options.force)
    values = {k: v for k, v in options.to_json().items() if k not in _RUN}
    config = TrainConfig.from_json(values)

    from ddim.train.run import Run

    run = Run(config, Path(options.output), resume=options.resume)
    resolved = dataclasses.replace(options, resume=False, force=False, json=False, quiet=False)
    record(Path(options.output), "train", resolved)
    with _interruptible(options.quiet) as stopped:
        steps = run.steps()
        for step in _bar(run, steps, options.quiet):
            if stopped and step.step < config.steps:
                steps.close()  # saves
                break
    done = run.state.step >= config.steps
    if options.json:
        print_json(
            {
                "output": options.output,
                "finished": done,
                "steps": run.state.step,
                "images": run.state.step * config.batch_size,
                "loss": None if math.isnan(run.loss) else run.loss,
            }
        )
    elif done:
        print(f"{options.output}: trained on {run.state.step * config.batch_size} images")
    if not done:
        print(
            f"ddim train: stopped at step {run.state.step} of {config.steps}; "
            f"go on with: ddim train --resume --output {options.output}",
            file=sys.stderr,
        )
        return 130
    return 0


def _take(argv: list[str], flag: str) -> tuple[list[str], str | None]:
    for i, argument in enumerate(argv):
        if argument == flag and i + 1 < len(argv):
            return argv[:i] + argv[i + 2 :], argv[i + 1]
        if argument.startswith(f"{flag}="):
            return argv[:i] + argv[i + 1 :], argument.partition("=")[2]
        if argument == flag:
            raise InputError(f"{flag} needs a name: {', '.join(PRESETS)}")
    return argv, None


def _resumed(argv: list[str], preset: str | None, options: TrainOptions) -> TrainOptions:
    """The saved configuration under this call's flags, if they only touch what may change."""
    from ddim.train.checkpoint import read_checkpoint
    from ddim.train.run import CHECKPOINT

    path = Path(options.output) / CHECKPOINT
    if not path.exists():
        raise InputError(f"there is nothing to resume: {path} does not exist")
    saved = read_checkpoint(path).config
    again = parse(TrainOptions, "train", argv, TrainOptions(**saved.to_json()))
    wanted = again if preset is None else options
    for field in dataclasses.fields(TrainConfig):
        before, now = getattr(saved, field.name), getattr(wanted, field.name)
        if before != now and field.name not in _FREE:
            raise InputError(f"the run was begun with {field.name} = {before}, not {now}")
    return again


def _bar(run, steps: Iterator, quiet: bool) -> Iterator:
    size, total = run.config.batch_size, run.config.steps
    progress = meter(
        quiet=quiet,
        total=total * size,
        initial=run.state.step * size,
        unit=" images",
        unit_scale=True,
    )
    with progress:
        for step in steps:
            progress.set_postfix_str(f"loss {run.loss:.4f}", refresh=False)
            progress.update(size)
            yield step


@contextlib.contextmanager
def _interruptible(quiet: bool) -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, so that the step in hand is finished; a second one kills."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if not quiet:
            print("\nddim train: finishing the step and saving", file=sys.stderr)
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
