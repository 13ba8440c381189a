"""DDIM solved backwards: the latent from which DDIM itself leads to a given image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ddim.base.display import shown
from ddim.base.errors import InputError
from ddim.denoisers.prediction import Denoiser
from ddim.noise.nodes import Nodes
from ddim.noise.schedule import Level, Schedule

__all__ = ["Solved", "solve_encoding"]


@shown
@dataclasses.dataclass(frozen=True)
class Solved:
    """One step of DDIM solved for its input.

    Attributes:
        index: the step, from 0 at the image.
        total: how many there are.
        x: the state found, shape (N, *).
        residual: RMS of (DDIM's step from x) - (where it must lead), for each image, shape (N,).
        calls: network calls that it took.
    """

    index: int
    total: int
    x: Tensor
    residual: Tensor
    calls: int


def solve_encoding(
    denoiser: Denoiser,
    schedule: Schedule,
    nodes: Nodes,
    x: Tensor,
    *,
    tolerance: float | None = None,
    iterations: int = 60,
) -> Iterator[Solved]:
    """Encode with DDIM itself as the decoder, yielding after every step.

    The step from node n to n+1, x₊ = a·x + b·ε(x), is solved for x as the fixed point of
    (x₊ - b·ε(x))/a by Anderson acceleration (Walker and Ni 2011); plain iteration diverges.
    Where a step has no solution, as can happen at few steps, its residual stays large: look at it.

    Args:
        denoiser: as for decoding; it must not clip.
        schedule: the noise schedule.
        nodes: falling, the last at least 1.
        x: the images, taken for states at the last node; shape (N, *).
        tolerance: RMS of the residual at which a step is done; 100 units of rounding if None.
        iterations: network calls a step, at most; at least 1.

    Raises:
        InputError: nodes that end at 0 or start where α = 0, or no iterations.
    """
    if iterations < 1:
        raise InputError(f"iterations must be at least 1, not {iterations}")
    if nodes[-1] == 0 or nodes[-1] > nodes[0]:
        raise InputError("the implicit codec needs falling nodes that end at node 1 or above")
    if schedule.alpha[nodes[0]] == 0:
        raise InputError("nothing of the image is left where α = 0: encoding cannot end there")
    tolerance = 100 * torch.finfo(x.dtype).eps if tolerance is None else tolerance
    steps = len(nodes) - 1
    for index, n in enumerate(range(steps - 1, -1, -1)):
        source, target = schedule.level(nodes[n]), schedule.level(nodes[n + 1])
        x, residual, calls = _solve_step(denoiser, source, target, x, tolerance, iterations)
        yield Solved(index, steps, x, residual, calls)


def _solve_step(
    denoiser: Denoiser, source: Level, target: Level, wanted: Tensor, tolerance: float, most: int
) -> tuple[Tensor, Tensor, int]:
    a = target.alpha / source.alpha
    b = target.sigma - a * source.sigma

    def fixed_point(x: Tensor) -> Tensor:
        return (wanted - b * denoiser(x, source).eps) / a

    def done(change: Tensor) -> Tensor:
        # a·(g(x) - x) is what DDIM's step from x misses by.
        return (a * change).flatten(1).square().mean(dim=1).sqrt()

    return _anderson(fixed_point, (wanted / a).clone(), done, tolerance, most)


def _anderson(
    g: Callable[[Tensor], Tensor],
    x: Tensor,
    residual_of: Callable[[Tensor], Tensor],
    tolerance: float,
    most: int,
    window: int = 8,
) -> tuple[Tensor, Tensor, int]:
    """Anderson acceleration, image by image.

    Keeps the best iterate of each, up to the first that is good enough: what the others in the
    batch still need changes nothing.
    """
    shape = (-1,) + (1,) * (x.ndim - 1)
    best, best_residual = x, torch.full((len(x),), float("inf"), dtype=x.dtype, device=x.device)
    xs: list[Tensor] = []
    changes: list[Tensor] = []
    for call in range(1, most + 1):
        change = g(x) - x
        residual = residual_of(change)
        better = (residual < best_residual) & (best_residual > tolerance)
        best = torch.where(better.view(shape), x, best)
        best_residual = torch.where(better, residual, best_residual)
        if bool((best_residual <= tolerance).all()) or call == most:
            return best, best_residual, call
        xs, changes = [*xs, x][-window:], [*changes, change][-window:]
        if len(xs) == 1:
            x = x + change
            continue
        # Least squares on differences, per image, in the normal equations with a tiny ridge.
        f = change.flatten(1)
        df = torch.stack(
            [(p - q).flatten(1) for p, q in zip(changes[1:], changes, strict=False)], 1
        )
        dx = torch.stack([(p - q).flatten(1) for p, q in zip(xs[1:], xs, strict=False)], 1)
        gram = df @ df.transpose(1, 2)
        ridge = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None] * 10 * torch.finfo(x.dtype).eps
        # An image that is solved stands still: without the last term its matrix is all zeros.
        ridge = ridge + torch.finfo(x.dtype).tiny
        gram = gram + torch.diag_embed(ridge.expand(-1, gram.shape[1]))
        weights = torch.linalg.solve(gram, (df @ f[:, :, None]))
        step = f - (weights * (df + dx)).sum(1)
        x = x + step.view_as(x)
    raise AssertionError("unreachable: the last call returns")
