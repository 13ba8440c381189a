"""torch.compile in place of torch: any network that it can compile whole, on CUDA."""

from __future__ import annotations

import threading
import types
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddim.backends.exactness import distance, tolerance
from ddim.base.errors import InputError, RunError, quoted
from ddim.denoisers.network import tensor_of
from ddim.nets.unet import UNet

__all__ = ["Compiled", "caller"]

MODE = "default"
"""torch.compile's; ``max-autotune-no-cudagraphs`` tries more kernels, for minutes."""


class Compiled:
    """A network by ``torch.compile``; see :class:`~ddim.backends.choice.Engine`.

    It is compiled for the shapes that it is called with, which takes a minute; inductor's own cache
    keeps the kernels. The first answer for new shapes is compared with torch's. Weights are read at
    every call, so that changed ones and others in their place are seen. Answers come in the
    network's own type.

    Args:
        net: the network.

    Raises:
        InputError: at a call, for a network that cannot be compiled as one graph.
        RunError: at a call, for an answer that is not torch's.
    """

    name = "compile"

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._lock = threading.Lock()
        self._compiled: dict[object, Callable[..., Tensor]] = {}

    def __call__(self, x: Tensor, *inputs: Tensor, **named: Tensor) -> Tensor:
        """The answer; see :class:`~ddim.backends.choice.Engine`."""
        given = [*inputs, *(named[name] for name in sorted(named))]
        shapes = [(value.shape, value.dtype) for value in (x, *given)]
        key = len(inputs), tuple(sorted(named)), tuple(shapes)
        call = self._compiled.get(key)
        if call is not None:
            return call(x, *inputs, **named)
        with self._lock:
            call = _compile(caller(self.net))
            try:
                with warnings.catch_warnings():  # of torch, about torch
                    warnings.simplefilter("ignore")
                    found = call(x, *inputs, **named)
            except (InputError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # of dynamo, inductor or Triton, which share no class
                kind = type(self.net).__name__
                raise InputError(
                    f"torch cannot compile this {kind}: {quoted(str(error))}; use the back end "
                    "torch"
                ) from error
            off = distance([found], [caller(self.net)(x, *inputs, **named)])
            if not off <= tolerance(self.net):
                raise RunError(
                    f"the compiled network's answer is {off:.1e} away from torch's, of the largest "
                    f"number in it, and not within {tolerance(self.net):.0e}: use the back end "
                    "torch"
                )
            self._compiled[key] = call
        return found


def caller(net: nn.Module) -> Callable[..., Tensor]:
    """What an engine is called as: a UNet's ``conditioned``, or any other network itself."""
    run = net.conditioned if isinstance(net, UNet) else net

    def call(x: Tensor, *inputs: Tensor, **named: Tensor) -> Tensor:
        return tensor_of(run(x, *inputs, **named))

    return call


def _compile(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # Dynamo keeps what it compiles with the code, eight at most for all shapes and networks
    # together, after which it runs them slowly and says nothing: each gets code of its own.
    assert isinstance(call, types.FunctionType)
    own = types.FunctionType(
        call.__code__.replace(), call.__globals__, call.__name__, None, call.__closure__
    )
    return torch.compile(own, fullgraph=True, dynamic=False, mode=MODE)
