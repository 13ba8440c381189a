"""DDIM with any η, and DDPM's ancestral sampling, which is the same family.

Song, Meng, Ermon, *Denoising Diffusion Implicit Models*, 2020, https://arxiv.org/abs/2010.02502.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Literal

from ddim.base.errors import InputError
from ddim.noise.nodes import Nodes
from ddim.noise.schedule import Level, Schedule
from ddim.samplers.registry import method
from ddim.samplers.tableau import Row, State, Tableau

__all__ = ["ddim", "ddpm"]


@method("ddim", orders={"eta=0": 1})
def ddim(schedule: Schedule, nodes: Nodes, *, eta: float = 0.0) -> Tableau:
    """The paper's equation 12: x_s = α_s·x0 + √(σ_s² - c²)·eps + c·z, c from equation 16.

    η scales the standard deviation of the injected noise: 0 is deterministic, 1 is DDPM. On rising
    nodes it encodes (equation 14), which is only approximately the inverse.

    Args:
        schedule: the noise schedule.
        nodes: strictly monotone.
        eta: η ≥ 0.

    Raises:
        InputError: a negative η, one so large that √(σ_s² - c²) has no real value, or one above 0
            on rising nodes.
    """
    return _first_order(schedule, nodes, "ddim", eta=eta, options={"eta": eta})


@method("ddpm")
def ddpm(
    schedule: Schedule, nodes: Nodes, *, variance: Literal["posterior", "large"] = "posterior"
) -> Tableau:
    """Ancestral sampling (Ho et al. 2020, algorithm 2, https://arxiv.org/abs/2006.11239).

    Args:
        schedule: the noise schedule.
        nodes: strictly decreasing; all of T..0 for the original.
        variance: ``posterior`` (β̃, the paper's η = 1) or ``large`` (β, the paper's σ̂: more
            noise is injected than is made room for).

    Raises:
        InputError: rising nodes.
    """
    options = {"variance": variance}
    return _first_order(
        schedule, nodes, "ddpm", eta=1.0, large=variance == "large", options=options
    )


def posterior_std(source: Level, target: Level) -> float:
    """Standard deviation of q(x_s | x_t, x0): σ_s·√(1 - ρ_s²/ρ_t²), for any schedule.

    Variance-preserving, it is the paper's √((1-ᾱ_s)/(1-ᾱ_t))·√(1-ᾱ_t/ᾱ_s) (equation 16).
    """
    ratio = target.sigma * source.alpha / (target.alpha * source.sigma)
    return target.sigma * math.sqrt(max(0.0, (1 - ratio) * (1 + ratio)))


def noising_std(source: Level, target: Level) -> float:
    """Standard deviation of the noising step s→t, √(σ_t² - (α_t/α_s)²σ_s²).

    Variance-preserving, it is √(1 - ᾱ_t/ᾱ_s): √β for one step."""
    carried = source.alpha / target.alpha * target.sigma
    return math.sqrt(max(0.0, (source.sigma - carried) * (source.sigma + carried)))


def _largest_eta(levels: list[Level]) -> float:
    """The largest η for which every row's √(σ_s² - c²) is real, rounded down; at least 1."""
    noisy = [(s, t) for s, t in itertools.pairwise(levels) if t.sigma]
    return math.floor(1e3 * min(t.sigma / posterior_std(s, t) for s, t in noisy)) / 1e3


def _first_order(
    schedule: Schedule,
    nodes: Nodes,
    method: str,
    *,
    eta: float,
    options: Mapping[str, object],
    large: bool = False,
) -> Tableau:
    rising = nodes[-1] > nodes[0]
    if not (math.isfinite(eta) and eta >= 0):
        raise InputError(f"eta must be at least 0, not {eta}")
    if rising and eta > 0:
        raise InputError("encoding is deterministic: on rising nodes eta must be 0")
    levels = [schedule.level(k) for k in nodes]
    # No network is called at node 0: what lies there is shown to it as node 1.
    seen = [schedule.level(max(k, 1)) for k in nodes]
    seen_at: list[Level | None] = [*seen[:-1], None]
    rows = []
    for n in range(1, len(nodes)):
        source, target = levels[n - 1], levels[n]
        # No row that ends at the data injects noise.
        smallest = posterior_std(source, target) if nodes[n] and not rising else 0.0
        std = eta * smallest
        if std > target.sigma:
            raise InputError(
                f"eta = {eta:g} is too large: the step from {nodes[n - 1]} to {nodes[n]} would "
                f"inject {std:.4g}, more than its whole noise {target.sigma:.4g}; "
                f"for these nodes the largest is {_largest_eta(levels):g}"
            )
        direction = math.sqrt((target.sigma - std) * (target.sigma + std))
        largest = noising_std(source, target) if smallest else 0.0
        rows.append(
            Row(
                level=target,
                at=seen_at[n],
                k=nodes[n],
                x0=((n - 1, target.alpha),),
                eps=((n - 1, direction),),
                noise=largest if large else std,
                noise_max=largest if method == "ddpm" and smallest and not large else None,
            )
        )
    initial = State(levels[0], seen_at[0], nodes[0])
    return Tableau(
        method, (initial,), tuple(rows), (len(rows),), marginal=not large, options=options
    )
