"""Whether a network denoises better under other conventions than those that its model says."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from ddim.base.errors import InputError
from ddim.denoisers.conventions import LEVEL_TIMES, TIMES, WHOLE_TIMES, Adapted, Conventions
from ddim.denoisers.target import Target
from ddim.model.candidates import LEVELS, Candidate, compete, make_candidates
from ddim.model.condition import Condition
from ddim.model.fitting import DATA_RANGES, usual_schedules
from ddim.model.model import Model
from ddim.noise.schedule import Schedule

__all__ = ["better_conventions"]

IMAGES, PIXELS = 8, 2**14
"""So many images tell, or so many pixels of small ones."""
BELIEVABLE = 1.2
"""Under the conventions that it was trained with a network denoises about as well as a linear
function at least, """
BIAS, MORE = 0.1, 2
"""and the scale of its noise is right: so nearly, and at so many more levels than under others;"""
CLEARLY = 0.5
"""or the ratio of errors is below this."""
TIE = 1.05
"""The ratio of errors that does not decide: there the fewest changes do."""


def better_conventions(
    model: Model, images: Tensor, condition: Condition | None = None, seed: int = 0
) -> str:
    """What to change of a model so that its network denoises clearly better.

    Its target, time, data range or schedule, one at a time (and the target with each), measured as
    :func:`ddim.fit_conventions` does. A network that is only weak is no better under any other.

    Args:
        model: the model.
        images: clean ones, shape (N, *) in [-1, 1]; the first few are used.
        condition: of the images, one row for each.
        seed: of the noise.

    Returns:
        such as ``target x0``; empty if nothing is better.
    """
    images = images[: max(IMAGES, PIXELS // images[0].numel())]
    own = model.network.conventions if isinstance(model.network, Adapted) else Conventions()
    given, T = model._given, model.schedule.T
    pairs = [(given, own)]
    if not own.offset:
        times = WHOLE_TIMES if own.whole else TIMES
        pairs += [(given, dataclasses.replace(own, time=time)) for time in times]
    pairs += [(given, dataclasses.replace(own, data_range=each)) for each in DATA_RANGES]
    for schedule in usual_schedules(T) if T >= 2 else ():
        if own.time not in LEVEL_TIMES or schedule.alpha[-1] > 0:
            pairs.append((schedule, own))
    try:
        candidates = make_candidates(model.net, pairs, tuple(Target), model.arguments)
        compete(candidates, images, (condition or Condition())[: len(images)], seed)
    except InputError:  # levels that no two of them have in common
        return ""
    declared = candidates[0].error_at_scale(model.target)

    def right(candidate: Candidate, target: Target) -> int:
        return int((candidate.biases(target) < BIAS).sum())

    before = right(candidates[0], model.target)

    def better(candidate: Candidate, target: Target) -> bool:
        error, levels = candidate.error(target), right(candidate, target)
        if candidate.failure or not error < min(declared, BELIEVABLE):
            return False
        if error < CLEARLY * declared:
            return levels > before
        return levels >= max(LEVELS - 1, before + MORE)

    found = [
        (candidate.error(target), candidate, target)
        for candidate in candidates
        for target in Target
        if better(candidate, target)
    ]
    if not found:
        return ""
    best = min(error for error, _, _ in found)
    tied = [
        _changes(model, own, given, candidate, target)
        for error, candidate, target in found
        if error <= TIE * best
    ]
    return ", ".join(min(tied, key=len))


def _changes(
    model: Model, own: Conventions, given: Schedule, candidate: Candidate, target: Target
) -> list[str]:
    new = candidate.conventions
    parts = [f"target {target.value}"] if target is not model.target else []
    parts += [f"time {new.time}"] if new.time != own.time else []
    if new.data_range != own.data_range:
        parts.append(f"data range {new.data_range[0]:g} to {new.data_range[1]:g}")
    return parts + ([repr(candidate.schedule)] if candidate.schedule is not given else [])
