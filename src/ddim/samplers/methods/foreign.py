"""Steps of other programs that none of the methods takes, so that their numbers can be made again.

Where a program's steps are those of a method here, its grid in :mod:`ddim.noise.foreign` is all it
takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from ddim.base.errors import InputError, quoted
from ddim.noise.nodes import Nodes
from ddim.noise.schedule import Level, Schedule
from ddim.samplers.methods.ddim import posterior_std
from ddim.samplers.methods.grid import Grid
from ddim.samplers.methods.multistep import ADAMS
from ddim.samplers.registry import method
from ddim.samplers.tableau import Row, State, Tableau

__all__ = ["ddim_pairs", "diffusers_ddim", "diffusers_pndm"]

_FINAL = {"data": 0, "first": 1}


def ddim_pairs(
    schedule: Schedule, pairs: Sequence[tuple[int, int]], *, eta: float = 0.0
) -> Tableau:
    """DDIM's step for each pair (k, k₊), whether or not the next pair begins at k₊.

    Where it does not, the network sees a state as less or more noisy than it is. A pair may
    repeat its node: without clipping that step changes nothing.

    Args:
        schedule: the noise schedule.
        pairs: nodes, each pair with k ≥ 1 and k ≥ k₊.
        eta: η ≥ 0, as in :func:`ddim.samplers.methods.ddim.ddim`.

    Raises:
        InputError: no pairs, a pair that rises or starts at the data, an η that is too large.

    Example:
        >>> print(ddim_pairs(Schedule.linear(10), [(10, 5), (6, 0)]).calls)
        2
    """
    return _pairs(schedule, pairs, "ddim-pairs", eta, {"eta": eta})


@method("diffusers-ddim", program="diffusers")
def diffusers_ddim(
    schedule: Schedule,
    nodes: Nodes,
    *,
    eta: float = 0.0,
    final: Literal["data", "first"] = "data",
    of: int | None = None,
) -> Tableau:
    """Diffusers' DDIMScheduler: every step goes from k to k - ⌊T/S⌋, whichever node comes next.

    On nodes that chain, as ``diffusers-leading`` does, it is DDIM. On rising nodes it is
    DDIMInverseScheduler: what lies at k - ⌊T/S⌋ is shown to the network at the time of k. (Its
    clipping keeps the old eps: :class:`ddim.denoisers.clipping.StaleEps`.)

    Args:
        schedule: the noise schedule.
        nodes: the program's timesteps plus one, falling, then 0; or all that reversed.
        eta: η ≥ 0; 0 on rising nodes.
        final: the end next to the data: ``data`` (``set_alpha_to_one``) or ``first``, node 1,
            where its noise is left.
        of: S, the steps of the whole list, where the nodes are the end of a longer one.

    Raises:
        InputError: nodes without the data at their end, η as for DDIM.
    """
    falling = nodes if nodes[0] > nodes[-1] else nodes[::-1]
    if falling[-1] != 0:
        raise InputError(f"diffusers-ddim needs the timesteps plus one and 0, not {quoted(nodes)}")
    stride = schedule.T // Grid(schedule, nodes, of).whole
    pairs = [(k, max(k - stride, _FINAL[final])) for k in falling[:-1]]
    options: dict[str, object] = {"eta": eta, "final": final, **({"of": of} if of else {})}
    if falling is nodes:
        return _pairs(schedule, pairs, "diffusers-ddim", eta, options)
    if eta:
        raise InputError("encoding is deterministic: on rising nodes eta must be 0")
    # The level is that of the pair's lower node, the time that of its upper one.
    seen = [schedule.level(low)._replace(t=k - 1.0) for k, low in reversed(pairs)]
    rows = _rows(seen, [schedule.level(k) for k in nodes[1:]], nodes[1:], [0.0] * len(pairs))
    initial = State(schedule.level(_FINAL[final]), seen[0], _FINAL[final])
    return Tableau("diffusers-ddim", (initial,), rows, (len(rows),), options=options)


@method("diffusers-pndm", program="diffusers")
def diffusers_pndm(
    schedule: Schedule, nodes: Nodes, *, start: Literal["heun", "runge-kutta"] = "heun"
) -> Tableau:
    """Diffusers' PNDMScheduler: PLMS after another start.

    With ``skip_prk_steps`` (``heun``) the first step is taken again with the mean of the outputs at
    both its ends, which costs one call more. Without, their default (``runge-kutta``), each of the
    first three steps is one of the classical Runge-Kutta method of order 4, which costs nine more;
    where the distance of two nodes is odd, its stages are seen half a node from where they are. Of
    fewer than four steps all but the last begin so.
    The last step has the full order. Its grid is ``diffusers-leading``, or the one with offset, and
    with its default ``set_alpha_to_one=False`` the data is node 1 instead of 0.

    Reference:
        Liu et al. 2022, equations 11 to 13, https://arxiv.org/abs/2202.09778

    Args:
        schedule: the noise schedule.
        nodes: falling.
        start: ``heun`` or ``runge-kutta``.

    Raises:
        InputError: rising nodes, or a first node with α = 0.
    """
    grid = Grid(schedule, nodes)
    grid.must_fall("diffusers-pndm")
    if grid.level(0).alpha == 0:
        raise InputError("diffusers-pndm divides by α, which is 0 at the first node")

    def row(n: int, state: int, outputs: Sequence[int], weights: Sequence[float]) -> Row:
        """The step n → n+1, from a state with weights on the outputs at some states."""
        source, target = grid.level(n), grid.level(n + 1)
        step = target.alpha * (grid.rho(n + 1) - grid.rho(n))
        return grid.row(
            n + 1,
            states=((state, target.alpha / source.alpha),),
            eps=tuple((i, step * w) for i, w in zip(outputs, weights, strict=True)),
        )

    options: dict[str, object] = {"start": start}
    if start == "runge-kutta":
        done = min(3, grid.steps - 1)
        rows, history = _runge_kutta(grid, done)
    else:
        rows, history, done = [row(0, 0, [0], [1.0])], [0], 1
        if grid.steps > 1:
            rows.append(row(0, 0, [0, 1], [0.5, 0.5]))
    for n in range(done, grid.steps):
        history = [len(rows), *history[:3]]
        rows.append(row(n, len(rows), history, ADAMS[len(history)]))
    return grid.tableau("diffusers-pndm", rows, options)


def _runge_kutta(grid: Grid, steps: int) -> tuple[list[Row], list[int]]:
    """Steps of order 4, and the states whose outputs begin the history, the newest first."""
    schedule, nodes = grid.schedule, grid.nodes
    rows: list[Row] = []
    history: list[int] = []
    for n in range(steps):
        first, source = len(rows), grid.level(n)
        half = (nodes[n] - nodes[n + 1]) // 2
        middle = nodes[n + 1] + half
        # Where each stage is, where the network sees it, and the weights on the outputs so far.
        stages = [
            (nodes[n] - half, middle, (1.0,)),
            (middle, middle, (0.0, 1.0)),
            (nodes[n + 1], nodes[n + 1], (0.0, 0.0, 1.0)),
            (nodes[n + 1], nodes[n + 1], (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
        ]
        for k, seen, weights in stages:
            target = schedule.level(k)
            step = target.alpha * float(schedule.rho[k] - grid.rho(n))
            eps = tuple((first + i, step * w) for i, w in enumerate(weights) if w)
            carried = ((first, target.alpha / source.alpha),)
            rows.append(Row(target, schedule.level(seen), k, carried, (), eps))
        history.insert(0, first)
    return rows, history


def _pairs(
    schedule: Schedule,
    pairs: Sequence[tuple[int, int]],
    method: str,
    eta: float,
    options: dict[str, object],
) -> Tableau:
    if not pairs or any(not 1 <= k >= low for k, low in pairs):
        raise InputError(f"{method} needs pairs of a node and one that is not above it: {pairs}")
    if not (math.isfinite(eta) and eta >= 0):
        raise InputError(f"eta must be at least 0, not {eta}")
    sources = [schedule.level(k) for k, _ in pairs]
    targets = [schedule.level(low) for _, low in pairs]
    noise = [eta * posterior_std(s, t) for s, t in zip(sources, targets, strict=True)]
    for std, target, (k, low) in zip(noise, targets, pairs, strict=True):
        if std > target.sigma:
            raise InputError(
                f"eta = {eta:g} is too large: the step from {k} to {low} would inject {std:.4g}, "
                f"more than its whole noise {target.sigma:.4g}"
            )
    rows = _rows(sources, targets, [low for _, low in pairs], noise)
    initial = State(sources[0], sources[0], pairs[0][0])
    return Tableau(method, (initial,), rows, (len(rows),), options=options)


def _rows(
    seen: Sequence[Level], targets: Sequence[Level], nodes: Sequence[int], noise: Sequence[float]
) -> tuple[Row, ...]:
    """DDIM's rows: state n, seen at ``seen[n]``, is taken to ``targets[n]``."""
    return tuple(
        Row(
            level=target,
            at=at,
            k=k,
            x0=((n, target.alpha),),
            eps=((n, math.sqrt((target.sigma - c) * (target.sigma + c))),),
            noise=c,
        )
        for n, (target, at, k, c) in enumerate(
            zip(targets, [*seen[1:], None], nodes, noise, strict=True)
        )
    )
