"""A network, or a whole sampler from noise to images, as one ONNX file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddim import __version__
from ddim.base.display import shown
from ddim.base.errors import InputError
from ddim.base.files import replacing
from ddim.interop import graph
from ddim.interop.plan import Plan
from ddim.model.condition import Condition
from ddim.model.inputs import whole
from ddim.model.model import Model
from ddim.samplers.sampler import Sampler

__all__ = ["LARGEST", "OPSET", "OnnxExport", "export_onnx"]

OPSET = 18
"""The version of ONNX's operators, which every runtime since 2023 has."""

LARGEST = 2_000_000_000
"""Bytes of weights that fit into one file, whose format ends at 2 GiB."""

TOLERANCE = 1e-3
"""The largest difference that passes for rounding, as a share of the largest value: a first step
from α = 0.006 makes 1e-4 of float32's last bits."""


@shown
@dataclasses.dataclass(frozen=True)
class OnnxExport:
    """What was written.

    Attributes:
        path: the file.
        size: its bytes.
        inputs: what each input of the graph is, by name.
        output: what comes out: ``images`` or ``prediction``.
        sampler: what was written; None for the network alone.
        calls: network calls for one image.
        error: the largest difference from :func:`ddim.sample`, or from the network, in
            onnxruntime; None where that is not installed.
    """

    path: Path
    size: int
    inputs: Mapping[str, str]
    output: str
    sampler: Sampler | None
    calls: int
    error: float | None


def export_onnx(
    model: Model,
    path: Path | str,
    method: str | Sampler | None = "ddim",
    *,
    steps: int | None = None,
    nodes: str | Sequence[int] | None = None,
    condition: Condition | Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    opset: int = OPSET,
    **options: object,
) -> OnnxExport:
    """Write a network with its sampler as one ONNX graph, from noise to images.

    The network stands in the file once, as a function that every step calls. Inputs are ``noise``,
    standard normal of shape (N, C, H, W); ``step_noise`` of shape (rows that inject, N, C, H, W)
    for methods that draw noise; ``labels``, int64 of shape (N,), for a class-conditional model; and
    the tensors of the condition by their names. The output, ``images``, is what
    :func:`ddim.sample` returns for the same noise. Equal models and options make equal bytes.

    Without a method it is the network alone: ``x`` and its time ``t`` as the network was trained
    on them, in its own data range and convention of time, to its ``prediction``, of twice the
    channels where it predicts its variance.

    Where onnxruntime is installed the file is run and compared before it gets its name.

    Args:
        model: on the CPU, in float32.
        path: the file; one that is there is replaced.
        method: a :class:`~ddim.Sampler`, or one as text; None for the network alone.
        steps: S; 50 if None, or T where it is smaller.
        nodes: a family's name, or the nodes themselves.
        condition: guidance and clipping, which become part of the graph, and tensors, whose rows
            are examples. Labels are an input.
        batch_size: N, where it is to be fixed; None leaves it open.
        opset: the version of ONNX's operators, from 18.
        options: the method's own, such as ``eta``.

    Raises:
        InputError: a sampler that starts from several states, a network that torch cannot record,
            weights beyond 2 GB, packages that are not installed, or a graph that gives other
            images. Nothing is written then.
    """
    sampler = None
    if method is not None:
        sampler = model.resolve(Sampler.parse(method, steps, nodes, **options))
    elif steps is not None or nodes is not None or options:
        raise InputError("the network alone takes no steps, nodes or options of a method")
    graph.check_installed()
    _check_model(model)
    size = None if batch_size is None else whole("the batch size", batch_size, 1)
    plan = Plan(model, sampler, Condition.of(condition), size)
    opset = whole("opset", opset, OPSET)
    inputs = plan.inputs(size or 2)
    channels = plan.channels(inputs)
    try:
        proto = plan.record(inputs, channels, opset)
        data = graph.describe(proto, ("ddim", __version__), plan.facts())
    except Exception as error:
        hint = "" if size else "; a fixed batch size may help"
        why = graph.reason(error)
        raise InputError(f"{model.name} cannot be made an ONNX graph: {why}{hint}") from error
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_bytes(data)
        error = _compare(plan, temporary)
    return OnnxExport(path, len(data), plan.sentences(), plan.output, sampler, plan.calls, error)


def _check_model(model: Model) -> None:
    if model.device.type != "cpu" or model.dtype is not torch.float32:
        raise InputError(
            f"an ONNX file is made of a model on the CPU in float32, not on {model.device} in "
            f"{model.dtype}: model.to('cpu', torch.float32)"
        )
    state = model.network.state_dict().values()
    size = sum(value.numel() * value.element_size() for value in state)
    if size > LARGEST:
        raise InputError(
            f"{model.name} has {size / 1e9:.1f} GB of weights, and an ONNX file holds less than 2"
        )


def _compare(plan: Plan, path: Path) -> float | None:
    """The largest difference of what a file gives in onnxruntime from ours; None without it.

    Raises:
        InputError: it is more than rounding, or onnxruntime cannot run the file.
    """
    inputs = plan.inputs(plan.size or 3)
    batches = [inputs]
    if plan.size is None:  # graphs are recorded with two images, and one may be another matter
        axes = {"step_noise": 1}
        batches += [{k: v.narrow(axes.get(k, 0), 0, 1).contiguous() for k, v in inputs.items()}]
    try:
        found = graph.run(path, batches)
    except Exception as error:
        why = graph.reason(error)
        raise InputError(f"onnxruntime cannot run {plan.model.name}'s graph: {why}") from error
    if found is None:
        return None
    expected = plan.expected(inputs)
    error = max(float((part - expected[: len(part)]).abs().max()) for part in found)
    if not error <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise InputError(
            f"the graph of {plan.model.name} gives something else: it differs by {error:.1e} in "
            "onnxruntime, so it was not written"
        )
    return error
