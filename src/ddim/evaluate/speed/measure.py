"""From a model to tables of how fast it is drawn from on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from ddim.base.errors import InputError
from ddim.evaluate.speed.accuracy import Exact
from ddim.evaluate.speed.fresh import start_table
from ddim.evaluate.speed.lineup import Lineup, SetUp, line_up, nothing_kept
from ddim.evaluate.speed.machine import has_bfloat16, load_average, machine
from ddim.evaluate.speed.parts import Grid
from ddim.evaluate.speed.plan import Plan
from ddim.evaluate.speed.race import Result, race
from ddim.evaluate.speed.tables import Cell, Report, Table
from ddim.evaluate.speed.timing import ROUNDS
from ddim.model.model import Model
from ddim.nets.unet import UNet, count_flops
from ddim.noise.draws import Noise

__all__ = ["Training", "measure"]

PACKAGES = ("ddim", "torch", "diffusers", "ncnn", "openvino")
EXACT = 8
"""States on which the network's error is measured, at most."""


class Training(Protocol):
    """What times training steps, which is above this folder: ``train.speed.training_table``."""

    def __call__(
        self, model: Model, plan: Plan, *, half: bool, quiet: bool
    ) -> tuple[Table | None, list[str]]:
        """The table, if any, and what is left out, and why."""
        ...


def measure(
    model: Model, plan: Plan, source: str, training: Training, *, quiet: bool = True
) -> Report:
    """Time every back end and every opponent that is here and can run a model.

    From noise to images in [0, 1] by DDIM, η = 0, all from equal weights and equal noise. How many
    threads there are is torch's own number, as it is when this is called and afterwards.

    Args:
        model: in float32.
        plan: what is measured.
        source: where :func:`ddim.load` opens the model.
        training: called for the part of that name, with a UNet of this package alone.
        quiet: show no progress bars.

    Raises:
        InputError: more steps than the model has, or a network that needs a condition.
        RunError: images that are not finite.
    """
    if plan.steps > model.schedule.T:
        raise InputError(f"{model.name} has T = {model.schedule.T}, fewer than {plan.steps} steps")
    count, before = torch.get_num_threads(), machine(PACKAGES)
    plan, half, notes = _here(plan, model)
    about, tables = _about(model), list[Table]()
    if plan.racing:
        noise = Noise(0, range(plan.n), model.shape)(0)
        with nothing_kept():
            lineup = line_up(
                model, noise, count, plan, half=half and plan.has("dtype"), quiet=quiet
            )
            about["back end by default"] = model.with_backend("auto").runs_on
            grid = Grid.of(lineup, plan)
            result = race(grid.entries(), noise, plan, quiet=quiet)
            tables = _tables(model, grid, result, lineup, plan)
        notes = [*lineup.notes, *notes]
    if plan.has("training"):
        table, left_out = training(model, plan, half=half, quiet=quiet)
        tables += [table] if table else []
        notes = [*notes, *left_out]
    if plan.has("start"):
        tables.append(start_table(model, source, plan, quiet=quiet))
    facts = before | {"threads": str(count), "load average afterwards": load_average()}
    what = f"images by DDIM in {plan.steps} steps, η = 0, " if plan.racing else ""
    title = f"{model.name}: {what}{plan.rounds} rounds in random order"
    return Report(title, about, dataclasses.asdict(plan), facts, notes, tables)


def _here(plan: Plan, model: Model) -> tuple[Plan, bool, list[str]]:
    """What of a plan there is for a model, whether that includes bfloat16, and what to say."""
    device, notes = model.device, []
    if device.type != "cpu" and plan.has("threads", "busy"):
        why = f"threads and busy are for the CPU, not for {device}"
        plan = plan.without("threads", "busy", why=why)
        notes.append(f"left out: {why}")
    can = has_bfloat16() if device.type == "cpu" else device.type == "cuda"
    half = plan.dtype == "bfloat16" or (plan.dtype == "auto" and can)
    if plan.has("dtype", "training") and not half:
        why = "this processor has no instructions for bfloat16, which is measured if asked for"
        plan = plan.without("dtype", why=why)
        notes += [f"left out: {why}"] if plan.dtype == "auto" else []
    if plan.has("training") and not _trainable(model):
        what = "a UNet of this package with as many channels out as in"
        plan = plan.without("training", why=f"training is for {what}")
        notes.append(f"without training: it is for {what}")
    if plan.rounds < ROUNDS:
        notes.append(f"fewer than {ROUNDS} rounds: the figures show that it runs, and little more")
    return plan, half, notes


def _trainable(model: Model) -> bool:
    """Whether training steps can be timed: a learned variance is not trained here."""
    net = model.net
    return isinstance(net, UNet) and net.config.in_channels == net.config.out_channels


def _tables(model: Model, grid: Grid, result: Result, lineup: Lineup, plan: Plan) -> list[Table]:
    tables: list[Table] = []
    if grid.images:
        # No more than a batch, so that no back end compiles for another size.
        states = min(EXACT, grid.images[0].batch_size)
        noise = Noise(1, range(states), model.shape)(0)
        tables.append(grid.images_table(result, Exact(model, noise)))
    if grid.one:
        tables.append(grid.one_table(result))
    if grid.threads:
        tables.append(grid.threads_table(result))
    if grid.busy:
        tables.append(grid.busy_table(result))
    if grid.dtype:
        tables.append(grid.dtype_table(result))
    if lineup.set_ups:
        tables.append(_set_up_table(grid, result, lineup.set_ups, plan))
    return tables


def _set_up_table(grid: Grid, result: Result, set_ups: Mapping[str, SetUp], plan: Plan) -> Table:
    """Seconds that a back end takes beforehand, and when it has made up for them."""
    entries = {entry.contestant.name: entry for entry in grid.images}

    def even(name: str, seconds: float | None) -> int | None:
        if seconds is None or name not in entries:
            return None
        gain = 1 / result.rate(entries["torch"]) - 1 / result.rate(entries[name])
        return max(1, round(seconds / gain)) if gain > 0 else None

    rows: list[dict[str, Cell]] = [
        {
            "back end": name,
            "first s": taken.first,
            "again s": taken.again,
            "even after": even(name, taken.first),
            "again even after": even(name, taken.again),
        }
        for name, taken in set_ups.items()
    ]
    note = (
        "seconds before the first batch is as fast as the next: first, where nothing is kept, and "
        "again, with what that kept; even after: so many images "
        f"in {plan.steps} steps it has gained on plain torch what it took; - is never"
    )
    formats = {"first s": ".2f", "again s": ".2f"}
    return Table("set_up", "Beforehand", note, rows, formats)


def _about(model: Model) -> dict[str, Any]:
    about: dict[str, Any] = {
        "shape": "×".join(map(str, model.shape)),
        "parameters": f"{sum(p.numel() for p in model.net.parameters()):,}",
    }
    if isinstance(model.net, UNet) and len(model.shape) == 3:
        about["GFLOP a forward pass"] = f"{count_flops(model.net) / 1e9:.3g}"
    return about | {"weights": model.identity[:16]}
