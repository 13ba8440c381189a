"""A batch that does not fit into memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ddim.base.device import out_of_memory
from ddim.base.errors import RunError

__all__ = ["enough_memory"]


@contextlib.contextmanager
def enough_memory(batch_size: int) -> Iterator[None]:
    """Say what would need less, where batches of that size need more than there is.

    Raises:
        RunError: so it is.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        advice = "a smaller one takes less, and gives the images other last bits"
        if batch_size == 1:
            advice = "there is none smaller; a network in bfloat16 takes less"
        raise RunError(f"out of memory with a batch size of {batch_size}: {advice}") from error
