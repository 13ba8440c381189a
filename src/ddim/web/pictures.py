"""Images as they travel to the page: bytes in base64."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ddim.data.pictures import on_white
from ddim.data.pixels import to_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["fit_picture", "images_of", "pixels_json", "standardised"]


def images_of(x: Tensor) -> dict[str, Any]:
    """Images for the page.

    What is not a number, which a sampler that diverges leads to, is shown as grey.

    Args:
        x: in [-1, 1], shape (N, C, H, W).
    """
    return pixels_json(to_pixels(x.detach().float().cpu().nan_to_num(0, 1, -1).clamp(-1, 1)))


def pixels_json(pixels: Tensor) -> dict[str, Any]:
    """The same of bytes, uint8 of shape (N, C, H, W)."""
    rows = pixels.permute(0, 2, 3, 1).contiguous().numpy().tobytes()
    return {
        "n": len(pixels),
        "shape": list(pixels.shape[1:]),
        "pixels": base64.b64encode(rows).decode("ascii"),
    }


def standardised(x: Tensor) -> dict[str, Any]:
    """Noise for the page: grey is each one's mean, black and white three standard deviations away.

    Args:
        x: shape (N, C, H, W).
    """
    x = x.detach().float().cpu().nan_to_num(0, 0, 0)
    mean = x.flatten(1).mean(1).view(-1, 1, 1, 1)
    std = x.flatten(1).std(1).clamp(min=1e-12).view(-1, 1, 1, 1)
    return images_of((x - mean) / (3 * std))


def fit_picture(picture: Image, shape: Sequence[int]) -> Tensor:
    """A picture as an image of a model: its middle, in the model's size and colours.

    Args:
        picture: as :func:`ddim.data.pictures.open_picture` makes it.
        shape: of the model's images, (C, H, W).

    Returns:
        uint8, shape (1, C, H, W).
    """
    from PIL import Image

    channels, height, width = shape
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    picture = picture if channels == 4 else on_white(picture)
    picture = picture if picture.mode == mode else picture.convert(mode)
    share = min(picture.width / width, picture.height / height)
    across, down = (max(1, round(share * side)) for side in (width, height))
    left, top = (picture.width - across) // 2, (picture.height - down) // 2
    cut = picture.crop((left, top, left + across, top + down))
    pixels = np.array(cut.resize((width, height), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels.reshape(1, height, width, channels)).permute(0, 3, 1, 2)
