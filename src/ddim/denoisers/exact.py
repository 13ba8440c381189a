"""Exact denoisers: what a perfect network would say, in closed form.

They read α and σ from the level, so they fit every schedule, and have nothing to train. Tests
measure solvers against them; learners can look at the whole process without a network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddim.base.errors import InputError
from ddim.denoisers.prediction import Prediction
from ddim.noise.schedule import Level

__all__ = ["Empirical", "Gaussian", "Mixture"]


def _predict(x0: Tensor, x: Tensor, level: Level) -> Prediction:
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


class Gaussian:
    """Data N(mean, std²), independent in every element.

    E[x0 | x] = mean + α·s²·(x - α·mean)/(α²s² + σ²).

    Args:
        mean: broadcastable against the states.
        std: a number, or one that broadcasts against the data; 0 is a point.
    """

    def __init__(self, mean: float | Tensor = 0.0, std: float | Tensor = 1.0) -> None:
        self.mean, self.std = mean, std

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict; see :class:`~ddim.Denoiser`."""
        variance = self.std**2
        gain = level.alpha * variance / (level.alpha**2 * variance + level.sigma**2)
        eps_gain = level.sigma / (level.alpha**2 * variance + level.sigma**2)
        centred = x - level.alpha * self.mean
        return Prediction(self.mean + gain * centred, eps_gain * centred)

    def flow(self, x: Tensor, source: Level, target: Level) -> Tensor:
        """The exact probability-flow solution from one level to another.

        x₊ = α₊μ + √((α₊²s² + σ₊²)/(α²s² + σ²))·(x - αμ).
        """
        variance = self.std**2
        before = source.alpha**2 * variance + source.sigma**2
        after = target.alpha**2 * variance + target.sigma**2
        ratio = torch.as_tensor(after / before, dtype=x.dtype).sqrt()
        return target.alpha * self.mean + ratio * (x - source.alpha * self.mean)


class Mixture:
    """Data from isotropic Gaussians N(means[j], std[j]²·I) with given weights.

    Args:
        means: shape (M, *), the images' shape after M.
        std: shape (M,), or one number.
        weights: shape (M,), positive; equal if None. They are normalised.
    """

    def __init__(
        self, means: Tensor, std: float | Tensor = 0.0, weights: Tensor | None = None
    ) -> None:
        if means.ndim < 2 or len(means) == 0:
            raise InputError(f"means must have shape (M, *), not {tuple(means.shape)}")
        count = len(means)
        self.means = means
        self.variance = torch.as_tensor(std, dtype=means.dtype, device=means.device) ** 2
        self.variance = self.variance.expand(count)
        weights = torch.ones(count, device=means.device) if weights is None else weights
        if weights.shape != (count,) or not bool((weights > 0).all()):
            raise InputError(f"weights must be {count} positive numbers")
        self.log_weights = (weights / weights.sum()).log().to(means.dtype)

    def responsibilities(self, x: Tensor, level: Level) -> Tensor:
        """Posterior probability of each component given the state, shape (N, M)."""
        total = level.alpha**2 * self.variance + level.sigma**2
        flat, means = x.flatten(1), self.means.flatten(1)
        dims = flat.shape[1]
        # |x - αm|² without an (N, M, D) tensor; the part that all components share is left in,
        # because their variances may differ.
        cross = flat @ means.T
        distance = (
            flat.square().sum(1, keepdim=True)
            - 2 * level.alpha * cross
            + level.alpha**2 * means.square().sum(1)
        )
        logits = self.log_weights - 0.5 * dims * total.log() - 0.5 * distance / total
        return logits.softmax(dim=1)

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict, in the precision of the means; see :class:`~ddim.Denoiser`."""
        state = x.to(self.means.dtype)
        weight = self.responsibilities(state, level)
        total = level.alpha**2 * self.variance + level.sigma**2
        gain = level.alpha * self.variance / total
        # Each component's posterior mean is (1 - αg)·m + g·x.
        kept = (weight * (1 - level.alpha * gain)) @ self.means.flatten(1)
        x0 = kept + (weight * gain).sum(1, keepdim=True) * state.flatten(1)
        return _predict(x0.view_as(x).to(x.dtype), x, level)


class Empirical(Mixture):
    """The denoiser of a finite data set: a softmax-weighted mean of its images.

    The optimum of the training loss on that set, which a network that generalises does not reach.

    Args:
        images: shape (M, *), in [-1, 1].
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__(images, 0.0)
