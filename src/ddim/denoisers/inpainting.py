"""Painting the unknown part of an image around the known part."""

from __future__ import annotations

import torch
from torch import Tensor

from ddim.denoisers.prediction import Denoiser, Prediction
from ddim.noise.schedule import Level

__all__ = ["Inpaint"]


class Inpaint:
    """Keep what is known of an image: x0 is replaced there, and eps recomputed.

    In a deterministic sampler the known part moves in a straight line from its noise to the image,
    and the network fits the rest to it. DDIM's last step lands on the known values exactly; methods
    that mix several states in the end come near them, and :func:`ddim.sample` puts them back.

    Args:
        denoiser: what predicts the rest.
        images: broadcastable against the states.
        keep: truth values that broadcast too; true where the images are known.
    """

    def __init__(self, denoiser: Denoiser, images: Tensor, keep: Tensor) -> None:
        self.denoiser, self.images, self.keep = denoiser, images, keep

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict; see :class:`Denoiser`."""
        prediction = self.denoiser(x, level)
        x0 = prediction.x0
        keep = self.keep & x0.isfinite()  # a network that fails is not painted over
        return prediction.with_x0(torch.where(keep, self.images.to(x0), x0), x, level)
