"""How fast a sampler's error falls with its steps, measured where the exact answer is known.

The lab: data N(0.3, 0.5²); levels equally spaced in λ from ρ = 2 to 0.05, taken for the nodes of a
schedule of their own, whose node 1 is the last of them, so that there is no jump to the data;
float64; the first states exact, so that a method's start does not hide its order.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddim.base.errors import InputError
from ddim.denoisers.exact import Gaussian
from ddim.denoisers.prediction import Prediction
from ddim.noise.schedule import Schedule
from ddim.samplers.registry import make_tableau
from ddim.samplers.tableau import Tableau

__all__ = ["lab_error", "lab_schedule", "measured_order"]

DATA = Gaussian(0.3, 0.5)
STARTS = (0.7, -1.1, 2.0)
EXACT_STATES = 3


def lab_schedule(steps: int) -> Schedule:
    """A schedule with nodes 1..steps+1 equally spaced in λ, from ρ = 0.05 to ρ = 2."""
    lam = np.linspace(-math.log(0.05), -math.log(2), steps + 1)
    alpha = 1 / np.sqrt(1 + np.exp(-2 * lam))
    return Schedule.from_alpha_sigma(np.r_[1, alpha], np.r_[0, alpha * np.exp(-lam)])


def lab_error(steps: int, method: str, *, exact: int = EXACT_STATES, **options: Any) -> float:
    """The largest error of a deterministic method in the lab.

    Args:
        steps: how many.
        method: a key of :data:`ddim.METHODS`; one of your own, once it is in there.
        exact: how many of the first states are exact.
        options: the method's own.

    Raises:
        InputError: unknown names, or a method that draws noise.
    """
    schedule = lab_schedule(steps)
    tableau = make_tableau(schedule, tuple(range(schedule.T, 0, -1)), method, **options)
    if tableau.stochastic:
        raise InputError(f"{method} draws noise: its error is no number that falls with the steps")
    x = torch.tensor(STARTS, dtype=torch.float64)
    truth = DATA.flow(x, schedule.level(schedule.T), schedule.level(1))
    return (_run(tableau, schedule.T, x, exact) - truth).abs().max().item()


def measured_order(method: str, *, steps: int = 160, **options: Any) -> float:
    """The slope of log error against log steps, between ``steps`` and twice as many.

    Args:
        method: a key of :data:`ddim.METHODS`.
        steps: where to begin.
        options: the method's own.

    Example:
        >>> round(measured_order("ddim"), 1)
        1.0
    """
    few, many = (lab_error(s, method, **options) for s in (steps, 2 * steps))
    return math.log2(few / many)


def _run(tableau: Tableau, T: int, x: Tensor, exact: int) -> Tensor:
    """The loop, but for states at the first nodes, which are replaced by the exact ones."""
    start = tableau.initial[0].level
    states = [x]
    predictions: dict[int, Prediction] = {}
    for row in tableau.rows:
        for i in row.needs:
            level = tableau.at(i)
            assert level is not None
            predictions.setdefault(i, DATA(states[i], level))
        value = torch.zeros_like(x)
        for i, a in row.states:
            value = value + a * states[i]
        for i, b in row.x0:
            value = value + b * predictions[i].x0
        for i, c in row.eps:
            value = value + c * predictions[i].eps
        if row.k is not None and row.k > T - exact:
            value = DATA.flow(x, start, row.level)
        states.append(value)
    return states[tableau.returns[0]]
