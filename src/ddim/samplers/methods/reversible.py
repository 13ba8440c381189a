"""Solvers whose every row can be solved for its oldest state: exact inverses for any network.

Each carries two states. With ``pair`` off they sample from one latent, making the second
themselves; with ``pair`` on they start from both, and :meth:`~ddim.Tableau.inverse` is the encoder.
"""

from __future__ import annotations

import math

from ddim.base.errors import InputError
from ddim.noise.nodes import Nodes
from ddim.noise.schedule import Schedule
from ddim.samplers.methods.grid import Grid
from ddim.samplers.registry import method
from ddim.samplers.tableau import Row, State, Tableau

__all__ = ["bdia", "edict", "obelm"]


@method("obelm", orders={"": 2})
def obelm(schedule: Schedule, nodes: Nodes, *, pair: bool = False) -> Tableau:
    """O-BELM (Wang et al. 2024, equation 18, https://arxiv.org/abs/2410.07273). Order 2.

    One call a step, and the round trip is exact to rounding. With h = -Δρ of this step and h' of
    the one before: x₊ = (h²/h'²)(α₊/α')x' + (1 - h²/h'²)(α₊/α)x - (h(h + h')/h')·α₊·ε.

    Args:
        schedule: the noise schedule.
        nodes: decreasing; uniform ones amplify rounding least.
        pair: start from the states at the first two nodes, instead of making the second by DDIM.
    """

    def row(grid: Grid, n: int) -> Row:
        before, source, target = grid.level(n - 1), grid.level(n), grid.level(n + 1)
        h, h_before = grid.rho(n) - grid.rho(n + 1), grid.rho(n - 1) - grid.rho(n)
        q = (h / h_before) ** 2
        states = (
            (n - 1, q * target.alpha / before.alpha),
            (n, (1 - q) * target.alpha / source.alpha),
        )
        eps = ((n, -h * (h + h_before) / h_before * target.alpha),)
        return grid.row(n + 1, states=states, eps=eps)

    return _two_step(schedule, nodes, "obelm", row, pair, {})


@method("bdia", orders={"": 2})
def bdia(schedule: Schedule, nodes: Nodes, *, gamma: float = 1.0, pair: bool = False) -> Tableau:
    """BDIA (Zhang et al. 2023, equation 14, https://arxiv.org/abs/2307.10829).

    With a_j = α_j/α, b_j = σ_j - a_j·σ from the middle state:
    x₊ = γx' + (a₊ - γa')x + (b₊ - γb')ε. Its inverse divides by γ at every step, so only γ = 1 can
    be inverted in practice.

    Args:
        schedule: the noise schedule.
        nodes: decreasing.
        gamma: γ in (0, 1].
        pair: as for :func:`obelm`; only with γ = 1.

    Raises:
        InputError: γ out of range, or not 1 with a pair; rising nodes.
    """
    if not 0 < gamma <= 1:
        raise InputError(f"gamma must be in (0, 1], not {gamma}")
    if pair and gamma != 1:
        raise InputError(
            f"bdia can be inverted at gamma = 1 only: at {gamma:g} encoding amplifies rounding by "
            f"{1 / gamma:g} a step"
        )

    def row(grid: Grid, n: int) -> Row:
        before, source, target = grid.level(n - 1), grid.level(n), grid.level(n + 1)
        a, a_before = target.alpha / source.alpha, before.alpha / source.alpha
        b, b_before = target.sigma - a * source.sigma, before.sigma - a_before * source.sigma
        states = ((n - 1, gamma), (n, a - gamma * a_before))
        return grid.row(n + 1, states=states, eps=((n, b - gamma * b_before),))

    return _two_step(schedule, nodes, "bdia", row, pair, {"gamma": gamma})


def _two_step(schedule: Schedule, nodes: Nodes, method: str, row, pair: bool, options) -> Tableau:
    grid = _reversible_grid(schedule, nodes, method)
    if pair and grid.steps < 2:
        raise InputError(f"{method} needs at least 2 steps to be inverted, not {grid.steps}")
    rows = [row(grid, n) for n in range(1, grid.steps)]
    if not pair:
        return grid.tableau(method, [grid.first_order(1, 0), *rows], options)
    initial = (grid.start(), State(grid.level(1), grid.seen(1), grid.nodes[1]))
    returns = (grid.steps, grid.steps - 1)
    return Tableau(method, initial, tuple(rows), returns, options=options)


def _reversible_grid(schedule: Schedule, nodes: Nodes, method: str) -> Grid:
    grid = Grid(schedule, nodes)
    if nodes[-1] > nodes[0]:
        raise InputError(f"{method} is built on falling nodes; its encoder is the table's inverse")
    if schedule.alpha[nodes[0]] == 0:
        raise InputError(f"{method} cannot start where α = 0: nothing of the image is left there")
    return grid


@method("edict", orders={"": 1})
def edict(schedule: Schedule, nodes: Nodes, *, p: float = 0.93, pair: bool = False) -> Tableau:
    """EDICT (Wallace et al. 2022, equations 11 and 12, https://arxiv.org/abs/2211.12446).

    x' = ax + bε(y), y' = ay + bε(x'), then x = px' + (1-p)y', y = py' + (1-p)x. Two calls a step;
    the mixing alone, undone, amplifies rounding by p^(-2S), and a network adds its share.

    Args:
        schedule: the noise schedule.
        nodes: decreasing.
        p: mixing weight in (0, 1].
        pair: start from both states, instead of two copies of one.

    Raises:
        InputError: p out of range, rising nodes.
    """
    if not 0 < p <= 1:
        raise InputError(f"p must be in (0, 1], not {p}")
    grid = _reversible_grid(schedule, nodes, "edict")
    start = grid.start()
    rows: list[Row] = []
    initial = (start, start)
    if not pair:
        initial = (start,)
        rows.append(Row(start.level, start.at, start.k, ((0, 1.0),)))
    x, y = 0, 1
    for n in range(grid.steps):
        source, target = grid.level(n), grid.level(n + 1)
        a = target.alpha / source.alpha
        b = target.sigma - a * source.sigma
        count = len(initial) + len(rows)
        k = grid.nodes[n + 1]
        # The network sees x' at the time of the step's beginning.
        rows.append(Row(target, grid.seen(n), k, ((x, a),), (), ((y, b),)))
        rows.append(Row(target, None, k, ((y, a),), (), ((count, b),)))
        rows.append(Row(target, None, k, ((count, p), (count + 1, 1 - p))))
        at = grid.seen(n + 1) if n + 1 < grid.steps else None
        rows.append(Row(target, at, k, ((count + 1, p), (count + 2, 1 - p))))
        x, y = count + 2, count + 3
    returns = (y, x) if pair else (x,)
    return Tableau("edict", initial, tuple(rows), returns, options={"p": p})


def amplification(p: float, steps: int) -> float:
    """By how much undoing EDICT's mixing amplifies rounding: p^(-2S)."""
    return math.exp(-2 * steps * math.log(p))
