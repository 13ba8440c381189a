"""Images as they travel to the page: bytes in base64."""

from __future__ import annotations

import base64
from typing import Any

from torch import Tensor

from ddim.data.pixels import to_pixels

__all__ = ["images_of", "pixels_json"]


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
