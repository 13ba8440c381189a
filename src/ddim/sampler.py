"""Samplers of a model by name: what its schedule gives, and what calibration found for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ddim.checkpoints import CalibrationFile, read_calibration
from ddim.errors import InputError
from ddim.methods import make_tableau
from ddim.nodes import Nodes, make_nodes, start_at
from ddim.pipeline import Pipeline
from ddim.tableau import Tableau

__all__ = ["calibration_of", "make_sampler"]


def calibration_of(pipeline: Pipeline) -> CalibrationFile:
    """What calibration found for a model.

    Raises:
        InputError: nothing yet, or what was found for other weights, another schedule or target.
    """
    path = pipeline.calibration
    if path is None or not path.exists():
        raise InputError(
            f"{pipeline.name} has no calibration: `ddim calibrate MODEL --calls N` makes one"
        )
    found = read_calibration(path)
    if found.identity != pipeline.identity:
        raise InputError(
            f"{path} is stale, of other weights, another schedule or another target: "
            "calibrate again"
        )
    return found


def make_sampler(
    pipeline: Pipeline,
    nodes: str | Sequence[int] = "uniform",
    steps: int | None = None,
    method: str = "ddim",
    *,
    strength: float | None = None,
    **options: object,
) -> tuple[Nodes, Tableau]:
    """The nodes and the tableau of a sampler for a model.

    Args:
        pipeline: the model.
        nodes: a family's name, the nodes themselves, or ``calibrated``: those found for this model
            and so many steps, which come with their method.
        steps: S; T if None, or the length of a list.
        method: a key of :data:`ddim.METHODS`, or ``analytic``: DDIM with the variance that is
            optimal for this model, as its calibration measured it (Bao et al. 2022,
            https://arxiv.org/abs/2201.06503); its η is 1 unless given.
        strength: take only the part of the nodes that starts nearest to strength · T.
        options: the method's own, such as ``eta``.

    Raises:
        InputError: unknown names, numbers out of range, a calibration that is not there.

    Example:
        >>> from ddim.pipeline import load
        >>> make_sampler(load("mnist"), "uniform", 4)[0]
        (500, 375, 250, 125, 0)
    """
    if isinstance(nodes, str) and nodes == "calibrated":
        if strength is not None:
            raise InputError("calibrated nodes lead from noise to an image: strength has no part")
        return _calibrated(pipeline, steps, method, options)
    listed = make_nodes(pipeline.schedule, nodes, steps)
    taken = listed if strength is None else start_at(listed, strength, pipeline.schedule.T)
    if method == "analytic":
        return listed, _analytic(pipeline, taken, **options)
    return listed, make_tableau(pipeline.schedule, taken, method, **options)


def _calibrated(
    pipeline: Pipeline, steps: int | None, method: str, options: Mapping[str, object]
) -> tuple[Nodes, Tableau]:
    known = calibration_of(pipeline).samplers
    found = None if steps is None else known.get(steps)
    if found is None:
        counts = ", ".join(map(str, sorted(known)))
        raise InputError(f"{pipeline.name} is calibrated for {counts} steps, not for {steps}")
    if method not in ("ddim", found.method) or options:
        raise InputError(
            f"calibrated nodes come with their own method, here {found.method}: give the nodes as "
            "a list to use another"
        )
    tableau = found.tableau(pipeline.schedule)
    return found.nodes, dataclasses.replace(tableau, method=f"calibrated {found.method}")


def _analytic(pipeline: Pipeline, nodes: Nodes, **options: object) -> Tableau:
    from ddim.evaluate.variance import analytic_tableau

    for name in options.keys() - {"eta"}:
        raise InputError(f"method 'analytic' has no option {name!r}: it has eta")
    gamma = calibration_of(pipeline).gamma(pipeline.schedule, nodes)
    eta = float(options.get("eta", 1.0))  # pyright: ignore[reportArgumentType]
    return analytic_tableau(pipeline.schedule, nodes, gamma, eta=eta)
