"""Jobs in turn over the processes of a torchrun job, and their ends exchanged."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch.serialization import default_restore_location

from ddim.backends.workers import side_by_side
from ddim.base.ranks import Ranks

__all__ = ["over_ranks"]

T = TypeVar("T")
_OVER: Any = object()
"""What a job yields last."""


def over_ranks(
    job: Callable[[int], Iterable[T]],
    count: int,
    workers: int,
    *,
    ends: Callable[[T], bool],
    ranks: Ranks,
    device: torch.device,
    alone: Callable[[bool], bool | None] | None = None,
) -> Generator[T, None, None]:
    """Run jobs side by side in several processes, process r of N the jobs r, r + N and so on.

    What ends a job is given to every process, in the order of the jobs, so that all come to the
    results of one that does all jobs. The rest is yielded where it happens alone. The processes
    exchange after each N jobs, while their workers go on; an error in one ends all
    (:meth:`~ddim.base.ranks.Ranks.together`).

    Args:
        job: as for :func:`~ddim.backends.workers.side_by_side`, the same in every process.
        count: how many jobs there are, of all processes.
        workers: threads of this process.
        ends: whether that is what a job was run for: something that pickle takes.
        ranks: the processes.
        device: where this one keeps what was on an accelerator in another.
        alone: as for :func:`~ddim.backends.workers.side_by_side`.
    """
    own = ranks.own(count)

    def one(turn: int) -> Iterator[T]:
        yield from job(own[turn])
        yield _OVER

    def kept(item: T) -> bool:
        return item is _OVER or ends(item)

    events = side_by_side(one, len(own), workers, ends=kept, alone=alone)
    with contextlib.closing(events), ranks.together():
        for turn in range(-(-count // ranks.count)):
            ended: list[T] = []
            while turn < len(own) and (item := next(events)) is not _OVER:
                if ends(item):
                    ended.append(item)
                else:
                    yield item
            for part in ranks.gather(_packed(ended)):
                yield from _unpacked(part, device)


def _packed(items: list[T]) -> bytes:
    """Anything with tensors in it, their strides kept: they can decide the last bits."""
    buffer = io.BytesIO()
    torch.save(items, buffer)
    return buffer.getvalue()


def _unpacked(data: bytes, device: torch.device) -> list[Any]:
    def placed(storage: Any, location: str) -> Any:
        there = "cpu" if location == "cpu" else str(device)
        return default_restore_location(storage, there)

    # What the other processes of this job have made, which run the same code.
    return torch.load(io.BytesIO(data), map_location=placed, weights_only=False)
