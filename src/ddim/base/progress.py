"""Progress bars, the one place that knows tqdm."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from ddim.base.ranks import here

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["bar", "meter"]

T = TypeVar("T")


def bar(
    items: Iterable[T], total: int, label: str, *, quiet: bool, unit: str = "step"
) -> Iterator[T]:
    """A progress bar on stderr, over the items.

    Args:
        items: what is gone through.
        total: how many there are.
        label: what stands before the bar.
        quiet: no bar at all.
        unit: what one item is called.
    """
    return iter(meter(quiet=quiet, iterable=items, total=total, desc=label, unit=unit))


def meter(*, quiet: bool, **settings: Any) -> tqdm:
    """A progress bar on stderr; where that is a file it speaks every ten seconds only.

    Of several processes that do one job (:mod:`ddim.base.ranks`) the first has it.

    Args:
        quiet: no bar at all.
        settings: tqdm's own.
    """
    from tqdm import tqdm

    interval = 0.1 if sys.stderr.isatty() else 10.0
    hidden = quiet or not here().first
    return tqdm(disable=hidden, file=sys.stderr, mininterval=interval, **settings)
