"""A run of a tableau on one batch: step by step, or as a function that a graph repeats."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddim.denoisers.inpainting import Inpaint
from ddim.denoisers.network import NetworkDenoiser
from ddim.denoisers.prediction import Denoiser
from ddim.model.condition import Condition
from ddim.model.model import Inputs, Model
from ddim.noise.draws import DeviceNoise
from ddim.samplers.loop import Step, integrate
from ddim.samplers.tableau import Tableau

__all__ = ["Begun", "Rollout"]


class Begun(NamedTuple):
    """What the images of a batch begin with, where the network is.

    Attributes:
        start: the initial states, each of shape (N, C, H, W); none for noise.
        known: images of that shape and a mask, true where they are kept; none to keep nothing.
    """

    start: tuple[Tensor, ...] = ()
    known: tuple[Tensor, ...] = ()


@dataclasses.dataclass(frozen=True)
class Rollout:
    """A tableau on a model.

    Attributes:
        model: the model.
        tableau: the rows.
        condition: whose guidance and clipping are taken; labels and tensors are the batch's.
        dtype: of the states.
    """

    model: Model
    tableau: Tableau
    condition: Condition
    dtype: torch.dtype

    @functools.cached_property
    def key(self) -> str:
        """Of all that is not in the model or in a batch, to the last bit, in hexadecimal."""
        states = *self.tableau.initial, *self.tableau.rows
        rows = [dataclasses.astuple(state) for state in states], self.tableau.returns
        own = self.condition
        rest = self.dtype, own.guidance, own.rescale, own.clip
        return hashlib.sha256(repr((rows, rest)).encode()).hexdigest()

    def begin(
        self,
        positions: Sequence[int],
        start: Sequence[Tensor] | None,
        known: Sequence[Tensor] | None,
    ) -> Begun:
        """What some of the images begin with.

        Args:
            positions: which of them.
            start: initial states of all of them; None for noise.
            known: images and a mask of all of them; None to keep nothing.
        """
        device = self.model.device
        states = [] if start is None else [s[positions].to(device, self.dtype) for s in start]
        if known is None:
            return Begun(tuple(states))
        images, mask = (part[positions].to(device) for part in known)
        return Begun(tuple(states), (images.to(self.dtype), mask))

    def steps(
        self, denoiser: Denoiser, begun: Begun, noise: Callable[[int], Tensor]
    ) -> Iterator[tuple[Step, tuple[Tensor, ...], Tensor]]:
        """Each step, after the last one what the tableau returns, and how long it was finite.

        The last is of each image the number of steps before a prediction was not, shape (N,).

        Args:
            denoiser: for the batch.
            begun: what its images begin with.
            noise: theirs.
        """
        if begun.known:
            denoiser = Inpaint(denoiser, *begun.known)
        x = list(begun.start) or [self.tableau.start(noise(0))]
        # Zero for each image, NaN once anything predicted for it is not finite, which a step may
        # leave out. Nothing waits for a GPU here.
        ones = (1,) * (x[0].ndim - 1)
        sound = torch.zeros(len(x[0]), *ones, device=x[0].device, dtype=self.dtype)
        count = torch.zeros(len(x[0]), device=x[0].device, dtype=torch.int32)
        for step in integrate(denoiser, self.tableau, x, noise):
            if step.prediction is not None:
                sound = sound + (step.prediction.x0 * 0).flatten(1).sum(1).view_as(sound)
            count = count + (sound == 0).flatten()
            outputs = tuple(torch.where(sound == 0, end, torch.nan) for end in step.outputs)
            if outputs and begun.known:
                # Methods that mix two states in the end keep the known part only nearly.
                images, mask = begun.known
                outputs = (torch.where(mask, images, outputs[0]), *outputs[1:])
            yield step, outputs, count

    def ends(self, tensors: tuple[Tensor, Inputs, Begun]) -> tuple[Tensor, ...]:
        """What the tableau returns, by plain torch; nothing of it needs the host.

        Args:
            tensors: the words of :class:`~ddim.noise.draws.DeviceNoise`, what
                :meth:`~ddim.Model.inputs` makes of the batch's condition, and what it begins with.
        """
        words, inputs, begun = tensors
        # One of its own: what it makes of the times is to be made again whenever a graph runs,
        # which then reads the weights as they are.
        network = NetworkDenoiser(self.model.network, self.model.target)
        denoiser = self.model.denoiser_of(inputs, self.condition, network)
        noise = DeviceNoise(words, self.model.shape, self.dtype)
        ends = [ends for _, ends, _ in self.steps(denoiser, begun, noise) if ends]
        return ends[0]

    def end(self, outputs: tuple[Tensor, ...]) -> Step:
        """The last step, of which nothing is known but what came out."""
        rows = self.tableau.rows
        return Step(len(rows) - 1, len(rows), rows[-1], outputs[0], None, outputs)
