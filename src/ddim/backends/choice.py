"""Which back end runs a network: a name, or the fastest exact one that this machine has."""

from __future__ import annotations

import importlib.util
import logging
import zlib
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ddim.backends import ncnn, openvino
from ddim.backends.compiled import Compiled
from ddim.backends.exactness import distance, tolerance
from ddim.backends.graphs import CudaGraphs
from ddim.backends.names import BACKENDS
from ddim.base.errors import InputError, RunError, unknown
from ddim.nets.unet import UNet, in_parts
from ddim.noise.draws import Noise

__all__ = ["Engine", "checksum", "choose", "is_torchs", "standing"]

log = logging.getLogger("ddim")

ON_CUDA = ("cuda-graph", "compile")
SMALL = 2**18
"""Parameters below which a call takes a millisecond or two, and nothing gains on torch."""


class Engine(Protocol):
    """What runs a network in place of plain torch; several threads may call it at once."""

    @property
    def name(self) -> str:
        """The back end's."""
        ...

    def __call__(self, *inputs: Any, **named: Any) -> Tensor:
        """What the network says to a state, which comes first, float32 of shape (N, C, *).

        The inputs of a :class:`~ddim.nets.unet.UNet` are those of its ``conditioned``; of any other
        network those of the network.
        """
        ...


def choose(
    name: str, net: nn.Module, shape: tuple[int, ...], device: torch.device
) -> Engine | None:
    """What runs a network; None for plain torch.

    ``auto`` is the fastest back end that was measured and is exact to rounding, or, of a network in
    bfloat16, as exact as that: ncnn, then OpenVINO, for a :class:`~ddim.nets.unet.UNet` of more
    than 2¹⁸ parameters on a CPU. On CUDA, where nothing was measured yet, it is plain torch. It
    depends on network, device and installed packages alone.

    Args:
        name: one of :data:`~ddim.backends.names.BACKENDS`.
        net: the network, in evaluation mode.
        shape: of one image.
        device: where the network is.

    Raises:
        InputError: an unknown name, or one that cannot run this network here.
        RunError: a back end that was asked for by name, and whose answer is not torch's.
    """
    if name not in BACKENDS:
        raise unknown("backend", name, BACKENDS)
    if name == "auto":
        return _fastest(net, shape, device)
    if name == "torch":
        return None
    why = _why_not(name, net, device)
    if why is not None:
        raise InputError(f"the back end {name} {why}")
    if name in ON_CUDA:  # they compare their first answers with torch's themselves
        return Compiled(net) if name == "compile" else CudaGraphs(net)
    engine = _made(name, net, shape)
    off = _distance(engine, net, shape)
    if not off <= tolerance(net):
        raise RunError(
            f"{name}'s answer is {off:.1e} away from torch's, of the largest number in it: use the "
            "back end torch"
        )
    return engine


def is_torchs(name: str, net: nn.Module, device: torch.device) -> bool:
    """Whether a back end's name stands for plain torch whatever is installed."""
    if name != "auto":
        return name == "torch"
    return device.type != "cpu" or type(net) is not UNet or net.config.parameters < SMALL


def _fastest(net: nn.Module, shape: tuple[int, ...], device: torch.device) -> Engine | None:
    if is_torchs("auto", net, device):
        return None
    for name in ("ncnn", "openvino"):
        if _why_not(name, net, device) is not None:
            continue
        try:
            engine = _made(name, net, shape)
            off = _distance(engine, net, shape)
        except (InputError, RunError) as error:
            log.warning("%s is not used: %s", name, error)
            continue
        if off <= tolerance(net):
            return engine
        log.warning("%s's answer is %.1e away from torch's, and is not used", name, off)
    return None


def _why_not(name: str, net: nn.Module, device: torch.device) -> str | None:
    """Why a back end cannot run a network here, as the rest of a sentence."""
    where = "cuda" if name in ON_CUDA else "cpu"
    if device.type != where:
        return f"is for {'CUDA' if where == 'cuda' else 'the CPU'}, not for {device}"
    if name == "ncnn":
        if importlib.util.find_spec("ncnn") is None:
            return "is not installed: pip install 'ddim[fast]'"
        reason = ncnn.unsupported(net)
        return None if reason is None else f"cannot run this network: {reason}"
    return openvino.why_not(net) if name == "openvino" else None


def standing(net: nn.Module, device: torch.device) -> dict[str, str | None]:
    """Of each back end why it cannot run a network here, as part of a sentence; None if it can."""
    return {n: None if n == "torch" else _why_not(n, net, device) for n in BACKENDS if n != "auto"}


def _made(name: str, net: nn.Module, shape: tuple[int, ...]) -> Engine:
    if name == "ncnn":
        assert isinstance(net, UNet)  # it runs no other
        return ncnn.NcnnUNet(net, (shape[1], shape[2]))
    return openvino.OpenVINO(net, torch.get_num_threads(), tolerance(net))


@torch.no_grad()
def _distance(engine: Engine, net: nn.Module, shape: tuple[int, ...]) -> float:
    """How far the answer to noise is from torch's, of the largest number in that; 0 unless a UNet.

    What any other network takes beside its state is not known here; its engine compares the first
    answers that it gives.
    """
    if not in_parts(net):
        return 0.0
    dtype = net.conv_in.weight.dtype
    x = Noise(0, [0], shape, dtype=dtype)(0)
    labels = None
    if net.config.has_classes:
        kind = net.config.class_embed_type
        size = (net.time_layers()[0].out_features,) if kind == "identity" else ()
        labels = torch.zeros(1, *size, dtype=torch.long if kind is None else dtype)
    cond = net.condition(net.embed(torch.full((1,), 100.0)), labels)
    return distance([engine(x, cond)], [net.conditioned(x, cond)])


def checksum(net: nn.Module) -> int:
    """A number that changes with a network's weights and structure, however they were changed.

    Not its identity, but quick: a second for some three billion bytes.
    """
    total = 0
    for name, module in net.named_modules():
        own = vars(module)
        hooks = *module._forward_hooks, 0, *module._forward_pre_hooks
        kind = name, id(type(module)), id(own.get("forward")), hooks, module.extra_repr()
        total = hash((total, kind))
    for value in (*net.parameters(), *net.buffers()):
        # By NumPy, since torch's threads do not come along into a forked process.
        plain = value.detach().cpu()
        data = plain.view(_BITS[min(plain.element_size(), 8)]).numpy().ravel(order="K")
        total = hash((total, value.data_ptr(), zlib.crc32(data.data)))
    return total


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
