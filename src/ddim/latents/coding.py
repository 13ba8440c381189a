"""Images to latents and back with a model: what :mod:`ddim.latents.codecs` does, in batches."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddim.base.errors import InputError
from ddim.denoisers.network import NetworkDenoiser
from ddim.latents.codecs import decoder, encoder, tensors_of
from ddim.latents.implicit import solve_encoding
from ddim.latents.record import DTYPES, Latents
from ddim.model.drawing import generate, pick_batch_size, batches
from ddim.model.inputs import check_finite, check_images, check_labels, one_each
from ddim.model.model import Model
from ddim.noise.nodes import check_nodes, make_nodes
from ddim.noise.schedule import Schedule

__all__ = ["codec_nodes", "decode", "encode"]

NOISIEST = 200.0
FARTHEST = 2.0  # samples and decoded images overshoot [-1, 1] by less; bytes by far


def codec_nodes(
    model: Model,
    codec: str,
    nodes: str | Sequence[int] = "uniform",
    steps: int | None = None,
) -> tuple[int, ...]:
    """The nodes of a codec: as for sampling, but for what cannot be inverted.

    But for the paper's ``ddim``, families of nodes begin at the last node k where σ/α is at most
    200, and are what they would be for T = k. Above it, as in cosine and flow schedules and those
    of zero terminal SNR, so little of the image is left that undoing the step from there would
    amplify rounding by hundreds. Linear schedules end at 157 and are not touched. Those of
    ``implicit`` end at node 1.

    Args:
        model: the model.
        codec: see :data:`ddim.latents.codecs.CODECS`.
        nodes: a family's name or the nodes themselves, falling.
        steps: S; if None 50, or as many as the listed nodes are.

    Raises:
        InputError: unknown names, or nodes that the codec cannot use.
    """
    explicit = not isinstance(nodes, str) or nodes[:1].isdigit()
    schedule = model.schedule
    if not explicit and codec != "ddim":
        last = bisect.bisect_right(schedule.rho.tolist(), NOISIEST) - 1
        if last < max(steps or 1, 1) <= schedule.T:
            raise InputError(
                f"from node {last + 1} on σ/α is above {NOISIEST:g}, where too "
                f"little of an image is left: the codec {codec} takes at most {last} steps here"
            )
        schedule = Schedule.from_alpha_sigma(schedule.alpha[: last + 1], schedule.sigma[: last + 1])
    if steps is None and not explicit:
        steps = min(50, schedule.T)
    listed = make_nodes(schedule, nodes, steps)
    if codec == "implicit" and not explicit:
        # The jump to the data has no inverse. Where node 1 is there already the steps are those of
        # one more without that jump; at S = T there is no more, and S - 1 are left.
        if listed[-2] == 1:
            listed = make_nodes(schedule, nodes, min(len(listed), schedule.T))
        listed = listed[:-1] if listed[-2] == 1 else (*listed[:-1], 1)
        if len(listed) < 2:
            raise InputError("the implicit codec needs at least two nodes above the data")
    decoder(model.schedule, listed, codec)
    return listed


def encode(
    model: Model,
    images: Tensor,
    *,
    steps: int | None = None,
    codec: str = "obelm",
    nodes: str | Sequence[int] = "uniform",
    labels: int | Sequence[int] | None = None,
    guidance: float = 1.0,
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
            ``implicit`` (DDIM solved backwards, one), ``edict`` or ``bdia`` (exact, pairs).
        nodes: a family's name or the nodes themselves, falling from the latent to the image.
        labels: one class for all or one for each image, for a class-conditional model.
        guidance: classifier-free guidance scale; 1 is none.
        clip: must come out as off, since clipping cannot be undone; None for the model's habit.
        batch_size: images in one network call.
        dtype: of the states, float32 or float64.
        tolerance: of ``implicit``; see :func:`ddim.latents.implicit.solve_encoding`.
        iterations: likewise.
        progress: show a bar on stderr.

    Raises:
        InputError: clipping that is on, images or labels that do not fit, unknown names.

    Example:
        >>> import ddim, torch
        >>> model = ddim.load("mnist")
        >>> latents = ddim.encode(model, torch.zeros(1, 1, 28, 28), steps=3)
        >>> bool(ddim.decode(model, latents).abs().max() < 1e-3)
        True
    """
    _refuse_clipping(model, clip)
    _refuse_rounded(model)
    if dtype not in DTYPES.values():
        raise InputError(f"latents are float32 or float64, not {dtype}")
    check_images(model, images, len(images))
    if len(images) == 0:
        raise InputError("there are no images to encode")
    if images.max() > FARTHEST and images.min() >= 0:
        raise InputError(
            f"images are in [-1, 1]; these are from {images.min():.4g} to {images.max():.4g}: "
            "ddim.from_pixels makes them of bytes"
        )
    listed = codec_nodes(model, codec, nodes, steps)
    size = pick_batch_size(model, batch_size)
    latents = Latents(
        (images,) * tensors_of(codec),
        codec,
        listed,
        model.name,
        model.identity,
        size,
        one_each(labels, len(images)),
        guidance,
        schedule=model.schedule.spec,
    )
    if codec == "implicit":
        return _solve(model, images, latents, dtype, tolerance, iterations, progress)
    tableau = encoder(model.schedule, listed, codec)
    parts = _run(model, tableau, latents, (images,), dtype, progress, f"{codec} encode")
    return dataclasses.replace(latents, tensors=parts, calls=tableau.calls * _evaluations(latents))


def decode(
    model: Model,
    latents: Latents,
    *,
    labels: int | Sequence[int] | None = None,
    guidance: float | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Latents to images.

    Nodes, codec and precision are those of the encoding. Other labels, or another guidance scale,
    edit the images.

    Args:
        model: the model that encoded, in the precision of ``latents.dtype``.
        latents: as :func:`encode` or :meth:`Latents.load` returns them.
        labels: one class for all or one for each image; those of the encoding if None.
        guidance: likewise.
        batch_size: likewise; another one changes the last bits.
        progress: show a bar on stderr.

    Returns:
        On the CPU, in ``latents.dtype``, shape (N, C, H, W), nominally in [-1, 1].

    Raises:
        InputError: latents of another model or shape, labels that do not fit.
    """
    latents.check(model)
    nodes = check_nodes(model.schedule, latents.nodes)
    classes = one_each(labels, len(latents))
    changes: dict[str, Any] = {"labels": classes, "guidance": guidance, "batch_size": batch_size}
    changes = {key: value for key, value in changes.items() if value is not None}
    latents = dataclasses.replace(latents, **changes)
    _refuse_rounded(model)
    tableau = decoder(model.schedule, nodes, latents.codec)
    label = f"{latents.codec} decode"
    return _run(model, tableau, latents, latents.tensors, latents.dtype, progress, label)[0]


def _evaluations(latents: Latents) -> int:
    """Network calls for one prediction: guidance asks with the label and without."""
    return 1 if latents.guidance == 1 else 2


def _refuse_clipping(model: Model, clip: bool | None) -> None:
    if clip or (clip is None and model.clipping.kind != "none"):
        by = "" if clip else f", which {model.name} does by habit"
        raise InputError(
            f"clipping x0{by}, cannot be undone: many states lead to one image; switch it off "
            "(--clip False, or clip=False)"
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
    tableau: Any,
    latents: Latents,
    start: Sequence[Tensor],
    dtype: torch.dtype,
    progress: bool,
    label: str,
) -> tuple[Tensor, ...]:
    """A codec's tableau over all images; its outputs on the CPU."""
    n = len(start[0])
    drawn = generate(
        model,
        tableau,
        range(n),
        labels=latents.labels,
        guidance=latents.guidance,
        clip=False,
        batch_size=latents.batch_size,
        dtype=dtype,
        start=start,
    )
    total = -(-n // latents.batch_size) * len(tableau.rows)
    ends = [e.outputs for e in _bar(drawn, total, label, progress) if e.outputs]
    outputs = tuple(torch.cat(parts).cpu() for parts in zip(*ends, strict=True))
    for output in outputs:
        check_finite(output, f"what {model.name} makes by {tableau.method}")
    return outputs


def _bar(items: Any, total: int, label: str, progress: bool) -> Any:
    if not progress:
        return items
    from tqdm import tqdm

    return tqdm(items, total=total, desc=label, unit="step")


def _solve(
    model: Model,
    images: Tensor,
    latents: Latents,
    dtype: torch.dtype,
    tolerance: float | None,
    iterations: int,
    progress: bool,
) -> Latents:
    """The implicit codec: Anderson acceleration, batch by batch."""
    n, device = len(images), model.device
    labels = check_labels(model, latents.labels, n)
    network = NetworkDenoiser(model.net, model.target)
    found: list[Tensor] = []
    residuals: list[Tensor] = []
    calls = 0
    if tolerance is None:
        tolerance = 100 * torch.finfo(dtype).eps
    total = -(-n // latents.batch_size) * (len(latents.nodes) - 1)
    bar = _bar(None, total, "implicit encode", progress)
    for positions, count in batches(n, latents.batch_size):
        chosen = None if labels is None else labels[positions].to(device)
        denoiser = model.denoiser(chosen, latents.guidance, False, network=network)
        x = images[positions].to(device, dtype)
        worst = torch.zeros(len(positions), device=device, dtype=torch.float64)
        for solved in solve_encoding(
            denoiser,
            model.schedule,
            latents.nodes,
            x,
            tolerance=tolerance,
            iterations=iterations,
        ):
            x, calls = solved.x, calls + solved.calls * count
            worst = torch.maximum(worst, solved.residual.double().nan_to_num(nan=math.inf))
            if bar is not None:
                bar.update()
        found.append(x[:count].cpu())
        residuals.append(worst[:count].cpu())
    if bar is not None:
        bar.close()
    return dataclasses.replace(
        latents,
        tensors=(torch.cat(found),),
        calls=round(calls / n) * _evaluations(latents),
        residual=torch.cat(residuals),
        tolerance=tolerance,
    )
