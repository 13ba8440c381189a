"""The file beside a model that holds what calibration found for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddim.base.errors import InputError
from ddim.base.files import read_json, write_json
from ddim.noise.nodes import Nodes
from ddim.noise.schedule import Schedule
from ddim.samplers.sampler import Sampler

__all__ = ["CALIBRATED", "CalibrationFile", "read_calibration", "write_calibration"]

CALIBRATED = "calibrated.json"
FORMAT = "ddim calibration 1"


@dataclasses.dataclass(frozen=True)
class CalibrationFile:
    """What is known of one model.

    Attributes:
        path: the file.
        identity: of the model that it was made for.
        samplers: by number of calls; of methods with one call a step.
        entries: the same as they are in the file, with the figures.
        moments: nodes, falling, and Γ there (see
            :func:`~ddim.samplers.methods.analytic.optimal_variance`).
        latents: how many Γ is a mean over.
    """

    path: Path
    identity: str
    samplers: Mapping[int, Sampler]
    entries: Mapping[str, Mapping[str, Any]]
    moments: tuple[tuple[int, ...], tuple[float, ...]]
    latents: int

    def sampler(self, steps: int | None, name: str, method: str = "calibrated") -> Sampler:
        """The sampler for a number of steps.

        Args:
            steps: S.
            name: of the model, for messages.
            method: ``calibrated`` for whichever was found, or ``learned`` for that alone.

        Raises:
            InputError: there is none for so many steps, or another than was asked for.
        """
        found = None if steps is None else self.samplers.get(steps)
        if found is None:
            counts = ", ".join(map(str, sorted(self.samplers)))
            if steps is None:
                raise InputError(f"give steps: {name} is calibrated for {counts} of them")
            raise InputError(f"{name} is calibrated for {counts} steps, not for {steps}")
        if method not in ("calibrated", found.method):
            raise InputError(
                f"the calibration of {name} for {steps} steps is {found.method}, not {method}"
            )
        return found

    def gamma(self, schedule: Schedule, nodes: Nodes) -> np.ndarray:
        """Γ at each node but the last, shape (S,), linear in log ρ between those in the file."""
        known, values = self.moments
        lam = schedule.lam
        order = np.argsort([lam[k] for k in known])
        return np.interp(
            [lam[k] for k in nodes[:-1]], lam[list(known)][order], np.array(values)[order]
        )


def read_calibration(path: Path) -> CalibrationFile:
    """Read the file.

    Raises:
        InputError: no such file, or not one of a calibration.
    """
    values = read_json(path)
    try:
        if values["format"] != FORMAT:
            raise KeyError("format")
        samplers = {
            int(calls): Sampler(e["method"], nodes=tuple(e["nodes"]), **e["options"])
            for calls, e in values["calls"].items()
        }
        known = values["moments"]
        moments = tuple(map(int, known["nodes"])), tuple(map(float, known["gamma"]))
        if len(moments[0]) != len(moments[1]):
            raise ValueError("as many moments as nodes")
        for calls, sampler in samplers.items():
            if sampler.steps != calls:
                raise ValueError(f"{calls} calls")
        return CalibrationFile(
            path,
            str(values["identity"]),
            samplers,
            values["calls"],
            moments,
            int(known["latents"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a calibration: {error} is wrong or missing") from None


def write_calibration(
    path: Path,
    identity: str,
    schedule: Schedule,
    sampler: Sampler,
    moments: tuple[Nodes, NDArray[np.float64], int],
    facts: Mapping[str, Any],
) -> None:
    """Add what was found to the file; what another model left there, or a damaged one, goes.

    Γ is replaced by that of as many latents or more.

    Args:
        path: the file; made if need be.
        identity: of the model.
        schedule: the model's.
        sampler: on nodes of its own.
        moments: nodes, Γ at each but the last, and how many latents it is a mean over.
        facts: how it was found, and its figures.
    """
    nodes, gamma, latents = moments
    finite = [i for i, k in enumerate(nodes[:-1]) if np.isfinite(schedule.lam[k])]
    measured = {
        "nodes": [nodes[i] for i in finite],
        "gamma": [round(float(gamma[i]), 6) for i in finite],
        "latents": latents,
    }
    entries: dict[str, Any] = {}
    before = _before(path, identity)
    if before is not None:
        entries = dict(before.entries)
        if before.latents > latents:
            known, values = before.moments
            measured = {"nodes": list(known), "gamma": list(values), "latents": before.latents}
    placed = sampler.place(schedule)
    entries[str(len(placed) - 1)] = {
        "nodes": list(placed),
        "method": sampler.method,
        "options": dict(sampler.settings),
        **facts,
    }
    write_json(
        path,
        {
            "format": FORMAT,
            "identity": identity,
            "calls": {key: entries[key] for key in sorted(entries, key=int)},
            "moments": measured,
        },
    )


def _before(path: Path, identity: str) -> CalibrationFile | None:
    """What the file holds of this model."""
    if not path.exists():
        return None
    try:
        found = read_calibration(path)
    except InputError:
        return None
    return found if found.identity == identity else None
