"""How fast a sampler's error falls with its steps, measured where the exact answer is known.

The lab: data N(0.3, 0.5²); levels equally spaced in λ from ρ = 2 to 0.05, taken for the nodes of a
schedule of their own, whose node 1 is the last of them, so that there is no jump to the data;
float64; the first states exact, so that a method's start does not hide its order.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from ddim.base.errors import InputError
from ddim.denoisers.exact import Gaussian
from ddim.noise.schedule import Schedule
from ddim.samplers.loop import Request, Step, run
from ddim.samplers.sampler import Sampler

__all__ = ["lab_error", "lab_schedule", "measured_order"]

DATA = Gaussian(0.3, 0.5)
STARTS = (0.7, -1.1, 2.0)
EXACT_STATES = 3


def lab_schedule(steps: int) -> Schedule:
    """A schedule with nodes 1..steps+1 equally spaced in λ, from ρ = 0.05 to ρ = 2."""
    lam = np.linspace(-math.log(0.05), -math.log(2), steps + 1)
    alpha = 1 / np.sqrt(1 + np.exp(-2 * lam))
    return Schedule.from_alpha_sigma(np.r_[1, alpha], np.r_[0, alpha * np.exp(-lam)])


def lab_error(steps: int, sampler: Sampler | str, *, exact: int = EXACT_STATES) -> float:
    """The largest error of a deterministic method in the lab.

    Args:
        steps: how many.
        sampler: a method with its options, such as ``dpmpp:order=3``; its own steps and nodes do
            not count.
        exact: how many of the first states are exact.

    Raises:
        InputError: unknown names, or a method that draws noise.
    """
    schedule = lab_schedule(steps)
    nodes = tuple(range(schedule.T, 0, -1))
    tableau = Sampler.parse(sampler).replace(nodes=nodes).tableau(schedule)
    if tableau.stochastic:
        raise InputError(f"{sampler} draws noise: its error is no number that falls with the steps")
    start = torch.tensor(STARTS, dtype=torch.float64)
    first = tableau.initial[0].level
    exchange = run(tableau, start)
    event = next(exchange)
    while not isinstance(event, Step) or not event.outputs:
        if isinstance(event, Request):
            event = exchange.send(DATA(event.x, event.level))
            continue
        if event.row.k is not None and event.row.k > schedule.T - exact:
            event.x.copy_(DATA.flow(start, first, event.row.level))
        event = next(exchange)
    truth = DATA.flow(start, schedule.level(schedule.T), schedule.level(1))
    return (event.outputs[0] - truth).abs().max().item()


def measured_order(sampler: Sampler | str, *, steps: int = 160) -> float:
    """The slope of log error against log steps, between ``steps`` and twice as many.

    Args:
        sampler: as for :func:`lab_error`.
        steps: where to begin.

    Example:
        >>> round(measured_order("ddim"), 1)
        1.0
    """
    few, many = (lab_error(s, sampler) for s in (steps, 2 * steps))
    return math.log2(few / many)
