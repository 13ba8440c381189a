"""A table of numbers run by a program that calls the network itself, one call after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ddim.base.errors import InputError
from ddim.denoisers.prediction import Prediction
from ddim.noise.schedule import Level
from ddim.samplers.loop import Request, Step, run
from ddim.samplers.tableau import Tableau

__all__ = ["Draw", "Run", "call_times", "calls_a_step", "noise_of"]

Draw = Callable[[], Tensor]
"""Standard normal noise of the states' shape, anew at every call."""


class Run:
    """One run of a table.

    Args:
        tableau: with one initial state.
        x: that state, shape (N, *).
        draw: the noise that rows before the first call draw.
    """

    def __init__(self, tableau: Tableau, x: Tensor, draw: Draw) -> None:
        self._draw = draw
        self._steps = run(tableau, x, lambda state: self._draw())
        self._asked = self._go_on(next(self._steps))[0]

    @property
    def level(self) -> Level | None:
        """The level at which the network is to be called; None at the end."""
        return None if self._asked is None else self._asked.level

    def answer(self, prediction: Prediction, sample: Tensor, draw: Draw) -> Tensor:
        """Take what the network says, and return the next state that it is asked about.

        Args:
            prediction: from ``sample``.
            sample: the state, which the program may have changed since it was handed out.
            draw: the noise that the rows up to the next call draw.

        Returns:
            shape (N, *); at the end the result.
        """
        assert self._asked is not None
        # What the program did to the state in between, such as inpainting, is kept.
        self._asked.x.copy_(sample)
        self._draw = draw
        self._asked, state = self._go_on(self._steps.send(prediction))
        return state

    def _go_on(self, event: Request | Step | None) -> tuple[Request | None, Tensor]:
        """To the next state that the network must see, or to the result."""
        assert event is not None
        while isinstance(event, Step):
            result = event
            event = next(self._steps, None)
            if event is None:
                return None, result.outputs[0]
        # A copy: the state itself takes what the program makes of it, this stays what it is.
        return event, event.x.clone()


def noise_of(sample: Tensor, generator: Any, given: Tensor | None) -> Draw:
    """The noise of one step: what was given, once, or else diffusers' from a generator."""
    from diffusers.utils.torch_utils import randn_tensor

    rest = [] if given is None else [given.to(sample)]

    def draw() -> Tensor:
        if given is None:
            shape, device, dtype = sample.shape, sample.device, sample.dtype
            return randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        if not rest:
            raise InputError("this step draws noise twice, and variance_noise is given once")
        return rest.pop()

    return draw


def call_times(tableau: Tableau) -> list[float]:
    """The times at which the network is called, in order."""
    return [level.t for level in map(tableau.at, tableau.evaluated) if level is not None]


def calls_a_step(tableau: Tableau, nodes: Sequence[int]) -> int:
    """Network calls of a step but the last; 1 where steps have not as many each."""
    times = call_times(tableau)
    calls = -(-len(times) // (len(nodes) - 1))
    firsts = times[::calls]
    regular = len(firsts) == len(nodes) - 1 and all(
        abs(k - 1 - t) <= 0.5 for k, t in zip(nodes, firsts, strict=False)
    )
    return calls if regular else 1
