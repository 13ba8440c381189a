"""The samplers of a sweep: every combination of steps, η, methods and nodes that there is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from ddim.base.errors import InputError
from ddim.model.model import Model
from ddim.model.sampler import calibration_of, make_sampler, method_options
from ddim.samplers.tableau import Tableau

__all__ = ["SIGMA_HAT", "Cell", "plan_cells"]

SIGMA_HAT = "sigma-hat"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One sampler of a sweep.

    Attributes:
        method: as ``ddim compare`` takes it: a method's name, and ``:KEY=VALUE`` for its options.
        nodes: a family's name, or ``calibrated``.
        steps: S.
        eta: η, or ``sigma-hat`` for DDPM's larger variance; None where the method has no η.
    """

    method: str
    nodes: str
    steps: int
    eta: float | str | None = None

    @property
    def key(self) -> str:
        """A folder's name."""
        eta = "" if self.eta is None else f"-eta-{self.eta}"
        name = f"{self.method}-{self.nodes}-{self.steps}{eta}"
        return "".join(c if c.isalnum() or c in "-.=" else "_" for c in name)

    @property
    def order(self) -> tuple[object, ...]:
        """What cells are sorted by: DDIM first, then method, nodes, η (σ̂ last) and steps."""
        eta = {None: -1.0, SIGMA_HAT: math.inf}.get(self.eta, self.eta)
        return self.method != "ddim", self.method, self.nodes, eta, self.steps

    def tableau(self, model: Model) -> Tableau:
        """The rows.

        Raises:
            InputError: unknown names, numbers out of range, a calibration that is not there.
        """
        if self.nodes == "calibrated":
            return make_sampler(model, self.nodes, self.steps)[1]
        name, *given = self.method.split(":")
        options: dict[str, Any] = method_options(name, given)
        if "eta" in options:
            raise InputError(f"η is chosen for all samplers together here, not by {self.method!r}")
        if self.eta == SIGMA_HAT:
            name, options = "ddpm", {"variance": "large"}
        elif self.eta is not None:
            options["eta"] = self.eta
        return make_sampler(model, self.nodes, self.steps, name, **options)[1]


def plan_cells(
    model: Model,
    steps: Sequence[int],
    etas: Sequence[float | str] = (0.0,),
    methods: Sequence[str] = ("ddim",),
    nodes: Sequence[str] = ("uniform",),
) -> list[Cell]:
    """Every combination that there is; calibrated nodes have their own method.

    η is of DDIM, and of ``analytic`` where it is a number above 0. A number of steps that T is less
    than is taken for T. Of calibrated nodes those numbers are taken that the model is calibrated
    for.

    Raises:
        InputError: a cell that cannot be made; nothing to do.
    """
    T = model.schedule.T
    counts = list(dict.fromkeys(min(s, T) for s in steps))
    cells: list[Cell] = []
    for family in nodes:
        if family == "calibrated":
            known = calibration_of(model).samplers
            if known.keys().isdisjoint(counts):
                there, asked = (", ".join(map(str, v)) for v in (sorted(known), counts))
                raise InputError(f"{model.name} is calibrated for {there} steps, not {asked}")
            cells += [Cell("calibrated", family, s) for s in counts if s in known]
            continue
        for method in methods:
            choices = _etas(method.split(":")[0], etas)
            cells += [Cell(method, family, s, eta) for eta in choices for s in counts]
    cells = list(dict.fromkeys(cells))
    if not cells:
        raise InputError("there is no sampler to measure: give steps, methods and nodes")
    for cell in cells:
        cell.tableau(model)
    return cells


def _etas(method: str, etas: Sequence[float | str]) -> Sequence[float | str | None]:
    if method == "ddim":
        return etas
    if method == "analytic":
        # At η = 0 it is DDIM, and σ̂ is another variance than the optimal one.
        return [eta for eta in etas if eta not in (0, SIGMA_HAT)] or (None,)
    return (None,)
