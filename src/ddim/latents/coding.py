"""Images to latents and back with a model: what :mod:`ddim.latents.codecs` does, in batches."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddim.base.errors import InputError, unknown
from ddim.base.progress import meter
from ddim.base.ranks import here
from ddim.latents.codecs import CODECS, decoder, encoder
from ddim.latents.implicit import solve_encoding
from ddim.latents.record import DTYPES, Latents
from ddim.model.agreement import agree_on
from ddim.model.condition import Condition
from ddim.model.drawing import batches, collect, generate, pick_batch_size
from ddim.model.inputs import take_images
from ddim.model.memory import enough_memory
from ddim.model.model import Model
from ddim.noise.schedule import Schedule
from ddim.samplers.sampler import DEFAULT_STEPS, Sampler
from ddim.samplers.tableau import Tableau

__all__ = ["Coding", "codec_nodes", "decode", "encode"]

NOISIEST = 200.0


class Coding(NamedTuple):
    """A codec, and the sampler that decodes."""

    codec: str
    sampler: Sampler

    @classmethod
    def parse(
        cls, codec: str, steps: int | None = None, nodes: str | Sequence[int] | None = None
    ) -> Coding:
        """A codec as it is spelled, ``obelm:steps=20``, with the options that all samplers have.

        Raises:
            InputError: unknown codec, or as :meth:`ddim.Sampler.parse`.
        """
        name, colon, rest = codec.partition(":")
        if name not in CODECS:
            raise unknown("codec", name, CODECS)
        method = "ddim" if name == "implicit" else name
        sampler = Sampler.parse(f"{method}{colon}{rest}", steps, nodes)
        if sampler.settings:
            raise InputError(f"codecs have steps and nodes, and no other option: {codec}")
        return cls(name, sampler)

    def place(self, schedule: Schedule) -> tuple[int, ...]:
        """The nodes: as for sampling, but for what cannot be inverted.

        But for the paper's ``ddim``, families of nodes begin at the last node k where σ/α is at
        most 200, and are what they would be for T = k. Above it, as in cosine and flow schedules
        and those of zero terminal SNR, so little of the image is left that undoing the step from
        there would amplify rounding by hundreds. Linear schedules end at 157 and are not touched.
        Those of ``implicit`` end at node 1.

        Raises:
            InputError: nodes that the codec cannot use.
        """
        codec, sampler = self
        if not isinstance(sampler.nodes, str):
            listed = sampler.place(schedule)
            decoder(schedule, listed, codec)
            return listed
        steps = sampler.steps
        whole, last = schedule, schedule.T
        if codec != "ddim":
            last = bisect.bisect_right(schedule.rho.tolist(), NOISIEST) - 1
            if last < max(steps or 1, 1) <= schedule.T:
                raise InputError(
                    f"from node {last + 1} on σ/α is above {NOISIEST:g}, where too "
                    f"little of an image is left: the codec {codec} takes at most {last} steps here"
                )
            alpha, sigma = schedule.alpha[: last + 1], schedule.sigma[: last + 1]
            schedule = Schedule.from_alpha_sigma(alpha, sigma)
        sampler = sampler.replace(steps=steps or min(DEFAULT_STEPS, schedule.T))
        listed = sampler.place(schedule)
        if codec == "implicit":
            # The jump to the data has no inverse. Where node 1 is there already the steps are those
            # of one more without that jump; at S = T there is no more, and S - 1 are left.
            if listed[-2] == 1:
                listed = sampler.replace(steps=min(len(listed), schedule.T)).place(schedule)
            listed = listed[:-1] if listed[-2] == 1 else (*listed[:-1], 1)
            if len(listed) < 2:
                raise InputError("the implicit codec needs at least two nodes above the data")
        decoder(whole, listed, codec)
        return listed


def codec_nodes(
    model: Model, codec: str, steps: int | None = None, nodes: str | Sequence[int] | None = None
) -> tuple[int, ...]:
    """The nodes of a codec for a model; see :meth:`Coding.place`."""
    return Coding.parse(codec, steps, nodes).place(model.schedule)


def encode(
    model: Model,
    images: Tensor,
    *,
    steps: int | None = None,
    codec: str = "obelm",
    nodes: str | Sequence[int] | None = None,
    condition: Condition | Mapping[str, Tensor] | None = None,
    labels: int | Sequence[int] | Tensor | None = None,
    guidance: float | None = None,
    clip: bool | None = None,
    batch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    tolerance: float | None = None,
    iterations: int = 60,
    progress: bool = False,
) -> Latents:
    """Images to latents.

    Args:
        model: the model, in the precision of ``dtype``: ``model.to(dtype=…)``.
        images: shape (N, C, H, W), nominally in [-1, 1].
        steps: S, from 1 to T; if None 50, or as many as the listed nodes are.
        codec: ``obelm`` (exact, a pair of tensors), ``ddim`` (the paper's, approximate, one),
            ``implicit`` (DDIM solved backwards, one), ``edict`` or ``bdia`` (exact, pairs); also
            with steps and nodes, as ``obelm:steps=20``.
        nodes: a family's name or the nodes themselves, falling from the latent to the image.
        condition: as for :func:`ddim.sample`.
        labels: as for :func:`ddim.sample`; a class-conditional model needs them.
        guidance: as for :func:`ddim.sample`.
        clip: must come out as off, since clipping cannot be undone; None for the model's default.
        batch_size: images in one network call.
        dtype: of the states, float32 or float64.
        tolerance: of ``implicit``; see :func:`ddim.latents.implicit.solve_encoding`.
        iterations: of ``implicit``, network calls a step at most.
        progress: show a bar on stderr.

    Raises:
        InputError: clipping that is on, images or a condition that do not fit, unknown names.

    Example:
        >>> import ddim, torch
        >>> model = ddim.load("mnist")
        >>> latents = ddim.encode(model, torch.zeros(1, 1, 28, 28), steps=3)
        >>> bool(ddim.decode(model, latents).abs().max() < 1e-3)
        True
    """
    coding = Coding.parse(codec, steps, nodes)
    given = Condition.of(condition, labels, guidance, clip)
    _refuse_clipping(model, given.clip)
    _refuse_rounded(model)
    if dtype not in DTYPES.values():
        raise InputError(f"latents are float32 or float64, not {dtype}")
    images = take_images(model, images)
    if len(images) == 0:
        raise InputError("there are no images to encode")
    given = given.replace(clip=False).check(model, len(images))
    listed, size = coding.place(model.schedule), pick_batch_size(model, batch_size)
    calls = 1 if given.guidance == 1 else 2  # guidance asks with the condition and without
    residual = None
    if coding.codec == "implicit":
        tolerance = 100 * torch.finfo(dtype).eps if tolerance is None else tolerance
        parts, residual, steps_calls = _solve(
            model, images.to(dtype), listed, given, size, tolerance, iterations, progress
        )
        calls *= steps_calls
    else:
        tableau = encoder(model.schedule, listed, coding.codec)
        label = f"{coding.codec} encode" if progress else ""
        parts = _run(model, tableau, (images,), given, size, dtype, label)
        calls *= tableau.calls
        tolerance = None
    return Latents(
        parts,
        coding.codec,
        listed,
        model.name,
        model.identity,
        size,
        given.replace(clip=None),
        calls,
        residual,
        tolerance,
        model.runs_on,
        schedule=model.schedule.spec,
    )


def decode(
    model: Model,
    latents: Latents,
    *,
    condition: Condition | Mapping[str, Tensor] | None = None,
    labels: int | Sequence[int] | Tensor | None = None,
    guidance: float | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Latents to images.

    Nodes, codec and precision are those of the encoding. Another condition edits the images.

    Args:
        model: the model that encoded, in the precision of ``latents.dtype``.
        latents: as :func:`encode` or :meth:`Latents.load` returns them.
        condition: that of the encoding if None.
        labels: its labels: one class for all, or several that are repeated in turn.
        guidance: its guidance scale.
        batch_size: that of the encoding if None; another one changes the last bits.
        progress: show a bar on stderr.

    Returns:
        On the CPU, in ``latents.dtype``, shape (N, C, H, W), nominally in [-1, 1].

    Raises:
        InputError: latents of another model or shape, a condition that does not fit.
    """
    model = latents.check(model)
    given = Condition.of(latents.condition if condition is None else condition, labels, guidance)
    given = given.replace(clip=False).check(model, len(latents))
    _refuse_rounded(model)
    nodes = Sampler(nodes=latents.nodes).place(model.schedule)
    tableau = decoder(model.schedule, nodes, latents.codec)
    size = pick_batch_size(model, latents.batch_size if batch_size is None else batch_size)
    label = f"{latents.codec} decode" if progress else ""
    return _run(model, tableau, latents.tensors, given, size, latents.dtype, label)[0]


def _refuse_clipping(model: Model, clip: bool | None) -> None:
    if clip or (clip is None and model.clipping.kind != "none"):
        by = "" if clip else f", which {model.name} does by default,"
        raise InputError(
            f"clipping x0{by} cannot be undone: many states lead to one image; switch it off "
            "(clip=False)"
        )


def _refuse_rounded(model: Model) -> None:
    if torch.finfo(model.dtype).bits == 16:
        raise InputError(
            f"{model.name} is in {str(model.dtype).removeprefix('torch.')}, where images do "
            "not come back from their latents: load it anew, in float32 or float64"
        )
    if torch.is_autocast_enabled(model.device.type):
        raise InputError(
            "under autocast images do not come back from their latents: leave it for this call"
        )


def _run(
    model: Model,
    tableau: Tableau,
    start: Sequence[Tensor],
    condition: Condition,
    batch_size: int,
    dtype: torch.dtype,
    label: str,
) -> tuple[Tensor, ...]:
    """A codec's tableau over all images; its outputs on the CPU."""
    n = len(start[0])
    drawn = generate(
        model,
        tableau,
        range(n),
        condition=condition,
        batch_size=batch_size,
        dtype=dtype,
        start=start,
    )
    return collect(model, tableau, drawn, n, batch_size, label)


def _solve(
    model: Model,
    images: Tensor,
    nodes: tuple[int, ...],
    condition: Condition,
    batch_size: int,
    tolerance: float,
    iterations: int,
    progress: bool,
) -> tuple[tuple[Tensor], Tensor, int]:
    """The implicit codec, by Anderson acceleration: latents, residuals, calls for an image."""
    n, network = len(images), model.predictor()
    parts = list(batches(n, batch_size))

    def batch(number: int) -> Iterator[_Solving]:
        positions, count = parts[number]
        denoiser = model.denoiser(condition[positions], network=network)
        x = images[positions].to(model.device)
        worst = torch.zeros(len(positions), device=model.device, dtype=torch.float64)
        calls = 0
        solving = solve_encoding(
            denoiser, model.schedule, nodes, x, tolerance=tolerance, iterations=iterations
        )
        with enough_memory(batch_size):
            for solved in solving:
                x, calls = solved.x, calls + solved.calls * count
                worst = torch.maximum(worst, solved.residual.double().nan_to_num(nan=math.inf))
                yield _Solving(calls)
        yield _Solving(calls, x[:count].cpu(), worst[:count].cpu())

    agree_on(model, images=images, nodes=nodes, condition=condition, batch_size=batch_size)
    found: list[_Solving] = []
    total = len(here().own(len(parts))) * (len(nodes) - 1)
    with meter(quiet=not progress, total=total, desc="implicit encode", unit="step") as shown:
        for event in model.side_by_side(batch, len(parts), ends=lambda e: e.x is not None):
            if event.x is None:
                shown.update()
            else:
                found.append(event)
    latents = torch.cat([event.x for event in found if event.x is not None])
    residuals = torch.cat([event.residual for event in found if event.residual is not None])
    return (latents,), residuals, round(sum(event.calls for event in found) / n)


class _Solving(NamedTuple):
    """A step of a batch of the implicit codec: calls so far; after the last what was found."""

    calls: int
    x: Tensor | None = None
    residual: Tensor | None = None
