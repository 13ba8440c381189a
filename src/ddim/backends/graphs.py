"""CUDA graphs: all steps of a batch, captured once and launched as one piece of work.

A step of a small network is a few hundred kernels of microseconds each, which Python enqueues more
slowly than a GPU runs them. A graph needs no Python: it repeats the same kernels on the same
memory, so that whatever differs between batches is copied into its inputs first.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ddim.backends.compiled import caller
from ddim.backends.exactness import distance, precision_flags, tolerance
from ddim.backends.purity import Memory
from ddim.base.errors import InputError, RunError, quoted
from ddim.nets.unet import UNet

__all__ = ["Capture", "CudaGraphs"]

Run = Callable[[], tuple[Tensor, ...]]
KEPT = 8
"""Graphs of one network at most; those used last."""


class Capture(Protocol):
    """What makes graphs: CUDA, or a stand-in for it."""

    def warm(self, run: Run) -> tuple[Tensor, ...]:
        """Run it as it is, where it will be recorded."""
        ...

    def record(self, run: Run) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """What repeats it, and the tensors that the outputs are in afterwards."""
        ...

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """Held while a graph is used: they share their memory."""
        ...

    def renew(self) -> None:
        """Give what is recorded from now on other memory."""
        ...


class CudaGraphs:
    """Runs of one network by graphs; see :class:`~ddim.backends.choice.Engine`.

    Called as an engine it is plain torch: what gains is a whole run, :meth:`run`. Weights that are
    changed in place are seen by the graphs; where others took their place, or an attribute of a
    module is another, :meth:`refresh` drops them.

    Args:
        net: the network.
        capture: what makes the graphs; CUDA if None.
    """

    name = "cuda-graph"

    def __init__(self, net: nn.Module, capture: Capture | None = None) -> None:
        self.net = net
        self.capture: Capture = (
            OnCuda(next(net.parameters()).device) if capture is None else capture
        )
        self._lock = threading.Lock()
        self._graphs: dict[Hashable, _Graph] = {}
        self._weights: list[Tensor] = []
        self._memory: Memory | None = None

    def __call__(self, x: Tensor, *inputs: Tensor, **named: Tensor) -> Tensor:
        """What the network says, by torch; see :class:`~ddim.backends.choice.Engine`."""
        return caller(self.net)(x, *inputs, **named)

    def refresh(self) -> None:
        """Drop the graphs where they run another network than the one that is there."""
        weights = list(self.net.state_dict().values())
        same = [w.data_ptr() for w in weights] == [w.data_ptr() for w in self._weights]
        if same and (self._memory is None or self._memory.changed() is None):
            return
        with self._lock:
            self._graphs, self._memory = {}, None
            self.capture.renew()
            # Held, so that a graph in use never reads what is something else by now.
            self._weights = weights

    def run(
        self, key: Hashable, function: Callable[[Any], tuple[Tensor, ...]], inputs: object
    ) -> tuple[Tensor, ...]:
        """``function(inputs)`` by a graph, made at its first call, which is compared with torch's.

        Args:
            key: what the function depends on beside the network and the inputs.
            function: of tensors alone; tensor operations that nothing on the host waits for.
            inputs: tensors or None, in lists, tuples and dictionaries.

        Returns:
            tensors of their own.

        Raises:
            InputError: a network that cannot be captured.
            RunError: the graph's answer is not torch's.
        """
        leaves, spec = pytree.tree_flatten(inputs)
        shapes = tuple(None if leaf is None else (leaf.shape, leaf.dtype) for leaf in leaves)
        key = key, spec, shapes, precision_flags()
        with self._lock:
            graph = self._graphs.pop(key, None)
            if graph is None:
                graph, true = self._made(function, leaves, spec)
                found = graph.of(leaves, self.capture)
                self._compare(found, true)
            else:
                found = graph.of(leaves, self.capture)
            self._graphs[key] = graph  # the last used comes last
            for old in list(self._graphs)[:-KEPT]:
                del self._graphs[old]
        return found

    def _made(
        self,
        function: Callable[[Any], tuple[Tensor, ...]],
        leaves: list[Tensor | None],
        spec: pytree.TreeSpec,
    ) -> tuple[_Graph, tuple[Tensor, ...]]:
        """The graph, and what torch answers to the same."""
        device = next(self.net.parameters()).device
        # Tensors of inference mode could not be written into outside of it.
        with torch.inference_mode(False), torch.no_grad():
            static = [None if x is None else x.detach().to(device, copy=True) for x in leaves]

            def run() -> tuple[Tensor, ...]:
                return function(pytree.tree_unflatten(static, spec))

            self.capture.warm(run)  # makes what is made at a first call
            memory = None if isinstance(self.net, UNet) else Memory(self.net)
            with _Unwaiting(type(self.net).__name__):
                true = self.capture.warm(run)
            changed = None if memory is None else memory.changed()
            if changed is not None:
                raise InputError(
                    f"the network may remember its calls ({changed}), which a CUDA graph would "
                    "not do again: use the back end torch"
                )
            try:
                repeat, outputs = self.capture.record(run)
            except torch.OutOfMemoryError:
                self.capture.renew()
                raise
            except (InputError, RuntimeError) as error:
                self.capture.renew()
                raise _uncapturable(type(self.net).__name__, quoted(str(error))) from error
        self._memory = self._memory or memory
        return _Graph(static, repeat, outputs), true

    def _compare(self, found: tuple[Tensor, ...], true: tuple[Tensor, ...]) -> None:
        off, close = distance(found, true), tolerance(self.net)
        if not off <= close:
            raise RunError(
                f"the CUDA graph's answer is {off:.1e} away from torch's, of the largest number in "
                f"it, and not within {close:.0e}: use the back end torch"
            )


class _Graph(NamedTuple):
    """The tensors that a graph reads, what runs it, and the tensors that it writes."""

    inputs: list[Tensor | None]
    repeat: Callable[[], None]
    outputs: tuple[Tensor, ...]

    def of(self, leaves: list[Tensor | None], capture: Capture) -> tuple[Tensor, ...]:
        with capture.turn():
            for own, given in zip(self.inputs, leaves, strict=True):
                if own is not None and given is not None:
                    own.copy_(given, non_blocking=True)
            self.repeat()
            return tuple(output.clone() for output in self.outputs)


class OnCuda:
    """Capture on a CUDA device, as torch's notes on CUDA graphs say it is done.

    The graphs have one pool of memory, in which each may write where another one has its outputs:
    those are copied before the next one runs, on whichever stream.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
            self._used = torch.cuda.Event()

    def warm(self, run: Run) -> tuple[Tensor, ...]:
        """On the side stream that captures; see :class:`Capture`."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = run()
        current.wait_stream(self._stream)
        return outputs

    def record(self, run: Run) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """See :class:`Capture`."""
        graph = torch.cuda.CUDAGraph()
        recording = torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        )
        # The stream once more, since after a failure torch leaves the caller on it.
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream), recording:
            outputs = run()
        return graph.replay, outputs

    def renew(self) -> None:
        """A pool that has lost its last graph cannot be used again; see :class:`Capture`."""
        self._pool = torch.cuda.graph_pool_handle()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """After what the last one enqueued; see :class:`Capture`."""
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            current.wait_event(self._used)
            yield
            self._used.record(current)


_ATEN = torch.ops.aten
_WAITING = {
    _ATEN._local_scalar_dense: "reads a number from a tensor, as item(), bool() and if do",
    _ATEN.equal: "compares two tensors as a whole",
    _ATEN.allclose: "compares two tensors as a whole",
    _ATEN.nonzero: "looks for what is not zero",
    _ATEN.masked_select: "picks what a mask covers",
    _ATEN._unique2: "looks for what is different",
    _ATEN.unique_dim: "looks for what is different",
    _ATEN.unique_consecutive: "looks for what is different",
}


class _Unwaiting(TorchDispatchMode):
    """Refuse operations for which the host waits for the device.

    Within a capture CUDA refuses them too, but then the capture is broken, and torch's allocator
    with it.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        packet = func.overloadpacket
        why = _WAITING.get(packet) or (_picks(packet, args) and _WAITING[_ATEN.masked_select])
        if why:
            raise _uncapturable(self.kind, f"it {why}")
        output = func(*args, **(kwargs or {}))
        if packet is _ATEN._to_copy and output.device != args[0].device:
            raise _uncapturable(self.kind, f"it copies a tensor from {args[0].device} to another")
        return output


def _picks(packet: object, args: tuple[Any, ...]) -> bool:
    """Whether an operation indexes by a mask; one number into what a mask covers needs no wait."""
    if packet not in (_ATEN.index, _ATEN.index_put, _ATEN.index_put_):
        return False
    filled = packet is not _ATEN.index and args[2].numel() == 1 and args[2].device.type == "cpu"
    masks = [i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]]
    return any(masks) and not filled


def _uncapturable(kind: str, why: str) -> InputError:
    return InputError(f"no CUDA graph can be made of this {kind}: {why}; use the back end torch")
