"""The few steps that follow one network's own solution best: nodes, method and weights.

Which nodes those are depends on what the network has learnt, not on the schedule alone. A fine
solver's images, from the same noise, are the measure: the distance to them is the solver's error
and nothing else. It is not the distance to data: where the network's own solution is off, another
sampler may draw better images. Every figure that is reported is of latents that no choice has seen.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddim.base.display import facts_table, rows_table, shown
from ddim.base.errors import InputError
from ddim.calibration.trajectory import Trajectory, fit_weights, shortest_path
from ddim.noise.nodes import Nodes, quadratic, spread
from ddim.samplers.loop import final, integrate
from ddim.samplers.sampler import Sampler
from ddim.samplers.tableau import Tableau

__all__ = ["Calibration", "endpoint_errors", "most_work", "search_sampler"]

POWERS = (1.0, 1.5, 2.0, 3.0)
RHO_POWERS = (3.0, 7.0, 10.0)
START_RHOS = (80.0, 40.0, 25.0, 15.0, 10.0)
METHODS = (
    "ddim",
    "gradient-estimation",
    "plms:order=2",
    "plms:order=4",
    "deis:order=2:variable=t",
    "deis:order=3:variable=t",
    "dpmpp:order=2",
    "unipc:order=2",
    "unipc:order=3",
)
"""One network call a step each, so that the number of steps is the number of calls."""

PLAIN = (
    "ddim",
    "ddim:nodes=quadratic",
    "ddim:nodes=log-snr",
    "gradient-estimation",
    "gradient-estimation:nodes=quadratic",
    "unipc:order=3",
    "unipc:order=3:nodes=quadratic",
    "plms",
    "plms:nodes=quadratic",
)
"""What a calibrated sampler is reported beside: DDIM, and the best that need no calibration."""

MOVES = 100
QUICK = 8
BEST = 4


@shown
@dataclasses.dataclass(frozen=True)
class Calibration:
    """What was found for one number of calls.

    Attributes:
        sampler: the one nearest to the teacher, on nodes of its own: what :func:`ddim.sample`
            takes.
        errors: by sampler, the RMS to the teacher's images on [-1, 1], the median and the mean over
            latents that took part in no choice: the samplers of :data:`PLAIN`, as they are spelled;
            DDIM on the nodes of ``dynamic programming``; the stages on the way, ``searched``,
            ``moved``, ``weighted``; and ``calibrated``, the one that was chosen.
        path: nodes by dynamic programming, for comparison.
        moments: Γ at the teacher's nodes but the last, for :func:`optimal variances
            <ddim.samplers.methods.analytic.optimal_variance>`.
        teacher: the teacher's nodes.
        counts: images for fitting, for choosing and for reporting.
    """

    sampler: Sampler
    errors: dict[str, tuple[float, float]]
    path: Nodes
    moments: NDArray[np.float64]
    teacher: Nodes
    counts: tuple[int, int, int]

    def _facts(self) -> dict[str, object]:
        median, mean = self.errors["calibrated"]
        return {"sampler": self.sampler, "median RMS": median, "mean RMS": mean}

    def _repr_html_(self) -> str:
        rows = [
            {"sampler": name, "median RMS": float(f"{a:.3g}"), "mean RMS": float(f"{b:.3g}")}
            for name, (a, b) in self.errors.items()
        ]
        said = f"RMS to the teacher on [-1, 1], of {self.counts[2]} latents left aside"
        table = rows_table(said, rows)
        return facts_table("Calibration", {"sampler": self.sampler, "nodes": self.path}, table)


@torch.no_grad()
def endpoint_errors(
    teacher: Trajectory, tableau: Tableau, count: int | None = None
) -> NDArray[np.float64]:
    """RMS over the pixels between a sampler's images and the teacher's, from the same latents.

    Args:
        teacher: the exact images, and the latents that they are of.
        tableau: deterministic, with one initial state.
        count: take the first groups that hold at least so many latents; all if None.

    Returns:
        (N,); infinite where the sampler diverged.
    """

    def end(number: int) -> Tensor:
        net, latents = teacher.groups[number]
        return final(integrate(net, tableau, tableau.start(latents)))[0]

    before = itertools.accumulate((len(latents) for _, latents in teacher.groups), initial=0)
    looked_at = sum(n < len(teacher.end) and (count is None or n < count) for n in before)
    images = torch.cat(list(teacher.each(end, looked_at)))
    return _rms(images, teacher.end[: len(images)])


def _rms(images: Tensor, exact: Tensor) -> NDArray[np.float64]:
    """RMS over the pixels of each image, (N,); infinite where it is not finite."""
    error = (images - exact).double().square().flatten(1).mean(dim=1).sqrt().cpu().numpy()
    return np.where(np.isfinite(error), error, np.inf)


def search_sampler(
    calls: int,
    fit: Trajectory,
    choose: Trajectory,
    report: Trajectory,
    *,
    weights: bool = True,
    moves: int = MOVES,
    seed: int = 0,
    watch: Callable[[str, int], object] | None = None,
) -> Calibration:
    """Find nodes, a method and weights for so many network calls.

    In this order, each beginning with what came before: node families in k and in ρ with several
    start nodes; methods on the best of them; random moves of log ρ, one node at a time; weights on
    the last outputs by least squares (:func:`fit_weights`), on the most promising nodes, and random
    moves again, with weights of their own. All is measured by the geometric mean of the RMS to the
    teacher's images on ``fit``; which of the stages is taken, by the same on ``choose``; ``report``
    is measured and decides nothing.

    Args:
        calls: S, from 2 to T.
        fit: a fine solver's images from latents to fit to (see
            :func:`~ddim.calibration.trajectory.follow`).
        choose: others, to choose by.
        report: others, to report on.
        weights: whether to fit weights too.
        moves: how many random moves to try; half of them with weights, if there are any.
        seed: of the moves.
        watch: called with the stage and the number of images times network calls, as they are done.

    Raises:
        InputError: calls out of range, or more than the trajectories have steps.
    """
    schedule = fit.schedule
    if not 2 <= calls <= schedule.T:
        raise InputError(f"calls to calibrate for are from 2 to T = {schedule.T}, not {calls}")
    if calls >= len(fit.nodes):
        raise InputError(
            f"a trajectory of {len(fit.nodes) - 1} steps has nothing to teach in {calls} calls: "
            "follow with more steps"
        )

    def say(stage: str, done: int) -> None:
        if watch is not None:
            watch(stage, done)

    search, rng = _Search(fit, calls, say), np.random.default_rng(seed)
    stages = {"searched": search.families()}
    stages["moved"] = search.moves(stages["searched"], moves // 2 if weights else moves, rng)
    if weights:
        grids = (stages["moved"].place(schedule), quadratic(schedule, calls), *search.promising)
        fitted = min(map(search.fit, grids), key=lambda sampler: search.score(sampler, "weights"))
        stages["weighted"] = search.moves(fitted, moves - moves // 2, rng)

    def errors(sampler: Sampler, teacher: Trajectory) -> NDArray[np.float64]:
        say("measuring", calls * len(teacher.end))
        return endpoint_errors(teacher, sampler.tableau(schedule))

    chosen = min(stages.values(), key=lambda sampler: _score(errors(sampler, choose)))
    path = shortest_path(fit, calls)
    named = {text: Sampler.parse(text, calls) for text in _reached(PLAIN, calls)}
    named |= {"dynamic programming": Sampler(nodes=path), **stages}
    measured = {name: errors(sampler, report) for name, sampler in named.items()}
    found = {name: (float(np.median(e)), float(e.mean())) for name, e in measured.items()}
    taken = next(name for name, sampler in stages.items() if sampler is chosen)
    return Calibration(
        chosen,
        {**found, "calibrated": found[taken]},
        path,
        fit.moments(),
        fit.nodes,
        (len(fit.end), len(choose.end), len(report.end)),
    )


def most_work(
    calls: int,
    counts: tuple[int, int, int],
    batch_size: int,
    *,
    weights: bool = True,
    moves: int = MOVES,
) -> int:
    """The most images times network calls that :func:`search_sampler` tells `watch` of.

    Args:
        calls: S.
        counts: latents to fit to, to choose by and to report on.
        batch_size: how many of those to fit to are in one group.
        weights: as there.
        moves: as there.
    """
    fit, choose, report = counts
    starts = 1 + len(START_RHOS)
    grids = starts * (len(POWERS) + 2 * len(RHO_POWERS))
    quick = min(fit, -(-QUICK // batch_size) * batch_size)
    stages = 3 if weights else 2
    measured = len(PLAIN) + 1 + stages
    first = quick * (grids + BEST * len(METHODS)) + fit * 2 * BEST
    fitted = fit * (2 + BEST) if weights else 0
    return calls * (first + fitted + fit * moves + choose * stages + report * measured)


def _score(errors: NDArray[np.float64]) -> float:
    """The geometric mean: an image that ends as another digit must not decide alone."""
    return float(np.exp(np.log(np.maximum(errors, 1e-12)).mean()))


def _reached(texts: Sequence[str], calls: int) -> list[str]:
    """Samplers, of orders that so few calls reach."""
    found: list[str] = []
    for text in texts:
        sampler = Sampler.parse(text)
        order = sampler.options.get("order")
        high = isinstance(order, int) and order > calls
        found.append(str(sampler.replace(order=calls)) if high else text)
    return list(dict.fromkeys(found))


class _Search:
    """Samplers of one number of calls, each measured once."""

    def __init__(self, teacher: Trajectory, calls: int, say: Callable[[str, int], None]) -> None:
        self.teacher, self.calls, self.say = teacher, calls, say
        self.schedule = teacher.schedule
        self.log_rho = -self.schedule.lam[1:]  # the last is infinite where α = 0
        self.seen: dict[tuple[Sampler, int | None], float] = {}
        self.fitted: dict[Nodes, Sampler] = {}
        self.promising: tuple[Nodes, ...] = ()

    def score(self, sampler: Sampler, stage: str, count: int | None = None) -> float:
        """How far from the teacher it ends, on the latents to fit to or the first of them."""
        key = (sampler, count)
        if key not in self.seen:
            errors = endpoint_errors(self.teacher, sampler.tableau(self.schedule), count)
            self.seen[key] = _score(errors)
            self.say(stage, self.calls * len(errors))
        return self.seen[key]

    def fit(self, nodes: Nodes) -> Sampler:
        """The sampler with weights on these nodes."""
        if nodes not in self.fitted:
            weights, ends = fit_weights(self.teacher, nodes)
            sampler = Sampler("learned", nodes=nodes, weights=weights)
            self.fitted[nodes] = sampler
            # What the fit ended with is what the sampler makes of the same latents.
            self.seen[sampler, None] = _score(_rms(ends, self.teacher.end))
            self.say("weights", self.calls * len(ends))
        return self.fitted[nodes]

    def families(self) -> Sampler:
        """The best of all families and starts by one method, then of all methods on the best."""
        grids = list(dict.fromkeys(self._grids()))
        scored = [Sampler("dpmpp", nodes=grid) for grid in grids]
        best = sorted(scored, key=lambda s: self.score(s, "families", QUICK))[:BEST]
        self.promising = tuple(sampler.place(self.schedule) for sampler in best)
        tried = [
            Sampler.parse(text, nodes=nodes)
            for nodes in self.promising
            for text in _reached(METHODS, self.calls)
        ]
        best = sorted(tried, key=lambda s: self.score(s, "methods", QUICK))[: 2 * BEST]
        return min(best, key=lambda s: self.score(s, "methods"))

    def _grids(self):
        schedule, steps = self.schedule, self.calls
        starts = [schedule.T]
        starts += [self._node(np.log(rho)) for rho in START_RHOS if rho < schedule.rho[-1]]
        for start in starts:
            if start < steps:
                continue
            for power in POWERS:
                spaced = [start * (m / steps) ** power for m in range(steps + 1)]
                yield spread([int(k + 0.5) for k in spaced], start)
            top = min(start, schedule.T - (not np.isfinite(schedule.rho[-1])))
            for end in (1, max(1, schedule.T // 50)):
                for power in RHO_POWERS:
                    low, high = (schedule.rho[k] ** (1 / power) for k in (end, top))
                    shares = np.linspace(0, 1, steps)
                    rhos = (low + shares * (high - low)) ** power
                    inner = [self._node(v) for v in np.log(rhos)]
                    yield spread([0, *inner[:-1], start], start)

    def moves(self, sampler: Sampler, count: int, rng: np.random.Generator) -> Sampler:
        """The best that random changes of one log ρ at a time lead to."""
        best = self.score(sampler, "moves")
        for i in range(count):
            nodes = list(sampler.place(self.schedule))
            n = int(rng.integers(len(nodes) - 1))
            width = 0.4 * 0.15 ** (i / count)
            if not np.isfinite(self.log_rho[nodes[n] - 1]):
                continue
            nodes[n] = self._node(self.log_rho[nodes[n] - 1] + width * rng.standard_normal())
            if any(a <= b for a, b in itertools.pairwise(nodes)):
                continue
            if sampler.method == "learned":
                moved = self.fit(tuple(nodes))
            else:
                moved = sampler.replace(nodes=tuple(nodes))
            score = self.score(moved, "moves")
            if score < best:
                sampler, best = moved, score
        return sampler

    def _node(self, log_rho: float) -> int:
        """The node, not 0, whose log ρ is nearest."""
        return 1 + int(np.abs(self.log_rho - log_rho).argmin())
