"""Interleaved timing and paired ratios.

All contestants run in one process, in a new random order every round, after two rounds that are not
counted; what is reported is the median of the paired ratios, round by round, with its quartiles. A
busy machine slows both contestants of a round alike. CPU time is kept beside wall time: with one
thread it hardly depends on what else the machine does.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

__all__ = [
    "ROUNDS",
    "WARM_UPS",
    "Action",
    "Spread",
    "Timing",
    "Timings",
    "interleave",
    "median",
    "once",
    "speedup",
    "spread",
]

WARM_UPS = 2
"""Rounds that are not counted."""
ROUNDS = 7
"""Counted rounds, below which quartiles say little."""


class Timing(NamedTuple):
    """Seconds that one call took, and seconds of CPU that the whole process spent on it."""

    wall: float
    cpu: float


class Spread(NamedTuple):
    """A median and its quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


Key = TypeVar("Key", bound=Hashable)
Action = Callable[[], object]
Timings = dict[str, list[Timing]]


def once(action: Action) -> Timing:
    """Call it and time it."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu)


def interleave(
    actions: Mapping[Key, Any],
    rounds: int,
    time_one: Callable[[Any], Any] = once,
    *,
    warm_ups: int = WARM_UPS,
) -> dict[Key, list[Any]]:
    """Time every action once a round, each round in a new order, which is random but repeatable.

    Args:
        actions: what is timed.
        rounds: how many are counted.
        time_one: called with an action; what it returns is kept.
        warm_ups: rounds before those, which are not counted.

    Returns:
        what ``time_one`` returned for each action, a value a round.
    """
    shuffle = random.Random(0).shuffle
    timings: dict[Key, list[Any]] = {name: [] for name in actions}
    for number in range(warm_ups + rounds):
        names = list(actions)
        shuffle(names)
        for name in names:
            timing = time_one(actions[name])
            if number >= warm_ups:
                timings[name].append(timing)
    return timings


def spread(values: Sequence[float]) -> Spread:
    """The median and the quartiles.

    Example:
        >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
        Spread(median=3.0, low=2.0, high=4.0)
    """
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high)


def speedup(reference: Sequence[Timing], ours: Sequence[Timing], clock: str = "wall") -> Spread:
    """How many times the reference's time ours takes less of, paired by round."""
    pairs = zip(reference, ours, strict=True)
    return spread([getattr(a, clock) / getattr(b, clock) for a, b in pairs])


def median(timings: Sequence[Timing], clock: str = "wall") -> float:
    """The median of the wall or the CPU time."""
    return statistics.median(getattr(timing, clock) for timing in timings)
