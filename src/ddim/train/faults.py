"""Losses and gradients that are not finite: which images they are of, and what is done."""

from __future__ import annotations

from torch import Tensor

from ddim.base.errors import InputError, RunError
from ddim.train.batches import Batch

__all__ = ["MOST_SKIPPED", "NotFinite", "bad_images", "check_pixels", "not_finite"]

MOST_SKIPPED = 10
"""Steps in a row that are skipped; one more that would have to be ends the run."""
_NAMED = 5


class NotFinite(RunError):  # noqa: N818
    """A loss or a gradient is not finite.

    Args:
        message: what it was.
        step: in which step, from 1.
        images: those of the data whose loss is not finite; none where only the gradient is not.
    """

    def __init__(self, message: str, step: int, images: list[int]) -> None:
        super().__init__(message)
        self.step, self.images = step, images


def bad_images(losses: Tensor, indices: Tensor) -> list[int]:
    """Which images' losses are not finite.

    Args:
        losses: of each image, shape (N,); of another shape they name none.
        indices: of the images in the data, shape (N,).
    """
    if losses.shape != indices.shape:
        return []
    return indices[~losses.isfinite().cpu()].tolist()


def check_pixels(batch: Batch, indices: Tensor) -> None:
    """Refuse images that are not finite themselves.

    Raises:
        InputError: the first is named.
    """
    if not batch.images.is_floating_point():
        return
    bad = ~batch.images.flatten(1).isfinite().all(1).cpu()
    if bool(bad.any()):
        raise InputError(f"image {int(indices[bad][0])} of the data has values not finite")


def not_finite(images: list[int], n: int, skipped: int) -> NotFinite:
    """Why step n (from 0) is the end: the network or the learning.

    Args:
        images: whose loss is not finite.
        n: the step.
        skipped: how many steps before it, in a row, were skipped.
    """
    what, where = ("loss", f", of {_named(images)}") if images else ("gradient", "")
    if skipped:
        return NotFinite(
            f"the {what} is no longer finite at step {n + 1}{where}, nor was it in the {skipped} "
            "steps before, which were skipped",
            *(n + 1, images),
        )
    if n == 0:
        return NotFinite(
            f"the {what} is not finite at step 1, before anything was learned: the network's "
            f"weights or what it makes of them are not{where.replace(', of', ', for')}",
            *(1, images),
        )
    return NotFinite(
        f"the {what} is no longer finite at step {n + 1}{where}: try a lower lr, a longer warm-up, "
        "or skip_bad_batches",
        *(n + 1, images),
    )


def _named(images: list[int]) -> str:
    """Some of the images by their numbers."""
    shown = ", ".join(map(str, images[:_NAMED]))
    more = f" and {len(images) - _NAMED} more" if len(images) > _NAMED else ""
    return f"image{'s' * (len(images) > 1)} {shown}{more} of the data"
