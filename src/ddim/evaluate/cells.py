"""The samplers of a sweep: every combination of steps, η, methods and nodes that there is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ddim.errors import InputError
from ddim.pipeline import Pipeline
from ddim.sampler import calibration_of, make_sampler
from ddim.tableau import Tableau

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

    def tableau(self, pipeline: Pipeline) -> Tableau:
        """The rows.

        Raises:
            InputError: unknown names, numbers out of range, a calibration that is not there.
        """
        name, *given = self.method.split(":")
        options: dict[str, Any] = {}
        for item in given:
            option, equals, value = item.partition("=")
            if not equals:
                raise InputError(f"a method's options are KEY=VALUE, not {item!r}")
            options[option] = int(value) if value.lstrip("-").isdigit() else value
        if self.nodes == "calibrated":
            return make_sampler(pipeline, self.nodes, self.steps)[1]
        if self.eta == SIGMA_HAT:
            name, options = "ddpm", {"variance": "large"}
        elif self.eta is not None:
            options["eta"] = self.eta
        return make_sampler(pipeline, self.nodes, self.steps, name, **options)[1]


def plan_cells(
    pipeline: Pipeline,
    steps: Sequence[int],
    etas: Sequence[float | str] = (0.0,),
    methods: Sequence[str] = ("ddim",),
    nodes: Sequence[str] = ("uniform",),
) -> list[Cell]:
    """Every combination that there is: η is of DDIM alone, calibrated nodes have their own method.

    A number of steps that T is less than is taken for T. Of calibrated nodes those numbers are
    taken that the model is calibrated for.

    Raises:
        InputError: a cell that cannot be made; nothing to do.
    """
    T = pipeline.schedule.T
    counts = list(dict.fromkeys(min(s, T) for s in steps))
    cells: list[Cell] = []
    for family in nodes:
        if family == "calibrated":
            known = calibration_of(pipeline).samplers
            cells += [Cell("calibrated", family, s) for s in counts if s in known]
            continue
        for method in methods:
            choices = etas if method.split(":")[0] == "ddim" else (None,)
            cells += [Cell(method, family, s, eta) for eta in choices for s in counts]
    cells = list(dict.fromkeys(cells))
    if not cells:
        raise InputError("there is no sampler to measure: give steps, methods and nodes")
    for cell in cells:
        cell.tableau(pipeline)
    return cells
