"""The images of a run, as the loop reads them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddim.data.base import ArrayData, ImageData
from ddim.data.pixels import from_pixels

__all__ = ["Scaled"]

_MOST = 2**30


class Scaled:
    """Image data in [-1, 1].

    Files are decoded and resized once, not once an epoch: a photo takes longer for that than for a
    step of a small network. Their pixels are kept, as far as the memory for them goes.

    Args:
        data: the images.
        most: bytes for pixels that are kept; of images beyond them each is decoded every time.
    """

    def __init__(self, data: ImageData, most: int = _MOST) -> None:
        self.data = data
        in_memory = isinstance(data, ArrayData)
        count = 0 if in_memory else min(len(data), most // math.prod(data.shape))
        self._kept = torch.empty(count, *data.shape, dtype=torch.uint8)  # taken as it is filled
        self._known = torch.zeros(len(data), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Tensor) -> Tensor:
        """Images at the indices, float32, shape (B, C, H, W)."""
        return from_pixels(self._pixels(indices))

    def labels(self, indices: Tensor) -> Tensor | None:
        """Class indices, int64 of shape (B,), or None."""
        return self.data.labels(indices)

    def _pixels(self, indices: Tensor) -> Tensor:
        if len(self._kept) == 0:
            return self.data.batch(indices)
        known = self._known[indices]
        pixels = torch.empty(len(indices), *self.data.shape, dtype=torch.uint8)
        pixels[known] = self._kept[indices[known]]
        new = indices[~known]
        if len(new):
            decoded = self.data.batch(new)
            pixels[~known] = decoded
            fits = new < len(self._kept)
            self._kept[new[fits]] = decoded[fits]
            self._known[new[fits]] = True
        return pixels
