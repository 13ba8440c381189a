"""What the benchmarks share: reports with tables and targets, and their options.

Timing follows the rule of :mod:`ddim.evaluate.speed.timing`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddim.evaluate.speed.machine import load_average, machine
from ddim.evaluate.speed.timing import (
    Action,
    Spread,
    Timing,
    Timings,
    interleave,
    median,
    once,
    speedup,
    spread,
)

__all__ = [
    "Action",
    "Report",
    "Spread",
    "Target",
    "Timing",
    "Timings",
    "gigaflops",
    "interleave",
    "median",
    "once",
    "parser",
    "speedup",
    "spread",
]


@dataclasses.dataclass(frozen=True)
class Target:
    """Something that ought to hold, and whether it did."""

    text: str
    met: bool


class Report:
    """What a benchmark found: printed as it comes, kept for ``--json``."""

    def __init__(self, title: str, args: argparse.Namespace, packages: Sequence[str]) -> None:
        self.title, self.json_path = title, args.json
        self.facts = machine(packages)
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.targets: list[Target] = []
        print(title)
        for name, value in self.facts.items():
            print(f"  {name}: {value}")

    def table(self, name: str, rows: list[dict[str, Any]], note: str = "") -> None:
        """Print and keep a table; every row has the same keys."""
        self.tables[name] = rows
        print(f"\n{name}")
        if note:
            print(f"({note})")
        cells = [[str(key) for key in rows[0]]] + [[_cell(v) for v in row.values()] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for line in cells:
            first, *rest = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            print("  " + "  ".join([first.strip().ljust(widths[0]), *rest]))
        sys.stdout.flush()

    def target(self, text: str, met: bool) -> None:
        """Keep whether a target was met."""
        self.targets.append(Target(text, met))

    def finish(self) -> int:
        """Print the targets, write the JSON; the exit status, 1 where a target was missed."""
        load = load_average()
        print(f"\nload average at the end: {load}\ntargets")
        for target in self.targets:
            print(f"  {'met   ' if target.met else 'MISSED'}  {target.text}")
        if self.json_path:
            record = {
                "title": self.title,
                "machine": {**self.facts, "load average at the end": load},
                "tables": self.tables,
                "targets": [dataclasses.asdict(t) for t in self.targets],
            }
            text = json.dumps(record, indent=1, default=str) + "\n"
            Path(self.json_path).write_text(text, encoding="utf-8")
        return 0 if all(target.met for target in self.targets) else 1


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rounds", type=int, default=7, help="counted rounds (default %(default)s)")
    made.add_argument("--quick", action="store_true", help="a short run, to see that it runs")
    made.add_argument("--json", metavar="FILE", help="write everything there, too")
    return made


def gigaflops(flops: int) -> str:
    """For people."""
    return f"{flops / 1e9:.3g} GFLOP an image and forward pass"
