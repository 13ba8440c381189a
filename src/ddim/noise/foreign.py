"""Where other programs stop: their grids by name, so that their numbers can be made again.

Their time index t is node k = t + 1 here. Some of them start far below T, take another number of
steps than was asked for, or end above the data: that is the point. Of nodes that a formula
repeats one is left, because a step of length zero leaves the state as it is.

========================================== ==================================================
name                                       program
========================================== ==================================================
``official``, ``official-quadratic``       https://github.com/ermongroup/ddim, ``--skip_type``
                                           uniform and quad
``improved``, ``improved-ddim``            https://github.com/openai/improved-diffusion,
                                           ``--timestep_respacing`` S and ddimS
``nngen``, ``nngen-quadratic``             https://github.com/xiaohu2015/nngen, ddim_mnist.ipynb
``diffusers-leading``, ``-trailing``,      https://github.com/huggingface/diffusers, DDPM, DDIM
``-linspace``, ``-leading-offset``         and PNDM schedulers; ``offset``: steps_offset=1
``diffusers-multistep-leading``,           the same, DPMSolverMultistep and UniPC schedulers, whose
``-linspace``, ``-leading-offset``         trailing grid is ``diffusers-trailing``
========================================== ==================================================
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ddim.base.errors import InputError
from ddim.noise.schedule import Schedule

__all__ = [
    "FOREIGN_NODES",
    "improved",
    "improved_ddim",
    "leading",
    "linspace",
    "nngen",
    "official",
    "sections",
    "trailing",
]

Nodes = tuple[int, ...]


def official(schedule: Schedule, steps: int, *, quadratic: bool = False) -> Nodes:
    """The code of Song, Meng and Ermon: t = 0, s, 2s, … below T with s = ⌊T/S⌋, then the data.

    ⌈T/s⌉ steps, which are S only where S divides T. Quadratic: t = ⌊√(0.8T)·m/(S-1)⌋² with the
    square taken before truncation, m < S, which starts at 0.8 T and repeats small t at large S.

    Example:
        >>> official(Schedule.linear(10), 3)
        (10, 7, 4, 1, 0)
    """
    T = schedule.T
    _check_steps(steps, T)
    return _falling(_strided(T, steps, quadratic), T)


def nngen(schedule: Schedule, steps: int, *, quadratic: bool = False) -> Nodes:
    """The MNIST notebook: the first S times of the official code plus one, down to node 1.

    It stops at node 1, where noise is left, and starts far below T if S does not divide T.

    Raises:
        InputError: S = T, where it reads past the end of its table.

    Example:
        >>> nngen(Schedule.linear(500), 4), nngen(Schedule.linear(500), 300)[0]
        ((377, 252, 127, 2, 1), 301)
    """
    T = schedule.T
    _check_steps(steps, T)
    times = _strided(T, steps, quadratic)[:steps]
    return _falling((t + 1 for t in times), T, end=1)


def sections(schedule: Schedule, counts: Sequence[int]) -> Nodes:
    """Improved diffusion's ``space_timesteps``: T in equal sections, each with its count of steps.

    Args:
        schedule: the noise schedule.
        counts: steps of each section, the nearest to the data first; ``--timestep_respacing
            10,15,20`` is (10, 15, 20).

    Raises:
        InputError: a section with more steps than it has nodes.

    Example:
        >>> sections(Schedule.linear(10), (3, 2))
        (10, 6, 5, 3, 1, 0)
    """
    T = schedule.T
    if not counts:
        raise InputError("sections need at least one number of steps")
    size, larger = divmod(T, len(counts))
    times: list[int] = []
    start = 0
    for n, count in enumerate(counts):
        length = size + (n < larger)
        if not 1 <= count <= length:
            raise InputError(f"section {n} of {length} nodes cannot have {count} steps")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):
            times.append(start + round(position))
            position += stride  # summed and not multiplied, as they do: the last bit may decide
        start += length
    return _falling(times, T)


def improved(schedule: Schedule, steps: int) -> Nodes:
    """Improved and guided diffusion, ``--timestep_respacing S``: one section of T."""
    return sections(schedule, (steps,))


def improved_ddim(schedule: Schedule, steps: int) -> Nodes:
    """Improved and guided diffusion, ``--timestep_respacing ddimS``: the smallest whole stride.

    Raises:
        InputError: no stride from 1 to T-1 gives S steps.
    """
    T = schedule.T
    _check_steps(steps, T)
    for stride in range(1, T):
        times = range(0, T, stride)
        if len(times) == steps:
            return _falling(times, T)
    raise InputError(f"improved-ddim: no whole stride through {T} gives exactly {steps} steps")


def leading(schedule: Schedule, steps: int, *, offset: int = 0, multistep: bool = False) -> Nodes:
    """Diffusers' leading: t = m·⌊T/n⌋ + offset with n = S and m < S, then the data.

    Args:
        schedule: the noise schedule.
        steps: S.
        offset: ``steps_offset``; Stable Diffusion has 1.
        multistep: as DPM-Solver and UniPC do it, n = S + 1 and 0 < m ≤ S.

    Raises:
        InputError: an offset that leads past T.

    Example:
        >>> leading(Schedule.linear(10), 3), leading(Schedule.linear(10), 3, multistep=True)
        ((7, 4, 1, 0), (7, 5, 3, 0))
    """
    T = schedule.T
    points = _points(steps, T, multistep)
    stride = T // points
    return _falling((m * stride + offset for m in range(points)[multistep:]), T)


def trailing(schedule: Schedule, steps: int) -> Nodes:
    """Diffusers' trailing: t = round(T - m·T/S) - 1 for m < S, then the data.

    :func:`ddim.noise.nodes.uniform` but for halves, which go to the even neighbour here. For some S
    (61 of T = 1000) diffusers takes one more step, at t = -1, from a rounding error; not here.
    """
    T = schedule.T
    _check_steps(steps, T)
    times = np.round(np.arange(T, 0, -T / steps)).astype(int) - 1
    return _falling(times.tolist(), T)


def linspace(schedule: Schedule, steps: int, *, multistep: bool = False) -> Nodes:
    """Diffusers' linspace: t = round(m·(T-1)/(n-1)) with n = S and m < S, then the data.

    Args:
        schedule: the noise schedule.
        steps: S.
        multistep: as DPM-Solver and UniPC do it, n = S + 1 and 0 < m ≤ S.

    Example:
        >>> linspace(Schedule.linear(10), 4)
        (10, 7, 4, 1, 0)
    """
    T = schedule.T
    points = _points(steps, T, multistep)
    times = np.linspace(0, T - 1, points).round().astype(int)[int(multistep) :]
    return _falling(times.tolist(), T)


def _strided(T: int, steps: int, quadratic: bool) -> list[int]:
    """The official code's times, rising, with what it repeats."""
    if quadratic:
        return [int(t) for t in np.linspace(0, np.sqrt(T * 0.8), steps) ** 2]
    return list(range(0, T, T // steps))


def _falling(times: Iterable[int], T: int, end: int = 0) -> Nodes:
    """Times as nodes, falling, each once, down to the node where the program ends."""
    nodes = tuple(sorted({t + 1 for t in times} | {end}, reverse=True))
    if nodes[0] > T:
        raise InputError(f"this grid reads past the end of its table, at t = {nodes[0] - 1} ≥ {T}")
    return nodes


def _points(steps: int, T: int, multistep: bool) -> int:
    _check_steps(steps, T - multistep)
    return steps + multistep


def _check_steps(steps: int, largest: int) -> None:
    if not 1 <= steps <= largest:
        raise InputError(f"the number of steps must be from 1 to {largest}, not {steps}")


FOREIGN_NODES: dict[str, Callable[[Schedule, int], Nodes]] = {
    "official": official,
    "official-quadratic": functools.partial(official, quadratic=True),
    "improved": improved,
    "improved-ddim": improved_ddim,
    "nngen": nngen,
    "nngen-quadratic": functools.partial(nngen, quadratic=True),
    "diffusers-leading": leading,
    "diffusers-leading-offset": functools.partial(leading, offset=1),
    "diffusers-trailing": trailing,
    "diffusers-linspace": linspace,
    "diffusers-multistep-leading": functools.partial(leading, multistep=True),
    "diffusers-multistep-leading-offset": functools.partial(leading, offset=1, multistep=True),
    "diffusers-multistep-linspace": functools.partial(linspace, multistep=True),
}
"""Grids of other programs by name; :func:`ddim.make_nodes` knows them too."""
