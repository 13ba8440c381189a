"""Bits per dimension of the deterministic sampler: the probability-flow equation.

It is another density than the one that the variational bound is of: figures of the two are not
compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddim.base.errors import InputError
from ddim.denoisers.prediction import Denoiser
from ddim.evaluate.likelihood.bound import state_noise
from ddim.noise.nodes import Nodes, make_nodes
from ddim.noise.schedule import Level, Schedule
from ddim.samplers.loop import integrate
from ddim.samplers.sampler import make_tableau

__all__ = ["dequantise", "log_density", "ode_bits"]

NODES = 50
"""How many nodes a path has, unless told otherwise."""


def log_density(
    denoiser: Denoiser,
    schedule: Schedule,
    images: Tensor,
    nodes: Nodes | None = None,
    *,
    probes: int | None = 1,
    seed: int = 0,
    indices: Sequence[int] | None = None,
) -> NDArray[np.float64]:
    """Log p(x0) of the deterministic model, in nats, by the change of variables along its path.

    With y = x/α the probability-flow equation is dy = ε dρ, so that along a path

        d log p / d log ρ = -σ·∇ₓ·ε(x).

    The path goes from the data up to the last node with α > 0, by DPM-Solver-3, three network calls
    a step; the divergence is taken at the nodes and integrated by cubics in log ρ. Data are taken
    for states of the lowest node, y = x0 at ρ₁: what is measured is the density of the data with
    Gaussian noise of standard deviation ρ₁ added to them.

    References:
        Y. Song et al., Score-based generative modeling through stochastic differential equations,
        2020, section 4.3 and appendix D.2, https://arxiv.org/abs/2011.13456
        W. Grathwohl et al., FFJORD, 2018, for the estimate of the trace,
        https://arxiv.org/abs/1810.01367

    Args:
        denoiser: For these images; it must not clip.
        schedule: The noise schedule.
        images: (N, *), real-valued; see :func:`dequantise` for pixels.
        nodes: Rising, from node 1 or above; 50 spaced by ``log-snr`` from node 1 if None.
        probes: How many random directions estimate the divergence (Hutchinson, ±1), each two more
            network calls a node; None for the exact trace, two calls a dimension.
        seed: Of the directions.
        indices: Of the images, which their directions follow from; 0..N-1 if None.

    Returns:
        (N,), nats: the density is with respect to x0 in [-1, 1] units.

    Raises:
        InputError: Nodes that do not rise or have node 0 among them, fewer than 4 of them, a
            node where nothing of the data is left, or no probes.
    """
    if nodes is None:
        # A last node with α = 0 stands before the others: there the path ends a node below.
        falling = make_nodes(schedule, "log-snr", min(NODES, schedule.T))[:-1]
        nodes = falling[1 if schedule.alpha[-1] == 0 else 0 :][::-1]
    rising = tuple(nodes)
    if len(rising) < 4 or rising[0] < 1 or rising[-1] < rising[0]:
        raise InputError("the path rises through at least 4 nodes, from node 1 or above")
    if schedule.alpha[rising[-1]] == 0:
        raise InputError("at α = 0 nothing of the data is left: the density needs a path to it")
    if probes is not None and probes < 1:
        raise InputError(f"probes must be at least 1, or None for the exact trace, not {probes}")
    noise = state_noise(images, seed, indices)
    directions = None if probes is None else [_sign(noise(j)) for j in range(probes)]

    def rate(x: Tensor, level: Level) -> Tensor:
        return level.sigma * _divergence(denoiser, x, level, directions)

    levels = [schedule.level(k) for k in rising]
    x = levels[0].alpha * images
    rates = [rate(x, levels[0])]
    for step in integrate(denoiser, make_tableau(schedule, rising, "dpm-solver-3"), x):
        if step.row.k is not None:  # else an inner stage
            x = step.x
            rates.append(rate(x, step.row.level))
    weights = _quadrature(np.array([math.log(v.sigma / v.alpha) for v in levels]))
    gained = sum(w * r for w, r in zip(weights.tolist(), rates, strict=True))
    top = levels[-1]
    variance = (top.spread / top.alpha) ** 2
    y = x.double().flatten(1) / top.alpha
    log_prior = -0.5 * (y.square() / variance + math.log(2 * math.pi * variance)).sum(dim=1)
    return (log_prior + gained).cpu().numpy()


def dequantise(images: Tensor, *, seed: int = 0, indices: Sequence[int] | None = None) -> Tensor:
    """Pixels with uniform noise over their bins: x0 + (u - ½)/127.5, u in [0, 1).

    Args:
        images: (N, *), of values pixels/127.5-1.
        seed: Of u.
        indices: Of the images, which their u follows from; 0..N-1 if None.
    """
    u = torch.special.ndtr(state_noise(images, seed, indices)(2**31).double())
    return (images.double() + (u - 0.5) / 127.5).to(images.dtype)


def ode_bits(
    denoiser: Denoiser,
    schedule: Schedule,
    images: Tensor,
    nodes: Nodes | None = None,
    *,
    probes: int | None = 1,
    seed: int = 0,
    indices: Sequence[int] | None = None,
) -> NDArray[np.float64]:
    """Bits per dimension of pixels by :func:`log_density`, uniformly dequantised.

        bits = -log₂ p(x0 + noise)/D + log₂ 127.5

    1/127.5 being the width of a pixel's bin. In expectation over the noise that is no less than
    the bits of the pixels themselves (L. Theis, A. van den Oord, M. Bethge, A note on the
    evaluation of generative models, 2015, section 3.1, https://arxiv.org/abs/1511.01844).

    The density is that of data with noise of standard deviation ρ₁, so that a pixel that is certain
    still costs about log₂(√(2πe)·127.5·ρ₁) bits. Where most are, as in digits,
    :func:`~ddim.evaluate.likelihood.bound.elbo` says more.

    Args:
        denoiser: As for :func:`log_density`.
        schedule: As for :func:`log_density`.
        images: (N, *), of values pixels/127.5-1.
        nodes: As for :func:`log_density`.
        probes: As for :func:`log_density`.
        seed: Of the noise and of the directions.
        indices: As for :func:`log_density`.

    Returns:
        (N,).

    Raises:
        InputError: what :func:`log_density` refuses.
    """
    noisy = dequantise(images, seed=seed, indices=indices)
    nats = log_density(denoiser, schedule, noisy, nodes, probes=probes, seed=seed, indices=indices)
    return -nats / (images[0].numel() * math.log(2)) + math.log2(127.5)


def _sign(noise: Tensor) -> Tensor:
    return torch.where(noise < 0, -1.0, 1.0).to(noise.dtype)


def _divergence(
    denoiser: Denoiser, x: Tensor, level: Level, directions: list[Tensor] | None
) -> Tensor:
    """∇·ε of each image, (N,), float64: the mean of v·Jv over directions, or the exact trace.

    Jv is a central difference. Forward-mode differentiation would cost as much, and fails on
    networks in channels-last layout.
    """
    # The cube root of the rounding, where its error and the truncation's are equal.
    h = level.sigma * torch.finfo(x.dtype).eps ** (1 / 3)
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for v in _basis(x) if directions is None else directions:
        ahead, behind = x + h * v, x - h * v
        change = denoiser(ahead, level).eps - denoiser(behind, level).eps
        # What was stepped in truth: x ± h is rounded too.
        stepped = (ahead - behind) * v
        slope = torch.where(v != 0, v * change / torch.where(v != 0, stepped, 1), 0)
        total += slope.double().flatten(1).sum(dim=1)
    return total if directions is None else total / len(directions)


def _basis(x: Tensor) -> Iterator[Tensor]:
    for i in range(x[0].numel()):
        v = torch.zeros_like(x).flatten(1)
        v[:, i] = 1
        yield v.view_as(x)


def _quadrature(tau: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of ∫ f dτ from values at τ: a cubic through the four nearest in each interval."""
    weights = np.zeros_like(tau)
    for i in range(len(tau) - 1):
        first = min(max(i - 1, 0), len(tau) - 4)
        width = tau[i + 1] - tau[i]
        u = (tau[first : first + 4] - tau[i]) / width
        # Exact for 1, u, u², u³, whose integrals over 0..1 are 1, 1/2, 1/3, 1/4.
        powers = u[None, :] ** np.arange(4)[:, None]
        weights[first : first + 4] += width * np.linalg.solve(powers, 1 / np.arange(1.0, 5))
    return weights
