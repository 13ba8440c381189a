"""The race: contestants under several settings, all timed in each round."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ddim.base.progress import meter
from ddim.evaluate.speed.busy import busy_process
from ddim.evaluate.speed.contestants import Contestant, threads
from ddim.evaluate.speed.plan import Plan
from ddim.evaluate.speed.timing import Spread, Timing, interleave, median, once, speedup

__all__ = ["SIZES", "Entry", "Result", "best_batch_size", "race"]

SIZES = (1, 8, 16, 32, 64)
"""The batch sizes among which an opponent's best is looked for."""
SEARCH_ROUNDS, SEARCHED = 3, 16
"""Rounds in which it is looked for, and how many images small batches draw in each."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A contestant under one setting.

    Attributes:
        contestant: who draws.
        n: how many images.
        batch_size: images in one network call.
        threads: CPU threads.
        busy: whether another process computes meanwhile.
    """

    contestant: Contestant
    n: int
    batch_size: int
    threads: int
    busy: bool = False


@dataclasses.dataclass(frozen=True)
class Result:
    """What a race found.

    Attributes:
        timings: of each entry, a value a round; the rounds of all entries go together.
        images: what each entry drew last, shape (n, C, *) in [0, 1].
    """

    timings: Mapping[Entry, list[Timing]]
    images: Mapping[Entry, Tensor]

    def wall(self, entry: Entry) -> float:
        """The median of the seconds."""
        return median(self.timings[entry])

    def rate(self, entry: Entry) -> float:
        """Images a second."""
        return entry.n / self.wall(entry)

    def ratio(self, entry: Entry, reference: Entry, clock: str = "wall") -> Spread:
        """How many times as fast an image is drawn as by the reference, paired by round."""
        found = speedup(self.timings[reference], self.timings[entry], clock)
        return Spread(*(value * entry.n / reference.n for value in found))


def race(entries: Sequence[Entry], noise: Tensor, plan: Plan, *, quiet: bool = True) -> Result:
    """Time all entries, each once a round, in random order.

    Args:
        entries: of which each is timed once, however often it is listed.
        noise: what images are drawn from, a row an image; an entry takes the first ``n``.
        plan: steps and rounds.
        quiet: show no progress bar.
    """
    images: dict[Entry, Tensor] = {}
    every = {entry: entry for entry in entries}
    with meter(
        quiet=quiet, total=len(every) * (plan.warm_ups + plan.rounds), desc="timing", unit="run"
    ) as shown:

        def timed(entry: Entry) -> Timing:
            draw = functools.partial(entry.contestant.draw, noise[: entry.n], plan.steps)
            timing = _alone(entry, lambda: images.update({entry: draw(entry.batch_size)}))
            shown.update()
            return timing

        timings = interleave(every, plan.rounds, timed, warm_ups=plan.warm_ups)
    return Result(timings, images)


def _alone(entry: Entry, action: Callable[[], object]) -> Timing:
    """Time it with as many threads and as much company as the entry has."""
    company = busy_process() if entry.busy else contextlib.nullcontext()
    with threads(entry.threads), company:
        return once(action)


def best_batch_size(contestant: Contestant, noise: Tensor, count: int, plan: Plan) -> int:
    """The batch size, among :data:`SIZES`, at which a contestant draws an image fastest.

    In one step; small batches draw fewer images than large ones, which is a matter of time alone.

    Args:
        contestant: who draws.
        noise: a row an image; larger batches than these are left out.
        count: how many CPU threads.
        plan: the measurement that this is for; a quick one makes one round.
    """
    entries = [
        Entry(contestant, min(len(noise), max(size, SEARCHED)), size, count)
        for size in SIZES
        if size <= len(noise)
    ]
    rounds, warm_ups = (1, 0) if plan.quick else (SEARCH_ROUNDS, 1)

    def timed(entry: Entry) -> Timing:
        return _alone(entry, lambda: contestant.draw(noise[: entry.n], 1, entry.batch_size))

    if len(entries) == 1:
        return entries[0].batch_size
    timings = interleave({entry: entry for entry in entries}, rounds, timed, warm_ups=warm_ups)
    return min(entries, key=lambda entry: median(timings[entry]) / entry.n).batch_size
