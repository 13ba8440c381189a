"""Between latents: spherical interpolation, along a line or over a square."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ddim.base.errors import InputError, quoted
from ddim.latents.codecs import decoder
from ddim.latents.record import Latents
from ddim.noise.schedule import Schedule

__all__ = ["interpolate", "slerp"]


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
        b: as many, of the same shapes.
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


LEAD = 0.1  # of the logarithms of sizes


def interpolate(latents: Latents, corners: Sequence[int], shares: Sequence[float]) -> Latents:
    """Latents between two images or four, by :func:`ddim.latents.slerp.slerp`.

    Args:
        latents: of the images.
        corners: two images for a line; four for a square: top left, top right, bottom left,
            bottom right.
        shares: where to look along each side, such as (0, 0.5, 1).

    Of a pair the angle is that of the tensor whose size is nearest to the states' at its level:
    O-BELM extrapolates its first one, far where the first step is unlike the second.

    Returns:
        the latents of the line, or of the square row by row. Labels are those of the nearest
        corner, the earlier one of two as near.

    Raises:
        InputError: another number of corners, or images that are not there.
    """
    if len(corners) not in (2, 4):
        raise InputError(f"interpolation is between 2 images or 4, not {len(corners)}")
    if not shares or not all(map(math.isfinite, shares)):
        raise InputError(f"shares are finite numbers, at least one: {quoted(list(shares))}")
    for i in corners:
        if not 0 <= i < len(latents):
            raise InputError(f"there is no image {i}: the latents are of {len(latents)} images")

    lead = _lead(latents)

    def line(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        return [slerp(a, b, share, lead=lead) for share in shares]

    def join(parts: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    ends = [latents[[i]].tensors for i in corners]
    if len(ends) == 2:
        tensors = join(line(*ends))
        owners = [corners[share > 0.5] for share in shares]
    else:
        left, right = join(line(ends[0], ends[2])), join(line(ends[1], ends[3]))
        across = torch.stack([torch.stack(columns) for columns in line(left, right)])
        # (column, tensor, row, …) to one tensor row by row.
        tensors = tuple(across[:, i].transpose(0, 1).flatten(0, 1) for i in range(len(left)))
        owners = [corners[2 * (down > 0.5) + (over > 0.5)] for down in shares for over in shares]
    return dataclasses.replace(
        latents,
        tensors=tensors,
        condition=latents.condition[owners],
        residual=None,
    )


def _lead(latents: Latents) -> int:
    """The tensor whose root mean square is nearest to what its level's states have."""
    if len(latents.tensors) == 1 or not latents.schedule:
        return 0
    schedule = Schedule.from_spec(latents.schedule)
    initial = decoder(schedule, latents.nodes, latents.codec).initial
    sizes = [float(x.double().square().mean().sqrt()) for x in latents.tensors]
    distances = [
        abs(math.log(max(size, 1e-30) / state.level.spread))
        for size, state in zip(sizes, initial, strict=True)
    ]
    # The second only where it is clearly the better one: it has less noise.
    return int(distances[1] + LEAD < distances[0])
