"""Calibration of a model: its own solution from many latents, and the search on them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from ddim.base.display import shown
from ddim.base.errors import InputError
from ddim.base.progress import meter
from ddim.calibration.search import MOVES, Calibration, most_work, search_sampler
from ddim.calibration.trajectory import TEACHER_STEPS, Group, Trajectory, follow
from ddim.model.agreement import agree_on
from ddim.model.condition import Condition
from ddim.model.drawing import pick_batch_size
from ddim.model.model import Model
from ddim.noise.draws import Noise
from ddim.samplers.sampler import Sampler

__all__ = ["Teachers", "calibrate", "made_for", "teach", "work_of"]

SEED = 2**62
"""Added to the seed: the latents must not be those of images that anyone measures."""

Watch = Callable[[str, int], object]
"""Called with the stage and the number of images times network calls, as they are done."""


@shown
class Teachers(NamedTuple):
    """The model's own solutions: from latents to fit to, to choose by, and to report on."""

    fit: Trajectory
    choose: Trajectory
    report: Trajectory


def calibrate(
    model: Model,
    calls: int = 10,
    *,
    latents: int = 64,
    weights: bool = True,
    moves: int = MOVES,
    seed: int = 0,
    condition: Condition | Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    teachers: Teachers | None = None,
    watch: Watch | None = None,
    progress: bool = False,
) -> Calibration:
    """Find nodes, a method and weights that follow a network's own solution in a few calls.

    They are best by one measure: the RMS to the images that a fine solver makes of the same network
    and the same noise. Nearness to data is another; measure it by ``ddim evaluate``. What is found
    is good for these weights alone: ``ddim.sample(model, method=found.sampler)``.

    Args:
        model: the model.
        calls: S, from 2 to T.
        latents: to fit to; as many again choose, and twice as many are reported on.
        weights: whether to fit weights on the last outputs too.
        moves: random moves of single nodes to try.
        seed: of the latents and of the moves.
        condition: what the images are of, a row for each of 4 · ``latents``; all classes in turn if
            a class-conditional model is given none.
        batch_size: images in one network call.
        teachers: what an earlier call of :func:`teach` made, for several numbers of calls.
        watch: told of the work as it is done; see :data:`Watch`.
        progress: show a bar on stderr.

    Raises:
        InputError: numbers out of range, or a condition that does not fit.
        RunError: the network's images are not finite.

    Example:
        >>> import ddim
        >>> found = ddim.calibrate(ddim.load("mnist"), 2, latents=2, moves=0)
        >>> found.sampler.steps
        2
    """
    if not 2 <= calls <= model.schedule.T:
        raise InputError(
            f"calls to calibrate for are from 2 to T = {model.schedule.T}, not {calls}"
        )
    if moves < 0:
        raise InputError(f"moves must not be negative: {moves}")
    size = pick_batch_size(model, batch_size)
    total = work_of(model, (calls,), latents, size, weights=weights, moves=moves)
    with meter(quiet=not progress, total=total, unit=" calls", unit_scale=True) as shown:

        def told(stage: str, done: int) -> None:
            shown.set_description_str(f"{calls} calls: {stage}", refresh=False)
            shown.update(done)
            if watch is not None:
                watch(stage, done)

        if teachers is None:
            teachers = teach(
                model, calls, latents, seed=seed, condition=condition, batch_size=size, watch=told
            )
        return search_sampler(calls, *teachers, weights=weights, moves=moves, seed=seed, watch=told)


def teach(
    model: Model,
    calls: int,
    latents: int = 64,
    *,
    seed: int = 0,
    condition: Condition | Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    watch: Watch | None = None,
) -> Teachers:
    """A fine solver's way from 4 · ``latents`` latents.

    Args:
        model: the model.
        calls: the most that will be calibrated for.
        latents: to fit to; 4 times as many are followed.
        seed: of the latents.
        condition: what the images are of, a row for each of 4 · ``latents``.
        batch_size: images in one network call.
        watch: told of the work as it is done.

    Raises:
        InputError: fewer than one latent, or a condition that does not fit.
        RunError: the network's images are not finite.
    """
    if latents < 1:
        raise InputError(f"the number of latents must be at least 1, not {latents}")
    size = pick_batch_size(model, batch_size)
    given = Condition.of(condition).check(model, 4 * latents, every_class=True)
    agree_on(model, seed=seed, latents=latents, condition=given, batch_size=size)
    network = model.predictor()

    def groups(indices: range) -> list[Group]:
        parts = (indices[at : at + size] for at in range(0, len(indices), size))
        return [
            (
                model.denoiser(given[list(part)], network=network),
                Noise(SEED + seed, part, model.shape, model.device)(0),
            )
            for part in parts
        ]

    def told(done: int) -> None:
        if watch is not None:
            watch("teacher", done)

    edges = (0, latents, 2 * latents, 4 * latents)
    steps = _teacher_steps(model, calls)
    return Teachers(
        *(
            follow(model.schedule, groups(range(low, high)), steps, told, model.each)
            for low, high in itertools.pairwise(edges)
        )
    )


def work_of(
    model: Model,
    calls: tuple[int, ...],
    latents: int,
    batch_size: int,
    *,
    weights: bool = True,
    moves: int = MOVES,
) -> int:
    """The most images times network calls that calibrating for these numbers of calls takes."""
    counts = (latents, latents, 2 * latents)
    search = sum(most_work(c, counts, batch_size, weights=weights, moves=moves) for c in calls)
    return 4 * latents * _teacher_steps(model, max(calls)) + search


def made_for(model: Model, sampler: Sampler, condition: Condition) -> str | None:
    """In what way a calibrated sampler is used otherwise than it was made for, as a sentence.

    Args:
        model: whose calibration the sampler is of.
        sampler: any; None is returned for one that no calibration brings.
        condition: what will be drawn.
    """
    if not sampler.brings_nodes:
        return None
    entry = model.calibrated().entries[str(sampler.steps)]

    def clips(clip: bool | None) -> bool:
        return model.clipping.kind != "none" if clip is None else clip

    was = {"guidance": entry.get("guidance", 1), "clipping": clips(entry.get("clip"))}
    now = {"guidance": condition.guidance, "clipping": clips(condition.clip)}
    other = [name for name in was if was[name] != now[name]]
    if not other:
        return None
    before, after = (", ".join(f"{k} {_said(values[k])}" for k in other) for values in (was, now))
    return f"what is calibrated for {sampler.steps} steps was made for {before}, not {after}"


def _said(value: float | bool) -> str:
    return ("off", "on")[value] if isinstance(value, bool) else f"{value:g}"


def _teacher_steps(model: Model, calls: int) -> int:
    return min(model.schedule.T, max(TEACHER_STEPS, 4 * calls))
