"""The only place that knows pixels: [-1, 1] to bytes and back, grids, pictures in files."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ddim.base.errors import InputError, quoted
from ddim.base.files import write_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "as_tensor",
    "from_pixels",
    "grid",
    "picture",
    "save_animation",
    "save_image",
    "to_pixels",
]

BYTES = 16.0
"""Images from 0 to more than this hold bytes: no image in [-1, 1] overshoots so far."""


def from_pixels(pixels: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]: x = pixels / 127.5 - 1, any shape; NumPy arrays too.

    Raises:
        InputError: another type, whose values may be in [-1, 1] already.
    """
    pixels = as_tensor(pixels)
    if pixels.dtype != torch.uint8:
        raise InputError(f"pixels are bytes (torch.uint8), not {pixels.dtype}")
    return pixels.to(torch.float32).div_(127.5).sub_(1)


def to_pixels(x: Tensor) -> Tensor:
    """[-1, 1] to uint8, rounded to the nearest, clamped; any shape; NumPy arrays too.

    Raises:
        InputError: values that are not finite, which no pixel can stand for, or that look like
            bytes.

    Example:
        >>> pixels = torch.arange(256, dtype=torch.uint8)
        >>> bool((to_pixels(from_pixels(pixels)) == pixels).all())
        True
    """
    x = as_tensor(x)
    if not x.is_floating_point():
        raise InputError(f"images in [-1, 1] are floating-point numbers, not {x.dtype}")
    if not bool(x.isfinite().all()):
        raise InputError("an image holds values that are not finite numbers (NaN or infinity)")
    if x.numel() and float(x.min()) >= 0 and float(x.max()) > BYTES:
        raise InputError(
            f"images are in [-1, 1]; these are from {x.min():.4g} to {x.max():.4g}: bytes are a "
            "tensor of torch.uint8"
        )
    return x.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def as_tensor(values: object) -> Tensor:
    """A tensor as it is, a NumPy array as a tensor.

    Raises:
        InputError: neither.
    """
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(np.ascontiguousarray(values))
    if not isinstance(values, Tensor):
        raise InputError(f"images are a tensor or a NumPy array, not a {type(values).__name__}")
    return values


def grid(images: Tensor, columns: int | None = None, pad: int = 2) -> Tensor:
    """Images side by side, row by row, with a black line between.

    Args:
        images: shape (N, C, H, W), in [-1, 1] or uint8.
        columns: images in a row; about √N if None.
        pad: pixels between two images.

    Returns:
        uint8 of shape (C, height, width).

    Raises:
        InputError: fewer than one column, or no image.
    """
    if columns is not None and columns < 1:
        raise InputError(f"columns must be at least 1, not {columns}")
    images = as_tensor(images)
    pixels = images if images.dtype == torch.uint8 else to_pixels(images)
    if pixels.ndim != 4:
        raise InputError(f"a grid is of images (N, C, H, W), not {tuple(pixels.shape)}")
    count, channels, height, width = pixels.shape
    if count == 0:
        raise InputError("a grid needs at least one image")
    columns = columns or math.ceil(math.sqrt(count))
    columns = min(columns, count)
    rows = -(-count // columns)
    out = torch.zeros(
        channels, rows * (height + pad) - pad, columns * (width + pad) - pad, dtype=torch.uint8
    )
    for i, image in enumerate(pixels):
        y, x = i // columns * (height + pad), i % columns * (width + pad)
        out[:, y : y + height, x : x + width] = image
    return out


def picture(pixels: Tensor) -> Image:
    """A Pillow image from uint8 of shape (C, H, W) with 1, 3 or 4 channels.

    Raises:
        InputError: another number of channels.
    """
    from PIL import Image

    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or len(pixels) not in modes:
        raise InputError(f"a picture has 1, 3 or 4 channels: {tuple(pixels.shape)}")
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[..., 0] if len(pixels) == 1 else array, modes[len(pixels)])


def save_image(
    path: Path | str | Tensor, images: Tensor | Path | str, columns: int | None = None
) -> None:
    """Write a PNG: one image of shape (C, H, W), or a grid of (N, C, H, W).

    Values are in [-1, 1], or uint8. Every image has the same fixed scale.

    Args:
        path: the file; its folder is made.
        images: in [-1, 1] or uint8. They may stand first, as elsewhere.
        columns: of the grid; about √N if None.

    Raises:
        InputError: no image, values that are not numbers, or channels other than 1, 3 or 4.
    """
    if isinstance(images, str | Path):
        path, images = images, path
    if not isinstance(path, str | Path):
        raise InputError(f"an image is saved to a path, not to a {type(path).__name__}")
    images = as_tensor(images)
    pixels = images if images.dtype == torch.uint8 else to_pixels(images)
    pixels = grid(pixels, columns) if pixels.ndim == 4 else pixels
    buffer = io.BytesIO()
    picture(pixels).save(buffer, "PNG")
    write_bytes(Path(path), buffer.getvalue())


def save_animation(path: Path | str, frames: Sequence[Tensor], milliseconds: int = 60) -> None:
    """Write an endless animation, WebP or GIF by the name's suffix.

    Args:
        path: ends in .webp or .gif.
        frames: uint8 of shape (C, H, W) each, as :func:`grid` returns; the last is held.
        milliseconds: for each frame; the last is shown for 1.5 seconds.

    Raises:
        InputError: another suffix, no frames.
    """
    kind = Path(path).suffix.lower()
    if kind not in (".webp", ".gif"):
        raise InputError(f"an animation is a .webp or a .gif, not {quoted(str(path))}")
    pictures = [picture(frame) for frame in frames]
    durations = [milliseconds] * (len(pictures) - 1) + [1500]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        kind[1:].upper(),
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0,
        **({"lossless": True} if kind == ".webp" else {}),
    )
    write_bytes(Path(path), buffer.getvalue())
