"""Moments of the predicted noise, from which the optimal variance of a step follows."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddim.base.errors import InputError
from ddim.denoisers.prediction import Denoiser
from ddim.noise.draws import Noise
from ddim.noise.nodes import Nodes
from ddim.noise.schedule import Schedule

__all__ = ["eps_moments"]


@torch.no_grad()
def eps_moments(
    denoiser: Denoiser, schedule: Schedule, nodes: Nodes, images: Tensor, *, seed: int = 0
) -> NDArray[np.float64]:
    """Γ at each node but the last: the mean square of the predicted noise, E|ε̂(x_k)|²/D.

    Reference:
        F. Bao, C. Li, J. Zhu, B. Zhang, Analytic-DPM, 2022, equation 8, where Γ is that of the
        score, ε̂ = -σ·score, https://arxiv.org/abs/2201.06503

    Args:
        denoiser: For these images; it must not clip.
        schedule: The noise schedule.
        nodes: Falling, as the sampler's.
        images: Of the training data, (N, *), in [-1, 1]; they go through the network at once, and
            the mean over several batches is the mean over all. The paper used 50,000; 1,000 change
            the third digit.
        seed: Of the noise that is added to them.

    Returns:
        (S,), between 0 and about 1.

    Raises:
        InputError: Rising nodes, or no images.
    """
    if len(nodes) < 2 or nodes[-1] > nodes[0]:
        raise InputError("the nodes of a sampler fall, from noise to data: give at least two")
    if len(images) == 0:
        raise InputError("no images to take moments of: at least one is needed")
    noise = Noise(seed, range(len(images)), images.shape[1:], images.device, images.dtype)
    found = []
    for k in nodes[:-1]:
        level = schedule.level(k)
        x = level.alpha * images + level.sigma * noise(k)
        found.append(float(denoiser(x, level).eps.double().square().mean()))
    return np.array(found)
