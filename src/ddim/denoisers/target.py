"""What a network was trained to output: a fixed combination of the clean image and the noise."""

from __future__ import annotations

import enum
from typing import Any

import torch
from torch import Tensor

from ddim.base.errors import InputError, unknown
from ddim.noise.schedule import Level

__all__ = ["Target"]


class Target(enum.Enum):
    """The output as ``p · x0 + q · eps``, with coefficients that may depend on the level.

    =====  ==========  =======================================================================
    name   (p, q)      source
    =====  ==========  =======================================================================
    eps    (0, 1)      Ho et al. 2020, https://arxiv.org/abs/2006.11239
    x0     (1, 0)      the same, section 3.2
    v      (-σ, α)     Salimans and Ho 2022, appendix D, https://arxiv.org/abs/2202.00512
    flow   (-1, 1)     Lipman et al. 2022, https://arxiv.org/abs/2210.02747
    =====  ==========  =======================================================================
    """

    EPS = "eps"
    X0 = "x0"
    V = "v"
    FLOW = "flow"

    @classmethod
    def named(cls, name: str | Target) -> Target:
        """The target of that name.

        Raises:
            InputError: unknown name; the nearest one is offered.
        """
        if isinstance(name, Target):
            return name
        names = [target.value for target in cls]
        if name not in names:
            raise unknown("target", name, names)
        return cls(name)

    def coefficients(self, alpha: Any, sigma: Any) -> tuple[Any, Any]:
        """(p, q) with ``output = p · x0 + q · eps``; numbers, arrays or tensors in and out."""
        if self is Target.EPS:
            return 0.0, 1.0
        if self is Target.X0:
            return 1.0, 0.0
        if self is Target.V:
            return -sigma, alpha
        return -1.0, 1.0

    def of(self, x0: Tensor, eps: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        """What the network should have said; the scales broadcast against the images."""
        p, q = self.coefficients(alpha, sigma)
        return p * x0 + q * eps

    def split(self, output: Tensor, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Solve for (x0, eps), given the state x = α·x0 + σ·eps.

        With d = αq - σp: x0 = (q·x - σ·output)/d, eps = (α·output - p·x)/d.

        Args:
            output: what the network said, any shape.
            x: the state that it saw, the same shape.
            level: where it saw it.

        Raises:
            InputError: where the target determines neither: eps at α = 0 (zero terminal
                signal-to-noise ratio), x0 at σ = 0.
        """
        alpha, sigma = level.alpha, level.sigma
        p, q = self.coefficients(alpha, sigma)
        d = alpha * q - sigma * p
        if d == 0:
            raise InputError(
                f"a network that predicts {self.value} says nothing at α={alpha:g}, σ={sigma:g}; "
                "with zero terminal SNR use one that predicts v"
            )
        if self is Target.EPS:
            return torch.sub(x, output, alpha=sigma).mul_(1 / alpha), output
        if self is Target.X0:
            return output, torch.sub(x, output, alpha=alpha).mul_(1 / sigma)
        x0 = torch.mul(x, q / d).sub_(output, alpha=sigma / d)
        eps = torch.mul(output, alpha / d).sub_(x, alpha=p / d)
        return x0, eps
