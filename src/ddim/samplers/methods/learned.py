"""What calibration finds for a model: steps whose multistep weights are given, and the whole."""

from __future__ import annotations

from collections.abc import Sequence

from ddim.base.errors import InputError
from ddim.noise.nodes import Nodes
from ddim.noise.schedule import Schedule
from ddim.samplers.methods.grid import Grid
from ddim.samplers.registry import method
from ddim.samplers.tableau import Tableau

__all__ = ["calibrated", "learned"]


@method("learned", needs="weights")
def learned(
    schedule: Schedule, nodes: Nodes, *, weights: Sequence[Sequence[float]] | None = None
) -> Tableau:
    """DDIM's step, and shares of how the network's output has changed.

        x₊ = α₊·x0_n + σ₊·ε_n + α₊·Δρ·Σ_j w_j·(ε_{n-j} - ε_n),    j = 1, 2, …

    The differences keep every row consistent whatever the weights; with w₁ = -1/2 at all steps it
    is Adams' method of order 2. A step from or to a level where ρ is no number is DDIM's.

    Args:
        schedule: the noise schedule.
        nodes: falling.
        weights: for each step the w_j, the latest output first; at most as many as there are
            earlier outputs. Steps without any are DDIM's. If None, those of the model's
            calibration, which :meth:`ddim.Model.tableau` fills in.

    Raises:
        InputError: no weights, nodes that rise, or more weights than steps or earlier outputs.
    """
    if weights is None:
        raise InputError("the method learned needs its weights: give them, or a calibrated model")
    grid = Grid(schedule, nodes)
    if nodes[-1] > nodes[0]:
        raise InputError("learned weights are for falling nodes, from noise to data")
    if len(weights) > grid.steps:
        raise InputError(f"weights were given for {len(weights)} steps, not {grid.steps}")
    rows = []
    for n in range(grid.steps):
        given = tuple(weights[n]) if n < len(weights) else ()
        if len(given) > n:
            raise InputError(f"step {n} has {n} earlier outputs, not {len(given)}")
        if not given:
            rows.append(grid.first_order(n + 1, n))
            continue
        if not all(grid.finite(j) for j in range(n - len(given), n + 1)):
            raise InputError("learned weights need levels with finite ρ")
        target = grid.level(n + 1)
        scale = target.alpha * (grid.rho(n + 1) - grid.rho(n))
        terms = [(n, target.sigma - scale * sum(given))]
        terms += [(n - j, scale * w) for j, w in enumerate(given, start=1)]
        rows.append(grid.row(n + 1, x0=((n, target.alpha),), eps=tuple(terms)))
    return grid.tableau("learned", rows, {"weights": [list(w) for w in weights]})


@method("calibrated", needs="calibration")
def calibrated(schedule: Schedule, nodes: Nodes) -> Tableau:
    """The sampler that calibration found for a model and a number of steps, nodes included.

    Raises:
        InputError: always: a schedule alone has no calibration. :meth:`ddim.Model.tableau` has it.
    """
    raise InputError("calibrated samplers belong to a model, not to a schedule: name the model")
