"""What comes before the first image: fresh processes that import, open and draw."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ddim.base.errors import InputError, RunError, quoted
from ddim.base.progress import meter
from ddim.evaluate.speed.contestants import open_diffusers
from ddim.evaluate.speed.plan import Plan
from ddim.evaluate.speed.tables import Table
from ddim.evaluate.speed.timing import Action, Timing, interleave, median
from ddim.model.model import Model

__all__ = ["child", "start_table"]

TORCH = "import torch"
OPEN = "import sys, ddim; model = ddim.load(sys.argv[1])"
DRAW = "; ddim.sample(model.with_backend('torch'), 1, steps=int(sys.argv[2]), batch_size=1)"
DIFFUSERS = "import sys; from diffusers import DDIMPipeline as P; P.from_pretrained(sys.argv[1])"


def start_table(model: Model, source: str, plan: Plan, *, quiet: bool = True) -> Table:
    """Seconds of fresh processes, each started once a round in random order.

    Args:
        model: the model.
        source: where :func:`ddim.load` opens it.
        plan: steps and rounds.
        quiet: show no progress bar.

    Raises:
        RunError: a process that fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = [source, str(plan.steps)]
        commands = {
            "torch: import": [TORCH],
            "ddim: import, open": [OPEN, *arguments],
            "ddim: import, open, one image": [OPEN + DRAW, *arguments],
        }
        with contextlib.suppress(InputError):  # no diffusers, or not a model for it
            open_diffusers(model)
            model.save(Path(folder))
            commands["diffusers: import, open"] = [DIFFUSERS, folder]
        actions = {name: functools.partial(_run, command) for name, command in commands.items()}
        total = len(actions) * (plan.warm_ups + plan.rounds)
        with meter(quiet=quiet, total=total, desc="starting", unit="process") as shown:

            def timed(action: Action) -> Timing:
                shown.update()
                return child(action)

            timings = interleave(actions, plan.rounds, timed, warm_ups=plan.warm_ups)
    return Table(
        "start",
        "Before the first image",
        "whole fresh processes, files in the system's cache, plain torch",
        [
            {"process": name, "wall s": median(taken), "CPU s": median(taken, "cpu")}
            for name, taken in timings.items()
        ],
        {"wall s": ".2f", "CPU s": ".2f"},
    )


def _run(command: Sequence[str]) -> None:
    # No folder here is to be mistaken for a package.
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", *command],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise RunError(f"a fresh process failed: {quoted(done.stderr[-150:])}")


def child(action: Action) -> Timing:
    """Wall time, and the CPU time of the processes that the action waits for."""
    before, wall = os.times(), time.perf_counter()
    action()
    wall, after = time.perf_counter() - wall, os.times()
    used = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    return Timing(wall, used)
