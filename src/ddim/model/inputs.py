"""Whether images and masks are ones that a model can take, and what it makes is one."""

from __future__ import annotations

import torch
from torch import Tensor

from ddim.base.errors import InputError, RunError
from ddim.model.model import Model

__all__ = ["check_finite", "check_images", "check_mask"]


def check_images(model: Model, images: Tensor, n: int) -> None:
    """Refuse images that the model could not have made.

    Raises:
        InputError: another number or shape, or values that are not finite.
    """
    if tuple(images.shape) != (n, *model.shape):
        raise InputError(
            f"{model.name} has images of shape {tuple(model.shape)}: {n} of them have shape "
            f"{(n, *model.shape)}, not {tuple(images.shape)}"
        )
    if not images.is_floating_point() or not bool(images.isfinite().all()):
        raise InputError("images must be finite floating-point numbers in [-1, 1]")


def check_finite(values: Tensor, what: str) -> None:
    """Refuse results that are not numbers.

    Raises:
        RunError: beginning with ``what``.
    """
    if not bool(values.isfinite().all()):
        raise RunError(
            f"{what} is not finite: `ddim checks` and ddim.check_model look for what is wrong "
            "with a model, and some methods need more steps than others"
        )


def check_mask(mask: Tensor, images: Tensor) -> None:
    """Refuse a mask that is not of truth values or does not fit the images.

    Raises:
        InputError: another type, or a shape that does not broadcast.
    """
    if mask.dtype is not torch.bool:
        raise InputError(f"a mask is a tensor of truth values, not of {mask.dtype}")
    try:
        mask.expand_as(images)
    except RuntimeError:
        raise InputError(
            f"a mask of shape {tuple(mask.shape)} does not fit images of {tuple(images.shape)}"
        ) from None
