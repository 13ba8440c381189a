"""What a run says of itself while it trains: lines of JSON, and what others make of them."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from ddim.base.files import write_bytes
from ddim.base.ranks import here
from ddim.train.config import TrainConfig
from ddim.train.loop import TrainStep
from ddim.train.watchers import watchers

__all__ = ["METRICS", "Metrics"]

METRICS = "metrics.jsonl"


class Metrics:
    """The log of a run: a line every ``log_every`` steps, with the mean loss since the last one.

    Steps that were skipped have no part in that mean, which is null where all of them were. Of
    several processes the first writes.

    Args:
        output: the run's folder.
        config: the run.

    Attributes:
        interval: sum and number of the losses since the last line, which a checkpoint keeps.
        loss: a running mean for people; NaN before the first step.

    Raises:
        InputError: as :func:`~ddim.train.watchers.watchers`.
    """

    def __init__(self, output: Path, config: TrainConfig) -> None:
        self.output, self.config = output, config
        self.interval, self.loss = [0.0, 0.0], math.nan
        self._watchers = watchers(output, config)
        self._clock, self._from, self._skipped = 0.0, 0, 0

    def begin(self, step: int) -> None:
        """Drop what was written of later steps than this one: they come again."""
        path = self.output / METRICS
        if path.exists() and here().first:
            lines = path.read_bytes().split(b"\n")
            kept = [line + b"\n" for line in lines if 0 < _step(line) <= step]
            write_bytes(path, b"".join(kept))
        for watcher in self._watchers:
            watcher.begin(step)
        self._clock, self._from = time.perf_counter(), step

    def add(self, step: TrainStep, skipped: int = 0) -> None:
        """Count a step, and write a line if one is due.

        Args:
            step: the step.
            skipped: how many were skipped so far.
        """
        self._skipped = skipped
        if not step.skipped:
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
            "loss": self.interval[0] / self.interval[1] if self.interval[1] else None,
            "grad_norm": step.grad_norm if math.isfinite(step.grad_norm) else None,
            "lr": step.lr,
            "images_per_s": round((step.step - self._from) * size / (now - self._clock), 1),
        }
        if self.config.skip_bad_batches:
            line["skipped"] = self._skipped
        self.interval = [0.0, 0.0]
        self._clock, self._from = now, step.step
        if not here().first:
            return
        with (self.output / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for watcher in self._watchers:
            watcher.line(line)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What is done in here is no training, and does not count as slow."""
        begun = time.perf_counter()
        yield
        self._clock += time.perf_counter() - begun

    def picture(self, grid: Tensor, images: int) -> None:
        """Samples, after that many training images; for those who watch."""
        for watcher in self._watchers:
            watcher.picture(grid, images)

    def flush(self) -> None:
        """Write what is held back."""
        for watcher in self._watchers:
            watcher.flush()

    def close(self) -> None:
        """The run has ended, or stopped."""
        for watcher in self._watchers:
            watcher.close()


def _step(line: bytes) -> int:
    """The step that a line is of; 0 where the line is damaged, as the last one of a kill is."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return 0
    return step if type(step) is int else 0
