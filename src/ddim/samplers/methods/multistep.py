"""Solvers that reuse earlier outputs of the network: one call a step.

Each integrates exactly what is linear and extrapolates the rest by a polynomial through the last
outputs: in ε, x₊ = (α₊/α)x + α₊·Σ B_j·ε_{n-j} with ΣB = Δρ; in x0,
x₊ = (σ₊/σ)x + Σ B_j·x0_{n-j} with ΣB = α₊(1 - e^{-h}), h = Δλ. They start with the orders that
their history allows, and end with DDIM's jump to the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from ddim.base.errors import InputError
from ddim.noise.nodes import Nodes
from ddim.noise.schedule import Schedule
from ddim.samplers.methods.grid import Array, Grid, Histories, integrals, weights_of
from ddim.samplers.registry import method
from ddim.samplers.tableau import Row, Tableau

__all__ = ["deis", "dpmpp", "gradient_estimation", "plms", "sde_dpmpp"]

# Adams-Bashforth weights for equal steps.
ADAMS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@method("gradient-estimation", orders={"gamma=2": 1})
def gradient_estimation(schedule: Schedule, nodes: Nodes, *, gamma: float = 2.0) -> Tableau:
    """B = (γ, 1-γ)·Δρ, the first step DDIM (Permenter and Yuan 2023, algorithm 2).

    https://arxiv.org/abs/2306.04848. Order 1, with a small constant.

    Args:
        schedule: the noise schedule.
        nodes: falling, or rising to encode.
        gamma: γ; 1 is DDIM.

    Raises:
        InputError: a γ that is not finite.
    """
    if not math.isfinite(gamma):
        raise InputError(f"gamma must be a number, not {gamma}")
    grid = Grid(schedule, nodes)

    def weights(history: Histories) -> Array:
        shares = np.array([1.0] if history.shape[1] == 1 else [gamma, 1 - gamma])
        return _steps(grid, history)[:, None] * shares

    return _family(grid, "gradient-estimation", "eps", 2, weights, {"gamma": gamma})


@method("plms", orders={"order=1": 1, "order=2": 2, "order=3": 2, "order=4": 2})
def plms(
    schedule: Schedule, nodes: Nodes, *, order: Literal[1, 2, 3, 4] = 4, of: int | None = None
) -> Tableau:
    """Adams-Bashforth weights, as if ρ were equally spaced (Liu et al. 2022).

    https://arxiv.org/abs/2202.09778, where it is called PNDM; with this start, iPNDM (Zhang and
    Chen 2022). Its order is 2 for every ``order`` above 1, because ρ is not equally spaced.

    Args:
        schedule: the noise schedule.
        nodes: falling, or rising to encode.
        order: 1 to 4.
        of: the steps of the whole list, where the nodes are the end of a longer one.
    """
    grid = Grid(schedule, nodes, of)

    def weights(history: Histories) -> Array:
        return _steps(grid, history)[:, None] * np.array(ADAMS[history.shape[1]])

    return _family(grid, "plms", "eps", order, weights, {"order": order})


@method(
    "deis",
    orders={
        "order=1": 1,
        "order=2": 2,
        "order=3": 3,
        "order=2:variable=t": 2,
        "order=3:variable=t": 3,
    },
)
def deis(
    schedule: Schedule,
    nodes: Nodes,
    *,
    order: Literal[1, 2, 3] = 3,
    variable: Literal["rho", "t"] = "rho",
    of: int | None = None,
) -> Tableau:
    """∫ℓ_j dρ, the polynomial through the last outputs in ρ or in t (Zhang and Chen 2022).

    https://arxiv.org/abs/2204.13902, ρAB-DEIS and tAB-DEIS.

    Args:
        schedule: the noise schedule.
        nodes: falling: a polynomial in ρ, carried on over a rising step, diverges.
        order: 1 to 3.
        variable: ``rho`` or ``t``, in which the outputs are polynomial.
        of: the steps of the whole list, where the nodes are the end of a longer one.

    Raises:
        InputError: rising nodes.
    """
    grid = Grid(schedule, nodes, of)
    grid.must_fall("deis")
    time = _time_of_rho(schedule) if variable == "t" else None

    def weights(history: Histories) -> Array:
        rho, high = grid.rhos[history], grid.rhos[history[:, 0] + 1]
        found = integrals(rho if time is None else time(rho), rho[:, 0], high, at=time)
        # The sum is Δρ exactly; what quadrature missed is spread in proportion.
        return found * (_steps(grid, history) / found.sum(axis=1))[:, None]

    return _family(grid, "deis", "eps", order, weights, {"order": order, "variable": variable})


@method("dpmpp", orders={"order=1": 1, "order=2": 2, "order=3": 3, "order=3:form=published": 2})
def dpmpp(
    schedule: Schedule,
    nodes: Nodes,
    *,
    order: Literal[1, 2, 3] = 2,
    form: Literal["exact", "published"] = "exact",
    of: int | None = None,
) -> Tableau:
    """DPM-Solver++ multistep, 2M and 3M (Lu et al. 2022, algorithm 2).

    https://arxiv.org/abs/2211.01095.

    Args:
        schedule: the noise schedule.
        nodes: falling, or rising to encode.
        order: 1 to 3.
        form: of the order 3. ``exact`` integrates the polynomial through three outputs and
            measures order 3; ``published`` is the form that is widely copied, whose second
            difference lacks a factor 2, and measures order 2. Order 2 has one form.
        of: the steps of the whole list, where the nodes are the end of a longer one.
    """
    grid = Grid(schedule, nodes, of)

    def weights(history: Histories) -> Array:
        lams, target = grid.lams[history], grid.lams[history[:, 0] + 1]
        h = target - lams[:, 0]
        # The whole is 1 - e^{-h}, times α₊.
        total = -np.expm1(-h)[:, None]
        if history.shape[1] == 1:
            return total
        if history.shape[1] == 2:
            half = (h / (2 * (lams[:, 0] - lams[:, 1])))[:, None]
            return total * np.hstack([1 + half, -half])
        if form == "published":
            return _published_third_order(h, lams)
        # σ₊·e^λ = α₊·e^{λ - λ₊}, which cannot overflow.
        found = integrals(
            lams, lams[:, 0], target, weight=lambda lam: np.exp(lam - target[:, None])
        )
        return found * (total / found.sum(axis=1, keepdims=True))

    return _family(grid, "dpmpp", "x0", order, weights, {"order": order, "form": form})


def _published_third_order(h: Array, lams: Array) -> Array:
    """Weights on the last three x0, divided by α₊, of the widely copied 3M; shape (R, 3)."""
    h = h[:, None]
    r0, r1 = (lams[:, :1] - lams[:, 1:2]) / h, (lams[:, 1:2] - lams[:, 2:]) / h
    first = np.array([[1, -1, 0]]) / r0
    before = np.array([[0, 1, -1]]) / r1
    d1 = first + r0 / (r0 + r1) * (first - before)
    d2 = (first - before) / (r0 + r1)
    phi1 = -np.expm1(-h)
    phi2 = -phi1 / h + 1
    phi3 = (-phi1 + h) / h**2 - 0.5
    return phi1 * np.array([[1, 0, 0]]) + phi2 * d1 - phi3 * d2


@method("sde-dpmpp")
def sde_dpmpp(schedule: Schedule, nodes: Nodes) -> Tableau:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, algorithm 4, https://arxiv.org/abs/2211.01095).

    x₊ = (σ₊/σ)e^{-h}·x + α₊(1 - e^{-2h})·[(1 + 1/(2r))·D₀ - D₁/(2r)] + σ₊√(1 - e^{-2h})·z.

    Raises:
        InputError: rising nodes.
    """
    grid = Grid(schedule, nodes)
    grid.must_fall("sde-dpmpp")
    rows: list[Row] = []
    for n in range(grid.steps):
        history = grid.history(n, 2)
        if not (history and history[0] == n and grid.finite(n + 1)):
            rows.append(_renoised(grid, n))
            continue
        source, target = grid.level(n), grid.level(n + 1)
        h = grid.lam(n + 1) - grid.lam(n)
        total = -target.alpha * math.expm1(-2 * h)
        terms = [(n, total)]
        if len(history) == 2:
            r = (grid.lam(n) - grid.lam(history[1])) / h
            terms = [(n, total * (1 + 1 / (2 * r))), (history[1], -total / (2 * r))]
        carried = target.sigma / source.sigma * math.exp(-h)
        noise = target.sigma * math.sqrt(-math.expm1(-2 * h))
        rows.append(grid.row(n + 1, states=((n, carried),), x0=tuple(terms), noise=noise))
    return grid.tableau("sde-dpmpp", rows)


def _renoised(grid: Grid, n: int) -> Row:
    """The first-order step where λ is infinite: from pure noise all fresh noise, to data none."""
    target = grid.level(n + 1)
    if target.sigma == 0:
        return grid.first_order(n + 1, n)
    return grid.row(n + 1, x0=((n, target.alpha),), noise=target.sigma)


def _steps(grid: Grid, history: Histories) -> Array:
    """Δρ of the steps that start at the newest of each history, shape (R,)."""
    return grid.rhos[history[:, 0] + 1] - grid.rhos[history[:, 0]]


def _family(
    grid: Grid,
    method: str,
    kind: Literal["eps", "x0"],
    order: int,
    weights: Callable[[Histories], Array],
    options: dict[str, object],
) -> Tableau:
    """Rows (α₊/α)x + α₊·Σ weight·ε, or (σ₊/σ)x + α₊·Σ weight·x0."""
    histories = grid.histories(order)
    found = weights_of(histories, lambda history: (weights(history),))
    rows: list[Row] = []
    for n in range(grid.steps):
        if n not in found:
            rows.append(grid.first_order(n + 1, n))
            continue
        source, target = grid.level(n), grid.level(n + 1)
        terms = tuple((j, target.alpha * w) for j, w in zip(histories[n], found[n][0], strict=True))
        if kind == "eps":
            carried = ((n, target.alpha / source.alpha),)
            rows.append(grid.row(n + 1, states=carried, eps=terms))
        else:
            carried = ((n, target.sigma / source.sigma),)
            rows.append(grid.row(n + 1, states=carried, x0=terms))
    return grid.tableau(method, rows, options)


def _time_of_rho(schedule: Schedule):
    """The node as a function of ρ, by a monotone cubic in λ (Fritsch and Carlson 1980)."""
    last = schedule.T if schedule.alpha[-1] > 0 else schedule.T - 1
    x = -schedule.lam[1 : last + 1]  # rising
    y = np.arange(1.0, last + 1)
    if len(x) < 3:
        return lambda rho: np.interp(np.log(rho), x, y)
    h, slope = np.diff(x), np.diff(y) / np.diff(x)
    d = np.empty_like(x)
    w1, w2 = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
    d[1:-1] = (w1 + w2) / (w1 / slope[:-1] + w2 / slope[1:])
    d[0], d[-1] = slope[0], slope[-1]

    def time(rho: Array) -> Array:
        at = np.clip(np.log(rho), x[0], x[-1])
        i = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(h) - 1)
        s, width = (at - x[i]) / h[i], h[i]
        return (
            y[i] * (1 + 2 * s) * (1 - s) ** 2
            + y[i + 1] * s**2 * (3 - 2 * s)
            + width * d[i] * s * (1 - s) ** 2
            - width * d[i + 1] * s**2 * (1 - s)
        )

    return time
