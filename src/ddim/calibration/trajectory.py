"""A model's own solution of the probability-flow equation, at any node, for calibration."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddim.base.display import shown
from ddim.base.errors import InputError, RunError
from ddim.denoisers.prediction import Denoiser, Prediction
from ddim.noise.nodes import Nodes, quadratic
from ddim.noise.schedule import Level, Schedule
from ddim.samplers.loop import integrate
from ddim.samplers.sampler import make_tableau

__all__ = ["TEACHER_STEPS", "Group", "Trajectory", "fit_weights", "follow", "shortest_path"]

RIDGE = 1e-8
HISTORY = 3

TEACHER_STEPS = 60

Group = tuple[Denoiser, Tensor]
"""Latents that go through a network together, shape (N, *), N(0, 1), and the denoiser for them."""

Each = Callable[[Callable[[int], Any], int], Iterator[Any]]
"""Called with a job and a number of them: the results of ``job(0)``, ``job(1)`` and so on."""


def in_turn(job: Callable[[int], Any], count: int) -> Iterator[Any]:
    """One job after another, on this thread."""
    return map(job, range(count))


@shown
@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Where a fine solver passed, from given noise.

    Attributes:
        schedule: the noise schedule.
        groups: where it started.
        nodes: falling, from T to 0.
        states: x at each node, each of shape (N, *).
        x0: what the network predicted at each node but the last, each of shape (N, *).
        each: what runs a job for each group, such as :meth:`ddim.Model.each`.
    """

    schedule: Schedule
    groups: tuple[Group, ...]
    nodes: Nodes
    states: tuple[Tensor, ...]
    x0: tuple[Tensor, ...]
    each: Each = in_turn

    def _facts(self) -> dict[str, object]:
        return {"nodes": self.nodes, "images": len(self.end), "schedule": self.schedule}

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
    each: Each = in_turn,
) -> Trajectory:
    """Solve from latents by Adams' method of order 4 on quadratic nodes, and keep the way.

    Args:
        schedule: the noise schedule.
        groups: the latents.
        steps: of the solver; T if there are fewer.
        watch: called with the number of images times network calls after each group.
        each: what runs a job for each group.

    Raises:
        InputError: no latents.
        RunError: the network's output is not finite.
    """
    if not groups:
        raise InputError("there are no latents to follow: give at least one")
    nodes = quadratic(schedule, min(steps, schedule.T))
    tableau = make_tableau(schedule, nodes, "plms", order=4)

    def way(number: int) -> tuple[list[Tensor], list[Tensor]]:
        denoiser, latents = groups[number]
        states, x0 = [tableau.start(latents)], []
        for step in integrate(denoiser, tableau, states[0]):
            assert step.prediction is not None
            x0.append(step.prediction.x0)
            states.append(step.x)
        return states, x0

    ways = []
    for (_, latents), passed in zip(groups, each(way, len(groups)), strict=True):
        ways.append(passed)
        if watch is not None:
            watch(len(latents) * len(tableau.rows))
    joined, x0 = (
        tuple(map(torch.cat, zip(*parts, strict=True))) for parts in zip(*ways, strict=True)
    )
    if not bool(joined[-1].isfinite().all()):
        raise RunError("the teacher's images are not finite: look at the model with ddim checks")
    return Trajectory(schedule, tuple(groups), nodes, joined, x0, each)


@torch.no_grad()
def fit_weights(teacher: Trajectory, nodes: Nodes) -> tuple[list[list[float]], Tensor]:
    """Weights on the last outputs that lead each step nearest to where the teacher passed.

    The normal equations of all pixels of all latents, ridge 1e-8; the states are those that the
    earlier steps, with their weights, lead to.

    Args:
        teacher: what to follow.
        nodes: falling, from the teacher's first node or below to 0.

    Returns:
        for each step the weights of :func:`~ddim.samplers.methods.learned.learned`, and the
        images, (N, *), that a sampler with them makes of the teacher's latents.
    """
    schedule = teacher.schedule
    first = schedule.level(nodes[0])
    x = torch.cat([latents for _, latents in teacher.groups]) * first.spread
    sizes = [len(latents) for _, latents in teacher.groups]
    outputs: list[Tensor] = []
    found: list[list[float]] = []
    for n, (k, following) in enumerate(itertools.pairwise(nodes)):
        level, target = schedule.level(k), schedule.level(following)
        predictions = _asked(teacher, x.split(sizes), level)
        x0 = torch.cat([p.x0 for p in predictions])
        outputs.append(torch.cat([p.eps for p in predictions]))
        x = target.alpha * x0 + target.sigma * outputs[n]
        # An output at pure noise, α = 0, is no part of a history.
        past = [outputs[n - j] for j in range(1, min(n - (first.alpha == 0), HISTORY) + 1)]
        if not past:
            found.append([])
            continue
        step = target.alpha * (float(schedule.rho[following]) - float(schedule.rho[k]))
        features = torch.stack([(step * (e - outputs[n])).flatten() for e in past]).double()
        residual = (teacher.at(following) - x).flatten().double()
        gram = features @ features.T
        if not float(gram.trace()) > 0:  # a network whose output does not change
            found.append([0.0] * len(past))
            continue
        gram += RIDGE * gram.trace() * torch.eye(len(past), dtype=gram.dtype, device=gram.device)
        w = torch.linalg.solve(gram, features @ residual)
        found.append(w.tolist())
        x = x + (w @ features).view_as(x).to(x.dtype)
    return found, x


def _asked(teacher: Trajectory, parts: Sequence[Tensor], level: Level) -> list[Prediction]:
    return list(teacher.each(lambda i: teacher.groups[i][0](parts[i], level), len(parts)))


def shortest_path(teacher: Trajectory, steps: int) -> Nodes:
    """Nodes by dynamic programming: the least sum of how far DDIM's steps leave the trajectory.

    The cost of a step from node i to j is the RMS between DDIM's step from where the teacher was at
    i and where it was at j, in x/α. No network is called: the outputs along the way are known.

    Reference:
        D. Chen et al., On the trajectory regularity of ODE-based diffusion sampling (GITS), 2024,
        https://arxiv.org/abs/2405.11326.

    Args:
        teacher: with at least ``steps`` steps.
        steps: S.

    Raises:
        InputError: more steps than the teacher took.
    """
    count = len(teacher.nodes)
    if not 1 <= steps < count:
        raise InputError(f"the trajectory has {count - 1} steps, of which {steps} cannot be chosen")
    levels = [teacher.schedule.level(k) for k in teacher.nodes]
    cost = np.full((count, count), np.inf)
    for i in range(count - 1):
        eps = teacher.eps(i)
        for j in range(i + 1, count):
            step = levels[j].alpha * teacher.x0[i] + levels[j].sigma * eps
            off = (step - teacher.states[j]).double().square().mean().sqrt()
            cost[i, j] = float(off) / levels[j].alpha
    best = np.full((steps + 1, count), np.inf)
    best[0, 0] = 0.0
    before = np.zeros((steps + 1, count), dtype=int)
    for s in range(1, steps + 1):
        total = best[s - 1][:, None] + cost
        before[s], best[s] = total.argmin(axis=0), total.min(axis=0)
    chosen = [count - 1]
    for s in range(steps, 0, -1):
        chosen.append(int(before[s, chosen[-1]]))
    return tuple(teacher.nodes[i] for i in reversed(chosen))
