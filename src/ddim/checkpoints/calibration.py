"""The file beside a model that holds what calibration found for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddim.base.errors import InputError
from ddim.base.files import read_json, write_json
from ddim.calibration.search import CalibratedSampler, Calibration
from ddim.noise.nodes import Nodes, check_nodes
from ddim.noise.schedule import Schedule

__all__ = ["CALIBRATED", "CalibrationFile", "read_calibration", "write_calibration"]

CALIBRATED = "calibrated.json"
FORMAT = "ddim calibration 1"


@dataclasses.dataclass(frozen=True)
class CalibrationFile:
    """What is known of one model.

    Attributes:
        path: the file.
        identity: of the model that it was made for.
        samplers: by number of calls.
        entries: the same as they are in the file, with the figures.
        moments: nodes, falling, and Γ there (see :func:`ddim.samplers.methods.analytic.optimal_variance`).
        latents: how many Γ is a mean over.
    """

    path: Path
    identity: str
    samplers: Mapping[int, CalibratedSampler]
    entries: Mapping[str, Mapping[str, Any]]
    moments: tuple[tuple[int, ...], tuple[float, ...]]
    latents: int

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
            int(calls): CalibratedSampler(tuple(e["nodes"]), e["method"], e["options"])
            for calls, e in values["calls"].items()
        }
        known = values["moments"]
        moments = tuple(map(int, known["nodes"])), tuple(map(float, known["gamma"]))
        if len(moments[0]) != len(moments[1]):
            raise ValueError("as many moments as nodes")
        for calls, sampler in samplers.items():
            if sampler.calls != calls:
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
    path: Path, identity: str, schedule: Schedule, found: Calibration, facts: Mapping[str, Any]
) -> None:
    """Add what was found to the file; what another model left there, or a damaged one, goes.

    Γ is replaced by that of as many latents or more.

    Args:
        path: the file; made if need be.
        identity: of the model.
        schedule: the model's.
        found: for one number of calls.
        facts: how it was found, such as the seed.
    """
    entries: dict[str, Any] = {}
    finite = [i for i, k in enumerate(found.teacher[:-1]) if np.isfinite(schedule.lam[k])]
    moments = {
        "nodes": [found.teacher[i] for i in finite],
        "gamma": [round(float(found.moments[i]), 6) for i in finite],
        "latents": found.counts[0],
    }
    before = _before(path, identity)
    if before is not None:
        entries = dict(before.entries)
        if before.latents > found.counts[0]:
            nodes, gamma = before.moments
            moments = {"nodes": list(nodes), "gamma": list(gamma), "latents": before.latents}
    check_nodes(schedule, found.sampler.nodes)
    entries[str(found.sampler.calls)] = {
        **found.sampler.to_json(),
        "rms": {name: [round(v, 6) for v in pair] for name, pair in found.errors.items()},
        "latents": list(found.counts),
        **facts,
    }
    write_json(
        path,
        {
            "format": FORMAT,
            "identity": identity,
            "calls": {key: entries[key] for key in sorted(entries, key=int)},
            "moments": moments,
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
