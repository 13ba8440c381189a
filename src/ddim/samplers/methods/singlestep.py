"""Solvers with inner stages: two or more calls a step; and plain or repeated first-order ones."""

from __future__ import annotations

import itertools
import math
from typing import Literal

from ddim.base.errors import InputError, quoted
from ddim.noise.nodes import Nodes
from ddim.noise.schedule import Level, Schedule
from ddim.samplers.methods.grid import Grid
from ddim.samplers.registry import method
from ddim.samplers.tableau import Row, Tableau

__all__ = ["dpm2", "dpm3", "heun", "probability_flow", "restart"]


@method("pf-euler", orders={"": 1})
def probability_flow(schedule: Schedule, nodes: Nodes) -> Tableau:
    """Euler's method on the probability-flow equation in t (Song et al. 2020, equation 15).

    x₊ = (α₊/α)x + α₊·½(ρ₊² - ρ²)/ρ·ε. At few steps much worse than DDIM, which takes the Euler
    step in ρ; it does not keep the marginal variance.

    Raises:
        InputError: a step that starts where α or σ is 0.
    """
    grid = Grid(schedule, nodes)
    rows = []
    for n in range(grid.steps):
        if not grid.finite(n):
            raise InputError("the probability-flow Euler method cannot start where α or σ is 0")
        source, target = grid.level(n), grid.level(n + 1)
        rho, after = grid.rho(n), grid.rho(n + 1)
        states = ((n, target.alpha / source.alpha),)
        eps = ((n, target.alpha * (after**2 - rho**2) / (2 * rho)),)
        rows.append(grid.row(n + 1, states=states, eps=eps))
    return grid.tableau("pf-euler", rows, marginal=False)


@method("heun", orders={"": 2})
def heun(schedule: Schedule, nodes: Nodes) -> Tableau:
    """Heun's method in ρ (Karras et al. 2022, algorithm 1, https://arxiv.org/abs/2206.00364).

    Two calls a step, one for the last; order 2.
    """
    grid = Grid(schedule, nodes)
    rows: list[Row] = []
    state = 0
    for n in range(grid.steps):
        if not (grid.finite(n) and grid.finite(n + 1)):
            rows.append(grid.first_order(n + 1, n, state))
        else:
            source, target = grid.level(n), grid.level(n + 1)
            carried = ((state, target.alpha / source.alpha),)
            step = target.alpha * (grid.rho(n + 1) - grid.rho(n))
            # The trial is seen by the network even at the last node of a grid that stops early.
            trial = Row(target, target, grid.nodes[n + 1], carried, (), ((state, step),))
            rows.append(trial)
            eps = ((state, step / 2), (len(rows), step / 2))
            rows.append(grid.row(n + 1, states=carried, eps=eps))
        state = len(rows)
    return grid.tableau("heun", rows)


@method("dpm-solver-2", orders={"r=0.5": 2, "r=0.3": 2})
def dpm2(
    schedule: Schedule, nodes: Nodes, *, r: float = 0.5, inner: Literal["real", "node"] = "real"
) -> Tableau:
    """DPM-Solver-2, single-step (Lu et al. 2022, algorithm 1, https://arxiv.org/abs/2206.00927).

    λ_m = λ + r·h; u = (α_m/α)x - σ_m·(e^{rh} - 1)·ε;
    x₊ = (α₊/α)x - σ₊·(e^h - 1)·[ε + (ε(u) - ε)/(2r)]. Two calls a step; order 2.

    Args:
        schedule: the noise schedule.
        nodes: strictly monotone.
        r: where the inner stage lies, in (0, 1].
        inner: ``real`` times, or ``node`` for networks that take whole times only: the nearest
            node strictly between, with r recomputed; where there is none, DDIM's step.

    Raises:
        InputError: r out of range.
    """
    if not 0 < r <= 1:
        raise InputError(f"r must be in (0, 1], not {r}")
    grid = Grid(schedule, nodes)
    rows: list[Row] = []
    state = 0
    for n in range(grid.steps):
        stage = _stage(grid, n, r, inner)
        if stage is None:
            rows.append(grid.first_order(n + 1, n, state))
            state = len(rows)
            continue
        middle, k, ratio = stage
        source, target = grid.level(n), grid.level(n + 1)
        h = grid.lam(n + 1) - grid.lam(n)
        states = ((state, middle.alpha / source.alpha),)
        eps = ((state, -middle.sigma * math.expm1(ratio * h)),)
        rows.append(Row(middle, middle, k, states, (), eps))
        scale = -target.sigma * math.expm1(h)
        weight = scale / (2 * ratio)
        terms = ((state, scale - weight), (len(rows), weight))
        rows.append(grid.row(n + 1, states=((state, target.alpha / source.alpha),), eps=terms))
        state = len(rows)
    return grid.tableau("dpm-solver-2", rows, {"r": r, "inner": inner})


@method("dpm-solver-3", orders={"": 3})
def dpm3(schedule: Schedule, nodes: Nodes, *, inner: Literal["real", "node"] = "real") -> Tableau:
    """DPM-Solver-3, single-step (Lu et al. 2022, algorithm 2, https://arxiv.org/abs/2206.00927).

    Inner stages at r₁ = ⅓ and r₂ = ⅔ of Δλ. Three calls a step; order 3.

    Args:
        schedule: the noise schedule.
        nodes: strictly monotone.
        inner: as for :func:`dpm2`; where there are not two nodes between, DDIM's step.
    """
    grid = Grid(schedule, nodes)
    rows: list[Row] = []
    state = 0
    for n in range(grid.steps):
        one, two = _stage(grid, n, 1 / 3, inner), _stage(grid, n, 2 / 3, inner)
        if one is None or two is None or one[2] == two[2]:
            rows.append(grid.first_order(n + 1, n, state))
            state = len(rows)
            continue
        source, target = grid.level(n), grid.level(n + 1)
        h = grid.lam(n + 1) - grid.lam(n)
        (first, k1, r1), (second, k2, r2) = one, two
        states = ((state, first.alpha / source.alpha),)
        eps = ((state, -first.sigma * math.expm1(r1 * h)),)
        rows.append(Row(first, first, k1, states, (), eps))
        u1 = len(rows)
        slope = -second.sigma * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1)
        terms = ((state, -second.sigma * math.expm1(r2 * h) - slope), (u1, slope))
        states = ((state, second.alpha / source.alpha),)
        rows.append(Row(second, second, k2, states, (), terms))
        u2 = len(rows)
        slope = -target.sigma / r2 * (math.expm1(h) / h - 1)
        terms = ((state, -target.sigma * math.expm1(h) - slope), (u2, slope))
        states = ((state, target.alpha / source.alpha),)
        rows.append(grid.row(n + 1, states=states, eps=terms))
        state = len(rows)
    return grid.tableau("dpm-solver-3", rows, {"inner": inner})


def _stage(grid: Grid, n: int, r: float, inner: str) -> tuple[Level, int | None, float] | None:
    """The inner level at r of the step, its node if it is one, and r as it came out."""
    if inner not in ("real", "node"):
        raise InputError(f"inner is 'real' or 'node', not {quoted(inner)}")
    if not (grid.finite(n) and grid.finite(n + 1)):
        return None
    lam, after = grid.lam(n), grid.lam(n + 1)
    wanted = lam + r * (after - lam)
    if inner == "real":
        return grid.schedule.level_at(wanted), None, r
    low, high = sorted((grid.nodes[n], grid.nodes[n + 1]))
    between = range(low + 1, high)
    if not between:
        return None
    k = min(between, key=lambda i: abs(grid.schedule.lam[i] - wanted))
    return grid.schedule.level(k), k, (float(grid.schedule.lam[k]) - lam) / (after - lam)


@method("restart")
def restart(
    schedule: Schedule,
    nodes: Nodes,
    *,
    low: float = 0.1,
    high: float = 0.5,
    times: int = 1,
) -> Tableau:
    """DDIM that goes back to more noise and comes again (Xu et al. 2023, algorithm 1).

    https://arxiv.org/abs/2306.14878. On arriving at the node ``low`` the state is noised up to
    ``high`` and brought down again, ``times`` times. A noising row is a = α_hi/α_lo,
    c = √(σ_hi² - a²σ_lo²).

    Args:
        schedule: the noise schedule.
        nodes: decreasing.
        low: where to go back, as a fraction of T; the nearest inner node is taken.
        high: where to; the first node where sampling begins below it, as an edit may.
        times: how often; 0 is DDIM.

    Raises:
        InputError: fractions or times out of range, rising nodes.
    """
    if not 0 < low < high <= 1:
        raise InputError(f"restart goes back from low to high, 0 < low < high ≤ 1: {low}, {high}")
    if times < 0:
        raise InputError(f"times must not be negative: {times}")
    grid = Grid(schedule, nodes)
    grid.must_fall("restart")
    inner = [n for n in range(grid.steps) if nodes[n] > 0]
    bottom = min(inner, key=lambda n: abs(nodes[n] - low * schedule.T))
    top = min(inner, key=lambda n: abs(nodes[n] - high * schedule.T))
    if top < bottom:
        path = list(range(bottom + 1)) + list(range(top, bottom + 1)) * times
    else:
        path = list(range(bottom + 1))  # too few steps to go back
    path += range(bottom + 1, grid.steps + 1)
    rows: list[Row] = []
    for before, n in itertools.pairwise(path):
        state = len(rows)
        if n > before:
            rows.append(grid.first_order(n, before, state))
            continue
        source, target = grid.level(before), grid.level(n)
        carried = target.alpha / source.alpha
        noise = math.sqrt(target.sigma**2 - (carried * source.sigma) ** 2)
        rows.append(grid.row(n, states=((state, carried),), noise=noise))
    return grid.tableau("restart", rows, {"low": low, "high": high, "times": times})
