"""Which conventions a network was trained with, found by how well it denoises under each."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddim.base.errors import InputError, quoted
from ddim.checkpoints.record import Facts
from ddim.denoisers.conventions import TIMES, WHOLE_TIMES, Adapted, Conventions
from ddim.denoisers.target import Target
from ddim.model.candidates import Candidate, compete, make_candidates
from ddim.model.condition import Condition
from ddim.model.inputs import whole
from ddim.model.model import Model
from ddim.noise.schedule import Schedule

__all__ = ["fit_conventions", "usual_schedules"]

log = logging.getLogger("ddim")

DATA_RANGES = ((-1.0, 1.0), (-0.5, 0.5), (0.0, 1.0))
LEAST_NOISE = 2.0
"""σ/α at node T of a schedule that anyone would train with."""
TRIVIAL = 0.95
"""The relative error above which a network does not denoise."""
TIE = 1.02
"""Errors whose ratio is less than this do not decide, """
TIED_BIAS = 0.01
"""nor do biases whose difference is less than this, or than one over √(number of pixels)."""
BIAS = 0.05
"""How far off the scale of a network's noise may be before its conventions are in doubt."""


def usual_schedules(T: int = 1000) -> tuple[Schedule, ...]:
    """Those in use: linear, the same scaled to T, latent diffusion's, cosine, sigmoid and flow.

    Without those that after T steps have not come to noise.

    Raises:
        InputError: fewer than two steps.
    """
    if T < 2:
        raise InputError(f"the usual schedules have at least 2 steps, not T = {T}")
    scaled = (Schedule.linear(T, scaled=True),) if T >= 20 and T != 1000 else ()
    rest = (Schedule.scaled_linear(T), Schedule.cosine(T), Schedule.sigmoid(T), Schedule.flow(T))
    return tuple(s for s in (Schedule.linear(T), *scaled, *rest) if s.rho[-1] > LEAST_NOISE)


def fit_conventions(
    net: nn.Module,
    images: Tensor,
    *,
    T: int | Sequence[int] = 1000,
    schedules: Sequence[Schedule] | None = None,
    targets: Sequence[Target | str] = tuple(Target),
    times: Sequence[str] = tuple(TIMES),
    data_ranges: Sequence[tuple[float, float]] = DATA_RANGES,
    arguments: Mapping[str, Any] | None = None,
    keep_variance: bool = True,
    time_dtype: torch.dtype | None = None,
    classes: int | None = None,
    labels: Sequence[int] | None = None,
    seed: int = 0,
    quiet: bool = False,
    name: str = "model",
) -> Model:
    """Find what a network predicts, and its time, its noise schedule and its data's range.

    Clean images are noised to the same six noise levels under every candidate and shown to the
    network, and what it takes them for is compared with them. The measure is the squared error
    divided by that of the best linear denoiser, s²σ²/(α²s² + σ²) for pixels of variance s²: 0 is
    perfect, 1 is no better than knowing mean and variance. It means the same for every target,
    schedule and range, and a network denoises best where it is told the truth.

    All candidates see two images; the better ones see more, the best few see all. The ranking is
    printed, and kept in the model's ``facts.more["ranking"]``.

    The ranking's ``bias`` is how far the scale of the predicted noise is off, |E[ε·ε̂]/E[ε̂²] - 1|,
    in the median of the levels. It decides between candidates whose errors are within 2 %. Of those
    whose biases are as near as chance explains, the most usual one is taken, and stands first; what
    that leaves open is logged as a warning and kept in ``facts.more["undecided"]``. Trained
    networks come close to a bias of 0; one above 0.05 is logged too, because the truth may not be
    among the candidates.

    Args:
        net: called as ``net(x, time)`` or ``net(x, time, labels)``; put into evaluation mode.
        images: clean ones as it was trained on, but in [-1, 1]; shape (N, C, H, W), N ≥ 2. 32 do.
            Signals, volumes and vectors too.
        T: the number of noising steps of the usual schedules; several are candidates.
        schedules: candidates instead of :func:`usual_schedules`.
        targets: candidates.
        times: candidates; :func:`ddim.Model` lists them, and others that are tried on request.
        data_ranges: candidates.
        arguments: as for :func:`ddim.Model`.
        keep_variance: as for :class:`ddim.Model`.
        time_dtype: as for :class:`ddim.Model`; if None, floating point where the network fails on
            whole times as int64 and not as floating-point numbers.
        classes: as for :class:`ddim.Model`.
        labels: of the images, for a class-conditional network.
        seed: of the noise.
        quiet: print nothing.
        name: what outputs call the model.

    Returns:
        the model under the best conventions, as :func:`ddim.Model` makes it.

    Raises:
        InputError: images that are not in [-1, 1], a network that fails under every candidate, or
            one that under none denoises better than a linear function.
    """
    if isinstance(schedules, Schedule):
        raise InputError("schedules is a list of candidates: [schedule] for a single one")
    if any(isinstance(bounds, (int, float)) for bounds in data_ranges):
        raise InputError(
            f"data_ranges is a list of pairs such as [(-1, 1)], not {quoted(data_ranges)}"
        )
    if isinstance(net, nn.Module) and isinstance(images, np.ndarray):
        images = torch.from_numpy(images)
    if not isinstance(net, nn.Module) or not isinstance(images, Tensor):
        raise InputError(
            "a torch.nn.Module and a tensor of images are needed, not a "
            f"{type(net).__name__} and a {type(images).__name__}"
        )
    _check(images, classes, labels)
    wanted = [Target.named(target) for target in targets]
    condition = Condition(labels)
    if schedules is None:
        steps = [whole("T", T)] if np.ndim(T) == 0 else [whole("T", each) for each in T]  # pyright: ignore[reportGeneralTypeIssues]
        schedules = [schedule for each in steps for schedule in usual_schedules(each)]
    if time_dtype is None and schedules and wanted:
        time_dtype = _time_dtype(net.eval(), images, schedules[0], arguments, condition)
    if time_dtype is not None and not time_dtype.is_floating_point:
        times = [time for time in times if time in WHOLE_TIMES]
    conventions = [
        Conventions(time, 0, tuple(data_range), keep_variance, time_dtype)
        for data_range, time in itertools.product(data_ranges, times)
    ]
    if not (wanted and conventions and schedules):
        raise InputError("there must be at least one target, time, data range and schedule to try")
    pairs = [(schedule, each) for each, schedule in itertools.product(conventions, schedules)]
    candidates = make_candidates(net.eval(), pairs, wanted, arguments)
    compete(candidates, images, condition, seed)
    ranking, tied = _ranked(candidates, wanted, images)
    (chosen, target), named = ranking[0], [_named(*entry) for entry in ranking]
    if not quiet:
        print(_table(named[:10]))
    error = min(candidate.error(each) for candidate, each in tied)
    if not error < TRIVIAL:
        raise InputError(
            "the network denoises under no candidate: at best its error is "
            f"{error:.2f} of a linear function's; are these its images, and its schedule?"
        )
    undecided = _differences([_named(*entry) for entry in tied])
    _warn(name, undecided, chosen.bias(target))
    return Model(
        net,
        chosen.schedule,
        target,
        tuple(images.shape[1:]),
        time=chosen.conventions.time,
        data_range=(chosen.conventions.data_range[0], chosen.conventions.data_range[1]),
        arguments=arguments or {},
        keep_variance=keep_variance,
        time_dtype=time_dtype,
        classes=classes,
        name=name,
        facts=Facts(more={"ranking": named, "undecided": undecided}),
    )


def _warn(name: str, undecided: Sequence[str], bias: float) -> None:
    """Log what the images leave open, and a scale of the noise that is far off."""
    for difference in undecided:
        log.warning("%s: these images do not decide the %s", name, difference)
    if bias > BIAS:
        log.warning(
            "%s: under the best candidate the noise it predicts is %.0f %% off in scale: what it "
            "was trained with may not be among them",
            name,
            100 * bias,
        )


def _ranked(
    candidates: Sequence[Candidate], wanted: Sequence[Target], images: Tensor
) -> tuple[list[tuple[Candidate, Target]], list[tuple[Candidate, Target]]]:
    """All that did not fail, the best first, and those that are as good as the best.

    Raises:
        InputError: the network failed under every candidate.
    """
    ranking = [(c, target) for c in candidates if not c.failure for target in wanted]
    ranking.sort(key=lambda entry: (-entry[0].seen, entry[0].error(entry[1])))
    if not ranking:
        raise InputError(f"the network fails under every candidate: {candidates[0].failure}")
    tied = _tied(ranking, images)
    chosen = min(tied, key=lambda e: (candidates.index(e[0]), wanted.index(e[1])))
    ranking.insert(0, ranking.pop(ranking.index(chosen)))
    return ranking, tied


def _time_dtype(
    net: nn.Module,
    images: Tensor,
    schedule: Schedule,
    arguments: Mapping[str, Any] | None,
    condition: Condition,
) -> torch.dtype | None:
    """float32 for a network that fails on times of int64 and takes them so; else None."""
    for dtype in (None, torch.float32):
        conventions = Conventions(time_dtype=dtype)
        candidate = Candidate(
            Adapted(net, schedule, Target.EPS, conventions, arguments), schedule, [1], [Target.EPS]
        )
        images = images.to(next(candidate.adapted.parameters()).device)
        candidate.measure(images[:1], images[None, :1], condition[:1], 1.0)
        if not candidate.failure:
            return dtype
    return None


def _check(images: Tensor, classes: int | None, labels: Sequence[int] | None) -> None:
    if images.ndim < 2 or len(images) < 2 or not images.is_floating_point():
        raise InputError(
            "at least two images of shape (N, C, H, W) or vectors (N, D) are needed, not "
            f"{tuple(images.shape)} of {images.dtype}"
        )
    if not bool(images.isfinite().all()) or float(images.var()) == 0:
        raise InputError("images must be finite and not all the same")
    low, high = float(images.min()), float(images.max())
    if images.ndim > 2 and (low >= 0 or low < -2 or high > 2):
        raise InputError(f"images must be in [-1, 1]: these run from {low:g} to {high:g}")
    if (classes is None) != (labels is None):
        raise InputError("give both classes and the images' labels, or neither")
    if labels is not None and len(labels) != len(images):
        raise InputError(f"{len(labels)} labels were given for {len(images)} images")


def _tied(
    ranking: Sequence[tuple[Candidate, Target]], images: Tensor
) -> list[tuple[Candidate, Target]]:
    """Those that are as good as the first, as far as these images tell."""
    first, target = ranking[0]
    limit, seen = TIE * first.error(target), first.seen
    tied = [
        entry for entry in ranking if entry[0].seen == seen and entry[0].error(entry[1]) <= limit
    ]
    close = max(TIED_BIAS, images.numel() ** -0.5)
    bias = min(candidate.bias(target) for candidate, target in tied)
    return [entry for entry in tied if entry[0].bias(entry[1]) <= bias + close]


def _named(candidate: Candidate, target: Target) -> dict[str, Any]:
    low, high = candidate.conventions.data_range
    spec = {k: v for k, v in candidate.schedule.spec.items() if not isinstance(v, list)}
    return {
        "error": candidate.error(target),
        "bias": candidate.bias(target),
        "images": candidate.seen,
        "target": target.value,
        "time": candidate.conventions.time,
        "data_range": f"{low:g} to {high:g}",
        "schedule": ", ".join(str(v) if k == "kind" else f"{k}={v}" for k, v in spec.items()),
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The ranking for people."""
    cells = [["error", "bias", "images", "target", "time", "data range", "schedule"]]
    cells += [
        [f"{row['error']:.4f}", f"{row['bias']:.3f}", *(str(v) for v in list(row.values())[2:])]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _differences(tied: Sequence[Mapping[str, Any]]) -> list[str]:
    """What candidates that are as good do not agree on."""
    lines = []
    for field in ("target", "time", "data_range", "schedule"):
        values = list(dict.fromkeys(str(row[field]) for row in tied))
        if len(values) > 1:
            lines.append(f"{field.replace('_', ' ')}: {' or '.join(values)}")
    return lines
