"""How long a person waits before anything happens.

    python benchmarks/start.py

Wall and CPU time of fresh processes, interleaved in random order, medians of seven:
``ddim --help``, ``import torch`` alone, ``import ddim`` alone, and ``import ddim`` with the names
that sampling takes (which are imported when first used). Each is run twice uncounted, so that
files are cached. What comes beyond torch is paired by round.

Targets: ``ddim --help`` in at most 0.3 s and without importing torch; ``import ddim``, its names
included, in at most 0.3 s more than ``import torch``. The exit status is 1 where one is missed.
The clock of the targets is wall time: on a busy machine look at CPU time, too.
"""

from __future__ import annotations

import argparse
import functools
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from measure import Action, Report, Timing, Timings, interleave, median, parser

HELP_LIMIT = 0.3
IMPORT_LIMIT = 0.3
LOADED = (
    "import sys; from ddim.cli.main import main; main(['--help']); print('torch' in sys.modules)"
)
HELP, TORCH, LAZY, FULL = "ddim --help", "import torch", "import ddim", "import ddim and its names"


def main() -> int:
    args = arguments()
    report = Report("start-up", args, ["torch", "ddim"])
    timings = interleave(actions(), args.rounds, child)
    rows = [
        {
            "process": name,
            "wall s": median(taken),
            "CPU s": median(taken, "cpu"),
            "wall s beyond torch": f"{beyond_torch(timings, name):+.2f}",
            "CPU s beyond torch": f"{beyond_torch(timings, name, 'cpu'):+.2f}",
        }
        for name, taken in timings.items()
    ]
    report.table("fresh processes", rows, f"medians of {args.rounds}")
    wall, cpu = median(timings[HELP]), median(timings[HELP], "cpu")
    judge(report, f"{HELP} in at most {HELP_LIMIT} s", wall, cpu, HELP_LIMIT)
    report.target("ddim --help does not import torch", not help_imports_torch())
    for name in (LAZY, FULL):
        wall, cpu = beyond_torch(timings, name), beyond_torch(timings, name, "cpu")
        judge(report, f"{name} in at most torch + {IMPORT_LIMIT} s", wall, cpu, IMPORT_LIMIT)
    return report.finish()


def judge(report: Report, what: str, wall: float, cpu: float, limit: float) -> None:
    busy = ", which meets it: the machine is busy" if cpu <= limit < wall else ""
    report.target(f"{what}: {wall:.2f} s (CPU {cpu:.2f} s{busy})", wall <= limit)


def arguments() -> argparse.Namespace:
    args = parser(__doc__).parse_args()
    if args.quick:
        args.rounds = min(args.rounds, 3)
    return args


def actions() -> dict[str, Action]:
    """What each fresh process does."""
    python = [sys.executable, "-c"]
    commands = {
        HELP: [*command(), "--help"],
        TORCH: [*python, "import torch"],
        LAZY: [*python, "import ddim"],
        FULL: [*python, "import ddim; ddim.Schedule; ddim.sample"],
    }
    return {name: functools.partial(run, command) for name, command in commands.items()}


def command() -> list[str]:
    """The installed command, or the module where it is not installed."""
    script = Path(sysconfig.get_path("scripts")) / "ddim"
    return [str(script)] if script.exists() else [sys.executable, "-m", "ddim.cli.main"]


def run(command: list[str]) -> str:
    """Run a process elsewhere, so that no folder here is mistaken for a package."""
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=tempfile.gettempdir()
    )
    return done.stdout


def child(action: Action) -> Timing:
    """Wall time, and the CPU time of the process that the action waits for."""
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    action()
    wall = time.perf_counter() - wall
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Timing(wall, cpu)


def beyond_torch(timings: Timings, name: str, clock: str = "wall") -> float:
    """Seconds more than ``import torch`` took in the same round, the median."""
    pairs = zip(timings[name], timings[TORCH], strict=True)
    return statistics.median(getattr(a, clock) - getattr(b, clock) for a, b in pairs)


def help_imports_torch() -> bool:
    return run([sys.executable, "-c", LOADED]).split()[-1] == "True"


if __name__ == "__main__":
    sys.exit(main())
