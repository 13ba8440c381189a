"""What a run says of itself while it trains: lines of JSON, and TensorBoard's events."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ddim.base.errors import InputError
from ddim.base.files import write_bytes
from ddim.train.config import TrainConfig
from ddim.train.loop import TrainStep

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["METRICS", "TENSORBOARD", "Metrics"]

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class Metrics:
    """The log of a run: a line every ``log_every`` steps, with the mean loss since the last one.

    Args:
        output: the run's folder.
        config: the run.

    Attributes:
        interval: sum and number of the losses since the last line, which a checkpoint keeps.
        loss: a running mean for people; NaN before the first step.

    Raises:
        InputError: TensorBoard is asked for and not installed.
    """

    def __init__(self, output: Path, config: TrainConfig) -> None:
        self.output, self.config = output, config
        self.interval, self.loss = [0.0, 0.0], math.nan
        self._kind = _board_class() if config.tensorboard else None
        self._board: SummaryWriter | None = None
        self._clock, self._from = 0.0, 0

    def begin(self, step: int) -> None:
        """Drop what was written of later steps than this one: they come again."""
        path = self.output / METRICS
        if path.exists():
            lines = path.read_bytes().split(b"\n")
            kept = [line + b"\n" for line in lines if 0 < _step(line) <= step]
            write_bytes(path, b"".join(kept))
        if self._kind is not None:
            seen = step * self.config.batch_size
            self._board = self._kind(str(self.output / TENSORBOARD), purge_step=seen + 1)
        self._clock, self._from = time.perf_counter(), step

    def add(self, step: TrainStep) -> None:
        """Count a step, and write a line if one is due."""
        self.interval[0] += step.loss
        self.interval[1] += 1
        self.loss = step.loss if math.isnan(self.loss) else self.loss
        self.loss += 0.02 * (step.loss - self.loss)  # for people: it jumps less
        if step.step % self.config.log_every == 0 or step.step == self.config.steps:
            self.write(step)

    def write(self, step: TrainStep) -> None:
        """A line."""
        now, size = time.perf_counter(), self.config.batch_size
        line = {
            "step": step.step,
            "images": step.step * size,
            "loss": self.interval[0] / self.interval[1],
            "grad_norm": step.grad_norm,
            "lr": step.lr,
            "images_per_s": round((step.step - self._from) * size / (now - self._clock), 1),
        }
        self.interval = [0.0, 0.0]
        self._clock, self._from = now, step.step
        with (self.output / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name in ("loss", "grad_norm", "lr", "images_per_s"):
                self._board.add_scalar(name, line[name], line["images"])

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What is done in here is no training, and does not count as slow."""
        begun = time.perf_counter()
        yield
        self._clock += time.perf_counter() - begun

    def picture(self, grid: Tensor, images: int) -> None:
        """Samples, after that many training images; for TensorBoard alone."""
        if self._board is not None:
            self._board.add_image("samples", grid, images)

    def flush(self) -> None:
        """Write what TensorBoard holds back."""
        if self._board is not None:
            self._board.flush()


def _step(line: bytes) -> int:
    """The step that a line is of; 0 where the line is damaged, as the last one of a kill is."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return 0
    return step if type(step) is int else 0


def _board_class() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("TensorBoard is not installed: pip install 'ddim[tensorboard]'") from None
    return SummaryWriter
