"""What requests ask for: typed records, and limits that hold before anything is computed."""

from __future__ import annotations

import base64
import dataclasses
from typing import TYPE_CHECKING

from ddim.base.errors import InputError, quoted

if TYPE_CHECKING:
    from ddim.model.model import Model
    from ddim.samplers.sampler import Sampler
    from ddim.samplers.tableau import Tableau

__all__ = [
    "CODECS_SHOWN",
    "LIMITS",
    "DecodeAsked",
    "DrawLatentsAsked",
    "EncodeAsked",
    "ImageAsked",
    "RaceAsked",
    "StepsAsked",
    "TradeoffAsked",
    "check_count",
    "check_seed",
    "sampler_of",
]

LIMITS = {
    "images": 16,
    "lanes": 4,
    "steps": 4000,
    "pixels": 4_000_000,
    "upload_bytes": 1_000_000,
    "upload_pixels": 4_000_000,
    "waiting": 8,
}
"""What a request may ask for; ``pixels`` is of all its images together, channels counted."""
CODECS_SHOWN = ("obelm", "edict", "bdia", "ddim")
"""The codecs of the page: those that need no solving."""
MEASURED = 12
"""Samplers that are measured at once."""
_LONGEST = 2000


@dataclasses.dataclass(frozen=True)
class RaceAsked:
    """Samplers side by side from the same latents.

    Attributes:
        model: its name.
        lanes: the samplers, as they are spelled.
        seed: of the noise.
        images: how many, from the first on.
        labels: classes, repeated in this order; None for all in turn.
        batch_size: images in one network call; None for the model's default.
    """

    model: str
    lanes: tuple[str, ...]
    seed: int = 0
    images: int = 8
    labels: tuple[int, ...] | None = None
    batch_size: int | None = None

    def check(self, model: Model) -> None:
        """Keep to the limits.

        Raises:
            InputError: one is exceeded.
        """
        check_seed(self.seed)
        check_count("images", self.images)
        check_count("lanes", len(self.lanes))
        if self.batch_size is not None and not 1 <= self.batch_size <= LIMITS["images"]:
            raise InputError(
                f"batch_size is from 1 to {LIMITS['images']} here, not {self.batch_size}"
            )
        check_pixels(model, self.images)


@dataclasses.dataclass(frozen=True)
class StepsAsked:
    """One image, step by step.

    Attributes:
        model: its name.
        sampler: as it is spelled.
        seed: of the noise.
        image: which of the seed's.
        label: its class; None for that of the race, in which the classes come in turn.
    """

    model: str
    sampler: str
    seed: int = 0
    image: int = 0
    label: int | None = None

    def check(self, model: Model) -> None:
        """Keep to the limits.

        Raises:
            InputError: one is exceeded.
        """
        check_seed(self.seed)
        check_image(self.image)
        check_pixels(model, 1)


@dataclasses.dataclass(frozen=True)
class ImageAsked:
    """An image from the page, in base64.

    Attributes:
        png: a PNG, JPEG or WebP of any size.
        pixels: bytes of the model's own size, rows from the top: grey, or of all its channels.
    """

    png: str | None = None
    pixels: str | None = None

    def content(self) -> bytes:
        """The bytes.

        Raises:
            InputError: neither or both, no base64, or too many.
        """
        given = [each for each in (self.png, self.pixels) if each is not None]
        if len(given) != 1:
            raise InputError("an image comes as png or as pixels: give one of them")
        try:
            content = base64.b64decode(given[0], validate=True)
        except ValueError:
            raise InputError("the image is not valid base64") from None
        if len(content) > LIMITS["upload_bytes"]:
            raise InputError(
                f"the image has {len(content):,} bytes, more than {LIMITS['upload_bytes']:,}: make "
                "it smaller"
            )
        return content


@dataclasses.dataclass(frozen=True)
class EncodeAsked:
    """An image to a latent and back.

    Attributes:
        model: its name.
        image: what to encode.
        codec: see :data:`CODECS_SHOWN`.
        steps: of the codec; None for 50, or as many as there can be.
        label: its class, which class-conditional models need.
    """

    model: str
    image: ImageAsked
    codec: str = "obelm"
    steps: int | None = None
    label: int | None = None


@dataclasses.dataclass(frozen=True)
class DrawLatentsAsked:
    """The latent of an image of a seed; see :class:`EncodeAsked`.

    Attributes:
        model: its name.
        seed: of the noise.
        image: which of the seed's.
        codec: see :data:`CODECS_SHOWN`.
        steps: of the codec, and of DDIM that draws the image.
        label: its class, which class-conditional models need.
    """

    model: str
    seed: int = 0
    image: int = 0
    codec: str = "obelm"
    steps: int | None = None
    label: int | None = None

    def check(self) -> None:
        """Keep to the limits.

        Raises:
            InputError: one is exceeded.
        """
        check_seed(self.seed)
        check_image(self.image)


@dataclasses.dataclass(frozen=True)
class DecodeAsked:
    """Latents, or what lies between them, to images.

    Attributes:
        model: its name.
        latents: their ids: 1; 2, the ends of a line; or 4, the corners of a square: top left, top
            right, bottom left, bottom right.
        shares: where: nothing for one latent; from the first end to the second; or how far to the
            right and how far down.
        frames: instead, so many images evenly along the line, the ends included.
    """

    model: str
    latents: tuple[str, ...]
    shares: tuple[float, ...] = ()
    frames: int | None = None

    def check(self) -> None:
        """Keep to the limits.

        Raises:
            InputError: another number of latents, shares that are not theirs, or too many frames.
        """
        wanted = {1: 0, 2: 1, 4: 2}.get(len(self.latents))
        if wanted is None:
            raise InputError(f"latents are 1, 2 or 4, not {len(self.latents)}")
        if self.frames is not None:
            if len(self.latents) != 2 or self.shares:
                raise InputError("frames are along a line between 2 latents, without shares")
            if not 2 <= self.frames <= LIMITS["images"]:
                raise InputError(f"frames are from 2 to {LIMITS['images']}, not {self.frames}")
        elif len(self.shares) != wanted or not all(0 <= share <= 1 for share in self.shares):
            raise InputError(
                f"{len(self.latents)} latents take {wanted} shares from 0 to 1, not "
                f"{quoted(list(self.shares))}"
            )


@dataclasses.dataclass(frozen=True)
class TradeoffAsked:
    """Solver error of some samplers, measured now.

    Attributes:
        model: its name.
        samplers: as they are spelled; nothing for DDIM in 5 to 50 steps and the calibrated ones.
        images: from how many latents.
        seed: of these.
    """

    model: str
    samplers: tuple[str, ...] = ()
    images: int = 8
    seed: int = 0

    def check(self) -> None:
        """Keep to the limits.

        Raises:
            InputError: one is exceeded.
        """
        check_seed(self.seed)
        check_count("images", self.images)
        if len(self.samplers) > MEASURED:
            raise InputError(f"samplers are at most {MEASURED} here, not {len(self.samplers)}")


def check_image(image: int) -> None:
    """Keep the number of an image to those that the page can draw.

    Raises:
        InputError: it is beyond.
    """
    if not 0 <= image < LIMITS["images"]:
        raise InputError(f"images are numbered from 0 to {LIMITS['images'] - 1}, not {image}")


def check_seed(seed: int) -> None:
    """Keep a seed to what browsers' numbers hold.

    Raises:
        InputError: it is beyond.
    """
    if not 0 <= seed < 2**53:
        raise InputError(f"the seed is from 0 to 2⁵³ - 1, not {seed}")


def check_count(what: str, count: int) -> None:
    """Keep a number of things to its limit.

    Raises:
        InputError: it is below 1, or beyond.
    """
    if not 1 <= count <= LIMITS[what]:
        raise InputError(f"{what} are from 1 to {LIMITS[what]} here, not {count}")


def check_pixels(model: Model, images: int) -> None:
    """Keep the pixels of images to their limit.

    Raises:
        InputError: they are beyond.
    """
    import math

    if images * math.prod(model.shape) > LIMITS["pixels"]:
        most = LIMITS["pixels"] // math.prod(model.shape)
        raise InputError(f"{model.name} has large images, of which the page draws {most} at once")


def sampler_of(model: Model, text: str) -> tuple[Sampler, Tableau]:
    """A sampler as it is spelled, and its rows on a model.

    Raises:
        InputError: a spelling that is too long or names a file, more steps than there may be, or
            as :meth:`ddim.Model.tableau`.
    """
    from ddim.samplers.sampler import Sampler

    if len(text) > _LONGEST:
        raise InputError(f"a sampler is spelled in at most {_LONGEST} characters")
    if ".py" in text or "/" in text or "\\" in text:
        raise InputError(f"a page runs no files: {quoted(text)}")
    sampler = Sampler.parse(text)
    if (sampler.steps or 0) > LIMITS["steps"]:
        raise InputError(f"steps are at most {LIMITS['steps']} here, not {sampler.steps}")
    tableau = model.tableau(sampler)
    if len(tableau.initial) != 1 or tableau.initial[0].level.sigma < tableau.rows[-1].level.sigma:
        raise InputError(f"{sampler} does not lead from noise to an image")
    return sampler, tableau
