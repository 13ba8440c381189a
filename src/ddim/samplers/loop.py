"""The loop. It runs every tableau, forwards and backwards, and knows nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddim.base.display import shown
from ddim.base.errors import InputError
from ddim.denoisers.prediction import Denoiser, Prediction
from ddim.noise.schedule import Level
from ddim.samplers.tableau import Row, Tableau

__all__ = ["Request", "Step", "final", "integrate", "run"]


@shown
@dataclasses.dataclass(frozen=True)
class Step:
    """One row done.

    Attributes:
        index: the row, from 0.
        total: how many there are.
        row: its numbers.
        x: the new state, shape (N, *).
        prediction: the latest prediction of the network; None before the first.
        outputs: the states that the tableau returns; all of them at the last step, else empty.
    """

    index: int
    total: int
    row: Row
    x: Tensor
    prediction: Prediction | None
    outputs: tuple[Tensor, ...] = ()


class Request(NamedTuple):
    """What a network is to predict from: a state and the level at which it sees it."""

    x: Tensor
    level: Level


def integrate(
    denoiser: Denoiser,
    tableau: Tableau,
    x: Tensor | Sequence[Tensor],
    noise: Callable[[int], Tensor] | None = None,
) -> Iterator[Step]:
    """Run a tableau, yielding after each row.

    The arithmetic is done in the dtype of ``x``; the coefficients are float64 numbers. States are
    freed after their last use, so memory does not grow with the number of steps.

    Args:
        denoiser: called once for each state in ``tableau.evaluated``.
        tableau: the rows.
        x: the initial state, shape (N, *), or as many as the tableau starts from; pure noise is
            ``tableau.start(noise(0))``.
        noise: the standard normal noise for the state of that index, of the states' shape;
            called only for rows that inject noise.

    Raises:
        InputError: another number of initial states, shapes that differ, or no noise given to
            rows that need it.
    """
    exchange = run(tableau, x, noise)
    event = next(exchange)
    while event is not None:
        if isinstance(event, Request):
            event = exchange.send(denoiser(event.x, event.level))
        else:
            yield event
            event = next(exchange, None)


def run(
    tableau: Tableau,
    x: Tensor | Sequence[Tensor],
    noise: Callable[[int], Tensor] | None = None,
) -> Generator[Request | Step, Prediction | None, None]:
    """The loop with its control turned round: it asks for every prediction, and is sent it.

    For programs that call the network themselves, and for :func:`integrate`. Yields a
    :class:`Request`, which must be answered with ``send(prediction)``, or a :class:`Step`, which
    must not.

    Args:
        tableau: the rows.
        x: as for :func:`integrate`.
        noise: as for :func:`integrate`.

    Raises:
        InputError: as :func:`integrate`, at the first ``next``.
    """
    given = (x,) if isinstance(x, Tensor) else tuple(x)
    if len(given) != len(tableau.initial):
        raise InputError(
            f"{tableau.method} starts from {len(tableau.initial)} states, not {len(given)}"
        )
    if any(z.shape != given[0].shape for z in given):
        raise InputError(f"initial states differ in shape: {[tuple(z.shape) for z in given]}")
    if noise is None and tableau.stochastic:
        raise InputError(f"{tableau.method} draws noise: integrate needs a source of it")

    states = dict(enumerate(given))
    predictions: dict[int, Prediction] = {}
    prediction = None
    for n, row in enumerate(tableau.rows):
        for i in row.needs:
            if i not in predictions:
                level = tableau.at(i)
                assert level is not None  # the tableau has checked it
                prediction = yield Request(states[i], level)
                assert prediction is not None, "a request is answered by send(prediction)"
                predictions[i] = prediction
        new = len(given) + n
        states[new] = _combine(row, states, predictions, noise, new)
        for i in [i for i in states if tableau.last_use[i] <= n and i != new]:
            del states[i]
            predictions.pop(i, None)
        last = n == len(tableau.rows) - 1
        outputs = tuple(states[i] for i in tableau.returns) if last else ()
        yield Step(n, len(tableau.rows), row, states[new], prediction, outputs)


def _combine(
    row: Row,
    states: dict[int, Tensor],
    predictions: dict[int, Prediction],
    noise: Callable[[int], Tensor] | None,
    new: int,
) -> Tensor:
    terms = [(a, states[i]) for i, a in row.states]
    terms += [(b, predictions[i].x0) for i, b in row.x0]
    terms += [(c, predictions[i].eps) for i, c in row.eps]
    terms = [(c, tensor) for c, tensor in terms if c]
    if terms:
        out = torch.mul(terms[0][1], terms[0][0])
    else:  # nothing but noise: a step up to α = 0
        out = torch.zeros_like(next(iter(states.values())))
    for coefficient, tensor in terms[1:]:
        out.add_(tensor, alpha=coefficient)
    if not row.noise or noise is None:
        return out
    z = noise(new)
    var = predictions[row.needs[-1]].var if row.needs else None
    if var is None or row.noise_max is None:
        return out.add_(z, alpha=row.noise)
    return out.addcmul_(z, row.noise * (row.noise_max / row.noise) ** var)


def final(steps: Iterator[Step]) -> tuple[Tensor, ...]:
    """Run to the end and return the tableau's outputs, without keeping anything in between."""
    outputs: tuple[Tensor, ...] = ()
    for step in steps:
        outputs = step.outputs
    return outputs
