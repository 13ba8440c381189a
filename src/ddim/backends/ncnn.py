"""The UNet run by ncnn, whose Winograd convolutions are faster on a CPU than torch's.

The network is written for ncnn from its modules, in memory, and all arithmetic is float32.

References:
    Lavin, Gray, *Fast Algorithms for Convolutional Neural Networks*, 2015,
    https://arxiv.org/abs/1509.09308.
    ncnn, https://github.com/Tencent/ncnn.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddim.backends.ncnn_graph import UNetGraph
from ddim.base.errors import InputError, RunError
from ddim.nets.unet import UNet

__all__ = ["NcnnUNet", "changed", "unsupported"]


def unsupported(net: nn.Module) -> str | None:
    """Why :class:`NcnnUNet` cannot run a network, or None; ncnn need not be installed for it.

    It runs the network of every :class:`~ddim.nets.unet.UNetConfig`. What it cannot are weights
    that are not float32 on a CPU, and modules that were changed since or have hooks.
    """
    reason = changed(net)
    if reason is not None:
        return reason
    for name, parameter in net.named_parameters():
        if parameter.dtype != torch.float32:
            return f"{name} is {str(parameter.dtype).removeprefix('torch.')}, not float32"
        if parameter.device.type != "cpu":
            return f"{name} is on {parameter.device}, not on the CPU"
    return None


def changed(net: nn.Module) -> str | None:
    """In what a network is not the one that its configuration makes, weights apart; None if it is.

    Args:
        net: a :class:`~ddim.nets.unet.UNet`; of another network it says so.
    """
    if type(net) is not UNet:
        return f"it is a {type(net).__name__}, not a UNet of this library"
    with torch.device("meta"):
        made = dict(UNet(net.config).named_modules())
    found = dict(net.named_modules())
    for name in {**made, **found}:
        was, now = (_said(modules.get(name)) for modules in (made, found))
        if was != now:
            return f"{name} is {now}, and was made as {was}"
    for name, module in found.items():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name or 'it'} has a forward hook"
        if "forward" in vars(module):
            return f"{name or 'it'} has a forward of its own"
    return None


def _said(module: nn.Module | None) -> str:
    """A module's kind and settings."""
    return "absent" if module is None else f"{type(module).__name__}({module.extra_repr()})"


class NcnnUNet:
    """A UNet with the weights that it has now, for images of one size, run by ncnn on one thread.

    Images go through it one after another, so that what becomes of one does not depend on the
    batch. Threads of Python may call it at once: it holds the interpreter between images only.

    Args:
        net: a network that :func:`unsupported` says None of; its weights are copied.
        size: height and width of the images, divisible by 2^(levels - 1).

    Raises:
        InputError: a network or a size that it cannot run, or ncnn is not installed.
        RunError: ncnn did not read the network.
    """

    name = "ncnn"

    def __init__(self, net: UNet, size: tuple[int, int]) -> None:
        if reason := unsupported(net):
            raise InputError(f"ncnn cannot run this network: {reason}")
        height, width = size
        divisor = 2 ** (len(net.config.block_out_channels) - 1)
        if min(size) < 1 or height % divisor or width % divisor:
            raise InputError(
                f"images of {height}×{width} do not go through this network: height and width "
                f"must be multiples of {divisor}"
            )
        try:
            ncnn: Any = import_module("ncnn")
        except ImportError:
            raise InputError("ncnn is not installed: pip install 'ddim[fast]'") from None
        graph = UNetGraph(net, size)
        self._mat = ncnn.Mat
        self._net = ncnn.Net()
        _set_options(self._net.opt)
        if failed := self._net.load_param_mem(graph.text()):
            raise RunError(f"ncnn did not read the network, with its code {failed}")
        self._net.load_model_mem(b"".join(graph.weights))
        self._centered = net.config.center_input_sample
        self._image = (net.config.in_channels, height, width)
        self._result = (net.config.out_channels, height, width)
        self._columns = graph.columns

    @torch.no_grad()
    def __call__(self, x: Tensor, cond: Tensor) -> Tensor:
        """What ``net.conditioned(x, cond)`` returns in evaluation mode, without gradients.

        Args:
            x: float32 on the CPU, shape (N, in_channels, H, W).
            cond: what ``net.condition`` returned, float32 on the CPU, shape (N, D) or (1, D).

        Returns:
            float32, shape (N, out_channels, H, W).

        Raises:
            InputError: another shape, dtype or device.
            RunError: ncnn failed, as it does when memory ends.
        """
        count = len(x)
        _check("x", x, (count, *self._image))
        _check("cond", cond, (1 if len(cond) == 1 else count, self._columns))
        images = (2 * x - 1 if self._centered else x).contiguous().numpy()
        rows = cond.contiguous().numpy()
        results = np.empty((count, *self._result), np.float32)
        for i in range(count):
            extractor = self._net.create_extractor()
            # A Mat points into its array and does not keep it: `images` and `rows` do.
            extractor.input("x", self._mat(images[i]))
            extractor.input("cond", self._mat(rows[i % len(rows)]))
            failed, result = extractor.extract("y")
            if failed:
                raise RunError(f"ncnn failed, with its code {failed}")
            results[i] = result
        return torch.from_numpy(results)


def _check(name: str, given: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse what ncnn would read beyond the end of."""
    if given.shape != shape or given.dtype != torch.float32 or given.device.type != "cpu":
        raise InputError(
            f"{name} must be float32 on the CPU, of shape {shape}, not {given.dtype} on "
            f"{given.device}, of shape {tuple(given.shape)}"
        )


def _set_options(options: Any) -> None:
    """One thread and float32 throughout, whatever ncnn would choose on this machine."""
    options.num_threads = 1
    options.lightmode = True
    options.use_vulkan_compute = False
    for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage"):
        setattr(options, f"use_{name}", False)
    options.use_winograd_convolution = True
    # Tiles of 6×6 are four times less exact than those of 4×4, and not faster.
    options.use_winograd63_convolution = False
