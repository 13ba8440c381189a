"""A sampler as a table of numbers.

Every training-free sampler is a list of linear rows, as a Runge-Kutta method is a Butcher tableau:

    X_new = Σ A·(earlier states) + Σ B·(earlier x0) + Σ C·(earlier eps) + c·noise

The numbers follow from the schedule, the nodes and the method alone. They are computed once, in
float64, and check themselves when the table is made.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ddim.base.display import rows_table, shown
from ddim.base.errors import InputError
from ddim.noise.schedule import Level

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Row", "State", "Tableau"]

LARGEST = 1e30
"""Sums of coefficients stay below this: single precision ends at 3e38."""

Terms = tuple[tuple[int, float], ...]
"""(index of a state, coefficient), …"""


@shown
@dataclasses.dataclass(frozen=True)
class State:
    """A state that integration starts from.

    Attributes:
        level: its noise level.
        at: the level at which the network sees it; None where it never does.
        k: its node, for people.
    """

    level: Level
    at: Level | None
    k: int


@shown
@dataclasses.dataclass(frozen=True)
class Row:
    """One new state as a linear combination of what is there.

    Attributes:
        level: the new state's noise level.
        at: the level at which the network will see it; None where it never will. It may differ
            from ``level``.
        k: the new state's node, for people; None for an inner stage between nodes.
        states: A, on earlier states.
        x0: B, on earlier predictions of x0, by the index of the state that they were made from.
        eps: C, on predictions of ε, by the same index.
        noise: c, on fresh standard normal noise; 0 draws none.
        noise_max: where a network predicts its variance, v in [0, 1] a pixel, the noise is scaled
            by ``noise**(1-v) * noise_max**v`` (Nichol and Dhariwal 2021, equation 15); None where
            the method has no use for it.
    """

    level: Level
    at: Level | None
    k: int | None
    states: Terms = ()
    x0: Terms = ()
    eps: Terms = ()
    noise: float = 0.0
    noise_max: float | None = None

    @functools.cached_property
    def needs(self) -> tuple[int, ...]:
        """The states whose predictions this row reads, in ascending order."""
        return tuple(sorted({i for i, _ in self.x0} | {i for i, _ in self.eps}))

    @property
    def formula(self) -> str:
        """The combination as text: states X, predictions x0 and eps by their states, noise z."""
        parts = [f"{a:+.6g}·X{j}" for j, a in self.states]
        parts += [f"{b:+.6g}·x0({j})" for j, b in self.x0 if b]
        parts += [f"{c:+.6g}·eps({j})" for j, c in self.eps if c]
        parts += [f"{self.noise:+.6g}·z"] if self.noise else []
        return " ".join(parts)

    def _facts(self) -> dict[str, object]:
        return {"k": self.k, "formula": self.formula}


@shown
@dataclasses.dataclass(frozen=True)
class Tableau:
    """Initial states, rows, and which states come out.

    States are numbered: the initial ones first, then one for each row.

    Attributes:
        method: the name of the builder.
        initial: the states that integration starts from (reversible methods have two).
        rows: in the order of evaluation.
        returns: the indices of the states that are the result.
        marginal: whether every row keeps the marginal variance. Only the probability-flow Euler
            method and the larger-variance DDPM declare that they do not.
        options: what the builder was given, for people and for records.

    Raises:
        InputError: a row that is not consistent: ΣA·α + ΣB = α_new; ΣA·σ + ΣC = √(σ_new² - c²)
            where ``marginal``; indices out of order; numbers that are not finite.
    """

    method: str
    initial: tuple[State, ...]
    rows: tuple[Row, ...]
    returns: tuple[int, ...]
    marginal: bool = True
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        places = [(s.level, s.at) for s in self.initial] + [(r.level, r.at) for r in self.rows]
        for index, row in enumerate(self.rows, start=len(self.initial)):
            self._check(index, row, places)
        for index in self.returns:
            if not 0 <= index < len(places):
                raise InputError(f"{self.method}: there is no state {index} to return")

    @property
    def digest(self) -> str:
        """SHA-256 of the rows, in hexadecimal.

        Of their numbers in float32: the last bits of float64 are the processor's own.
        """
        rows = [dataclasses.astuple(row) for row in self.rows]
        return hashlib.sha256(repr(_rounded(rows)).encode()).hexdigest()

    def _check(self, index: int, row: Row, places: list[tuple[Level, Level | None]]) -> None:
        # Sums of the coefficients and of their sizes; there are thousands of rows to a table.
        level = row.level
        signal, signal_size = 0.0, level.alpha
        carried, carried_size = 0.0, level.sigma + row.noise
        for i, a in row.states:
            if not 0 <= i < index:
                raise InputError(f"{self.method}: state {index} reads one that is not there yet")
            old = places[i][0]
            signal += a * old.alpha
            signal_size += abs(a) * old.alpha
            carried += a * old.sigma
            carried_size += abs(a) * old.sigma
        for i, _ in (*row.x0, *row.eps):
            if not 0 <= i < index:
                raise InputError(f"{self.method}: state {index} reads one that is not there yet")
            if places[i][1] is None:
                raise InputError(
                    f"{self.method}: state {index} reads a prediction that is never made"
                )
        for _, b in row.x0:
            signal += b
            signal_size += abs(b)
        for _, c in row.eps:
            carried += c
            carried_size += abs(c)
        if not signal_size + carried_size + (row.noise_max or 0.0) < LARGEST:
            raise InputError(
                f"{self.method}: state {index} has a coefficient that is not finite, or beyond "
                f"{LARGEST:g}"
            )
        if abs(signal - level.alpha) > 1e-9 * signal_size:
            raise InputError(
                f"{self.method}: state {index} keeps {signal:.12g} of the signal, "
                f"not α = {level.alpha:.12g}"
            )
        if not self.marginal:
            return
        if carried < -1e-9 * carried_size:
            raise InputError(
                f"{self.method}: state {index} keeps {carried:.12g} of the noise, below 0"
            )
        if abs(math.hypot(carried, row.noise) - level.sigma) > 1e-9 * carried_size:
            raise InputError(
                f"{self.method}: state {index} has noise {math.hypot(carried, row.noise):.12g}, "
                f"not σ = {level.sigma:.12g}"
            )

    def start(self, noise: Tensor) -> Tensor:
        """The state that sampling starts from: standard normal noise times the spread of its level.

        Args:
            noise: shape (N, *), such as :class:`ddim.Noise` draws for state 0.

        Raises:
            InputError: a method that starts from several states, which noise alone does not give.
        """
        if len(self.initial) != 1:
            raise InputError(
                f"{self.method} starts from {len(self.initial)} states, which must be given"
            )
        return noise * self.initial[0].level.spread

    def level(self, index: int) -> Level:
        """The noise level of a state."""
        start = len(self.initial)
        return self.initial[index].level if index < start else self.rows[index - start].level

    def at(self, index: int) -> Level | None:
        """The level at which the network sees a state."""
        start = len(self.initial)
        return self.initial[index].at if index < start else self.rows[index - start].at

    @functools.cached_property
    def evaluated(self) -> tuple[int, ...]:
        """The states that the network is called on, in order."""
        return tuple(sorted({i for row in self.rows for i in row.needs}))

    @property
    def calls(self) -> int:
        """Network calls for one image."""
        return len(self.evaluated)

    @functools.cached_property
    def last_use(self) -> tuple[int, ...]:
        """For each state, the last row that reads it or its prediction; -1 if none.

        Returned states are never done with: theirs is the number of rows.
        """
        last = [-1] * (len(self.initial) + len(self.rows))
        for n, row in enumerate(self.rows):
            for i, _ in (*row.states, *row.x0, *row.eps):
                last[i] = n
        for i in self.returns:
            last[i] = len(self.rows)
        return tuple(last)

    def inverse(self) -> Tableau:
        """The tableau that undoes this one: each row solved for its oldest state, in reverse order.

        It starts from the last states, the newest first, and returns the initial ones.

        Raises:
            InputError: where that is impossible: a row draws noise, reads the prediction that was
                made from its oldest state, or does not read that state at all; or the result does
                not hold as many states as there were at the start.
        """
        initial, rows, returns = self.inverse_parts()
        return Tableau(
            f"{self.method} inverse", initial, rows, returns, self.marginal, self.options
        )

    def inverse_parts(self) -> tuple[tuple[State, ...], tuple[Row, ...], tuple[int, ...]]:
        """Initial states, rows and returns of :meth:`inverse`, not checked yet.

        For a table that has more rows than these.

        Raises:
            InputError: as for :meth:`inverse`.
        """
        width = len(self.initial)
        newest = width + len(self.rows) - 1
        if sorted(self.returns) != list(range(newest - width + 1, newest + 1)):
            raise InputError(
                f"{self.method} cannot be inverted: it starts from {width} states and returns "
                f"{len(self.returns)}"
            )
        places = [(s.level, s.at, s.k) for s in self.initial]
        places += [(row.level, row.at, row.k) for row in self.rows]
        rows = []
        for s in range(newest, width - 1, -1):
            row, oldest = self.rows[s - width], s - width
            coefficient = next((a for i, a in row.states if i == oldest), 0.0)
            if row.noise or oldest in row.needs or coefficient == 0:
                raise InputError(
                    f"{self.method} cannot be inverted: its rows cannot be solved for what they "
                    "started from"
                )
            states = [(newest - s, 1 / coefficient)]
            states += [(newest - j, -a / coefficient) for j, a in row.states if j != oldest]
            rows.append(
                Row(
                    *places[oldest],
                    states=tuple(states),
                    x0=tuple((newest - j, -b / coefficient) for j, b in row.x0),
                    eps=tuple((newest - j, -c / coefficient) for j, c in row.eps),
                )
            )
        last = [places[j] for j in range(newest, newest - width, -1)]
        initial = tuple(State(level, at, k or 0) for level, at, k in last)
        return initial, tuple(rows), tuple(newest - j for j in range(width))

    @property
    def stochastic(self) -> bool:
        """Whether any row draws noise."""
        return any(row.noise for row in self.rows)

    def _facts(self) -> dict[str, object]:
        options = {k: v for k, v in self.options.items() if k not in ("method", "rows", "calls")}
        noise = {"stochastic": True} if self.stochastic else {}
        facts = {"method": self.method, "rows": len(self.rows), "calls": self.calls}
        return {**facts, **noise, **options}

    def _repr_html_(self) -> str:
        facts = ", ".join(f"{k} {v}" for k, v in self._facts().items() if k != "method")
        places = [(s.k, s.level, s.at, "given") for s in self.initial]
        places += [(row.k, row.level, row.at, row.formula) for row in self.rows]
        lines = [
            {
                "state": i,
                "k": k,
                "alpha": f"{level.alpha:.6f}",
                "sigma": f"{level.sigma:.6f}",
                "t": None if at is None else f"{at.t:g}",
                "combination": formula,
            }
            for i, (k, level, at, formula) in enumerate(places)
        ]
        return rows_table(f"Tableau of {self.method}: {facts:.200}", lines)

    def __str__(self) -> str:
        """A line for each row, with its coefficients."""
        options = "".join(f", {key}={value}" for key, value in self.options.items())
        lines = [f"{self.method}{options}: {len(self.rows)} rows, {self.calls} network calls"]
        lines += [f"{'state':>5} {'k':>5} {'alpha':>9} {'sigma':>9} {'t':>7}  = combination"]
        for i, state in enumerate(self.initial):
            lines.append(f"{_columns(i, state.k, state.level, state.at)}  = given")
        for i, row in enumerate(self.rows, start=len(self.initial)):
            lines.append(f"{_columns(i, row.k, row.level, row.at)}  = {row.formula}")
        return "\n".join(lines)


def _columns(index: int, k: int | None, level: Level, at: Level | None) -> str:
    t = "" if at is None else f"{at.t:g}"
    node = "" if k is None else str(k)
    return f"{index:>5} {node:>5} {level.alpha:>9.6f} {level.sigma:>9.6f} {t:>7}"


def _rounded(value: object) -> object:
    """The same within sequences of any depth, floats as text of nine digits of their float32."""
    if isinstance(value, Level):  # its scale is of the first state, and rows have none
        value = value[:3]
    if isinstance(value, (tuple, list)):
        return [_rounded(part) for part in value]
    return f"{ctypes.c_float(value).value:.9g}" if isinstance(value, float) else value
