"""Graphs of ONNX: what torch records, made one file, and run once. Nothing of diffusion is here."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ddim.base.errors import InputError, quoted

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto

__all__ = [
    "BATCH",
    "DOMAIN",
    "check_installed",
    "describe",
    "link",
    "outside",
    "reason",
    "record",
    "run",
]

DOMAIN = "ddim"
"""The domain of the functions that :func:`link` puts into a file."""

_FUNCTIONS = 8
"""The first version of the format that has functions."""

BATCH = "N"
"""What the size of a batch is called where it is left open."""


def check_installed() -> None:
    """Refuse to begin what the missing packages could not end.

    Raises:
        InputError: onnx or onnxscript is not there.
    """
    try:
        with _silence():
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
    except ImportError as error:
        name = error.name or "onnx"
        raise InputError(
            f"an ONNX file takes the package {name}: pip install 'ddim[onnx]'"
        ) from None


def record(
    module: nn.Module, inputs: Mapping[str, tuple[Tensor, int | None]], output: str, opset: int
) -> ModelProto:
    """The graph of a module, called with these tensors by place, without traces of where it ran.

    Args:
        module: returns one tensor.
        inputs: examples by name, each with its dimension that is to stay open, if any.
        output: what the result is called; its first dimension is open if any other is.
        opset: the version of ONNX's operators.

    Raises:
        Exception: whatever torch raises where it cannot; :func:`reason` has its last word.
    """
    open_axes = {name: axis for name, (_, axis) in inputs.items() if axis is not None}
    dynamic = torch.export.Dim.DYNAMIC
    shapes = tuple(None if axis is None else {axis: dynamic} for _, axis in inputs.values())
    examples = tuple(tensor for tensor, _ in inputs.values())
    # With gradients our networks take no shortcut that depends on the number of images.
    with _silence(), torch.enable_grad():
        program = torch.export.export(module, examples, dynamic_shapes=(shapes,), strict=False)
        made = torch.onnx.export(
            program,
            input_names=list(inputs),
            output_names=[output],
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
        assert made is not None
        proto = made.model_proto
    _strip(proto.graph)
    proto.producer_name = proto.producer_version = ""
    for value in proto.graph.input:
        if value.name in open_axes:
            value.type.tensor_type.shape.dim[open_axes[value.name]].dim_param = BATCH
    if open_axes:
        proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param = BATCH
    return proto


def _strip(graph: GraphProto) -> None:
    """Take away what says where and how a graph was recorded; within its subgraphs too."""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    _strip(inner)


def outside(name: str) -> Callable[[Sequence[Tensor], Sequence[int]], Tensor]:
    """A call, while a graph is recorded, of what :func:`link` puts into it under that name.

    It takes the inputs, and the shape of the float32 output.
    """

    def call(inputs: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        operator = f"{DOMAIN}::{name}"
        return torch.onnx.ops.symbolic(
            operator, inputs, dtype=torch.float32, shape=shape, version=1
        )

    return call


def link(caller: ModelProto, called: ModelProto, name: str) -> None:
    """Put a graph into another that calls it as ``ddim::name``: once, however often it is called.

    Its weights become the caller's, who hands them to every call.

    Args:
        caller: changed in place.
        called: of the same opset, with the inputs and the output of those nodes.
        name: of the operator.
    """
    import onnx

    body = called.graph
    constants = [tensor for tensor in body.initializer if _is_constant(tensor)]
    weights = [tensor for tensor in body.initializer if not _is_constant(tensor)]
    taken = {tensor.name: f"{name}.{tensor.name.removeprefix(f'{name}.')}" for tensor in weights}
    nodes = [
        onnx.helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in constants
    ]
    function = onnx.helper.make_function(
        DOMAIN,
        name,
        [*(value.name for value in body.input), *taken],
        [value.name for value in body.output],
        [*nodes, *body.node],
        called.opset_import,
    )
    caller.functions.append(function)
    caller.functions.extend(called.functions)
    for tensor in weights:
        own = caller.graph.initializer.add()
        own.CopyFrom(tensor)
        own.name = taken[tensor.name]
    for node in caller.graph.node:
        if (node.domain, node.op_type) == (DOMAIN, name):
            node.input.extend(taken.values())
    known = {entry.domain for entry in caller.opset_import}
    for entry in (*called.opset_import, onnx.helper.make_opsetid(DOMAIN, 1)):
        if entry.domain not in known:
            caller.opset_import.append(entry)


def _is_constant(tensor: TensorProto) -> bool:
    """Whether it is a shape or a single number, which runtimes like to know beforehand."""
    return len(tensor.dims) == 0 or (len(tensor.dims) == 1 and tensor.data_type == 7)  # int64


def describe(proto: ModelProto, producer: tuple[str, str], facts: Mapping[str, str]) -> bytes:
    """The bytes of the file, with what is told of it.

    Args:
        proto: the graph.
        producer: program and version.
        facts: the file's ``metadata_props``.
    """
    import onnx

    proto.producer_name, proto.producer_version = producer
    oldest = onnx.helper.find_min_ir_version_for(list(proto.opset_import), ignore_unknown=True)
    proto.ir_version = max(_FUNCTIONS, oldest)
    onnx.helper.set_model_props(proto, dict(facts))
    return proto.SerializeToString(deterministic=True)


def run(path: Path, batches: list[dict[str, Tensor]]) -> list[Tensor] | None:
    """What a file of one output makes of inputs by name, on the CPU; None without onnxruntime."""
    with _silence():
        try:
            import onnxruntime
        except ImportError:
            return None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        feeds = [{name: value.numpy() for name, value in batch.items()} for batch in batches]
        return [torch.from_numpy(session.run(None, feed)[0]) for feed in feeds]


def reason(error: BaseException) -> str:
    """The first line of what lies at the bottom of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return quoted(lines[0]) if lines else type(error).__name__


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Let nothing through that torch's exporter and its packages print, log or warn of."""
    before, nowhere = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
