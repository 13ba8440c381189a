"""One image, step by step: what the network saw and said, and what the rows made of it."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from torch import Tensor

from ddim.base.errors import InputError
from ddim.model.condition import Condition
from ddim.model.drawing import Drawn, generate, pick_batch_size
from ddim.model.model import Model
from ddim.noise.draws import Noise
from ddim.noise.schedule import Level
from ddim.samplers.sampler import Sampler
from ddim.samplers.tableau import Row, Tableau
from ddim.web.asked import StepsAsked, sampler_of
from ddim.web.channel import Channel
from ddim.web.jobs import Job
from ddim.web.pictures import images_of, standardised
from ddim.web.ways import Origin, sample_ways

__all__ = ["prepare_steps"]

FAMILY = ("ddim", "ddpm")
"""The methods whose rows are the paper's equation 12."""
MOST = 60_000_000
"""Bytes of all frames together: none of them may be left out."""


def prepare_steps(model: Model, origin: Origin, asked: StepsAsked) -> Job:
    """The image that is asked for, by all its steps.

    Raises:
        InputError: beyond the limits, a sampler or a label that the model cannot take.
    """
    asked.check(model)
    sampler, tableau = sampler_of(model, asked.sampler)
    if 4 * math.prod(model.shape) * len(tableau.rows) > MOST:
        most = MOST // (4 * math.prod(model.shape))
        raise InputError(
            f"{model.name} has large images, of which {most} steps can be shown, not "
            f"{len(tableau.rows)}"
        )
    condition = _condition(model, asked)
    return lambda out: _steps(model, origin, asked, sampler, tableau, condition, out)


def _condition(model: Model, asked: StepsAsked) -> Condition:
    """The one image's; without a label that which a race has for it, all classes in turn."""
    label = asked.label
    if label is None and model.classes is not None:
        label = asked.image % model.classes
    return Condition(label).check(model, 1)


def _steps(
    model: Model,
    origin: Origin,
    asked: StepsAsked,
    sampler: Sampler,
    tableau: Tableau,
    condition: Condition,
    out: Channel,
) -> None:
    size = pick_batch_size(model, None)
    drawn = generate(
        model, tableau, [asked.image], seed=asked.seed, condition=condition, batch_size=size
    )
    out.send("start", {"nodes": _nodes(tableau), "rows": len(tableau.rows), "calls": tableau.calls})
    noise = Noise(asked.seed, [asked.image], model.shape, model.device)
    state, end = tableau.start(noise(0)), None
    with contextlib.closing(drawn):
        for event in drawn:
            out.check()
            out.send("frame", _frame(tableau, sampler.method, event, state))
            state, end = event.step.x[:1], event
    assert end is not None and end.outputs
    end.check_finite(f"what {model.name} draws by {sampler}")
    ways = sample_ways(
        origin,
        model,
        sampler,
        seed=asked.seed,
        images=asked.image + 1,
        labels=None if asked.label is None else [asked.label],
        batch_size=None,
    )
    out.send("done", {"image": images_of(end.outputs[0]), "ways": ways})


def _nodes(tableau: Tableau) -> list[int | None]:
    return [tableau.initial[0].k, *(row.k for row in tableau.rows)]


def _frame(tableau: Tableau, method: str, event: Drawn, state: Tensor) -> dict[str, Any]:
    """A step, as the page shows it.

    Args:
        tableau: the rows.
        method: that made them.
        event: the step.
        state: what it starts from, shape (1, C, H, W).
    """
    n, row = event.step.index, event.step.row
    source, said = tableau.at(n) or tableau.level(n), event.step.prediction
    shown: dict[str, Any] = {"x0": None, "eps": None, "eps_std": None}
    if said is not None:
        eps = said.eps[:1]
        shown = {
            "x0": images_of(said.x0[:1]),
            "eps": standardised(eps),
            "eps_std": round(float(eps.float().std()), 4),
        }
    nodes = _nodes(tableau)
    return {
        "step": n,
        "node": nodes[n],
        "level": _level(source),
        "to": {"node": row.k, **_level(row.at or row.level)},
        "state": images_of(state),
        "state_std": round(float(state.float().std()), 4),
        **shown,
        "row": _row(row, n),
        "equation12": _equation12(row, n) if method in FAMILY else None,
    }


def _level(level: Level) -> dict[str, float]:
    return {"alpha": level.alpha, "sigma": level.sigma, "t": level.t}


def _row(row: Row, newest: int) -> dict[str, Any]:
    """A row's numbers, by how many states ago what they belong to was made."""

    def aged(terms: tuple[tuple[int, float], ...]) -> list[list[float]]:
        return [[newest - i, coefficient] for i, coefficient in terms if coefficient]

    return {
        "states": aged(row.states),
        "x0": aged(row.x0),
        "eps": aged(row.eps),
        "noise": row.noise,
    }


def _equation12(row: Row, newest: int) -> dict[str, float] | None:
    """√ᾱ of the next level, √(1 - ᾱ - σ²) and σ, where that is what the row says."""
    if row.states or [i for i, _ in (*row.x0, *row.eps)] != [newest, newest]:
        return None
    return {"x0": row.x0[0][1], "eps": row.eps[0][1], "noise": row.noise}
