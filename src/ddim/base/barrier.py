"""Work that takes each process of a job as long as it takes: they tell each other they live."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from ddim.base.errors import RunError
from ddim.base.ranks import Ranks, answering

__all__ = ["barrier"]

_PAUSE = 0.5
"""Most seconds between two signs of life."""


@contextlib.contextmanager
def barrier(ranks: Ranks) -> Iterator[None]:
    """Wait at the end of the context until every process has come to the end of its own.

    The job's timeout bounds one exchange, and a save of a large state or a download may well take
    longer. Here a thread of each process tells the others that it lives. So a process may take any
    time as long as it is alive, and one that dies or stops fails the others within the timeout.
    In the context nothing else is exchanged.

    Args:
        ranks: the job's processes; one alone has nobody to wait for.

    Raises:
        RunError: another process has failed in its context, has died, or does not answer.
    """
    if ranks.count == 1:
        yield
        return
    beat = _Beat(ranks)
    beat.thread.start()
    try:
        yield
        beat.failed = False
    finally:
        beat.ended.set()
        beat.thread.join()
    if beat.error is not None:
        raise beat.error


class _Beat:
    """The thread, and what it has learned of the others."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.failed = ranks, True
        self.ended = threading.Event()
        self.error: RunError | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self._exchange()
        except RunError as error:
            self.error = error

    def _exchange(self) -> None:
        import torch
        import torch.distributed as dist

        pause = 0.001
        while True:
            mine = self.ended.is_set()
            sums = torch.tensor([mine, mine and self.failed], dtype=torch.int64)
            with answering(self.ranks):
                dist.all_reduce(sums)
            ended, failed = sums.tolist()
            if failed:
                raise RunError(
                    f"process {self.ranks.rank} of {self.ranks.count} ends because another one has "
                    "failed, which says why"
                )
            if ended == self.ranks.count:
                return
            if mine:
                time.sleep(pause)
            else:
                self.ended.wait(pause)
            pause = min(2 * pause, _PAUSE)
