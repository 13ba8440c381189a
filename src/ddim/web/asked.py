"""What requests ask for: typed records, and limits that hold before anything is computed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ddim.base.errors import InputError, quoted

if TYPE_CHECKING:
    from ddim.model.model import Model
    from ddim.samplers.sampler import Sampler
    from ddim.samplers.tableau import Tableau

__all__ = ["LIMITS", "RaceAsked", "check_count", "check_seed", "sampler_of"]

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
