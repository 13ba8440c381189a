"""Whether images and masks are ones that a model can take, and what it makes is one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddim.base.errors import InputError, RunError, quoted
from ddim.model.condition import single
from ddim.model.model import Model

__all__ = ["LOOK", "check_finite", "take_images", "take_mask", "take_states", "whole"]

LOOK = (
    "`ddim checks` and ddim.check_model look for what is wrong with a model, and some methods need "
    "more steps than others"
)
"""What there is to do about results that are not finite."""

FARTHEST = 2.0
"""Samples and decoded images overshoot [-1, 1] by less; bytes by far."""


def whole(name: str, value: object, least: int | None = None) -> int:
    """A count or a seed, given as any kind of whole number: of Python, NumPy or torch, or 4.0.

    Args:
        name: what messages call it.
        value: the number.
        least: the smallest that will do; any if None.

    Raises:
        InputError: another number, or something else.
    """
    value = single(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name} is a whole number, not {quoted(value)}")
    if least is not None and value < least:
        raise InputError(f"{name} must be at least {least}, not {value}")
    return value


def take_states(model: Model, values: Tensor | NDArray[Any], n: int | None = None) -> Tensor:
    """States of a model's shape, as a tensor.

    Args:
        model: the model.
        values: shape (N, *), floating point; a NumPy array is taken too.
        n: how many there must be; any number if None.

    Raises:
        InputError: another number, shape or type, or values that are not finite.
    """
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(np.ascontiguousarray(values))
    if not isinstance(values, Tensor):
        raise InputError(f"images are a tensor or a NumPy array, not a {type(values).__name__}")
    shape = tuple(values.shape)
    wanted = (shape[0] if n is None and shape else n, *model.shape)
    if shape != wanted:
        raise InputError(
            f"{model.name} has images of shape {tuple(model.shape)}: {wanted[0]} of them have "
            f"shape {wanted}, not {shape}"
        )
    if not values.is_floating_point():
        raise InputError(
            "images must be finite floating-point numbers in [-1, 1], not "
            f"{values.dtype}: ddim.from_pixels makes them of bytes"
        )
    if not bool(values.isfinite().all()):
        raise InputError("images must be finite floating-point numbers in [-1, 1]")
    return values


def take_images(model: Model, images: Tensor | NDArray[Any], n: int | None = None) -> Tensor:
    """Clean images for a model, as a tensor; see :func:`take_states`.

    Raises:
        InputError: as there, or for what looks like bytes.
    """
    images = take_states(model, images, n)
    # A vector's parts may be anything; of a picture's some are dark.
    if len(model.shape) > 1 and images.numel() and images.max() > FARTHEST and images.min() >= 0:
        raise InputError(
            f"images are in [-1, 1]; these are from {images.min():.4g} to {images.max():.4g}: "
            "ddim.from_pixels makes them of bytes"
        )
    return images


def check_finite(values: Tensor, what: str) -> None:
    """Refuse results that are not numbers.

    Raises:
        RunError: beginning with ``what``.
    """
    if not bool(values.isfinite().all()):
        raise RunError(f"{what} is not finite: {LOOK}")


def take_mask(mask: Tensor | NDArray[Any], images: Tensor) -> Tensor:
    """A mask of truth values, of the images' shape.

    Raises:
        InputError: another type, or a shape that does not broadcast.
    """
    mask = torch.from_numpy(mask) if isinstance(mask, np.ndarray) else mask
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        kind = getattr(mask, "dtype", type(mask).__name__)
        raise InputError(f"a mask is a tensor of truth values, not of {kind}")
    try:
        return mask.expand_as(images)
    except RuntimeError:
        raise InputError(
            f"a mask of shape {tuple(mask.shape)} does not fit images of {tuple(images.shape)}"
        ) from None
