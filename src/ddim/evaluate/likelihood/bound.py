"""Bits per dimension of the stochastic sampler: the variational bound."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ddim.base.errors import InputError, unknown
from ddim.denoisers.prediction import Denoiser
from ddim.noise.draws import Noise
from ddim.noise.nodes import Nodes
from ddim.noise.schedule import Schedule
from ddim.samplers.methods.ddim import noising_std, posterior_std

__all__ = ["Elbo", "elbo", "state_noise"]

BINS = 256
VARIANCES = ("posterior", "large")


@dataclasses.dataclass(frozen=True)
class Elbo:
    """The terms of the variational bound, in bits per dimension.

    Attributes:
        prior: (N,): KL of q(x_T | x0) to the noise that sampling starts from.
        steps: (N, S - 1): KL of every step but the last, in the order of the nodes.
        decoder: (N,): -log p(x0 | x) of the last step, a probability where the data are pixels and
            a density where they are continuous.
    """

    prior: NDArray[np.float64]
    steps: NDArray[np.float64]
    decoder: NDArray[np.float64]

    @property
    def total(self) -> NDArray[np.float64]:
        """The bound, (N,): -log p(x0) is at most this in expectation over the noise."""
        return self.prior + self.steps.sum(axis=1) + self.decoder


@torch.no_grad()
def elbo(
    denoiser: Denoiser,
    schedule: Schedule,
    nodes: Nodes,
    images: Tensor,
    *,
    variance: str | ArrayLike = "posterior",
    bins: int | None = BINS,
    seed: int = 0,
    indices: Sequence[int] | None = None,
) -> Elbo:
    """The variational bound of DDPM on these nodes; one network call for each of the S steps.

    Each term is an expectation over x_k, estimated by one draw. Pixels are those of
    x = pixels/127.5-1, and the decoder is a Gaussian integrated over the bin of a pixel, open at
    both ends of the range.

    References:
        J. Ho, A. Jain, P. Abbeel, Denoising diffusion probabilistic models, 2020, equations 5 and
        13, https://arxiv.org/abs/2006.11239; the decoder's variance, that of the step before, is
        its official code's
        F. Bao et al., Analytic-DPM, 2022, for bounds with fewer steps and other variances,
        https://arxiv.org/abs/2201.06503

    Args:
        denoiser: For these images; one that clips gives the bound of a model that clips.
        schedule: The noise schedule.
        nodes: Falling to 0, at least two; all of T..0 for the model as it was trained.
        images: (N, *) in [-1, 1].
        variance: ``posterior`` (β̃), ``large`` (β), or one for each step, (S,), the last being the
            decoder's, as :func:`~ddim.samplers.methods.analytic.optimal_variance` returns them.
        bins: How many values a pixel can have; None for continuous data.
        seed: Of the noise.
        indices: Of the images, which their noise follows from; 0..N-1 if None.

    Raises:
        InputError: The nodes do not fall to 0, or a variance is unknown, missing or not positive.
    """
    if len(nodes) < 2 or nodes[-1] != 0:
        raise InputError("the bound is of falling nodes that end at node 0: give at least two")
    variances = _variances(schedule, nodes, variance)
    noise = state_noise(images, seed, indices)
    bit = math.log(2)
    data = images.double()

    top = schedule.level(nodes[0])
    spread = top.spread**2
    per_pixel = (top.sigma**2 + (top.alpha * data).square()) / spread - 1
    prior = (per_pixel - math.log(top.sigma**2 / spread)).flatten(1).mean(dim=1) / (2 * bit)

    steps: list[Tensor] = []
    decoder = torch.zeros(0)
    for n, k in enumerate(nodes[:-1]):
        source, target = schedule.level(k), schedule.level(nodes[n + 1])
        x = source.alpha * images + source.sigma * noise(k)
        x0 = denoiser(x, source).x0.double()
        chosen = float(variances[n])
        if nodes[n + 1] == 0:
            nats = _decoder_nats(data, x0, math.sqrt(chosen), bins)
            decoder = nats.flatten(1).mean(dim=1) / bit
            continue
        true = posterior_std(source, target)
        carried = math.sqrt((target.sigma - true) * (target.sigma + true))
        weight = target.alpha - carried * source.alpha / source.sigma
        apart = (x0 - data).square().flatten(1).mean(dim=1) * (weight**2 / chosen)
        ratio = true**2 / chosen
        steps.append((ratio - 1 - math.log(ratio) + apart) / (2 * bit))
    every = torch.stack(steps, dim=1) if steps else torch.zeros(len(images), 0)
    return Elbo(prior.cpu().numpy(), every.cpu().numpy(), decoder.cpu().numpy())


def _variances(schedule: Schedule, nodes: Nodes, variance: str | ArrayLike) -> NDArray[np.float64]:
    count = len(nodes) - 1
    if not isinstance(variance, str):
        given = np.asarray(variance, dtype=np.float64)
        if given.shape != (count,) or not (given > 0).all():
            raise InputError(
                f"variance must be {count} positive numbers, one for each step; an optimal one of "
                "0 comes of moments of too few images"
            )
        return given
    if variance not in VARIANCES:
        raise unknown("variance", variance, VARIANCES)
    levels = [schedule.level(k) for k in nodes]
    posterior = [posterior_std(levels[n], levels[n + 1]) ** 2 for n in range(count)]
    large = [noising_std(levels[n], levels[n + 1]) ** 2 for n in range(count)]
    # The posterior of the last step is a point: its decoder borrows the step before's.
    last = posterior[-2] if count > 1 else large[-1]
    chosen = posterior if variance == "posterior" else large
    return np.array([*chosen[:-1], last])


def _decoder_nats(x: Tensor, mean: Tensor, std: float, bins: int | None) -> Tensor:
    """-log p of every element."""
    if bins is None:
        return 0.5 * ((x - mean) / std).square() + math.log(std * math.sqrt(2 * math.pi))
    half = 1 / (bins - 1)
    low, high = (x - mean - half) / std, (x - mean + half) / std
    low = torch.where(x < -1 + half, -torch.inf, low)
    high = torch.where(x > 1 - half, torch.inf, high)
    # In the upper tail both Φ are near 1, so that their difference is taken in the lower one.
    flip = low > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    log_high = torch.special.log_ndtr(high)
    return -(log_high + torch.log1p(-torch.exp(torch.special.log_ndtr(low) - log_high)))


def state_noise(images: Tensor, seed: int, indices: Sequence[int] | None) -> Noise:
    """The noise of images of a seed, in their shape and type; indices are 0..N-1 if None."""
    if images.ndim < 2 or len(images) == 0:
        raise InputError(f"images must have shape (N, *), N at least 1: {tuple(images.shape)}")
    indices = range(len(images)) if indices is None else indices
    if len(indices) != len(images):
        raise InputError(f"{len(images)} images but {len(indices)} indices")
    return Noise(seed, indices, images.shape[1:], images.device, images.dtype)
