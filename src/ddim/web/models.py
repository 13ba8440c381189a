"""The models that are served: which there are, how far each is, and what the page is told of it."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddim.base.code import is_named
from ddim.base.errors import InputError, unknown
from ddim.model.names import hub_name, shipped
from ddim.web.jobs import Jobs
from ddim.web.refused import Refused

if TYPE_CHECKING:
    from ddim.model.model import Model
    from ddim.web.ways import Origin

__all__ = ["Models", "Served", "check_source"]

log = logging.getLogger("ddim")

_UNKNOWN = ("shape", "T", "classes", "target", "calibrated", "parameters", "backend", "batch_size")


@dataclasses.dataclass
class Served:
    """A model, as far as it is.

    Attributes:
        name: what requests call it.
        source: what the command was given.
        phase: ``idle``, ``loading``, ``ready`` or ``failed``.
        error: why it failed, in one line.
        model: once it is ready.
        origin: where it has come from.
        facts: of it, for the page.
    """

    name: str
    source: str
    phase: str = "idle"
    error: str | None = None
    model: Model | None = None
    origin: Origin | None = None
    facts: dict[str, Any] = dataclasses.field(default_factory=lambda: dict.fromkeys(_UNKNOWN))

    def state(self) -> dict[str, Any]:
        """What the page is told of it."""
        return {"name": self.name, "phase": self.phase, "error": self.error, **self.facts}


class Models:
    """The models by name; each is loaded when it is first asked for, one after another.

    Args:
        sources: as ``--model`` takes them.
        open_model: opens one, and says where it has come from.
        jobs: on whose thread.
    """

    def __init__(
        self, sources: Sequence[str], open_model: Callable[[str], tuple[Model, Origin]], jobs: Jobs
    ) -> None:
        self._open, self._jobs = open_model, jobs
        self._served: dict[str, Served] = {}
        for source in dict.fromkeys(sources):
            name = _name_of(source)
            count = 1
            while name in self._served:
                count += 1
                name = f"{_name_of(source)}-{count}"
            self._served[name] = Served(name, source)

    def state(self) -> list[dict[str, Any]]:
        """What the page is told of all of them."""
        return [served.state() for served in self._served.values()]

    def load_first(self) -> None:
        """Begin to load the first, if that has not begun."""
        first = next(iter(self._served.values()))
        if first.phase == "idle":
            self._load(first)

    def ready(self, name: str) -> tuple[Model, Origin]:
        """A model that can be used.

        Raises:
            Refused: there is none of that name; it is loading, which begins now if it has not; or
                it cannot be loaded.
        """
        served = self._served.get(name)
        if served is None:
            raise Refused("not-found", str(unknown("model", name[:100], self._served)))
        if served.phase == "idle":
            self._load(served)
        if served.phase == "failed":
            raise Refused("failed", served.error or "it cannot be loaded")
        if served.model is None or served.origin is None:
            raise Refused("loading", f"{name} is being loaded: try again in a moment")
        return served.model, served.origin

    def _load(self, served: Served) -> None:
        served.phase = "loading"
        self._jobs.first(lambda: self._loaded(served))

    def _loaded(self, served: Served) -> None:
        """Load a model, on the thread of the jobs."""
        try:
            model, origin = self._open(served.source)
            served.facts = facts_of(model)
            served.model, served.origin, served.phase = model, origin, "ready"
        except BaseException as error:  # code of the user's may raise anything
            text = (
                str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            )
            served.error, served.phase = " ".join(text.split())[:1000], "failed"
            log.warning("%s cannot be served: %s", served.name, served.error)


def facts_of(model: Model) -> dict[str, Any]:
    """What the page is told of a model.

    Raises:
        InputError: it does not make images, or images of other channels than 1, 3 or 4.
    """
    from ddim.model.drawing import pick_batch_size

    if len(model.shape) != 3 or model.shape[0] not in (1, 3, 4):
        what = {1: "vectors", 2: "signals", 3: "images", 4: "volumes"}.get(len(model.shape), "data")
        raise InputError(
            f"{model.name} makes {what} of shape {tuple(model.shape)}: the page shows images of 1, "
            "3 or 4 channels"
        )
    try:
        calibrated = sorted(model.calibrated().samplers)
    except InputError:
        calibrated = []
    return {
        "shape": list(model.shape),
        "T": model.schedule.T,
        "classes": model.classes,
        "target": model.target.value,
        "calibrated": calibrated,
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "backend": model.runs_on,
        "batch_size": pick_batch_size(model, None),
    }


def check_source(source: str) -> str:
    """What ``--model`` was given, if there may be a model there.

    Args:
        source: a shipped model's name, a path, ``FILE.py:NAME``, or a name on the Hub.

    Raises:
        InputError: there is nothing.
    """
    path = Path(source.rpartition(":")[0]) if is_named(source) else Path(source)
    if source not in shipped() and not path.exists():
        hub_name(source)
    return source


def _name_of(source: str) -> str:
    """What the page calls a model: the last part of its path, in plain letters."""
    name = source.rpartition(":")[2] if is_named(source) else Path(source).resolve().name
    if not is_named(source) and Path(source).is_file():
        name = Path(name).stem
    return re.sub(r"[^\w.-]+", "-", name)[:80] or "model"
