"""Classifier-free guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from ddim.denoisers.prediction import Denoiser, Prediction
from ddim.noise.schedule import Level

__all__ = ["Guided"]


class Guided:
    """Classifier-free guidance (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598).

    Both predictions are extrapolated from the unconditional one:
    ``unconditional + scale · (conditional - unconditional)``. A scale of 1 is the conditional
    model itself and needs no guidance; the paper's w is ``scale - 1``.
    """

    def __init__(self, conditional: Denoiser, unconditional: Denoiser, scale: float) -> None:
        self.conditional, self.unconditional, self.scale = conditional, unconditional, scale

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict; see :class:`Denoiser`. Two network calls."""
        given = self.conditional(x, level)
        free = self.unconditional(x, level)
        return Prediction(
            torch.lerp(free.x0, given.x0, self.scale),
            torch.lerp(free.eps, given.eps, self.scale),
            given.var,
        )
