"""Images to latents and back, for the page: an image that was sent, or one of a seed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from torch import Tensor

from ddim.base.errors import InputError, unknown
from ddim.data.pictures import decode_picture, quietly
from ddim.data.pixels import from_pixels, to_pixels
from ddim.latents.codecs import decoder, encoder
from ddim.latents.coding import Coding
from ddim.latents.drawn import drawn_latents
from ddim.latents.record import Latents
from ddim.model.condition import Condition
from ddim.model.drawing import generate, pick_batch_size
from ddim.model.model import Model
from ddim.samplers.sampler import Sampler
from ddim.samplers.tableau import Tableau
from ddim.web.asked import (
    CODECS_SHOWN,
    LIMITS,
    DrawLatentsAsked,
    EncodeAsked,
    ImageAsked,
    check_pixels,
)
from ddim.web.channel import Channel
from ddim.web.jobs import Job
from ddim.web.kept import Kept, Known
from ddim.web.pictures import fit_picture, images_of, pixels_json, standardised
from ddim.web.ways import Corner, Origin, encode_ways

__all__ = ["decoded", "prepare_drawing", "prepare_encoding", "run"]

EVERY = 0.1
"""Seconds between two frames."""


def prepare_encoding(model: Model, origin: Origin, asked: EncodeAsked, kept: Kept) -> Job:
    """The encoding that is asked for.

    Raises:
        InputError: a codec, steps or a label that the model cannot take, or what is no image.
    """
    coding = _coding(model, asked.codec, asked.steps)
    given = _pixels(model, asked.image)
    condition = Condition(asked.label, clip=False).check(model, 1)
    listed = coding.place(model.schedule)
    corner = Corner(coding.codec, coding.sampler.steps, asked.label, model.shape, _clips(model))

    def job(out: Channel) -> None:
        latents = _encoded(model, given, coding, listed, condition, out)
        _tell(model, origin, asked.model, given, latents, corner, kept, out)

    return job


def prepare_drawing(model: Model, origin: Origin, asked: DrawLatentsAsked, kept: Kept) -> Job:
    """The latent of a seed's image.

    Of the codec ``ddim``, that is the noise which the image is drawn from. Of any other the image
    is drawn by DDIM, rounded to bytes as a file would, and encoded.

    Raises:
        InputError: as :func:`prepare_encoding`.
    """
    asked.check()
    coding = _coding(model, asked.codec, asked.steps)
    condition = Condition(asked.label, clip=False).check(model, 1)
    listed = coding.place(model.schedule)
    place = asked.seed, asked.image
    corner = Corner(
        coding.codec, coding.sampler.steps, asked.label, model.shape, _clips(model), place
    )
    sampler = Sampler("ddim", coding.sampler.steps)
    tableau = model.tableau(sampler)

    def job(out: Channel) -> None:
        if coding.codec == "ddim":
            latents = drawn_latents(
                model,
                [asked.image],
                seed=asked.seed,
                steps=coding.sampler.steps,
                condition=Condition(asked.label),
                batch_size=1,
            )
            given = to_pixels(decoded(model, latents, out))
        else:
            own = Condition(asked.label).check(model, 1)
            size = pick_batch_size(model, None)
            image = run(model, tableau, out, own, [asked.image], asked.seed, batch_size=size)[0]
            given = to_pixels(image)
            latents = _encoded(model, given, coding, listed, condition, out)
        _tell(model, origin, asked.model, given, latents, corner, kept, out)

    return job


def _coding(model: Model, codec: str, steps: int | None) -> Coding:
    if codec not in CODECS_SHOWN:
        raise unknown("codec", codec[:100], CODECS_SHOWN)
    if steps is not None and steps > LIMITS["steps"]:
        raise InputError(f"steps are at most {LIMITS['steps']} here, not {steps}")
    check_pixels(model, 1)
    coding = Coding.parse(codec, steps)
    if steps is not None:
        return coding
    return Coding.parse(codec, len(coding.place(model.schedule)) - 1)


def _clips(model: Model) -> bool:
    """Whether the model clips unless told otherwise."""
    return model.clipping.kind != "none"


def _pixels(model: Model, image: ImageAsked) -> Tensor:
    """What was sent, as uint8 of shape (1, C, H, W)."""
    import torch

    content = image.content()
    if image.png is not None:
        with quietly():
            picture = decode_picture(content, most=LIMITS["upload_pixels"])
        return fit_picture(picture, model.shape)
    channels, height, width = model.shape
    if len(content) not in (height * width, height * width * channels):
        raise InputError(
            f"pixels of {model.name} are {height} x {width} bytes, not {len(content)} of them"
        )
    pixels = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(1, height, width, -1)
    return pixels.expand(1, height, width, channels).permute(0, 3, 1, 2).contiguous()


def run(
    model: Model,
    tableau: Tableau,
    out: Channel,
    condition: Condition,
    indices: Sequence[int],
    seed: int = 0,
    *,
    start: Sequence[Tensor] | None = None,
    batch_size: int = 1,
    show: bool = False,
) -> tuple[Tensor, ...]:
    """A tableau on images, for as long as somebody reads; its outputs, on the CPU.

    Args:
        model: the model.
        tableau: what to run.
        out: asked at every step whether to go on.
        condition: of the images.
        indices: which images.
        seed: of the noise.
        start: the initial states; noise if None.
        batch_size: images in one network call.
        show: send the states as frames.
    """
    import torch

    drawn = generate(
        model,
        tableau,
        indices,
        seed=seed,
        condition=condition,
        batch_size=batch_size,
        start=start,
    )
    ends, said = [], 0.0
    with contextlib.closing(drawn):
        for event in drawn:
            out.check()
            if event.outputs:
                event.check_finite(f"what {model.name} makes by {tableau.method}")
                ends.append([output.cpu() for output in event.outputs])
            elif show and time.perf_counter() - said > EVERY:
                said, step = time.perf_counter(), event.step
                state = images_of(step.x[: len(event.indices)])
                data = {"step": step.index + 1, "total": step.total, "state": state}
                out.frame("frame", "frame", data)
    return tuple(torch.cat(parts) for parts in zip(*ends, strict=True))


def _encoded(
    model: Model,
    given: Tensor,
    coding: Coding,
    listed: tuple[int, ...],
    condition: Condition,
    out: Channel,
) -> Latents:
    """What :func:`ddim.encode` makes of one image in batches of one."""
    tableau = encoder(model.schedule, listed, coding.codec)
    parts = run(model, tableau, out, condition, [0], start=(from_pixels(given),), show=True)
    return Latents(
        parts,
        coding.codec,
        listed,
        model.name,
        model.identity,
        1,
        condition.replace(clip=None),
        tableau.calls,
        backend=model.runs_on,
        schedule=model.schedule.spec,
    )


def decoded(model: Model, latents: Latents, out: Channel) -> Tensor:
    """What :func:`ddim.decode` makes of latents."""
    tableau = decoder(model.schedule, latents.nodes, latents.codec)
    condition = latents.condition.replace(clip=False).check(model, len(latents))
    return run(model, tableau, out, condition, range(len(latents)), start=latents.tensors)[0]


def _tell(
    model: Model,
    origin: Origin,
    name: str,
    given: Tensor,
    latents: Latents,
    corner: Corner,
    kept: Kept,
    out: Channel,
) -> None:
    """Decode a latent, keep it, and say how well the image has come back."""
    back = decoded(model, latents, out)
    out.send(
        "done",
        {
            "latent": kept.put(Known(name, latents, corner)),
            "given": pixels_json(given),
            "latents": standardised(latents.tensors[0]),
            "decoded": images_of(back),
            "difference": float((back - from_pixels(given)).abs().max()),
            "pixels_equal": bool((to_pixels(back) == given).all()),
            "std": round(float(latents.tensors[0].std()), 4),
            "calls": latents.calls,
            "steps": len(latents.nodes) - 1,
            "ways": encode_ways(origin, model, corner),
        },
    )
