"""What the builders share: the levels along the nodes, and which of them may enter a history."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ddim.base.display import shown
from ddim.base.errors import InputError
from ddim.noise.nodes import Nodes
from ddim.noise.schedule import Level, Schedule
from ddim.samplers.tableau import Row, State, Tableau, Terms

__all__ = ["Grid", "Histories", "integrals", "weights_of"]

Array = npt.NDArray[np.float64]

Histories = npt.NDArray[np.intp]
"""Histories of R steps: the nodes whose outputs each reads, the newest first, shape (R, J)."""

FEW = 15
"""Below this many steps a method of order 3 ends with lower orders (Lu et al. 2022b, section 5)."""


@shown
@dataclasses.dataclass(frozen=True)
class Grid:
    """The nodes of a sampler with their levels.

    A level is *finite* where neither α nor σ is 0; only there λ and ρ are numbers. Steps from or
    to another level are first-order, in a form that has no division by α or σ.

    Attributes:
        schedule: the noise schedule.
        nodes: strictly monotone.
        of: where the nodes are the end of a longer list, how many steps that list has.

    Raises:
        InputError: fewer than two nodes, or a longer list of fewer steps.
    """

    schedule: Schedule
    nodes: Nodes
    of: int | None = None

    def __post_init__(self) -> None:
        if len(self.nodes) < 2:
            raise InputError("a sampler needs at least two nodes")
        if self.of is not None and self.of < self.steps:
            raise InputError(
                f"these {self.steps} steps cannot be the end of a list of {self.of}: of counts the "
                "steps of the whole list"
            )

    def must_fall(self, method: str) -> None:
        """Refuse nodes that rise, for a method that has no inverse."""
        if self.nodes[-1] > self.nodes[0]:
            raise InputError(f"{method} runs from noise to data: its nodes must fall")

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.nodes) - 1

    @property
    def whole(self) -> int:
        """Number of steps of the list that the nodes are the end of."""
        return self.of or self.steps

    @functools.cached_property
    def levels(self) -> tuple[Level, ...]:
        """The level of every node."""
        return tuple(self.schedule.level(k) for k in self.nodes)

    def level(self, n: int) -> Level:
        """Level of the n-th node, n = 0 being the first of the integration."""
        return self.levels[n]

    def seen(self, n: int) -> Level:
        """Where the network sees the n-th state: no network is called at node 0, but at node 1."""
        return self.levels[n] if self.nodes[n] else self.schedule.level(1)

    def finite(self, n: int) -> bool:
        """Whether λ and ρ are numbers at the n-th node."""
        level = self.level(n)
        return level.alpha > 0 and level.sigma > 0

    def rho(self, n: int) -> float:
        """ρ = σ/α at the n-th node."""
        return float(self.rhos[n])

    def lam(self, n: int) -> float:
        """λ = log(α/σ) at the n-th node."""
        return float(self.lams[n])

    @functools.cached_property
    def rhos(self) -> Array:
        """ρ at every node; ∞ where α = 0."""
        return self.schedule.rho[list(self.nodes)]

    @functools.cached_property
    def lams(self) -> Array:
        """λ at every node; ±∞ where σ or α is 0."""
        return self.schedule.lam[list(self.nodes)]

    def history(self, n: int, order: int) -> list[int]:
        """The last ``order`` finite nodes up to the n-th, the newest first."""
        # All levels but the first and the last are finite.
        return [j for j in range(n, max(-1, n - order - 1), -1) if self.finite(j)][:order]

    def order_at(self, n: int, order: int) -> int:
        """The order that step n → n+1 may have so near to the end.

        With few steps, the last before the jump to the data has order 2 at most.
        """
        jump = self.nodes[-1] == 0
        last = self.steps - 1 - jump
        return min(order, 2) if jump and self.whole < FEW and n >= last else order

    def histories(self, order: int) -> dict[int, list[int]]:
        """Step → the nodes whose outputs it reads, the newest first; no first-order steps."""
        found = {}
        for n in range(self.steps):
            history = self.history(n, self.order_at(n, order))
            if history and history[0] == n and self.finite(n + 1):
                found[n] = history
        return found

    def integrals(
        self, history: Sequence[int], weight: Callable[[Array], Array] = np.ones_like
    ) -> Array:
        """∫ ℓ_j(λ)·w(λ) dλ over the step that starts at the newest node of a history, shape (J,).

        Args:
            history: nodes, the newest first, on whose λ the Lagrange basis ℓ_j stands.
            weight: w, a function of an array of λ.
        """
        lams = self.lams[[list(history)]]
        return integrals(lams, lams[:, 0], self.lams[[history[0] + 1]], weight)[0]

    def row(
        self,
        n: int,
        *,
        states: Terms = (),
        x0: Terms = (),
        eps: Terms = (),
        noise: float = 0.0,
        evaluated: bool = True,
    ) -> Row:
        """A row that makes the state of the n-th node; the network sees it if ``evaluated``."""
        at = self.seen(n) if evaluated and n < self.steps else None
        return Row(self.level(n), at, self.nodes[n], states, x0, eps, noise)

    def first_order(self, n: int, source: int, state: int | None = None) -> Row:
        """DDIM's step from node ``source`` to node n, without a division by α or σ."""
        target = self.level(n)
        index = source if state is None else state
        return self.row(n, x0=((index, target.alpha),), eps=((index, target.sigma),))

    def start(self) -> State:
        """The state that integration starts from."""
        return State(self.level(0), self.seen(0), self.nodes[0])

    def tableau(
        self,
        method: str,
        rows: list[Row],
        options: dict[str, object] | None = None,
        *,
        marginal: bool = True,
    ) -> Tableau:
        """One initial state, and the last row as the result.

        Raises:
            InputError: rows that do not lead to the last node, or as :class:`Tableau`.
        """
        if not rows or rows[-1].k != self.nodes[-1]:
            end = f"the last row makes node {rows[-1].k}" if rows else "there are no rows"
            raise InputError(f"{method}: {end}, not the last node {self.nodes[-1]}")
        options = {**(options or {}), **({} if self.of is None else {"of": self.of})}
        return Tableau(method, (self.start(),), tuple(rows), (len(rows),), marginal, options)


def weights_of(
    histories: dict[int, list[int]], compute: Callable[[Histories], tuple[Array, ...]]
) -> dict[int, list[list[float]]]:
    """Step → its weights, computed together for all steps with histories of one length."""
    found = {}
    for length in {len(history) for history in histories.values()}:
        group = [n for n, history in histories.items() if len(history) == length]
        parts = compute(np.array([histories[n] for n in group]))
        for n, *rows in zip(group, *(part.tolist() for part in parts), strict=True):
            found[n] = rows
    return found


_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(24)


def integrals(abscissae: Array, low: Array, high: Array, weight=np.ones_like, at=None) -> Array:
    """∫ ℓ_j(u(s))·w(s) ds from ``low`` to ``high`` for the Lagrange basis ℓ_j on ``abscissae``.

    Args:
        abscissae: u of the points that the polynomials go through, shape (R, J).
        low: where s begins, shape (R,).
        high: where s ends, shape (R,).
        weight: w, a function of an array of shape (R, 24).
        at: u, a function of an array of shape (R, 24); s itself if None.

    Returns:
        shape (R, J). Gauss-Legendre with 24 points: exact to rounding for what the builders need.
    """
    half = ((high - low) / 2)[:, None]
    s = low[:, None] + half * (_POINTS + 1)
    u = s if at is None else at(s)
    weights = weight(s) * _WEIGHTS * half
    count = abscissae.shape[1]
    found = np.empty_like(abscissae)
    for j in range(count):
        basis = weights.copy()
        for i in range(count):
            if i != j:
                gap = (abscissae[:, j] - abscissae[:, i])[:, None]
                basis *= (u - abscissae[:, i, None]) / gap
        found[:, j] = basis.sum(axis=1)
    return found
