"""A model's own solution of the probability-flow equation, at any node, for calibration."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddim.denoiser import Denoiser
from ddim.errors import InputError, RunError
from ddim.integrate import integrate
from ddim.methods import make_tableau
from ddim.nodes import Nodes, quadratic
from ddim.schedule import Schedule

__all__ = ["TEACHER_STEPS", "Group", "Trajectory", "follow"]

TEACHER_STEPS = 60

Group = tuple[Denoiser, Tensor]
"""Latents that go through a network together, shape (N, *), N(0, 1), and the denoiser for them."""


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Where a fine solver passed, from given noise.

    Attributes:
        schedule: the noise schedule.
        groups: where it started.
        nodes: falling, from T to 0.
        states: x at each node, each of shape (N, *).
        x0: what the network predicted at each node but the last, likewise.
    """

    schedule: Schedule
    groups: tuple[Group, ...]
    nodes: Nodes
    states: tuple[Tensor, ...]
    x0: tuple[Tensor, ...]

    @property
    def end(self) -> Tensor:
        """The images, shape (N, *)."""
        return self.states[-1]

    def eps(self, i: int) -> Tensor:
        """The noise that was predicted at the i-th node, shape (N, *)."""
        level = self.schedule.level(self.nodes[i])
        return (self.states[i] - level.alpha * self.x0[i]) / level.sigma

    def moments(self) -> NDArray[np.float64]:
        """Γ of Analytic-DPM at each node but the last: the mean square of the predicted noise."""
        return np.array([float(self.eps(i).double().square().mean()) for i in range(len(self.x0))])

    def at(self, k: int) -> Tensor:
        """The state at any node from 0 to T, shape (N, *).

        Between the solver's own nodes it is the cubic through the states and the slopes on both
        sides, in x/σ as a function of α/σ, whose slope is the predicted x0.

        Raises:
            InputError: a node out of range.
        """
        if not 0 <= k <= self.nodes[0]:
            raise InputError(f"the trajectory is from node {self.nodes[0]} to 0, not at {k}")
        if k in self.nodes:
            return self.states[self.nodes.index(k)]
        right = len(self.nodes) - bisect.bisect(self.nodes[::-1], k)
        left = right - 1
        if self.nodes[right] == 0:
            raise InputError(f"the trajectory jumps from node {self.nodes[left]} to the data")
        levels = [self.schedule.level(node) for node in (self.nodes[left], k, self.nodes[right])]
        mu = [level.alpha / level.sigma for level in levels]
        h = mu[2] - mu[0]
        s = (mu[1] - mu[0]) / h
        z = [self.states[left] / levels[0].sigma, self.states[right] / levels[2].sigma]
        found = (1 + 2 * s) * (1 - s) ** 2 * z[0] + s**2 * (3 - 2 * s) * z[1]
        found += h * s * (1 - s) * ((1 - s) * self.x0[left] - s * self.x0[right])
        return levels[1].sigma * found


@torch.no_grad()
def follow(
    schedule: Schedule,
    groups: Sequence[Group],
    steps: int = TEACHER_STEPS,
    watch: Callable[[int], object] | None = None,
) -> Trajectory:
    """Solve from latents by Adams' method of order 4 on quadratic nodes, and keep the way.

    Args:
        schedule: the noise schedule.
        groups: the latents.
        steps: of the solver; T if there are fewer.
        watch: called with the number of images times network calls after each step.

    Raises:
        InputError: no latents.
        RunError: the network's output is not finite.
    """
    if not groups:
        raise InputError("there are no latents to follow: give at least one")
    nodes = quadratic(schedule, min(steps, schedule.T))
    tableau = make_tableau(schedule, nodes, "plms", order=4)
    first = tableau.initial[0].level
    spread = (first.alpha**2 + first.sigma**2) ** 0.5
    states: list[list[Tensor]] = [[] for _ in nodes]
    x0: list[list[Tensor]] = [[] for _ in nodes[1:]]
    for denoiser, latents in groups:
        x = latents * spread
        states[0].append(x)
        for step in integrate(denoiser, tableau, x):
            assert step.prediction is not None
            x0[step.index].append(step.prediction.x0)
            states[step.index + 1].append(step.x)
            if watch is not None:
                watch(len(latents))
    joined = tuple(torch.cat(parts) for parts in states)
    if not bool(joined[-1].isfinite().all()):
        raise RunError("the teacher's images are not finite: look at the model with ddim checks")
    return Trajectory(
        schedule, tuple(groups), nodes, joined, tuple(torch.cat(parts) for parts in x0)
    )
