"""How far a contestant's numbers are from those that they ought to be."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

from torch import Tensor

from ddim.base.errors import InputError
from ddim.evaluate.speed.contestants import Contestant, Ours
from ddim.model.model import Model
from ddim.noise.schedule import Level

__all__ = ["Deviation", "Exact", "deviation"]


class Deviation(NamedTuple):
    """Of images in [0, 1] from others: the largest, the root mean square, and that as PSNR in dB.

    The PSNR is None for equal images, whose it would be infinite.
    """

    largest: float
    rms: float
    psnr: float | None


def deviation(images: Tensor, reference: Tensor) -> Deviation:
    """How far images are from others of the same shape.

    Example:
        >>> import torch
        >>> deviation(torch.full((2, 1, 4, 4), 0.6), torch.full((2, 1, 4, 4), 0.5)).psnr
        20.0
    """
    off = images.double() - reference.double()
    rms = float(off.square().mean().sqrt())
    psnr = round(-20 * math.log10(rms), 2) if rms else None
    return Deviation(float(off.abs().max()), rms, psnr)


class Exact:
    """The network in float64, at the node in the middle, on noise.

    Args:
        model: the model, which stays as it is.
        noise: the states, shape (N, C, *), float32.
    """

    def __init__(self, model: Model, noise: Tensor) -> None:
        self.level: Level = model.schedule.level(max(1, model.schedule.T // 2))
        self.x = noise
        self._true: Tensor | None = None
        if model.device.type != "mps":  # which has no float64
            net = copy.deepcopy(model.net).double()
            exact = Ours(model.replace(net=net, backend="torch"), "float64")
            try:
                self._true = exact.output(self.x, self.level)
            except InputError:  # a network that insists on another precision
                self._true = None

    def error(self, contestant: Contestant) -> float | None:
        """|output - exact| / |exact| by Euclidean norms; None where there is no float64."""
        if self._true is None:
            return None
        off = contestant.output(self.x, self.level) - self._true
        return float(off.norm() / self._true.norm().clamp(min=1e-300))
