"""What a person sees of an object: one line in a console, a table or a curve in a notebook.

Plain HTML and SVG: everything is escaped, nothing is fetched and nothing runs. Colours are the
page's own, so that they can be read on light and on dark ground.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, TypeVar, cast

__all__ = [
    "Listing",
    "Named",
    "brief",
    "curve",
    "facts_table",
    "image",
    "line",
    "rows_table",
    "shown",
]

T = TypeVar("T")

WIDTH = 180
"""Characters of a line in a console, at most."""
_VALUE = 60
_CELL = "padding:.15em .6em;border:0;border-bottom:1px solid;text-align:"
_LINE = "border-color:rgba(128,128,128,.4);"


def shown(kind: type[T]) -> type[T]:
    """A record with a short ``repr``, and a table in notebooks.

    What is shown is what the class's method ``_facts`` returns, a value by name; for a class
    without one the fields that do not have their default.
    """
    facts: Callable[[Any], Mapping[str, object]] = getattr(kind, "_facts", fields_of)

    def line(self: object) -> str:
        return brief(type(self).__name__, facts(self))

    def html(self: object) -> str:
        return facts_table(type(self).__name__, facts(self))

    kind.__repr__ = line
    if "_repr_html_" not in vars(kind):
        kind._repr_html_ = html  # pyright: ignore[reportAttributeAccessIssue]
    return kind


class Listing(list[T]):
    """A list whose ``repr`` is a line, and which notebooks show as a table, a row an item."""

    def __repr__(self) -> str:
        kinds = dict.fromkeys(type(item).__name__ for item in self)
        return f"[{len(self)} x {', '.join(kinds)}]" if self else "[]"

    def _repr_html_(self) -> str:
        return rows_table("", [_row(item) for item in self])


class Named(dict[str, T]):
    """Things by name, whose ``repr`` is a line, and which notebooks show as a table."""

    def __repr__(self) -> str:
        kinds = dict.fromkeys(type(item).__name__ for item in self.values())
        return line(f"{{{len(self)} x {', '.join(kinds)}: {', '.join(self)}}}")

    def _repr_html_(self) -> str:
        return rows_table("", [_row(item) for item in self.values()])


def _row(item: object) -> dict[str, object]:
    """What its class says of it; a record's fields; or what it is."""
    facts: Callable[[], dict[str, object]] | None = getattr(item, "_facts", None)
    if facts is not None:
        return facts()
    if dataclasses.is_dataclass(item):
        return {f.name: getattr(item, f.name) for f in dataclasses.fields(item)}
    return {"": item}


def fields_of(record: object) -> dict[str, object]:
    """The fields of a dataclass or a named tuple by name, but those that have their default."""
    if isinstance(record, tuple):
        return cast(Any, record)._asdict()
    found = {}
    for field in dataclasses.fields(cast(Any, record)):
        value, own = getattr(record, field.name), field.default
        if field.default_factory is not dataclasses.MISSING:
            own = field.default_factory()
        if field.repr and not _is(value, own):
            found[field.name] = value
    return found


def _is(value: object, default: object) -> bool:
    """Whether a value is a default, where they can be compared: arrays are compared by parts."""
    if value is default:
        return True
    return type(value) is type(default) and not hasattr(value, "shape") and value == default


def brief(name: str, facts: Mapping[str, object]) -> str:
    """``Name(a=1, b='x')``, one line of at most 180 characters.

    Example:
        >>> brief("Run", {"steps": 10, "labels": tuple(range(100))})
        'Run(steps=10, labels=(0, 1, 2, … 100 of them))'
    """
    parts, left = [], WIDTH - len(name) - 2
    for key, value in facts.items():
        part = f"{key}={_cut(_short(value, _quoted), _VALUE)}"
        left -= len(part) + 2
        if left < 3:
            parts.append("…")
            break
        parts.append(part)
    return f"{name}({', '.join(parts)})"


def line(text: str) -> str:
    """A text of one line, at most 180 characters of it."""
    return _cut(" ".join(text.split()), WIDTH)


def _quoted(value: object) -> str:
    return " ".join(repr(value).split())


def _short(value: object, text: Callable[[object], str]) -> str:
    """A value, of arrays their shape and kind, of long sequences the beginning."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None and len(shape):
        return f"{tuple(shape)} {str(dtype).removeprefix('torch.')}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        items = [f"{key}: {_short(part, text)}" for key, part in list(value.items())[:3]]
        return "{" + ", ".join(_tail(items, len(value))) + "}"
    if isinstance(value, list | tuple | frozenset | set) and type(value).__repr__ in _PLAIN:
        items = [_short(part, text) for part in list(value)[:3]]
        return "(" + ", ".join(_tail(items, len(value))) + ("," * (len(value) == 1)) + ")"
    return text(value)


_PLAIN = (list.__repr__, tuple.__repr__, frozenset.__repr__, set.__repr__)


def _tail(items: list[str], count: int) -> list[str]:
    return items if count <= len(items) else [*items, f"… {count} of them"]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


# -- HTML ---------------------------------------------------------------------------------------


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else escape(_cut(_short(value, str), 300))


def facts_table(title: str, facts: Mapping[str, object], below: str = "") -> str:
    """A table of names and values under a title; ``below`` is HTML that ends it."""
    rows = "".join(
        f'<tr><th scope="row" style="{_CELL}left;{_LINE}font-weight:normal;opacity:.75">'
        f'{escape(str(key))}</th><td style="{_CELL}left;{_LINE}">{_cell(value)}</td></tr>'
        for key, value in facts.items()
    )
    return _framed(title, f'<table style="border-collapse:collapse">{rows}</table>{below}')


def rows_table(title: str, rows: Sequence[Mapping[str, object]], most: int = 100) -> str:
    """A table with a row for each mapping, whose keys are the columns; numbers to the right.

    Args:
        title: above it.
        rows: all with the keys of the first.
        most: rows that are shown; the number of the others is said.
    """
    if not rows:
        return _framed(title, "<p>nothing</p>")
    head = "".join(
        f'<th scope="col" style="{_CELL}{_side(value)};{_LINE}">{escape(key)}</th>'
        for key, value in rows[0].items()
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="{_CELL}{_side(row.get(key))};{_LINE}">{_cell(row.get(key))}</td>'
            for key in rows[0]
        )
        + "</tr>"
        for row in rows[:most]
    )
    table = f'<table style="border-collapse:collapse"><tr>{head}</tr>{body}</table>'
    more = "" if len(rows) <= most else f"<p>… and {len(rows) - most} more rows</p>"
    return _framed(title, f'<div style="overflow-x:auto">{table}</div>{more}')


def _side(value: object) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return "right" if number else "left"


def _framed(title: str, content: str) -> str:
    head = f"<strong>{escape(title)}</strong>" if title else ""
    return f'<div style="color:inherit">{head}{content}</div>'


def image(png: bytes, text: str) -> str:
    """A picture that the page holds itself; ``text`` is what it shows, for those who do not see."""
    data = base64.b64encode(png).decode()
    return (
        f'<img alt="{escape(text)}" style="image-rendering:pixelated;max-width:100%" '
        f'src="data:image/png;base64,{data}">'
    )


def curve(
    title: str,
    xs: Sequence[float],
    ys: Sequence[float],
    x: str,
    width: int = 280,
    height: int = 150,
) -> str:
    """A curve as SVG, with the ends of both axes written.

    Args:
        title: what is drawn, above it.
        xs: rising.
        ys: finite, as many.
        x: what ``xs`` are, below it.
        width: in CSS pixels.
        height: the same.
    """
    left, top, right, bottom = 54, 22, width - 10, height - 30
    low, high = min(ys), max(ys)
    across, up = (xs[-1] - xs[0]) or 1, (high - low) or 1

    def place(a: float, b: float) -> str:
        return (
            f"{left + (a - xs[0]) / across * (right - left):.1f},"
            f"{bottom - (b - low) / up * (bottom - top):.1f}"
        )

    points = " ".join(place(a, b) for a, b in zip(xs, ys, strict=True))
    texts = [
        (left, top - 8, "start", title),
        ((left + right) / 2, height - 4, "middle", x),
        (left, bottom + 14, "start", f"{xs[0]:g}"),
        (right, bottom + 14, "end", f"{xs[-1]:g}"),
        (left - 5, bottom, "end", f"{low:.3g}"),
        (left - 5, top + 9, "end", f"{high:.3g}"),
    ]
    words = "".join(
        f'<text x="{a:g}" y="{b:g}" text-anchor="{anchor}">{escape(text)}</text>'
        for a, b, anchor, text in texts
    )
    return (
        f'<svg role="img" aria-label="{escape(title)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-size="11" font-family="sans-serif" '
        f'fill="currentColor"><path d="M{left},{top}V{bottom}H{right}" fill="none" '
        f'stroke="currentColor" stroke-opacity=".4"/><polyline points="{points}" fill="none" '
        f'stroke="currentColor" stroke-width="1.5"/>{words}</svg>'
    )
