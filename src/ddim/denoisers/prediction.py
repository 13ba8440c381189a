"""What a denoiser is and what it predicts."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ddim.base.display import shown
from ddim.base.errors import InputError
from ddim.noise.schedule import Level

__all__ = ["Denoiser", "Prediction"]


@shown
class Prediction(NamedTuple):
    """What a denoiser makes of x = α·x0 + σ·eps, which its x0 and eps satisfy.

    All do but those of :class:`~ddim.denoisers.clipping.StaleEps`.

    ``var`` is the interpolation of a learned variance, v in [0, 1] a pixel, or None.
    """

    x0: Tensor
    eps: Tensor
    var: Tensor | None = None

    def with_x0(self, x0: Tensor, x: Tensor, level: Level) -> Prediction:
        """Another x0, of the same shape (N, *), and the eps that then makes up the state x.

        Raises:
            InputError: σ is 0, where no eps follows.
        """
        if level.sigma == 0:
            raise InputError(
                "at σ = 0 no eps follows from a changed x0: a clean state is left alone"
            )
        eps = torch.sub(x, x0, alpha=level.alpha).mul_(1 / level.sigma)
        return Prediction(x0, eps, self.var)


class Denoiser(Protocol):
    """Anything that predicts; networks read ``level.t``, exact denoisers α and σ."""

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict from a state of any shape (N, *), leaving it unchanged."""
        ...
