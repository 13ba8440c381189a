"""Classifier-free guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from ddim.denoisers.network import NetworkDenoiser
from ddim.denoisers.prediction import Denoiser, Prediction
from ddim.denoisers.target import Target
from ddim.noise.schedule import Level

__all__ = ["Guided"]


class Guided:
    """Classifier-free guidance (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598).

    Both predictions are extrapolated from the unconditional one:
    ``unconditional + scale · (conditional - unconditional)``. A scale of 1 is the conditional
    model itself and needs no guidance; the paper's w is ``scale - 1``.

    Large scales raise the contrast. ``rescale``, φ, takes it back (Lin et al. 2023, section 3.4,
    equations 15 and 16, https://arxiv.org/abs/2305.08891): of the network's output o,

        φ·o·std(conditional)/std(o) + (1 - φ)·o,

    the standard deviations being those of each image. The paper takes φ = 0.7 at a scale of 7.5.

    Args:
        conditional: what the images are of.
        unconditional: the same network without.
        scale: of the guidance.
        rescale: φ, from 0 (nothing) to 1.
        target: what the network's output is.
        together: whether both halves go in one network call, of twice the images; then both are
            :class:`~ddim.denoisers.network.NetworkDenoiser` of one network. That fills a GPU
            better, and may differ from two calls in the last bits.
    """

    def __init__(
        self,
        conditional: Denoiser,
        unconditional: Denoiser,
        scale: float,
        rescale: float = 0.0,
        target: Target = Target.EPS,
        *,
        together: bool = False,
    ) -> None:
        self.conditional, self.unconditional, self.scale = conditional, unconditional, scale
        self.rescale, self.target = rescale, target
        self._both: NetworkDenoiser | None = None
        if together:
            assert isinstance(conditional, NetworkDenoiser)
            assert isinstance(unconditional, NetworkDenoiser)
            self._both = conditional.followed_by(unconditional)

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict; see :class:`Denoiser`. Two network calls, or one of twice the images."""
        given, free = self._predictions(x, level)
        x0 = torch.lerp(free.x0, given.x0, self.scale)
        eps = torch.lerp(free.eps, given.eps, self.scale)
        if self.rescale:
            said, guided = (
                self.target.of(*pair, level.alpha, level.sigma)
                for pair in ((given.x0, given.eps), (x0, eps))
            )
            stds = [output.flatten(1).std(dim=1) for output in (said, guided)]
            ratio = (stds[0] / stds[1].clamp(min=1e-12)).view(-1, *(1,) * (x.ndim - 1))
            x0, eps = self.target.split(
                guided * torch.lerp(torch.ones_like(ratio), ratio, self.rescale), x, level
            )
        return Prediction(x0, eps, given.var)

    def _predictions(self, x: Tensor, level: Level) -> tuple[Prediction, Prediction]:
        if self._both is None:
            return self.conditional(x, level), self.unconditional(x, level)
        both = self._both(torch.cat([x, x]), level)
        (x0, free_x0), (eps, free_eps) = both.x0.chunk(2), both.eps.chunk(2)
        var = None if both.var is None else both.var.chunk(2)[0]
        return Prediction(x0, eps, var), Prediction(free_x0, free_eps)
