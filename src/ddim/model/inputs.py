"""Whether images, masks and labels are ones that a model can take, and what it makes is one."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ddim.base.errors import InputError, RunError
from ddim.model.model import Model

__all__ = ["check_finite", "check_images", "check_labels", "check_mask", "one_each"]


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


def one_each(labels: int | Sequence[int] | Tensor | None, n: int) -> tuple[int, ...] | None:
    """Labels as plain numbers, one for each of n images where there is one for all.

    Raises:
        InputError: labels that are not whole numbers.
    """
    if labels is None:
        return None
    try:
        if isinstance(labels, Tensor):
            labels = labels.tolist()
        if isinstance(labels, Sequence | np.ndarray) and np.ndim(labels):
            return tuple(operator.index(label) for label in labels)
        return (operator.index(labels),) * n  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise InputError(f"labels are whole numbers, not {labels!r}") from None


def check_labels(model: Model, labels: Sequence[int] | None, n: int) -> Tensor | None:
    """Labels as a tensor of shape (n,).

    Raises:
        InputError: a model without classes, another number of labels, or one out of range.
    """
    if labels is None:
        return None
    if model.classes is None:
        raise InputError(f"{model.name} has no classes, so labels mean nothing to it")
    if len(labels) != n:
        raise InputError(f"{len(labels)} labels were given for {n} images")
    allowed = range(model.classes)
    for label in labels:
        if label not in allowed and label != model.null_label:
            none = "" if model.null_label is None else f", or {model.null_label} for 'none'"
            raise InputError(f"labels are from 0 to {model.classes - 1}{none}, not {label}")
    return torch.tensor(list(labels))
