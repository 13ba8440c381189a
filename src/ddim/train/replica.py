"""The processes that train one network together, each on its part of every batch."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ddim.base.errors import InputError, RunError
from ddim.base.quiet import quiet
from ddim.base.ranks import Ranks, answering
from ddim.noise.draws import derive
from ddim.train.config import TrainConfig

__all__ = ["Replica", "check_batch", "gone"]

_GONE = re.compile(r"gloo|NCCL|pair closure|Connection (closed|reset)|[Tt]imed out", re.ASCII)
"""What torch says of an exchange that failed, among the other errors of a step."""


def check_batch(config: TrainConfig, ranks: Ranks) -> None:
    """Refuse batches that the processes cannot share equally.

    Raises:
        InputError: so it is; the nearest size that they can share is named.
    """
    parts = ranks.count * config.accumulate
    if config.batch_size % parts == 0:
        return
    each = f" in {config.accumulate} parts each" if config.accumulate > 1 else ""
    near = max(parts, round(config.batch_size / parts) * parts)
    raise InputError(
        f"{ranks.count} processes{each} cannot share batches of batch_size = {config.batch_size} "
        f"equally: give a multiple of {parts}, such as {near}"
    )


class Replica:
    """A network as one of the processes of a job sees it, or as it is where there is one alone.

    Each sees an equal, contiguous part of every batch. The gradients are averaged over the
    processes while they are computed, once a step.

    Args:
        net: the network, of equal weights in all processes; parameters that a step does not reach
            cannot be waited for.
        ranks: the processes.

    Raises:
        RunError: another process is gone.
    """

    def __init__(self, net: nn.Module, ranks: Ranks) -> None:
        self.ranks, self.net = ranks, net
        self._shared = None if ranks.count == 1 else _shared(net, ranks)
        if self._shared is not None:
            self.net = self._shared

    def part(self, size: int) -> slice:
        """Which images of a batch of that size are this process's."""
        own = size // self.ranks.count
        return slice(self.ranks.rank * own, (self.ranks.rank + 1) * own)

    def seed(self, seed: int, n: int) -> int:
        """Of the network's own randomness in step n: another one in each process."""
        return derive(seed, 2, n, *([self.ranks.rank] if self.ranks.rank else []))

    def apart(self) -> contextlib.AbstractContextManager[None]:
        """Gradients of a batch's parts but the last are not exchanged yet."""
        return contextlib.nullcontext() if self._shared is None else self._shared.no_sync()

    def mean(self, value: Tensor, stop: Callable[[], bool] | None) -> tuple[float, bool]:
        """The mean of a number over the processes, and whether any of them says to stop.

        A process alone is asked that after its step instead.

        Raises:
            RunError: another process is gone.
        """
        if self._shared is None:
            return value.item(), False
        says = stop is not None and stop()
        told = torch.stack([value.double(), value.new_tensor(float(says)).double()])
        with answering(self.ranks):
            torch.distributed.all_reduce(told)
        total, stops = told.tolist()
        return total / self.ranks.count, stops > 0

    def gather(self, images: list[int]) -> list[int]:
        """The images that the processes name, in their order."""
        return [image for own in self.ranks.gather(images) for image in own]

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Say in one line that another process is gone, where a step fails by that.

        Raises:
            RunError: so it is.
        """
        try:
            yield
        except RuntimeError as error:
            if self._shared is None or isinstance(error, RunError) or not gone(error):
                raise
            with answering(self.ranks):
                raise


def gone(error: BaseException) -> bool:
    """Whether an error of a step says that another process is gone."""
    return isinstance(error, RuntimeError) and bool(_GONE.search(str(error)))


def _shared(net: nn.Module, ranks: Ranks) -> nn.parallel.DistributedDataParallel:
    # A network's buffers stay each process's own: torch's name for that has changed, and it warns.
    with quiet(), answering(ranks):
        return nn.parallel.DistributedDataParallel(
            net, broadcast_buffers=False, gradient_as_bucket_view=True
        )
