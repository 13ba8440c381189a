"""Images to latents and back, and between latents.

A codec is an encoder and a decoder that belong together. All but one are tableaux, run by the one
loop: the encoder of a reversible method is its table's inverse, exact to rounding for any network.
``implicit`` has one latent and DDIM itself for a decoder; its encoder solves every step of DDIM
for the step's input.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ddim.denoiser import Denoiser
from ddim.errors import InputError, unknown
from ddim.methods.ddim import ddim
from ddim.methods.reversible import bdia, edict, obelm
from ddim.nodes import Nodes
from ddim.schedule import Level, Schedule
from ddim.tableau import Row, Tableau

__all__ = ["CODECS", "Solved", "decoder", "encoder", "slerp", "solve_encoding", "tensors_of"]

CODECS = ("obelm", "ddim", "implicit", "edict", "bdia")
"""Codecs by name, the default first."""

_REVERSIBLE = {"obelm": obelm, "edict": edict, "bdia": bdia}


def tensors_of(codec: str) -> int:
    """How many tensors a codec's latent has."""
    _known(codec)
    return 2 if codec in _REVERSIBLE else 1


def decoder(schedule: Schedule, nodes: Nodes, codec: str = "obelm") -> Tableau:
    """The tableau from a codec's latent to the image, which is its first output.

    Args:
        schedule: the noise schedule.
        nodes: falling. For ``implicit`` the last node must be at least 1: the jump to the data
            cannot be inverted, so the image is taken for the state at the lowest noise.
        codec: see :data:`CODECS`.

    Raises:
        InputError: unknown codec, rising nodes, or too few of them.
    """
    _known(codec)
    if nodes[-1] > nodes[0]:
        raise InputError("the nodes of a codec fall, from the latent to the image")
    if codec in _REVERSIBLE:
        return _REVERSIBLE[codec](schedule, nodes, pair=True)
    if codec == "implicit" and nodes[-1] == 0:
        raise InputError("the implicit codec ends at node 1: the jump to node 0 has no inverse")
    return ddim(schedule, nodes)


def encoder(schedule: Schedule, nodes: Nodes, codec: str = "obelm") -> Tableau:
    """The tableau from an image to a codec's latent; ``implicit`` has none.

    Args:
        schedule: the noise schedule.
        nodes: falling, as for :func:`decoder`.
        codec: see :data:`CODECS`. ``ddim`` is the paper's equation 14, exact only in the limit of
            many steps.

    Raises:
        InputError: as for :func:`decoder`, and for ``implicit``.
    """
    decode = decoder(schedule, nodes, codec)
    if codec == "implicit":
        raise InputError("the implicit codec has no table for encoding: use solve_encoding")
    if codec == "ddim":
        return ddim(schedule, tuple(reversed(nodes)))
    # The inverse starts from two states, the newest first. The second is made from the image:
    # a copy for EDICT, whose two are at one level, else a step of DDIM towards the noise.
    (image, second), rows, returns = decode.inverse_parts()
    if codec == "edict":
        first = Row(second.level, second.at, second.k, states=((0, 1.0),))
    else:
        seen = schedule.level(max(image.k, 1))
        image = dataclasses.replace(image, at=seen)
        level = second.level
        first = Row(level, second.at, second.k, (), ((0, level.alpha),), ((0, level.sigma),))
    return Tableau(
        f"{codec} encoder",
        (image,),
        (first, *rows),
        returns,
        options=decode.options,
    )


def _known(codec: str) -> None:
    if codec not in CODECS:
        raise unknown("codec", codec, CODECS)


def slerp(
    a: Tensor | Sequence[Tensor], b: Tensor | Sequence[Tensor], share: float, *, lead: int = 0
) -> tuple[Tensor, ...]:
    """Spherical interpolation of latents (Shoemake 1985), image by image.

    [sin((1 - s)θ)·a + sin(sθ)·b]/sin θ, θ being the angle between an image's two latents, taken as
    vectors. Of a pair, both tensors are turned by one angle, so that they stay together. Parallel
    vectors are interpolated linearly; between opposite ones there is no one way, and the one taken
    leads through a vector of a's length at a right angle to a: its elements' neighbours swapped and
    every second sign turned. A single number has none such.

    Args:
        a: one latent or the tensors of a pair, each of shape (N, *).
        b: likewise.
        share: s; 0 gives a, 1 gives b, and others extrapolate.
        lead: which tensor of a pair has the angle.

    Returns:
        as many tensors as were given. The angle is computed in float64, the rest in their dtype.

    Raises:
        InputError: shapes or numbers of tensors that differ, or tensors that are no latents.
    """
    first = (a,) if isinstance(a, Tensor) else tuple(a)
    second = (b,) if isinstance(b, Tensor) else tuple(b)
    if not first or any(x.ndim < 2 or not x.is_floating_point() for x in (*first, *second)):
        raise InputError("latents are floating-point tensors of shape (N, *), one or more of them")
    if [x.shape for x in first] != [y.shape for y in second]:
        raise InputError(
            f"latents of shapes {[tuple(x.shape) for x in first]} and "
            f"{[tuple(y.shape) for y in second]} cannot be interpolated"
        )
    shape = (-1,) + (1,) * (first[0].ndim - 1)
    x, y = (z.double().flatten(1) for z in (first[lead], second[lead]))
    nothing = torch.finfo(torch.float64).tiny
    x = x / x.norm(dim=1, keepdim=True).clamp(min=nothing)
    y = y / y.norm(dim=1, keepdim=True).clamp(min=nothing)
    # Kahan's formula: accurate for small angles and for those near π.
    angle = 2 * torch.atan2((x - y).norm(dim=1), (x + y).norm(dim=1))
    sine = angle.sin()
    # Below this the division would amplify rounding of the latents' own type.
    flat = sine < torch.finfo(first[0].dtype).eps ** 0.5
    safe = torch.where(flat, 1.0, sine)
    left = torch.where(flat, 1 - share, ((1 - share) * angle).sin() / safe)
    right = torch.where(flat, share, (share * angle).sin() / safe)
    opposite = (flat & (angle > 1)).view(shape)
    turn = math.pi * share

    def mix(p: Tensor, q: Tensor) -> Tensor:
        straight = left.to(p.dtype).view(shape) * p + right.to(p.dtype).view(shape) * q
        # The last term is zero for exact opposites of one length; with it, share 1 is b always.
        around = math.cos(turn) * p + math.sin(turn) * _perpendicular(p) + share * (p + q)
        return torch.where(opposite, around, straight)

    return tuple(mix(p, q) for p, q in zip(first, second, strict=True))


def _perpendicular(x: Tensor) -> Tensor:
    """A vector of x's length at a right angle to x: (-x₁, x₀, -x₃, x₂, …); 0 for single numbers.

    Of an odd number of elements the last three are taken together.
    """
    flat = x.flatten(1)
    size = flat.shape[1]
    even = size if size % 2 == 0 else max(size - 3, 0)
    out = torch.zeros_like(flat)
    out[:, 0:even:2], out[:, 1:even:2] = -flat[:, 1:even:2], flat[:, 0:even:2]
    if size > even and size >= 3:
        u = flat[:, even:].double()
        # The axis that u is farthest from: their product cannot vanish unless u does.
        axis = torch.nn.functional.one_hot(u.abs().argmin(1), 3).to(u)
        v = torch.linalg.cross(axis, u)
        length = v.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        out[:, even:] = (v * u.norm(dim=1, keepdim=True) / length).to(out.dtype)
    return out.view_as(x)


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
