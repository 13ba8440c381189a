"""The best variance for a sampler that injects noise, from what the network says about itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddim.base.errors import InputError
from ddim.noise.nodes import Nodes
from ddim.noise.schedule import Schedule
from ddim.samplers.methods.ddim import ddim, posterior_std
from ddim.samplers.registry import method
from ddim.samplers.tableau import Tableau

__all__ = ["analytic", "optimal_variance"]


def optimal_variance(
    schedule: Schedule,
    nodes: Nodes,
    gamma: ArrayLike,
    *,
    eta: float = 1.0,
    largest: float = 1.0,
) -> NDArray[np.float64]:
    """The variance of each step that maximises the likelihood, given the network.

        c*² = c² + (α_s·σ_t/α_t - √(σ_s² - c²))²·(1 - Γ_t),    c = η·σ_s·√(1 - ρ_s²/ρ_t²)

    The sampler's own variance c² takes the predicted x0 for the true one; the second term is what
    the network does not know of it, Var[x0 | x_t] = (σ_t/α_t)²·(1 - Γ_t) an element. That is
    clamped to between 0 and `largest`².

    Reference:
        F. Bao, C. Li, J. Zhu, B. Zhang, Analytic-DPM: an analytic estimate of the optimal reverse
        variance in diffusion probabilistic models, 2022, theorem 1 and, for the clamp, theorem 2,
        https://arxiv.org/abs/2201.06503

    Args:
        schedule: The noise schedule.
        nodes: Falling.
        gamma: (S,), from :func:`ddim.calibration.moments.eps_moments` at these nodes.
        eta: Of DDIM; 1 is DDPM.
        largest: Half the width of the range that the data lie in; infinite for no clamp.

    Returns:
        (S,). The last entry, of a step to node 0, is for a likelihood's decoder: samplers inject
        nothing there. An entry is 0 where nothing is unknown: moments of 1, or above, as those
        of too few images can be.

    Raises:
        InputError: Rising nodes, another number of moments, moments below 0, or an η that the
            sampler refuses.
    """
    _check(nodes)
    moments = np.asarray(gamma, dtype=np.float64)
    if moments.shape != (len(nodes) - 1,) or not (moments >= 0).all():
        raise InputError(
            f"gamma must be {len(nodes) - 1} numbers, one for each step and none below 0, "
            f"not an array of shape {moments.shape}"
        )
    ddim(schedule, nodes, eta=eta)  # refuses an η that is out of range
    found = []
    for n in range(len(nodes) - 1):
        source, target = schedule.level(nodes[n]), schedule.level(nodes[n + 1])
        if source.alpha == 0:
            raise InputError("where α = 0 the variance of x0 cannot be told from the noise")
        own = eta * posterior_std(source, target)
        carried = math.sqrt((target.sigma - own) * (target.sigma + own))
        rho = source.sigma / source.alpha
        unknown = min(max(rho**2 * (1 - moments[n]), 0.0), largest**2)
        found.append(own**2 + (target.alpha - carried / rho) ** 2 * unknown)
    return np.array(found)


@method("analytic", needs="gamma")
def analytic(
    schedule: Schedule,
    nodes: Nodes,
    *,
    eta: float = 1.0,
    gamma: Sequence[float] | None = None,
    largest: float = 1.0,
) -> Tableau:
    """Analytic-DDPM (η = 1) or Analytic-DDIM: DDIM's rows with the variance that is optimal.

    Bao et al. 2022, https://arxiv.org/abs/2201.06503.

    Args:
        schedule: the noise schedule.
        nodes: falling.
        eta: η; 1 is DDPM.
        gamma: Γ at each node but the last, as for :func:`optimal_variance`; if None, that of the
            model's calibration, which :meth:`ddim.Model.tableau` fills in.
        largest: half the width of the range that the data lie in; infinite for no clamp.

    Raises:
        InputError: no Γ, or as for :func:`optimal_variance`.
    """
    if gamma is None:
        raise InputError("the method analytic needs gamma: give it, or a calibrated model")
    variances = optimal_variance(schedule, nodes, gamma, eta=eta, largest=largest)
    plain = ddim(schedule, nodes, eta=eta)
    rows = tuple(
        dataclasses.replace(row, noise=math.sqrt(variance) if row.level.sigma else 0.0)
        for row, variance in zip(plain.rows, variances, strict=True)
    )
    return dataclasses.replace(
        plain, method="analytic", rows=rows, marginal=False, options={"eta": eta}
    )


def _check(nodes: Nodes) -> None:
    if len(nodes) < 2 or nodes[-1] > nodes[0]:
        raise InputError("the nodes of a sampler fall, from noise to data: give at least two")
