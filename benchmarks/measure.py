"""What the benchmarks share: interleaved timing, paired ratios, tables, machine facts, targets.

Timing follows one rule. All contestants run in one process, in a new random order every round,
after two rounds that are not counted; what is reported is the median of the paired ratios, round
by round, with its quartiles. A busy machine slows both contestants of a round alike. CPU time is
kept beside wall time: with one thread it hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

WARM_UPS = 2


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


Action = Callable[[], object]
Timings = dict[str, list[Timing]]


def once(action: Action) -> Timing:
    """Call it and time it."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu)


def interleave(actions: Mapping[str, Action], rounds: int, time_one=once) -> Timings:
    """Time every action once a round, in random order."""
    shuffle = random.Random(0).shuffle
    timings: Timings = {name: [] for name in actions}
    for n in range(WARM_UPS + rounds):
        names = list(actions)
        shuffle(names)
        for name in names:
            timing = time_one(actions[name])
            if n >= WARM_UPS:
                timings[name].append(timing)
    return timings


def spread(values: Sequence[float]) -> Spread:
    """The median and the quartiles."""
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def speedup(reference: Sequence[Timing], ours: Sequence[Timing], clock: str = "wall") -> Spread:
    """How many times the reference's time ours takes less of, paired by round."""
    pairs = zip(reference, ours, strict=True)
    return spread([getattr(a, clock) / getattr(b, clock) for a, b in pairs])


def median(timings: Sequence[Timing], clock: str = "wall") -> float:
    """The median of the wall or the CPU time."""
    return statistics.median(getattr(timing, clock) for timing in timings)


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


def machine(packages: Sequence[str]) -> dict[str, str]:
    """What the figures depend on."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {"cpu": _cpu_model(), "cores": str(usable), "python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            facts[package] = version(package)
    facts["load average"] = load_average()
    return facts


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def load_average() -> str:
    """Of the last 1, 5 and 15 minutes."""
    return " ".join(f"{x:.2f}" for x in os.getloadavg()) if hasattr(os, "getloadavg") else "?"


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
