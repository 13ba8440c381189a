"""Structured lines for long runs that nobody watches: one JSON object a line, on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

__all__ = ["LineMeter", "as_lines", "say", "wanted"]

T = TypeVar("T")

_EVERY = 10.0
"""Seconds between two lines of one meter."""
_wanted = False


def wanted() -> bool:
    """Whether lines stand in the place of progress bars, as :func:`as_lines` has it."""
    return _wanted


@contextlib.contextmanager
def as_lines(on: bool = True) -> Iterator[None]:
    """Let lines stand in the place of progress bars, for as long as the context lasts."""
    global _wanted
    before, _wanted = _wanted, on
    try:
        yield
    finally:
        _wanted = before


def say(**fields: object) -> None:
    """Print a line: ``time``, in Unix seconds, and the fields; a number that is none is null."""
    plain = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in fields.items()
    }
    line = json.dumps({"time": round(time.time(), 3), **plain}, ensure_ascii=False)
    print(line, file=sys.stderr, flush=True)


class LineMeter(Generic[T]):
    """What a progress bar of tqdm is to its caller, as lines.

    Every ten seconds, and at the end, a line has ``what``, ``done``, ``total``, ``unit``,
    ``per_second`` since the last line, ``seconds_left`` and what :meth:`set_postfix` adds.

    Args:
        iterable: what is gone through, if it is that.
        total: how many units there are; None where nobody knows.
        desc: what is done.
        unit: what one unit is called.
        initial: how many were done before.
        every: seconds between two lines.
    """

    def __init__(
        self,
        iterable: Iterable[T] = (),
        *,
        total: float | None = None,
        desc: str = "",
        unit: str = "step",
        initial: float = 0,
        every: float = _EVERY,
    ) -> None:
        self.iterable, self.total, self.what, self.unit = iterable, total, desc, unit.strip()
        self.every, self.n, self._fields = every, initial, dict[str, object]()
        self._clock, self._from, self._said = time.monotonic(), initial, -1.0

    def __iter__(self) -> Iterator[T]:
        with self:
            for item in self.iterable:
                yield item
                self.update()

    def __enter__(self) -> LineMeter[T]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def set_postfix(self, **fields: Any) -> None:
        """Other fields of the lines to come; ``refresh``, which is tqdm's, is not one."""
        fields.pop("refresh", None)
        self._fields = fields

    def set_description(self, desc: str, refresh: bool = True) -> None:
        """Something else is done from here on."""
        self.what = desc

    set_description_str = set_description

    def update(self, n: float = 1) -> None:
        """So much more is done."""
        self.n += n
        if time.monotonic() - self._clock >= self.every:
            self._say()

    def close(self) -> None:
        """The last line."""
        if self.n != self._said:
            self._say()

    def _say(self) -> None:
        now = time.monotonic()
        speed = (self.n - self._from) / max(now - self._clock, 1e-9)
        left = None if self.total is None else self.total - self.n
        say(
            what=self.what,
            done=self.n,
            total=self.total,
            unit=self.unit,
            per_second=round(speed, 3),
            seconds_left=None if left is None or speed == 0 else round(left / speed, 1),
            **self._fields,
        )
        self._clock, self._from, self._said = now, self.n, self.n
