"""The modules that become ONNX graphs: a network, and a sampler that calls one it knows by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ddim.base.errors import InputError, quoted
from ddim.denoisers.conventions import Adapted
from ddim.denoisers.network import NetworkDenoiser, tensor_of
from ddim.model.condition import Condition
from ddim.model.identity import bare
from ddim.model.model import Model
from ddim.noise.draws import Noise
from ddim.samplers.loop import final, integrate
from ddim.samplers.tableau import Tableau

__all__ = ["NetworkAlone", "Sampling", "condition_of", "injecting", "noise_inputs"]

Call = Callable[[Sequence[Tensor], Sequence[int]], Tensor]
"""A network outside the graph: its inputs, and the shape of what it returns."""


def condition_of(model: Model, given: Condition, n: int, taken: Sequence[str]) -> Condition:
    """A condition of n images, whose tensors' rows repeat; all classes in turn.

    Args:
        model: what it is checked against.
        given: the condition.
        n: how many images.
        taken: names that a tensor cannot have.

    Raises:
        InputError: as :meth:`ddim.Condition.check`, a tensor without rows or with a taken name.
    """
    tensors = {}
    for name, value in given.tensors.items():
        if name in taken:
            raise InputError(f"a graph has an input {quoted(name)} of its own: rename the tensor's")
        if value.ndim == 0 or len(value) == 0:
            raise InputError(f"the condition {name} has no row, which would say its shape")
        kind = torch.float32 if value.is_floating_point() else value.dtype
        tensors[name] = value[torch.arange(n) % len(value)].to("cpu", kind)
    return given.replace(tensors=tensors).check(model, n, every_class=True)


def injecting(tableau: Tableau) -> list[int]:
    """The states that noise is added to, in order."""
    first = len(tableau.initial)
    return [first + n for n, row in enumerate(tableau.rows) if row.noise]


class NetworkAlone(nn.Module):
    """A network called by place, as ``net(x, t)`` with labels and tensors in a known order.

    Args:
        model: whose network it is.
        names: of what it takes after the time; ``labels`` first for a class-conditional model.
        own: whether states and times are the network's own instead of [-1, 1] and k - 1.
    """

    def __init__(self, model: Model, names: Sequence[str], *, own: bool) -> None:
        super().__init__()
        self.network = bare(model.network)
        self.names, self.own, self.classes = tuple(names), own, model.classes is not None

    def forward(self, *inputs: Tensor) -> Tensor:
        """What it says to x and t, of the shape of x or twice its channels."""
        x, t, *rest = inputs
        named = dict(zip(self.names, rest, strict=True))
        labels = named.pop("labels") if self.classes else None
        if self.own and isinstance(self.network, Adapted):
            return self.network.call(x, t, labels, named)
        beside = () if labels is None else (labels,)
        return tensor_of(self.network(x.clone(), t, *beside, **named))


class Sampling(nn.Module):
    """A sampler from noise to images, by the one loop, with the network outside.

    Args:
        model: the model.
        tableau: with one initial state.
        given: guidance, clipping and null values; its tensors are those of the inputs' names.
        call: the network.
        channels: of what the network returns.
        fractional: whether it takes all times as float32, because some are between nodes.
    """

    def __init__(
        self,
        model: Model,
        tableau: Tableau,
        given: Condition,
        call: Call,
        channels: int,
        *,
        fractional: bool,
    ) -> None:
        super().__init__()
        # In a list, because the graph shall not have the network's weights.
        self.parts = [model]
        self.tableau, self.given, self.call = tableau, given, call
        self.channels, self.fractional = channels, fractional
        self.order = {state: j for j, state in enumerate(injecting(tableau))}
        self.null: dict[str, Tensor] = {}
        if given.guidance != 1:
            known = {**model.null, **given.null}.keys() & given.tensors.keys()
            free = given.without(model).tensors
            self.null = {name: free[name][:1] for name in sorted(known)}

    def forward(self, *given: Tensor) -> Tensor:
        """The images of noise, step noise, labels and tensors, of those that there are."""
        model, tableau, inputs = self.parts[0], self.tableau, list(given)
        noise = inputs.pop(0)
        injected = inputs.pop(0) if self.order else None
        labels = inputs.pop(0) if model.classes is not None else None
        tensors = dict(zip(self.given.tensors, inputs, strict=True))

        def step_noise(state: int) -> Tensor:
            assert injected is not None
            return injected[self.order[state]]

        network = NetworkDenoiser(self._ask, model.target, grad=True)
        null = None
        if self.given.guidance != 1:
            none = None if labels is None else torch.full_like(labels, model.null_label or 0)
            rows = {name: row.expand_as(tensors[name]) for name, row in self.null.items()}
            null = network.given(none, {**tensors, **rows})
        denoiser = model.wrap(network.given(labels, tensors), null, self.given)
        return final(integrate(denoiser, tableau, tableau.start(noise), step_noise))[0]

    def _ask(self, x: Tensor, t: Tensor, *labels: Tensor, **named: Tensor) -> Tensor:
        t = t.float() if self.fractional else t
        inputs = [x, t, *labels, *(named[name] for name in self.given.tensors)]
        return self.call(inputs, (x.shape[0], self.channels, *x.shape[2:]))


def noise_inputs(model: Model, tableau: Tableau, n: int) -> dict[str, Tensor]:
    """The noise of the first n images of seed 0, as the inputs of a sampler's graph."""
    noise = Noise(0, range(n), model.shape)
    inputs: Mapping[str, Tensor] = {"noise": noise(0)}
    if states := injecting(tableau):
        return {**inputs, "step_noise": torch.stack([noise(state) for state in states])}
    return dict(inputs)
