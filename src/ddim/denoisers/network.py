"""Denoisers: from a state and its noise level to a prediction of the clean image and the noise."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ddim.base.device import out_of_memory
from ddim.base.errors import InputError, RunError, quoted
from ddim.denoisers.prediction import Prediction
from ddim.denoisers.target import Target
from ddim.nets.unet import UNet, in_parts
from ddim.noise.schedule import Level

__all__ = ["NetworkDenoiser", "ask", "tensor_of"]


class NetworkDenoiser:
    """A network, and what it outputs, as a denoiser.

    Of a :class:`~ddim.nets.unet.UNet` everything that depends on the time alone is computed once
    for each level, however many batches pass through.

    Args:
        net: called as ``net(x, t)`` or ``net(x, t, labels)`` with t of shape (N,), int64 where
            the level's time is whole; returns the shape of x, or twice its channels, of which the
            second half interpolates a learned variance: v = (output + 1)/2 (Nichol and Dhariwal
            2021, equation 15). The first of a tuple and the ``.sample`` of an object are taken
            for it. State and output are copied, so that a network may work in place.
        target: what the output means.
        labels: class indices, shape (N,), for a class-conditional network.
        condition: tensors that the network takes by name, a row for each state.
        grad: let gradients through, to the state and to the network's parameters. Without it
            a state that asks for them is refused, because what came back would be wrong.
        engine: what runs the network in place of torch; called as a UNet's ``conditioned``, or as
            any other network.
    """

    def __init__(
        self,
        net: nn.Module | Callable[..., object],
        target: Target | str = Target.EPS,
        labels: Tensor | None = None,
        condition: Mapping[str, Tensor] | None = None,
        *,
        grad: bool = False,
        engine: Callable[..., Tensor] | None = None,
    ) -> None:
        self.net, self.engine = net, engine
        self._weights = [] if engine is None else _versions(net)
        self.target = Target.named(target)
        self.labels, self.condition = labels, dict(condition or {})
        self.grad = grad
        self._memo = _Memo()

    def given(
        self, labels: Tensor | None, condition: Mapping[str, Tensor] | None = None
    ) -> NetworkDenoiser:
        """The same network for another condition, sharing what was computed for the times."""
        other = NetworkDenoiser(
            self.net, self.target, labels, condition, grad=self.grad, engine=self.engine
        )
        other._memo, other._weights = self._memo, self._weights
        return other

    def followed_by(self, other: NetworkDenoiser) -> NetworkDenoiser:
        """The same network for these images and then as many of another condition, in one call."""
        labels = self.labels
        if labels is not None and other.labels is not None:
            labels = torch.cat([labels, other.labels])
        condition = {
            name: torch.cat([value, other.condition[name]])
            for name, value in self.condition.items()
        }
        return self.given(labels, condition)

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict; see :class:`Denoiser`.

        Raises:
            InputError: as :func:`ask`, or a state that asks for a gradient which this denoiser
                does not let through.
        """
        if self.grad:
            return self._predict(x, level)
        if x.requires_grad and torch.is_grad_enabled():
            raise InputError(
                "this denoiser lets no gradients through, and the state asks for them: make it "
                "with grad=True, or detach the state"
            )
        with torch.no_grad():
            return self._predict(x, level)

    def _predict(self, x: Tensor, level: Level) -> Prediction:
        dtype = _precision(self.net)
        output = self._output(x if dtype is None else x.to(dtype), level.t).to(x.dtype)
        var = None
        if output.shape != x.shape:
            output, var = output.chunk(2, dim=1)
            var = (var + 1) / 2
        x0, eps = self.target.split(output, x, level)
        return Prediction(x0, eps, var)

    def _output(self, x: Tensor, t: float) -> Tensor:
        if self.engine is not None and self._weights != _versions(self.net):
            raise RunError(
                "the network's weights have changed since this denoiser was made, and its back end "
                "has the earlier ones: make it again"
            )
        if in_parts(self.net):
            # Those of an engine are the weights of when it was made.
            kept = self._memo.of(self.net) if self.engine is None else self._memo.kept
            embedding = kept.get(t)
            if embedding is None:
                time = torch.full((1,), t, device=x.device)  # no copy from the host
                embedding = self.net.embed(time)
                if not self.net.config.has_classes:
                    embedding = self.net.condition(embedding)
                if not embedding.requires_grad:
                    kept[t] = embedding
            if self.net.config.has_classes or self.labels is not None:
                embedding = self.net.condition(embedding, self.labels)
            return (self.engine or self.net.conditioned)(x, embedding)
        fine = torch.float64 if x.dtype is torch.float64 else torch.float32
        time = torch.full((x.shape[0],), t, device=x.device, dtype=fine)
        if t == int(t):
            time = time.long()
        labels = () if self.labels is None else (self.labels,)
        return ask(self.engine or self.net, x, time, *labels, **self.condition)


class _Memo:
    """What a network makes of the times, as long as its weights stay as they are."""

    def __init__(self) -> None:
        self.net: UNet | None = None
        self.layers: list[nn.Linear] = []
        self.weights: list[Tensor] = []
        self.mark: object = None
        self.kept: dict[float, Tensor] = {}

    def of(self, net: UNet) -> dict[float, Tensor]:
        if net is not self.net:
            self.net, self.layers = net, net.time_layers()
        every = (p for layer in self.layers for p in layer._parameters.values())
        weights: list[Tensor] = [p for p in every if p is not None]
        # Changed in place, moved, or others; held, so that no other takes the place of one. Moving
        # a network, to a device or a precision, moves the memory of its weights.
        same = len(weights) == len(self.weights) and all(map(operator.is_, weights, self.weights))
        mark = (
            [0 if w.is_inference() else w._version for w in weights],
            [(w.data_ptr(), w.requires_grad) for w in weights],
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
        )
        if not same or mark != self.mark:
            # In this order: threads that share it never take what was kept for other weights.
            self.kept, self.weights, self.mark = {}, weights, mark
        return self.kept


def _versions(net: object) -> list[int]:
    """What changes with a network's weights."""
    weights = net.parameters() if isinstance(net, nn.Module) else ()
    return [0 if w.is_inference() else w._version for w in weights]


def _precision(net: object) -> torch.dtype | None:
    """The type of the first of a network's parameters that are floating-point numbers."""
    if not isinstance(net, nn.Module):
        return None
    return next((p.dtype for p in net.parameters() if p.is_floating_point()), None)


def ask(
    net: Callable[..., object], x: Tensor, time: Tensor, *labels: Tensor, **named: Any
) -> Tensor:
    """What a network of anybody's says to a state.

    Args:
        net: the network.
        x: the state, shape (N, C, *); the network is given a copy, which it may change.
        time: shape (N,).
        labels: what else it takes by place.
        named: what it takes by name.

    Returns:
        a tensor of its own, the shape of x or twice its channels.

    Raises:
        InputError: the network fails on what it is given, changes what it is given by name or as
            labels, or returns no floating-point tensor of such a shape.
    """
    leaves = pytree.tree_leaves((labels, named)) if labels or named else []
    beside = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    before = [0 if v.is_inference() else v._version for v in beside]
    try:
        output = tensor_of(net(x.clone(), time, *labels, **named))
    except (InputError, RunError):
        raise
    except (RuntimeError, TypeError, IndexError) as error:
        if out_of_memory(error):
            raise
        raise InputError(
            f"the network fails on a state of {tuple(x.shape)} and {x.dtype}, with times of "
            f"{time.dtype}: {quoted(str(error))}; a model's time, time_dtype, labels_as and "
            "arguments say how its network is called, and the tensors of a condition what differs "
            "between images"
        ) from error
    if before != [0 if v.is_inference() else v._version for v in beside]:
        raise InputError(
            "the network changes its labels, conditions or arguments in place, and would be given "
            "them changed at the next step: let it copy them first"
        )
    twice = (x.shape[0], 2 * x.shape[1], *x.shape[2:])
    if output.shape != x.shape and output.shape != twice:
        raise InputError(
            f"the network returned {tuple(output.shape)} for a state of {tuple(x.shape)}"
        )
    if not output.is_floating_point():
        raise InputError(f"the network returned {output.dtype}, not floating-point numbers")
    return output.clone()


def tensor_of(output: object) -> Tensor:
    """The tensor in what a network returned: itself, the first of a tuple, or ``.sample``.

    Raises:
        InputError: there is none.
    """
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        output = getattr(output, "sample", output)
    if not isinstance(output, Tensor):
        raise InputError(
            f"the network returned a {type(output).__name__}, not a tensor, a tuple that begins "
            "with one, or an object with one as .sample"
        )
    return output
