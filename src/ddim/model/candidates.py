"""Candidates for a network's conventions, measured by how well it denoises under each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddim.base.errors import InputError
from ddim.denoisers.conventions import Adapted, Conventions
from ddim.denoisers.target import Target
from ddim.model.condition import Condition
from ddim.noise.draws import Noise
from ddim.noise.schedule import Schedule

__all__ = ["Candidate", "compete", "make_candidates"]

LEVELS = 6
"""Noise levels at which every candidate is measured."""
NOISIEST = 10.0
"""σ/α above which a good network is hardly better than a guess, so that it tells nothing."""
ROUNDS = (2, 8, 32)
"""Images that the candidates of each round have seen; the last round sees all."""
TOO_LARGE, TOO_SMALL = 0.05, 2.0
"""Between these the factor to a noise's best scale is that of a network trained too little."""
CHUNK = 8
"""Images in one network call, each at every level."""


class Candidate:
    """A schedule and conventions, under which each target is measured with the same network calls.

    Args:
        adapted: the network with the conventions.
        schedule: of the network's own process.
        nodes: where it is measured.
        targets: what its output is taken for.
    """

    def __init__(
        self, adapted: Adapted, schedule: Schedule, nodes: Sequence[int], targets: Sequence[Target]
    ) -> None:
        self.adapted, self.schedule, self.conventions = adapted, schedule, adapted.conventions
        self.t = torch.tensor(nodes) - 1
        alpha, sigma = adapted.level(self.t)
        self.alpha, self.sigma = (
            alpha,
            self.conventions.scale * sigma,
        )  # of the network's own process
        # Of each image and level: the error, eps·prediction, prediction².
        self.measured = {target: torch.zeros(0, len(nodes), 3) for target in targets}
        self.failure: str | None = None
        self.spread = 1.0  # the variance of the data, in the network's own range

    @property
    def seen(self) -> int:
        """How many images it was measured on."""
        return len(next(iter(self.measured.values())))

    @property
    def key(self) -> tuple[float, ...]:
        """What the network is shown; candidates of one key are one."""
        time = self.adapted.time(self.t, torch.float64).double()
        numbers = torch.cat([self.alpha, self.sigma, time]).tolist()
        return (*(round(number, 9) for number in numbers), *self.conventions.data_range)

    def error(self, target: Target) -> float:
        """The mean over images and levels; infinite where it is not a number."""
        error = float(self.measured[target][..., 0].mean())
        return error if math.isfinite(error) else math.inf

    def bias(self, target: Target) -> float:
        """|E[ε·ε̂]/E[ε̂²] - 1|, the median of the levels; 0 for the best of denoisers.

        Its error is orthogonal to what it says: E[ε̂²] + E[(ε - ε̂)²] = E[ε²].
        """
        bias = float(self.biases(target).median())
        return bias if math.isfinite(bias) else math.inf

    def biases(self, target: Target) -> Tensor:
        """The bias at each level, shape (levels,)."""
        products, squares = self.measured[target][..., 1:].mean(dim=0).T
        return (products / squares - 1).abs()

    def error_at_scale(self, target: Target) -> float:
        """The error, had the noise its best scale at each level, where it is a little too small.

        That of a network that was trained too little is; else the error as it is.
        """
        products, squares = self.measured[target][..., 1:].mean(dim=0).T
        factors = products / squares
        if not bool(((factors > 1 - TOO_LARGE) & (factors < TOO_SMALL)).all()):
            return self.error(target)
        rho = self.sigma / self.alpha
        gained = (1 + rho**2 / self.spread) * (products - squares) ** 2 / squares
        return self.error(target) - float(gained.mean())

    @property
    def best(self) -> float:
        """The least of its targets' errors."""
        return min(self.error(target) for target in self.measured)

    @torch.no_grad()
    def measure(self, images: Tensor, noise: Tensor, condition: Condition, variance: float) -> None:
        """Add the errors of more images, relative to the best linear denoiser's.

        Args:
            images: shape (N, *), in [-1, 1].
            noise: shape (levels, N, *).
            condition: of the images.
            variance: of all images' pixels.
        """
        scale, levels = self.conventions.scale, len(self.t)
        shape = (levels, 1, *(1,) * (images.ndim - 1))
        alpha, sigma = (part.to(images).view(shape) for part in (self.alpha, self.sigma))
        data = scale * images + self.conventions.centre
        x = alpha * data + sigma * noise
        # A network without such weights is asked in the images' own precision.
        weights = (p.dtype for p in self.adapted.net.parameters() if p.is_floating_point())
        seen = x.to(next(weights, x.dtype))
        labels = condition.label_tensor(images.device)
        tensors = {
            name: value.to(images.device, seen.dtype if value.is_floating_point() else None)
            for name, value in condition.tensors.items()
        }
        try:
            output = torch.cat(
                [
                    self.adapted.ask(
                        state, t.to(images.device).expand(len(images)), labels, tensors
                    )
                    for state, t in zip(seen, self.t, strict=True)
                ]
            )
        except (RuntimeError, IndexError, TypeError, ValueError, AssertionError) as error:
            self.failure = str(error).strip().split("\n")[0]
            return
        output = output[:, : images.shape[1]].to(x.dtype).view_as(x)
        self.spread = spread = scale**2 * variance
        linear = spread * sigma**2 / (alpha**2 * spread + sigma**2)
        for target, before in self.measured.items():
            p, q = target.coefficients(alpha, sigma)
            d = alpha * q - sigma * p
            x0, eps = (q * x - sigma * output) / d, (alpha * output - p * x) / d
            parts = ((x0 - data).square() / linear, noise * eps, eps.square())
            new = torch.stack([part.flatten(2).mean(dim=2).T for part in parts], dim=-1)
            self.measured[target] = torch.cat([before, new.double().cpu()])


def make_candidates(
    net: nn.Module,
    pairs: Sequence[tuple[Schedule, Conventions]],
    targets: Sequence[Target],
    arguments: Mapping[str, Any] | None,
) -> list[Candidate]:
    """The candidates, the most usual first, at the levels that all of them have."""
    combined = [
        (schedule, Adapted(net, schedule, targets[0], each, arguments)) for schedule, each in pairs
    ]
    rhos = [adapted.schedule.rho[1:] for _, adapted in combined]
    lowest = max(float(rho[0]) for rho in rhos)
    highest = min(NOISIEST, *(float(rho[np.isfinite(rho)][-1]) for rho in rhos))
    if lowest >= highest:
        raise InputError("the candidates' schedules have no noise level in common: try fewer")
    levels = np.log(np.geomspace(lowest, highest, LEVELS))
    distinct: dict[tuple[float, ...], Candidate] = {}
    for (schedule, adapted), rho in zip(combined, rhos, strict=True):
        distance = np.abs(np.log(rho[np.isfinite(rho)])[:, None] - levels)
        candidate = Candidate(adapted, schedule, (distance.argmin(axis=0) + 1).tolist(), targets)
        distinct.setdefault(candidate.key, candidate)
    return list(distinct.values())


def compete(
    candidates: Sequence[Candidate], images: Tensor, condition: Condition, seed: int
) -> None:
    """Measure all on a few images, and ever fewer on ever more."""
    weights = next(candidates[0].adapted.parameters())
    images = images.to(weights.device)
    variance = float(images.var())
    source = Noise(seed, range(len(images)), images.shape[1:], images.device, images.dtype)
    noise = torch.stack([source(level) for level in range(LEVELS)])
    alive, done = list(candidates), 0
    for count in sorted({min(count, len(images)) for count in (*ROUNDS, len(images))}):
        for start in range(done, count, CHUNK):
            part = slice(start, min(start + CHUNK, count))
            for candidate in alive:
                candidate.measure(images[part], noise[:, part], condition[part], variance)
            alive = [candidate for candidate in alive if not candidate.failure]
        done = count
        best = min((candidate.best for candidate in alive), default=math.inf)
        alive = sorted(alive, key=lambda candidate: candidate.best)[: max(4, len(alive) // 3)]
        alive = [candidate for candidate in alive if candidate.best <= 2 * best]
