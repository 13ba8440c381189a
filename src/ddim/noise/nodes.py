"""Which nodes a sampler stops at: S steps are S + 1 strictly monotone integers.

Every family returns exactly S steps from node T (or the family's own start) down to node 0, for
every 1 ≤ S ≤ T. The reversed list is the one for encoding.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np

from ddim.base.errors import InputError, quoted, unknown
from ddim.noise.foreign import FOREIGN_NODES
from ddim.noise.schedule import Schedule

__all__ = [
    "NODES",
    "check_monotone",
    "check_nodes",
    "family_named",
    "log_snr",
    "make_nodes",
    "quadratic",
    "read_nodes",
    "spread",
    "start_at",
    "uniform",
]

Nodes = tuple[int, ...]


def uniform(schedule: Schedule, steps: int) -> Nodes:
    """Equally spaced: k_m = ⌊T·m/S + ½⌋ for m = S..0.

    Called 'linear' in the paper (Song, Meng, Ermon 2020, appendix D.2,
    https://arxiv.org/abs/2010.02502) and 'trailing' in later work (Lin et al. 2023, table 2).

    Example:
        >>> uniform(Schedule.linear(10), 4)
        (10, 8, 5, 3, 0)
    """
    T = schedule.T
    _check_steps(steps, T)
    return tuple((2 * T * m + steps) // (2 * steps) for m in range(steps, -1, -1))


def quadratic(schedule: Schedule, steps: int, *, start: float = 1.0) -> Nodes:
    """Denser near the data: k_m = max(⌊start·T·(m/S)² + ½⌋, m) for m = S..0.

    The paper's choice for CIFAR-10 (appendix D.2), without the duplicates that truncation makes.

    Args:
        schedule: the noise schedule.
        steps: S.
        start: where to begin, as a fraction of T.

    Example:
        >>> quadratic(Schedule.linear(10), 4)
        (10, 6, 3, 1, 0)

    Raises:
        InputError: S out of range, a start outside (0, 1].
    """
    _check_steps(steps, schedule.T)
    if not 0 < start <= 1:
        raise InputError(f"start must be in (0, 1], not {start}")
    scaled = start * schedule.T
    # Divided last, because (m/S)² is already rounded and a half could fall to the wrong side.
    return tuple(max(int(scaled * m**2 / steps**2 + 0.5), m) for m in range(steps, -1, -1))


def log_snr(schedule: Schedule, steps: int) -> Nodes:
    """Equally spaced in λ = log(α/σ) between node T and node 1, then node 0.

    The spacing of DPM-Solver (Lu et al. 2022, section 3.4, https://arxiv.org/abs/2206.00927),
    rounded to nodes. A last node with α = 0 is kept as the start and left out of the spacing.

    Example:
        >>> log_snr(Schedule.linear(10), 4)
        (10, 4, 2, 1, 0)
    """
    T = schedule.T
    _check_steps(steps, T)
    if steps == 1:
        return (T, 0)
    lam = schedule.lam[1:]
    wanted = [0.0] * (steps + 1)  # by m: node k_m, m = 0 being the data
    wanted[steps] = T
    infinite = not np.isfinite(lam[-1])
    first = lam[-2] if infinite and T > 1 else lam[-1]
    inner = steps - 1 if infinite else steps
    finite = lam[:-1] if infinite else lam
    nodes = np.arange(1, len(finite) + 1)
    for m in range(1, inner + 1):
        share = (m - 1) / max(inner - 1, 1)
        target = lam[0] + (first - lam[0]) * share
        # λ falls with k, and np.interp wants rising abscissae.
        wanted[m] = float(np.interp(-target, -finite, nodes))
    return spread([int(w + 0.5) for w in wanted], T)


def spread(nodes: list[int], T: int) -> Nodes:
    """Make rounded nodes distinct with the count kept, within 0..T.

    Args:
        nodes: by m = 0..S, rising but for what rounding did; the first becomes 0.
        T: the largest that a node may be.

    Returns:
        Falling nodes.
    """
    steps = len(nodes) - 1
    nodes[0] = 0
    for m in range(1, steps + 1):
        nodes[m] = max(nodes[m], nodes[m - 1] + 1)
    for m in range(steps, 0, -1):
        nodes[m] = min(nodes[m], T - (steps - m))
    return tuple(reversed(nodes))


def _check_steps(steps: int, T: int) -> None:
    if not 1 <= steps <= T:
        raise InputError(f"the number of steps must be from 1 to T = {T}, not {steps}")


NODES: dict[str, Callable[[Schedule, int], Nodes]] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "log-snr": log_snr,
}
"""Families by name. Every one has exactly S steps from T to 0, for every S."""
ALIASES = {"quad": "quadratic", "linear": "uniform", "trailing": "uniform"}
"""What the paper, its code and later work call families that are here."""


def family_named(name: str) -> str:
    """The name of a family, in :data:`NODES` or :data:`~ddim.noise.foreign.FOREIGN_NODES`.

    Raises:
        InputError: there is none of that name.

    Example:
        >>> family_named("quad")
        'quadratic'
    """
    name = ALIASES.get(name, name)
    if name == "calibrated":
        raise InputError("calibrated nodes come with their method: give method 'calibrated'")
    if name not in NODES and name not in FOREIGN_NODES:
        raise unknown("nodes", name, {**NODES, **FOREIGN_NODES})
    return name


def read_nodes(nodes: str | Sequence[int]) -> str | Nodes:
    """Nodes as a family's name or as whole numbers that fall or rise strictly.

    Args:
        nodes: a family's name, the nodes, or the nodes as text: ``500-250-0``, also with commas or
            spaces.

    Raises:
        InputError: neither.

    Example:
        >>> read_nodes("500-250-0"), read_nodes("quad")
        ((500, 250, 0), 'quadratic')
    """
    if not isinstance(nodes, str):
        return check_monotone(nodes)
    if not re.match(r"\s*\d", nodes):
        return family_named(nodes)
    parts = re.split(r"\s*[-,]\s*|\s+", nodes.strip())
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"nodes must be a name or numbers like 500-250-0, not {quoted(nodes)}")
    return check_monotone([int(part) for part in parts])


def check_monotone(nodes: Sequence[int]) -> Nodes:
    """A list of one's own as nodes.

    Raises:
        InputError: fewer than two, not whole numbers from 0 on, or not strictly monotone.
    """
    try:
        listed = tuple(int(k) for k in nodes)
    except (TypeError, ValueError):
        raise InputError(f"nodes must be whole numbers, not {quoted(nodes)}") from None
    if any(k != given for k, given in zip(listed, nodes, strict=True)):
        raise InputError(f"nodes must be whole numbers: {quoted(list(nodes))}")
    if len(listed) < 2:
        raise InputError(f"a list of nodes needs at least two, not {len(listed)}")
    if min(listed) < 0:
        raise InputError(f"nodes must not be negative: {quoted(list(listed))}")
    steps = {(b > a) - (b < a) for a, b in itertools.pairwise(listed)}
    if steps not in ({1}, {-1}):
        raise InputError(f"nodes must rise or fall strictly: {quoted(list(listed))}")
    return listed


def check_nodes(schedule: Schedule, nodes: Sequence[int]) -> Nodes:
    """Nodes that a schedule has.

    Raises:
        InputError: as :func:`check_monotone`, or a node above T.
    """
    listed = check_monotone(nodes)
    if max(listed) > schedule.T:
        raise InputError(f"nodes must be in 0..{schedule.T}: {quoted(list(listed))}")
    return listed


def make_nodes(
    schedule: Schedule, nodes: str | Sequence[int] = "uniform", steps: int | None = None
) -> Nodes:
    """Nodes by name and number of steps, or from an explicit list.

    Args:
        schedule: the noise schedule.
        nodes: a family's name, or the nodes themselves, as :func:`read_nodes` takes them.
        steps: S; T if None. With an explicit list it must agree or be None.

    Raises:
        InputError: unknown name, steps outside 1..T, or a list that is no list of nodes.
    """
    nodes = read_nodes(nodes)
    if isinstance(nodes, str):
        family = NODES[nodes] if nodes in NODES else FOREIGN_NODES[nodes]
        return family(schedule, schedule.T if steps is None else steps)
    listed = check_nodes(schedule, nodes)
    if steps is not None and steps != len(listed) - 1:
        raise InputError(f"{len(listed)} nodes are {len(listed) - 1} steps, not {steps}")
    return listed


def start_at(nodes: Nodes, strength: float, T: int) -> Nodes:
    """The part of falling nodes that starts at the one nearest to strength · T.

    At least one step is left.

    Raises:
        InputError: a strength outside (0, 1], or nodes that rise.

    Example:
        >>> start_at((500, 400, 300, 200, 100, 0), 0.5, 500)
        (200, 100, 0)
    """
    if not 0 < strength <= 1:
        raise InputError(f"strength must be in (0, 1], not {strength}")
    if nodes[-1] > nodes[0]:
        raise InputError("images are noised to a node and brought back along falling nodes")
    # Of two that are as near, the lower one: it changes the images less.
    first = min(reversed(nodes[:-1]), key=lambda k: abs(k - strength * T))
    return nodes[nodes.index(first) :]
