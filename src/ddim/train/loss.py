"""The training loss of a denoising diffusion model, its weights and its choice of times."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ddim.base.errors import InputError, unknown
from ddim.denoisers.target import Target
from ddim.noise.schedule import Schedule

__all__ = ["WEIGHTINGS", "diffusion_loss", "draw_nodes", "loss_weights"]

WEIGHTINGS = ("uniform", "min-snr")


def loss_weights(
    schedule: Schedule, target: Target, weighting: str = "uniform", gamma: float = 5.0
) -> np.ndarray:
    """The weight of the squared error at each node.

    ``uniform`` weighs the error of the target itself, Ho et al.'s simple loss for ε. ``min-snr``
    weighs the error of x0 by min(SNR, γ), whatever the target (Hang et al. 2023, section 3.4,
    https://arxiv.org/abs/2303.09556): min(SNR, γ)/SNR for ε, min(SNR, γ) for x0,
    min(SNR, γ)/(SNR + 1) for v. Where no signal is left that is 0, and the node that sampling
    starts from would never be trained: its weight is 1, as by ``uniform``.

    Returns:
        float64 of shape (T+1,); entry 0, where nothing is trained, is 0.

    Raises:
        InputError: unknown weighting, or a γ that is not positive.
    """
    if weighting not in WEIGHTINGS:
        raise unknown("weighting", weighting, WEIGHTINGS)
    if gamma <= 0:
        raise InputError(f"gamma must be positive, not {gamma}")
    weights = np.zeros(schedule.T + 1)
    weights[1:] = 1.0
    if weighting == "uniform":
        return weights
    alpha, sigma = schedule.alpha[1:], schedule.sigma[1:]
    snr = schedule.snr[1:]
    if target is Target.EPS:
        # x0's error is the error of ε times σ/α, so the weight stays finite where SNR = 0.
        weights[1:] = np.minimum(1.0, gamma / np.maximum(snr, 1e-300))
        return weights
    p, q = (
        np.broadcast_to(np.asarray(c, float), snr.shape) for c in target.coefficients(alpha, sigma)
    )
    # At fixed x: output error = (αq - σp)/(-σ) · x0 error.
    found = np.minimum(snr, gamma) * (sigma / (alpha * q - sigma * p)) ** 2
    weights[1:] = np.where(found.astype(np.float32) == 0, 1.0, found)  # the loss is in float32
    return weights


def draw_nodes(
    count: int,
    T: int,
    generator: torch.Generator,
    *,
    antithetic: bool = True,
    focus: Sequence[int] = (),
) -> Tensor:
    """Nodes k for one batch, uniform on 1..T or half of them within a range.

    Args:
        count: how many.
        T: the schedule's length.
        generator: where the randomness comes from; on the CPU.
        antithetic: pair k with first + last - k, as the official DDIM code does with T + 1 - k:
            each is still uniform, and the mean over the batch varies less.
        focus: first and last of a range of nodes that half of the batch, rounded down, is drawn
            from; none for all from 1..T. The mean loss is then another: each of the L nodes counts
            ½ + T/2L times as much, the others half as much.

    Returns:
        int64 of shape (count,).
    """
    if focus:
        first, last = focus
        wide = draw_nodes(count - count // 2, T, generator, antithetic=antithetic)
        length = last - first + 1
        close = draw_nodes(count // 2, length, generator, antithetic=antithetic)
        return torch.cat([wide, close + first - 1])
    if not antithetic:
        return torch.randint(1, T + 1, (count,), generator=generator)
    half = torch.randint(1, T + 1, ((count + 1) // 2,), generator=generator)
    return torch.cat([half, T + 1 - half])[:count]


def diffusion_loss(
    network: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    k: Tensor,
    noise: Tensor,
    schedule: Schedule,
    target: Target | str = Target.EPS,
    weights: np.ndarray | None = None,
) -> Tensor:
    """Mean squared error of the network's output at nodes k (Ho et al. 2020, equation 14).

    Args:
        network: called as ``network(x_k, t)`` with t = k - 1, int64 of shape (N,); returns the
            shape of x_k.
        x0: clean images in [-1, 1], shape (N, *).
        k: nodes, int64, shape (N,), each in 1..T.
        noise: standard normal, the shape of x0.
        schedule: the noise schedule.
        target: what the network outputs.
        weights: one weight a node, shape (T+1,), as :func:`loss_weights` returns; None for ones.

    Returns:
        The loss of each image, shape (N,), float32 at least.

    Raises:
        InputError: images of whole numbers, or shapes that do not fit together.
    """
    if not x0.is_floating_point():
        raise InputError(
            f"images must be floating-point numbers in [-1, 1], not {x0.dtype}: pixels are "
            "pixels/127.5 - 1"
        )
    if x0.shape != noise.shape or k.shape != x0.shape[:1]:
        raise InputError(
            f"images {tuple(x0.shape)}, noise {tuple(noise.shape)} and nodes {tuple(k.shape)} "
            "do not fit together"
        )
    target = Target.named(target)
    shape = (-1,) + (1,) * (x0.ndim - 1)
    alpha, sigma = (
        torch.as_tensor(values, dtype=x0.dtype, device=x0.device)[k].view(shape)
        for values in (schedule.alpha.copy(), schedule.sigma.copy())
    )
    output = network(alpha * x0 + sigma * noise, k - 1)
    if output.shape != x0.shape:
        raise InputError(f"the network returned {tuple(output.shape)} for {tuple(x0.shape)}")
    error = output.float() - target.of(x0, noise, alpha, sigma).float()
    loss = error.square().flatten(1).mean(dim=1)
    if weights is None:
        return loss
    return loss * torch.as_tensor(weights, dtype=loss.dtype, device=loss.device)[k]
