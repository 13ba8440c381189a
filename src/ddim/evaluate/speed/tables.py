"""What a measurement of speed found, for people and for programs."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ddim.evaluate.speed.timing import Spread

__all__ = ["Report", "Table"]

WIDTH = 100
Cell = str | int | float | Spread | None


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of one shape.

    Attributes:
        name: the key in JSON.
        title: the heading.
        note: how it is to be read; a sentence or several.
        rows: a value for each column; None where there is none.
        formats: how the floating-point numbers of a column are written; ``.3g`` where it is absent,
            ratios, which have quartiles, with two places.
    """

    name: str
    title: str
    note: str
    rows: Sequence[Mapping[str, Cell]]
    formats: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def cells(self) -> list[list[str]]:
        """The heads of the columns, then each row, as text."""
        heads = list(self.rows[0])
        return [heads, *([self._text(head, row[head]) for head in heads] for row in self.rows)]

    def _text(self, column: str, value: Cell) -> str:
        if value is None:
            return "-"
        if isinstance(value, Spread):
            return f"{value.median:.2f} [{value.low:.2f}, {value.high:.2f}]"
        if isinstance(value, float):
            return format(value, self.formats.get(column, ".3g"))
        return f"{value:,}" if isinstance(value, int) else value

    def text(self) -> str:
        """Aligned columns, the first to the left."""
        cells = self.cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = []
        for first, *rest in cells:
            right = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
            lines.append("  ".join([first.ljust(widths[0]), *right]))
        return "\n".join([self.title, textwrap.fill(f"({self.note})", WIDTH), "", *lines])

    def markdown(self) -> str:
        """A section with the table."""
        head, *rows = (f"| {' | '.join(cells)} |" for cells in self.cells())
        rule = "|---|" + "---:|" * (len(self.rows[0]) - 1)
        return "\n".join([f"### {self.title}", "", f"{self.note}", "", head, rule, *rows])

    def to_json(self) -> dict[str, Any]:
        """The values themselves."""
        rows = [{key: _plain(value) for key, value in row.items()} for row in self.rows]
        return {"title": self.title, "note": self.note, "rows": rows}


def _plain(value: Cell) -> object:
    return value._asdict() if isinstance(value, Spread) else value


@dataclasses.dataclass(frozen=True)
class Report:
    """All that was found.

    Attributes:
        title: what was measured, in one line.
        model: facts about the model.
        plan: what was asked for.
        machine: what the figures depend on.
        notes: what was left out, and why; sentences.
        tables: in the order in which they are shown.
    """

    title: str
    model: Mapping[str, Any]
    plan: Mapping[str, Any]
    machine: Mapping[str, str]
    notes: Sequence[str]
    tables: Sequence[Table]

    def text(self) -> str:
        """Plain text."""
        facts = [f"  {key}: {value}" for key, value in {**self.model, **self.machine}.items()]
        parts = ["\n".join([self.title, *facts]), *(table.text() for table in self.tables)]
        return "\n\n".join([*parts, *self._listed("note: ", "\n")])

    def markdown(self) -> str:
        """Sections of the third level under a paragraph of facts."""
        facts = "; ".join(f"{key} {value}" for key, value in {**self.model, **self.machine}.items())
        parts = [f"{self.title}. {facts}.", *(table.markdown() for table in self.tables)]
        return "\n\n".join([*parts, *self._listed("- ", "\n")]) + "\n"

    def _listed(self, before: str, between: str) -> list[str]:
        return [between.join(f"{before}{note}" for note in self.notes)] if self.notes else []

    def to_json(self) -> dict[str, Any]:
        """One document."""
        return {
            "title": self.title,
            "model": dict(self.model),
            "plan": dict(self.plan),
            "machine": dict(self.machine),
            "notes": list(self.notes),
            "tables": {table.name: table.to_json() for table in self.tables},
        }
