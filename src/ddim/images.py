"""The only place that knows pixels: [-1, 1] to bytes and back, grids, files."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["from_pixels", "to_pixels"]


def from_pixels(pixels: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]: x = pixels / 127.5 - 1, any shape."""
    return pixels.to(torch.float32).div_(127.5).sub_(1)


def to_pixels(x: Tensor) -> Tensor:
    """[-1, 1] to uint8, rounded to the nearest, clamped; any shape.

    Example:
        >>> pixels = torch.arange(256, dtype=torch.uint8)
        >>> bool((to_pixels(from_pixels(pixels)) == pixels).all())
        True
    """
    return x.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
