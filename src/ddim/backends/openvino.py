"""OpenVINO in place of torch: any network that torch can export, in float32 or bfloat16, on a CPU.

A network is converted once for the shapes it is called with, which takes seconds; what became of a
:class:`~ddim.nets.unet.UNet` is kept in the user's cache. Nothing is told to anybody: OpenVINO's
converter has telemetry, and so its frontend is used without it.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import json
import logging
import os
import platform
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ddim import __version__
from ddim.backends.exactness import distance
from ddim.backends.ncnn import changed
from ddim.base.errors import InputError, RunError, quoted
from ddim.base.files import write_bytes
from ddim.base.quiet import quiet
from ddim.denoisers.network import tensor_of
from ddim.nets.unet import UNet, in_parts
from ddim.noise.draws import Noise

__all__ = ["OpenVINO", "why_not"]

log = logging.getLogger("ddim")
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def why_not(net: nn.Module) -> str | None:
    """Why OpenVINO does not run a network here, as the rest of a sentence; None if it does."""
    if importlib.util.find_spec("openvino") is None:
        return "is not installed: pip install 'ddim[fast]'"
    dtypes = {p.dtype for p in net.parameters() if p.is_floating_point()}
    if len(dtypes) != 1 or not dtypes <= PRECISIONS.keys():
        found = ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes)) or "no"
        return f"runs networks in float32 or bfloat16, and this one has {found} weights"
    if dtypes == {torch.bfloat16} and "BF16" not in _capabilities():
        return "runs bfloat16 on processors with instructions for it, and this one has none"
    return None


def _capabilities() -> list[str]:
    return _imported().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _imported() -> ModuleType:
    """The package, without the telemetry that its import sends off otherwise."""
    told = sys.modules.get("openvino_telemetry")
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # pyright: ignore[reportArgumentType]
    try:
        import openvino
    finally:
        if told is not None:
            sys.modules["openvino_telemetry"] = told
        elif sys.modules.get("openvino_telemetry", told) is None:
            sys.modules.pop("openvino_telemetry", None)
    return openvino


class OpenVINO:
    """A network by OpenVINO; see :class:`~ddim.backends.choice.Engine`.

    For new shapes its answer to noise is compared with torch's first.

    Args:
        net: the network, whose weights are copied at the first call with new shapes.
        streams: how many threads may call at once without waiting for each other.
        close: how far from torch's an answer may be, of the largest number in it.

    Raises:
        InputError: at a call, for a network that cannot be exported or converted.
        RunError: at a call, for an answer that is not torch's.
    """

    name = "openvino"

    def __init__(self, net: nn.Module, streams: int, close: float) -> None:
        self.net, self.streams, self.close = net, max(1, streams), close
        self.dtype = next(p.dtype for p in net.parameters() if p.is_floating_point())
        self._core, self._process = _imported().Core(), os.getpid()
        self._lock, self._local = threading.Lock(), threading.local()
        self._compiled: dict[object, Any] = {}
        self._said = False

    def __call__(self, x: Tensor, *inputs: Tensor, **named: Tensor) -> Tensor:
        """The answer; see :class:`~ddim.backends.choice.Engine`."""
        flat = _Flat(self.net, len(inputs), sorted(named))
        given = [x, *inputs, *(named[name] for name in flat.names)]
        if os.getpid() != self._process:  # its threads did not come along
            if not self._said:
                log.warning("openvino cannot follow into a forked process: torch runs the network")
                self._said = True
            return flat(*given)
        given = [value.detach().contiguous() for value in given]
        key = (tuple(flat.names), *((value.dtype, value.shape) for value in given))
        with self._lock:
            if key not in self._compiled:
                self._compiled[key] = self._compile(flat, given)
        if not hasattr(self._local, "requests"):
            self._local.requests = {}
        requests = self._local.requests
        if key not in requests:
            requests[key] = self._compiled[key].create_infer_request()
        arrays = [_plain(value).numpy() for value in given]
        return torch.from_numpy(requests[key].infer(arrays, share_inputs=True)[0].copy())

    def _compile(self, flat: _Flat, given: Sequence[Tensor]) -> Any:
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.dtype],
            "NUM_STREAMS": self.streams,
            "INFERENCE_NUM_THREADS": self.streams,
            "ENABLE_CPU_PINNING": False,
        }
        kept = self._kept(given, settings)
        compiled = _read(self._core, kept, settings)
        if compiled is not None and self._distance(compiled, flat, given) <= self.close:
            return compiled
        compiled = self._core.compile_model(_convert(flat, given), "CPU", settings)
        off = self._distance(compiled, flat, given)
        if not off <= self.close:
            raise RunError(
                f"openvino's answer is {off:.1e} away from torch's, of the largest number in it, "
                f"and not within {self.close:.0e}: use the back end torch"
            )
        _write(compiled, kept)
        return compiled

    def _distance(self, compiled: Any, flat: _Flat, given: Sequence[Tensor]) -> float:
        """How far its answer to noise is from torch's, of the largest number in that."""
        # On noise, since rounding grows where a state has less of it than its time says.
        noise = Noise(0, range(len(given[0])), given[0].shape[1:], dtype=given[0].dtype)(0)
        with torch.no_grad():
            true = flat(noise, *given[1:]).float()
        request, asked = compiled.create_infer_request(), [noise, *given[1:]]
        found = torch.from_numpy(request.infer([_plain(value).numpy() for value in asked])[0])
        return distance([found], [true])

    def _kept(self, given: Sequence[Tensor], settings: Mapping[str, Any]) -> Path | None:
        """Where the compiled network is kept; only of our own architecture, whose code is known."""
        if not isinstance(self.net, UNet) or changed(self.net) is not None:
            return None
        import platformdirs

        digest = hashlib.sha256(json.dumps(self.net.config.to_json(), sort_keys=True).encode())
        for name, value in self.net.state_dict().items():
            digest.update(f"{name} {value.dtype}".encode())
            digest.update(value.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
        where = self._core.get_property("CPU", "FULL_DEVICE_NAME"), _capabilities()
        shapes = [(str(value.dtype), tuple(value.shape)) for value in given]
        software = __version__, _imported().__version__, torch.__version__, platform.machine()
        digest.update(repr((where, shapes, software, sorted(settings.items()))).encode())
        folder = platformdirs.user_cache_path("ddim", appauthor=False) / "openvino"
        return folder / f"{digest.hexdigest()[:32]}.blob"


class _Flat(nn.Module):
    """A network as a function of tensors alone, which is what can be exported."""

    def __init__(self, net: nn.Module, places: int, names: Sequence[str]) -> None:
        super().__init__()
        self.net, self.places, self.names = net, places, list(names)
        self.dtype = next(p.dtype for p in net.parameters() if p.is_floating_point())

    def forward(self, x: Tensor, *given: Tensor) -> Tensor:
        named = dict(zip(self.names, given[self.places :], strict=True))
        call = self.net.conditioned if in_parts(self.net) else self.net
        return tensor_of(call(x, *given[: self.places], **named))


def _plain(value: Tensor) -> Tensor:
    """NumPy has no bfloat16."""
    return value.float() if value.dtype is torch.bfloat16 else value


def _convert(flat: _Flat, given: Sequence[Tensor]) -> Any:
    """The network as OpenVINO's own graph, with inputs of these shapes."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    try:
        with _hushed(), torch.no_grad():
            # A copy: meanwhile the weights of what is exported are others.
            exported = torch.export.export(copy.deepcopy(flat), tuple(given))
            decoder = TorchFXPythonDecoder.from_exported_program(exported)
            frontend = FrontEndManager().load_by_framework("pytorch")
            model = frontend.convert(frontend.load(decoder))
    except (InputError, RunError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        name = type(flat.net).__name__
        raise InputError(
            f"openvino cannot run this {name}: {quoted(str(error))}; use the back end torch"
        ) from error
    return model


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep the frontend from warning of operations that no network here has."""
    root, nothing = logging.getLogger(), logging.NullHandler()

    def other(record: logging.LogRecord) -> bool:
        return record.module != "fx_decoder"

    root.addHandler(nothing)
    root.addFilter(other)
    try:
        with quiet():
            yield
    finally:
        root.removeFilter(other)
        root.removeHandler(nothing)


def _read(core: Any, path: Path | None, settings: Mapping[str, Any]) -> Any | None:
    """What was kept there, if it is whole."""
    try:
        data = b"" if path is None else path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        return None
    try:
        return core.import_model(data[32:], "CPU", dict(settings))
    except RuntimeError:  # of another build
        return None


def _write(compiled: Any, path: Path | None) -> None:
    """Keep what was compiled, its checksum first; a cache that cannot be written is none."""
    if path is None:
        return
    data = compiled.export_model().getvalue()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, hashlib.sha256(data).digest() + data)
