"""Muon: the momentum of a weight matrix, made orthogonal, as its update."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ddim.base.errors import InputError

__all__ = ["Muon", "orthogonalised"]

NARROWEST = 16
"""Matrices with fewer rows or columns than this are left to AdamW: first and last layers."""
MOMENTUM = 0.95
RMS = 0.2
"""Root mean square of an update at learning rate 1, about AdamW's: one rate serves both."""


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """U·S'·Vᵀ of each matrix U·S·Vᵀ, every entry of S' near 1 whatever S is.

    By the quintic Newton-Schulz iteration of K. Jordan et al., Muon: an optimizer for hidden layers
    in neural networks, 2024, https://kellerjordan.github.io/posts/muon/. Its coefficients are
    steep at 0 and do not converge to 1: singular values that are not tiny end in 0.7..1.2.

    Args:
        matrices: shape (K, M, N).
        steps: of the iteration.

    Returns:
        Shape (K, M, N).
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return x.mT if tall else x


class Muon(torch.optim.AdamW):
    """Muon for the weights of linear and convolutional layers, AdamW for everything else.

    A convolution's weight is a matrix with a row for each output channel. The update is the
    orthogonalised Nesterov momentum times 0.2·√max(M, N), which gives it the root mean square of
    AdamW's (J. Liu et al., Muon is scalable for LLM training, 2025, section 2.2,
    https://arxiv.org/abs/2502.16982).

    Args:
        net: the network.
        lr: learning rate of both.
        settings: AdamW's others; ``weight_decay`` is Muon's too.

    Raises:
        InputError: a network without such weights, for which it would be AdamW by another name.
    """

    def __init__(self, net: nn.Module, lr: float, **settings: Any) -> None:
        matrices = {id(p) for p in _matrices(net) if p.requires_grad}
        if not matrices:
            raise InputError(
                f"muon is for weights of at least {NARROWEST} x {NARROWEST} in linear and "
                "convolutional layers, of which this network trains none: use adamw"
            )
        parameters = list(net.parameters())
        groups = [
            {"params": [p for p in parameters if (id(p) in matrices) == kind], "matrices": kind}
            for kind in (True, False)
        ]
        super().__init__([group for group in groups if group["params"]], lr=lr, **settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; matrices have no gradient after it, so that AdamW passes them over."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["matrices"]:
                trained = [p for p in group["params"] if p.grad is not None]
                self._step_matrices(trained, group["lr"], group["weight_decay"])
        super().step()
        return loss

    def _step_matrices(self, parameters: list[Tensor], lr: float, decay: float) -> None:
        # Those of one shape are one batch: on small networks the calls cost more than the work.
        alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter in parameters:
            update = self._nesterov(parameter).flatten(1)
            alike[update.shape[0], update.shape[1]].append((parameter, update))
            parameter.grad = None
        for shape, pairs in alike.items():
            updates = orthogonalised(torch.stack([update for _, update in pairs]))
            for (parameter, _), update in zip(pairs, updates, strict=True):
                parameter.mul_(1 - lr * decay)
                parameter.add_(
                    update.reshape(parameter.shape), alpha=-lr * RMS * math.sqrt(max(shape))
                )

    def _nesterov(self, parameter: Tensor) -> Tensor:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())  # which AdamW's loading looks for in every state
            state["momentum"] = torch.zeros_like(parameter)
        state["step"] += 1
        return gradient.lerp(state["momentum"].lerp_(gradient, 1 - MOMENTUM), MOMENTUM)


def _matrices(net: nn.Module) -> list[Tensor]:
    """The weights that Muon is for, of layers that are trained."""
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    weights = [m.weight for m in net.modules() if isinstance(m, layers)]
    return [w for w in weights if min(w.flatten(1).shape) >= NARROWEST]
