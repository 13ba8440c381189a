"""The file beside a model that holds what calibration found for it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddim.base.code import is_named
from ddim.base.display import shown
from ddim.base.errors import InputError, quoted
from ddim.base.files import read_json, write_json
from ddim.base.records import in_file, record
from ddim.noise.nodes import Nodes
from ddim.noise.schedule import Schedule
from ddim.samplers.sampler import Sampler

__all__ = [
    "CALIBRATED",
    "CalibrationFile",
    "find_calibration",
    "is_shared",
    "read_calibration",
    "user_file",
    "write_calibration",
]

CALIBRATED = "calibrated.json"
FORMAT = "ddim calibration 1"


@shown
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

    def _facts(self) -> dict[str, object]:
        return {"path": str(self.path), "calls": tuple(sorted(self.samplers))}

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

    def over(self, other: CalibrationFile) -> CalibrationFile:
        """This one, with what it does not have from another of the same model."""
        most = max(self, other, key=lambda one: one.latents)
        return dataclasses.replace(
            self,
            samplers={**other.samplers, **self.samplers},
            entries={**other.entries, **self.entries},
            moments=most.moments,
            latents=most.latents,
        )


def is_shared(path: Path) -> bool:
    """Whether a file is where no user's are written: in the package, or in the Hub's cache."""
    if Path(path).resolve().is_relative_to(Path(__file__).resolve().parents[1]):
        return True
    parts = Path(path).parts[-4:-1]  # models--OWNER--NAME/snapshots/COMMIT/calibrated.json
    return len(parts) == 3 and parts[0].startswith("models--") and parts[1] == "snapshots"


def user_file(identity: str) -> Path:
    """Where the user's own calibration of a model that is shared is: in the cache, by identity."""
    from platformdirs import user_cache_path

    return user_cache_path("ddim", appauthor=False) / "calibrated" / f"{identity[:16]}.json"


def find_calibration(path: Path | None, identity: str) -> CalibrationFile | None:
    """What is known of a model, if anything is; of a shared one what the user found goes before.

    Args:
        path: the file beside the model, whether it is there or not.
        identity: of the model.

    Raises:
        InputError: a file of other weights, another schedule or target, or a damaged one.
    """
    if path is None:
        return None
    paths = [user_file(identity), path] if is_shared(path) else [path]
    found = [read_calibration(file) for file in paths if file.exists()]
    for one in found:
        if one.identity != identity:
            raise InputError(
                f"{one.path} is stale, of other weights, another schedule or another target: "
                "calibrate again"
            )
    return functools.reduce(CalibrationFile.over, found) if found else None


@dataclasses.dataclass(frozen=True)
class _Found:
    """A sampler, and what it was made for, without the figures."""

    method: str
    nodes: tuple[int, ...]
    options: dict[str, Any]
    guidance: float = 1.0
    clip: bool | None = None


@dataclasses.dataclass(frozen=True)
class _Moments:
    nodes: tuple[int, ...]
    gamma: tuple[float, ...]
    latents: int


@dataclasses.dataclass(frozen=True)
class _Kept:
    """The file."""

    format: str
    identity: str
    calls: dict[str, dict[str, Any]]
    moments: _Moments


def _options(found: _Found) -> dict[str, Any]:
    """A method's options; ``steps`` and ``nodes`` are none."""
    for key in found.options.keys() & {"method", "steps", "nodes"}:
        raise InputError(f"options has {key}, which is no option")
    return found.options


def read_calibration(path: Path) -> CalibrationFile:
    """Read the file.

    Raises:
        InputError: no such file, or not one of a calibration.
    """
    values = read_json(path)
    if values.get("format") != FORMAT:
        raise InputError(f"{path} is not a calibration: format is {quoted(values.get('format'))}")
    with in_file(f"{path} is not a calibration"):
        kept = record(_Kept, values)
        nodes, gamma = kept.moments.nodes, kept.moments.gamma
        if len(nodes) != len(gamma) or min(nodes, default=0) < 0:
            raise InputError("moments are as many nodes from 0 and values of gamma")
        samplers = {}
        for calls, facts in kept.calls.items():
            parts = [field.name for field in dataclasses.fields(_Found)]
            found = record(_Found, {key: facts[key] for key in parts if key in facts})
            if is_named(found.method):  # code is run only when the user names its file
                raise InputError(f"{found.method} is no method of ddim")
            sampler = Sampler(found.method, nodes=found.nodes, **_options(found))
            if str(sampler.steps) != calls:
                raise InputError(f"calls.{calls} has {sampler.steps} steps")
            samplers[int(calls)] = sampler
    moments = nodes, tuple(map(float, gamma))
    return CalibrationFile(path, kept.identity, samplers, kept.calls, moments, kept.moments.latents)


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
