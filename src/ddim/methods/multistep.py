"""Solvers that reuse earlier outputs of the network: one call a step.

Each integrates exactly what is linear and extrapolates the rest by a polynomial through the last
outputs: in ε, x₊ = (α₊/α)x + α₊·Σ B_j·ε_{n-j} with ΣB = Δρ; in x0,
x₊ = (σ₊/σ)x + Σ B_j·x0_{n-j} with ΣB = α₊(1 - e^{-h}), h = Δλ. They start with the orders that
their history allows, and end with DDIM's jump to the data.
"""

from __future__ import annotations

import math

import numpy as np

from ddim.errors import InputError, unknown
from ddim.methods._grid import Array, Grid, integrals
from ddim.nodes import Nodes
from ddim.schedule import Schedule
from ddim.tableau import Row, Tableau

__all__ = ["deis", "dpmpp", "gradient_estimation", "plms", "sde_dpmpp", "unipc"]

# Adams-Bashforth weights for equal steps.
_ADAMS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def gradient_estimation(schedule: Schedule, nodes: Nodes, *, gamma: float = 2.0) -> Tableau:
    """B = (γ, 1-γ)·Δρ, the first step DDIM (Permenter and Yuan 2023, algorithm 2).

    https://arxiv.org/abs/2306.04848. Order 1, with a small constant.
    """
    if not math.isfinite(gamma):
        raise InputError(f"gamma must be a number, not {gamma}")
    grid = Grid(schedule, nodes)

    def weights(n: int, history: list[int]) -> Array:
        return np.array([1.0] if len(history) == 1 else [gamma, 1 - gamma]) * _step(grid, n)

    return _eps_family(grid, "gradient-estimation", 2, weights, {"gamma": gamma})


def plms(schedule: Schedule, nodes: Nodes, *, order: int = 4) -> Tableau:
    """Adams-Bashforth weights, as if ρ were equally spaced (Liu et al. 2022).

    https://arxiv.org/abs/2202.09778, where it is called PNDM; with this start, iPNDM (Zhang and
    Chen 2022). Its order is 2 for every ``order`` above 1, because ρ is not equally spaced.
    """
    _check_order("plms", order, 4)
    grid = Grid(schedule, nodes)

    def weights(n: int, history: list[int]) -> Array:
        return np.array(_ADAMS[len(history)]) * _step(grid, n)

    return _eps_family(grid, "plms", order, weights, {"order": order})


def deis(schedule: Schedule, nodes: Nodes, *, order: int = 3, variable: str = "rho") -> Tableau:
    """∫ℓ_j dρ, the polynomial through the last outputs in ρ or in t (Zhang and Chen 2022).

    https://arxiv.org/abs/2204.13902, ρAB-DEIS and tAB-DEIS.

    Args:
        schedule: the noise schedule.
        nodes: decreasing.
        order: 1 to 3.
        variable: ``rho`` or ``t``, in which the outputs are polynomial.
    """
    _check_order("deis", order, 3)
    if variable not in ("rho", "t"):
        raise unknown("variable", variable, ("rho", "t"))
    grid = Grid(schedule, nodes)
    time = _time_of_rho(schedule) if variable == "t" else None

    def weights(n: int, history: list[int]) -> Array:
        low, high = grid.rho(n), grid.rho(n + 1)
        rho = np.array([grid.rho(j) for j in history])
        found = integrals(rho if time is None else time(rho), low, high, at=time)
        # The sum is Δρ exactly; what quadrature missed is spread in proportion.
        return found * ((high - low) / found.sum())

    return _eps_family(grid, "deis", order, weights, {"order": order, "variable": variable})


def dpmpp(schedule: Schedule, nodes: Nodes, *, order: int = 2, form: str = "exact") -> Tableau:
    """DPM-Solver++ multistep, 2M and 3M (Lu et al. 2022, algorithm 2).

    https://arxiv.org/abs/2211.01095.

    Args:
        schedule: the noise schedule.
        nodes: decreasing.
        order: 1 to 3.
        form: of the order 3. ``exact`` integrates the polynomial through three outputs and
            measures order 3; ``published`` is the form that is widely copied, whose second
            difference lacks a factor 2, and measures order 2. Order 2 has one form.
    """
    _check_order("dpmpp", order, 3)
    if form not in ("exact", "published"):
        raise unknown("form", form, ("exact", "published"))
    grid = Grid(schedule, nodes)

    def weights(n: int, history: list[int]) -> Array:
        lams = np.array([grid.lam(j) for j in history])
        target, h = grid.lam(n + 1), grid.lam(n + 1) - grid.lam(n)
        alpha = grid.level(n + 1).alpha
        total = -alpha * math.expm1(-h)
        if len(history) == 1:
            return np.array([total])
        if len(history) == 2:
            r = (lams[0] - lams[1]) / h
            return total * np.array([1 + 1 / (2 * r), -1 / (2 * r)])
        if form == "published":
            return alpha * _published_third_order(h, lams)
        # σ₊·e^λ = α₊·e^{λ - λ₊}, which cannot overflow.
        found = alpha * integrals(lams, lams[0], target, weight=lambda lam: np.exp(lam - target))
        return found * (total / found.sum())

    return _x0_family(grid, "dpmpp", order, weights, {"order": order, "form": form})


def _published_third_order(h: float, lams: Array) -> Array:
    """Weights on the last three x0, divided by α₊, of the widely copied 3M."""
    r0, r1 = (lams[0] - lams[1]) / h, (lams[1] - lams[2]) / h
    first = np.array([1, -1, 0]) / r0
    before = np.array([0, 1, -1]) / r1
    d1 = first + r0 / (r0 + r1) * (first - before)
    d2 = (first - before) / (r0 + r1)
    phi1 = -math.expm1(-h)
    phi2 = -phi1 / h + 1
    phi3 = (-phi1 + h) / h**2 - 0.5
    return phi1 * np.array([1, 0, 0]) + phi2 * d1 - phi3 * d2


def sde_dpmpp(schedule: Schedule, nodes: Nodes) -> Tableau:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, algorithm 4, https://arxiv.org/abs/2211.01095).

    x₊ = (σ₊/σ)e^{-h}·x + α₊(1 - e^{-2h})·[(1 + 1/(2r))·D₀ - D₁/(2r)] + σ₊√(1 - e^{-2h})·z.
    """
    grid = Grid(schedule, nodes)
    _falling(grid, "sde-dpmpp")
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


def unipc(schedule: Schedule, nodes: Nodes, *, order: int = 2, variant: str = "bh2") -> Tableau:
    """UniPC: predict, evaluate there, correct; the corrected state is not evaluated again.

    Zhao et al. 2023, algorithms 1 and 2 (data prediction), https://arxiv.org/abs/2302.04867. One
    call a step; order p + 1 in the Gaussian lab.

    Args:
        schedule: the noise schedule.
        nodes: decreasing.
        order: p, 1 to 3.
        variant: ``bh1`` (B = -h) or ``bh2`` (B = e^{-h} - 1).
    """
    _check_order("unipc", order, 3)
    if variant not in ("bh1", "bh2"):
        raise unknown("variant", variant, ("bh1", "bh2"))
    grid = Grid(schedule, nodes)
    _falling(grid, "unipc")
    rows: list[Row] = []
    evaluated = {0: 0}  # node → the state that the network saw there
    corrected = 0
    for n in range(grid.steps):
        history = grid.history(n, grid.order_at(n, order))
        if not (history and history[0] == n and grid.finite(n + 1)):
            rows.append(grid.first_order(n + 1, n, evaluated[n]))
            evaluated[n + 1] = corrected = len(rows)
            continue
        carried = grid.level(n + 1).sigma / grid.level(n).sigma
        base = corrected
        predictor, corrector = _unipc_weights(grid, n, history, variant)
        terms = tuple((evaluated[j], w) for j, w in zip(history, predictor, strict=True))
        rows.append(grid.row(n + 1, states=((base, carried),), x0=terms))
        evaluated[n + 1] = corrected = len(rows)
        # The last prediction is the result: to correct it would cost one more call.
        if n + 1 < grid.steps:
            points = [evaluated[j] for j in history] + [evaluated[n + 1]]
            terms = tuple(zip(points, corrector.tolist(), strict=True))
            rows.append(grid.row(n + 1, states=((base, carried),), x0=terms, evaluated=False))
            corrected = len(rows)
    return grid.tableau("unipc", rows, {"order": order, "variant": variant})


def _unipc_weights(grid: Grid, n: int, history: list[int], variant: str) -> tuple[Array, Array]:
    """Weights of the predictor on the history, of the corrector on the history and the new one."""
    alpha = grid.level(n + 1).alpha
    lam, h = grid.lam(n), grid.lam(n + 1) - grid.lam(n)
    p = len(history)
    scale = math.expm1(-h) if variant == "bh2" else -h
    g = math.expm1(-h) / -h - 1
    moments = []
    for i in range(1, p + 1):
        moments.append(math.factorial(i) * g / scale)
        g = g / -h - 1 / math.factorial(i + 1)
    b = np.array(moments)
    r = np.array([(grid.lam(j) - lam) / h for j in history[1:]] + [1.0])
    total = -alpha * math.expm1(-h)

    def weights(count: int, points: Array) -> Array:
        """With ``count`` differences at ``points``: on D_n first, then on each of the others."""
        if count == 0:
            return np.array([total])
        powers = points[None, :] ** np.arange(count)[:, None]
        a = np.linalg.solve(powers, b[:count]) if count > 1 else np.array([0.5])
        others = -alpha * scale * a / points
        return np.concatenate([[total - others.sum()], others])

    predictor = weights(p - 1, r[:-1])
    corrector = weights(p, r)
    return predictor, corrector


# -- shared -------------------------------------------------------------------------------------


def _step(grid: Grid, n: int) -> float:
    return grid.rho(n + 1) - grid.rho(n)


def _check_order(method: str, order: int, largest: int) -> None:
    if order not in range(1, largest + 1):
        raise InputError(f"{method} has the orders 1 to {largest}, not {order}")


def _falling(grid: Grid, method: str) -> None:
    if grid.nodes[-1] > grid.nodes[0]:
        raise InputError(f"{method} runs from noise to data: its nodes must fall")


def _eps_family(
    grid: Grid, method: str, order: int, weights, options: dict[str, object]
) -> Tableau:
    rows: list[Row] = []
    for n in range(grid.steps):
        history = grid.history(n, grid.order_at(n, order))
        if not (history and history[0] == n and grid.finite(n + 1)):
            rows.append(grid.first_order(n + 1, n))
            continue
        source, target = grid.level(n), grid.level(n + 1)
        terms = zip(history, (target.alpha * weights(n, history)).tolist(), strict=True)
        carried = ((n, target.alpha / source.alpha),)
        rows.append(grid.row(n + 1, states=carried, eps=tuple(terms)))
    return grid.tableau(method, rows, options)


def _x0_family(grid: Grid, method: str, order: int, weights, options: dict[str, object]) -> Tableau:
    rows: list[Row] = []
    for n in range(grid.steps):
        history = grid.history(n, grid.order_at(n, order))
        if not (history and history[0] == n and grid.finite(n + 1)):
            rows.append(grid.first_order(n + 1, n))
            continue
        source, target = grid.level(n), grid.level(n + 1)
        terms = zip(history, weights(n, history).tolist(), strict=True)
        carried = ((n, target.sigma / source.sigma),)
        rows.append(grid.row(n + 1, states=carried, x0=tuple(terms)))
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
