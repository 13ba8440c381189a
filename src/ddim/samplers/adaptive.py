"""Adaptive step sizes: the one kind of solver, with the implicit ones, that is no table of numbers.

The probability-flow equation is solved by an integrator from SciPy that chooses its own steps and
says how many network calls it took. It is the reference that fixed steps can be measured against,
and no way to save calls.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ddim.base.display import shown
from ddim.base.errors import InputError, RunError
from ddim.denoisers.prediction import Denoiser
from ddim.noise.schedule import Level, Schedule

__all__ = ["Adaptive", "solve_adaptively"]


@shown
@dataclasses.dataclass(frozen=True)
class Adaptive:
    """What the integrator returned.

    Attributes:
        x: the states at the end, the shape of the start.
        calls: network calls of each image.
    """

    x: Tensor
    calls: tuple[int, ...]


def solve_adaptively(
    denoiser: Denoiser,
    schedule: Schedule,
    x: Tensor,
    *,
    start: int | None = None,
    stop: int = 0,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    method: Literal["RK45", "RK23", "DOP853"] = "RK45",
) -> Adaptive:
    """Solve the probability-flow equation with steps as small as the tolerances ask for.

    With u = x/√(α²+σ²) and θ = atan2(σ, α) the equation is du/dθ = cos θ·ε - sin θ·x0, whose right
    side is bounded at every noise level (Salimans and Ho 2022, appendix D, equation 15,
    https://arxiv.org/abs/2202.00512). The network is called at real times. From node 1 to node 0
    leads one step of DDIM, since no network knows what lies below node 1.

    Every image is solved by itself, so that its steps depend on no other.

    Args:
        denoiser: exact, or a network that takes real times.
        schedule: the noise schedule.
        x: the states at node ``start``, shape (N, *).
        start: T if None. Below ``stop`` to encode; then at least 1.
        stop: the node to end at.
        rtol: relative tolerance of each step.
        atol: absolute tolerance of each step.
        method: of ``scipy.integrate.solve_ivp``.

    Raises:
        InputError: nodes out of range or equal, tolerances that are not positive, SciPy missing.
        RunError: the integrator gave up.
    """
    try:
        from scipy.integrate import solve_ivp
    except ImportError:
        raise InputError("adaptive solvers need SciPy: pip install 'ddim[ode]'") from None
    first = schedule.T if start is None else start
    if not (0 <= stop <= schedule.T and 1 <= first <= schedule.T and first != stop):
        raise InputError(
            f"an adaptive solver goes from a node in 1..{schedule.T} to another in "
            f"0..{schedule.T}, not from {first} to {stop}"
        )
    if not (rtol > 0 and atol > 0):
        raise InputError(f"tolerances must be positive, not {rtol} and {atol}")
    if not bool(x.isfinite().all()):
        raise InputError("the states to start from must be finite")
    last = max(stop, 1)
    if schedule.alpha[max(first, last)] == 0:
        raise InputError(f"an adaptive solver needs α > 0: start at node {schedule.T - 1}")
    ends = schedule.lam[last], schedule.lam[first]
    angles = [math.atan(math.exp(-lam)) for lam in (ends[1], ends[0])]
    solved = []
    calls = []
    for image in x:
        count = 0

        def level_at(angle: float) -> Level:
            lam = -math.log(math.tan(angle))
            return schedule.level_at(min(max(lam, min(ends)), max(ends)))

        def slope(angle: float, flat: np.ndarray, shape: torch.Size = image.shape) -> np.ndarray:
            nonlocal count
            count += 1
            level = level_at(angle)
            state = torch.from_numpy(flat).to(x).view(1, *shape) * math.hypot(*level[:2])
            seen = denoiser(state, level)
            out = math.cos(angle) * seen.eps - math.sin(angle) * seen.x0
            return out.double().flatten().cpu().numpy()

        begin = image.double().flatten().cpu().numpy() / math.hypot(*schedule.level(first)[:2])
        end = begin
        if first != last:
            found = solve_ivp(slope, angles, begin, method=method, rtol=rtol, atol=atol)
            if not found.success:
                raise RunError(f"the integrator gave up: {found.message}")
            end = found.y[:, -1]
        level = schedule.level(last)
        state = torch.from_numpy(end).to(x).view(1, *image.shape) * math.hypot(*level[:2])
        if stop == 0:
            state, count = denoiser(state, level).x0, count + 1
        solved.append(state)
        calls.append(count)
    return Adaptive(torch.cat(solved), tuple(calls))
