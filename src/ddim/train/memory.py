"""A training step that does not fit into memory, and what takes less of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ddim.base.device import out_of_memory
from ddim.base.errors import RunError
from ddim.train.config import TrainConfig

__all__ = ["OutOfMemory", "enough_memory"]


class OutOfMemory(RunError):  # noqa: N818
    """A step did not fit into memory.

    Args:
        config: the run.
        n: the step, from 0.
        count: processes that share the batch.

    Attributes:
        accumulate: parts of a batch that take less of it; None where a part is one image already.
    """

    def __init__(self, config: TrainConfig, n: int, count: int = 1) -> None:
        size, parts, own = config.batch_size, config.accumulate, config.batch_size // count
        more = (parts for parts in range(parts + 1, own + 1) if own % parts == 0)
        self.accumulate = next(more, None)
        seen = (
            f", of which the network sees {own // parts} at a time" if own // parts < size else ""
        )
        advice = f"accumulate = {self.accumulate} takes less, for the same weights within rounding"
        if self.accumulate is None:
            advice = "train a smaller network or smaller images"
        super().__init__(
            f"out of memory at step {n + 1}, with a batch_size of {size}{seen}: {advice}"
        )


@contextlib.contextmanager
def enough_memory(config: TrainConfig, n: int, count: int = 1) -> Iterator[None]:
    """Say what would need less, where step n (from 0) needs more than there is.

    Args:
        config: the run.
        n: the step.
        count: processes that share the batch.

    Raises:
        OutOfMemory: so it is.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise OutOfMemory(config, n, count) from error
