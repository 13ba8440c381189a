"""Progress bars, the one place that knows tqdm; or lines of JSON in their place."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from ddim.base.lines import LineMeter, wanted
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


def meter(*, quiet: bool, **settings: Any) -> tqdm | LineMeter:
    """A progress bar on stderr; where that is a file it speaks every ten seconds only.

    It is lines of JSON where :func:`ddim.base.lines.as_lines` says so. Of several processes the
    first shows one.

    Args:
        quiet: no bar at all.
        settings: tqdm's own.
    """
    quiet = quiet or not here().first
    if wanted() and not quiet:
        settings.pop("unit_scale", None)
        return LineMeter(settings.pop("iterable", ()), **settings)
    notebook = "IPython" in sys.modules
    interval = 0.1 if sys.stderr.isatty() or notebook else 10.0
    kind = _notebooks() if notebook else _terminals()
    return kind(disable=quiet, file=sys.stderr, mininterval=interval, **settings)


def _terminals() -> type[tqdm]:
    from tqdm import tqdm

    return tqdm


def _notebooks() -> type[tqdm]:
    """A widget where there are any, else text; which of them is no concern of the reader's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        from tqdm.auto import tqdm

    return tqdm
