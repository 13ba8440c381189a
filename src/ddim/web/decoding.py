"""Latents to images, and what lies between them, for the page: a position a request."""

from __future__ import annotations

from ddim.latents.record import Latents
from ddim.latents.slerp import interpolate
from ddim.model.model import Model
from ddim.web.asked import DecodeAsked, check_pixels
from ddim.web.channel import Channel
from ddim.web.coding import decoded
from ddim.web.jobs import Job
from ddim.web.kept import Kept
from ddim.web.pictures import images_of
from ddim.web.ways import Origin, decode_ways

__all__ = ["prepare_decoding"]


def prepare_decoding(model: Model, origin: Origin, asked: DecodeAsked, kept: Kept) -> Job:
    """The decoding that is asked for.

    Raises:
        InputError: shares or frames that do not fit, or latents of several codecs.
        Refused: a latent that is not here any more.
    """
    asked.check()
    check_pixels(model, asked.frames or 1)
    known = [kept.get(name, asked.model) for name in asked.latents]
    between = _between(Latents.join([each.latents for each in known]), asked)
    ways = decode_ways(origin, model, [each.corner for each in known], asked.shares, asked.frames)

    def job(out: Channel) -> None:
        out.send("done", {"images": images_of(decoded(model, between, out)), "ways": ways})

    return job


def _between(latents: Latents, asked: DecodeAsked) -> Latents:
    """The latents at the place that is asked for."""
    if len(latents) == 1:
        return latents
    if asked.frames is not None:
        shares = [i / (asked.frames - 1) for i in range(asked.frames)]
        return interpolate(latents, (0, 1), shares)
    if len(latents) == 2:
        return interpolate(latents, (0, 1), asked.shares)
    # Row by row: the second share down, the first to the right.
    return interpolate(latents, (0, 1, 2, 3), asked.shares)[2]
