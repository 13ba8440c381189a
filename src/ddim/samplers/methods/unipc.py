"""UniPC: a multistep predictor, corrected by the output that the next step needs anyway."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from ddim.noise.nodes import Nodes
from ddim.noise.schedule import Schedule
from ddim.samplers.methods.grid import Array, Grid, Histories, weights_of
from ddim.samplers.registry import method
from ddim.samplers.tableau import Row, Tableau

__all__ = ["unipc"]


@method("unipc", orders={"order=1": 2, "order=2": 3, "order=3": 4, "order=2:variant=bh1": 3})
def unipc(
    schedule: Schedule,
    nodes: Nodes,
    *,
    order: Literal[1, 2, 3] = 2,
    variant: Literal["bh1", "bh2"] = "bh2",
    of: int | None = None,
) -> Tableau:
    """UniPC: predict, evaluate there, correct; the corrected state is not evaluated again.

    Zhao et al. 2023, algorithms 1 and 2 (data prediction), https://arxiv.org/abs/2302.04867. One
    call a step; order p + 1 in the Gaussian lab.

    Args:
        schedule: the noise schedule.
        nodes: decreasing.
        order: p, 1 to 3.
        variant: ``bh1`` (B = -h) or ``bh2`` (B = e^{-h} - 1).
        of: the steps of the whole list, where the nodes are the end of a longer one.

    Raises:
        InputError: rising nodes.
    """
    grid = Grid(schedule, nodes, of)
    grid.must_fall("unipc")
    rows: list[Row] = []
    evaluated = {0: 0}  # node → the state that the network saw there
    corrected = 0
    histories = grid.histories(order)
    found = weights_of(histories, lambda history: _unipc_weights(grid, history, variant))
    for n in range(grid.steps):
        if n not in found:
            rows.append(grid.first_order(n + 1, n, evaluated[n]))
            evaluated[n + 1] = corrected = len(rows)
            continue
        alpha = grid.level(n + 1).alpha
        carried = ((corrected, grid.level(n + 1).sigma / grid.level(n).sigma),)
        points = [evaluated[j] for j in histories[n]]
        predictor, corrector = found[n]
        terms = tuple((j, alpha * w) for j, w in zip(points, predictor, strict=True))
        rows.append(grid.row(n + 1, states=carried, x0=terms))
        evaluated[n + 1] = corrected = len(rows)
        # The last prediction is the result: to correct it would cost one more call.
        if n + 1 < grid.steps:
            points.append(evaluated[n + 1])
            terms = tuple((j, alpha * w) for j, w in zip(points, corrector, strict=True))
            rows.append(grid.row(n + 1, states=carried, x0=terms, evaluated=False))
            corrected = len(rows)
    return grid.tableau("unipc", rows, {"order": order, "variant": variant})


def _unipc_weights(grid: Grid, history: Histories, variant: str) -> tuple[Array, Array]:
    """Weights of the predictor on the history, of the corrector on the history and the new one.

    Shapes (R, J) and (R, J+1) for histories of shape (R, J); divided by α₊.
    """
    lams = grid.lams[history]
    h = (grid.lams[history[:, 0] + 1] - lams[:, 0])[:, None]
    p = history.shape[1]
    scale = np.expm1(-h) if variant == "bh2" else -h
    g = np.expm1(-h) / -h - 1
    moments = []
    for i in range(1, p + 1):
        moments.append(math.factorial(i) * g / scale)
        g = g / -h - 1 / math.factorial(i + 1)
    b = np.hstack(moments)
    r = np.hstack([(lams[:, 1:] - lams[:, :1]) / h, np.ones_like(h)])
    total = -np.expm1(-h)

    def weights(points: Array) -> Array:
        """With differences at the points: on D_n first, then on each of the others."""
        count = points.shape[1]
        if count == 0:
            return total
        if count == 1:
            a = np.full_like(points, 0.5)
        else:
            powers = points[:, None, :] ** np.arange(count)[None, :, None]
            a = np.linalg.solve(powers, b[:, :count, None])[..., 0]
        others = -scale * a / points
        return np.hstack([total - others.sum(axis=1, keepdims=True), others])

    return weights(r[:, :-1]), weights(r)
