"""Tensors in files: safetensors, written and read, and the torch checkpoints of others.

A torch checkpoint is a pickle, and a pickle is a program. It is read by torch's restricted
unpickler (``weights_only=True``), which knows tensors, numbers, strings and containers and refuses
every other name before it is looked up. There is no second attempt with fewer restrictions.
"""

from __future__ import annotations

import contextlib
import json
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from torch import Tensor

from ddim.base.errors import InputError
from ddim.base.files import replacing

__all__ = ["is_pickle", "metadata_of", "read_pickle", "read_safetensors", "write_safetensors"]

PICKLES = (".pt", ".pth", ".ckpt", ".bin")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
# Earlier releases had ways around the restricted unpickler.
_TORCH = (2, 10)
# What a file may hold beside its numbers, so that reading it takes neither memory nor minutes.
_TENSORS, _OPERATIONS, _SHORT = 20_000, 500_000, 1_000_000


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor] | Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file, whole or not at all; equal content makes equal bytes.

    The library writes the metadata in another order each time; here the header is sorted.

    Args:
        path: the file.
        tensors: by name, all of torch or all of NumPy.
        metadata: by name.
    """
    plain = {
        key: value.detach().cpu().contiguous() if isinstance(value, Tensor) else value
        for key, value in tensors.items()
    }
    numpy = any(isinstance(value, np.ndarray) for value in plain.values())
    save: Any = safetensors.numpy.save if numpy else safetensors.torch.save
    made = memoryview(save(plain))
    end = 8 + int.from_bytes(made[:8], "little")
    header = json.loads(bytes(made[8:end])) | {"__metadata__": dict(metadata)}
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers begin where eight bytes do
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(made[end:])


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, memory-mapped, and its metadata.

    Raises:
        InputError: no such file, a truncated one, or one of something else.
    """
    found = _open(path, tensors=True)
    assert found is not None
    return found


def metadata_of(path: Path) -> dict[str, str] | None:
    """The metadata of a safetensors file, by its header alone; None of any other file.

    Raises:
        InputError: no such file.
    """
    with Path(path).open("rb") as file:
        if file.read(9)[8:] != b"{":
            return None
    found = _open(path, tensors=False)
    return None if found is None else found[1]


def _open(path: Path, *, tensors: bool) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    if not Path(path).exists():
        raise InputError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata, keys = file.metadata() or {}, file.keys()
            if len(keys) > _TENSORS:
                raise InputError(f"{path} holds {len(keys):,} tensors, and no network so many")
            return ({key: file.get_tensor(key) for key in keys} if tensors else {}), metadata
    except InputError:
        raise
    except Exception as error:  # it has errors of its own, torch's for odd types and shapes
        if not tensors:
            return None
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is not a safetensors file, or is truncated: {reason}") from None


def is_pickle(path: Path) -> bool:
    """Whether a file is a torch checkpoint, by its first bytes (and by its name if it has none).

    torch has written zip archives since 1.6 and bare pickles before. A safetensors file begins with
    the length of its header, and the header with a brace.
    """
    with Path(path).open("rb") as file:
        head = file.read(9)
    if head[8:9] == b"{":
        return False
    return head.startswith((_ZIP, _PICKLE)) or path.suffix.lower() in PICKLES


def read_pickle(path: Path) -> Any:
    """The tensors, numbers, strings and containers of a torch checkpoint, on the CPU.

    Archives are memory-mapped, so that what is not used costs no memory; the bare pickles of torch
    1.5 and before cannot be.

    Raises:
        InputError: the pickle holds code, the file is truncated or no checkpoint, or this torch
            is too old to be trusted with one.
    """
    if _torch_version() < _TORCH:
        raise InputError(
            f"{path}: torch {torch.__version__} is too old to read a pickle safely: it takes "
            f"{_TORCH[0]}.{_TORCH[1]} or later"
        )
    try:
        mapped = zipfile.is_zipfile(path)
        _check_sizes(path, archive=mapped)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise InputError(f"there is no checkpoint {path}") from None
    except InputError:
        raise
    except Exception as error:  # torch raises a dozen kinds for a damaged file
        code = re.search(
            r"(?:GLOBAL|global|function|class) ([\w.]+) (?:was not|whose module)", str(error)
        )
        if code is not None:
            raise InputError(
                f"{path} is refused: its pickle names {code[1]}, which is code; a checkpoint may "
                "hold tensors, numbers, strings, lists and dicts (save its state_dict alone)"
            ) from None
        raise InputError(
            f"{path} is neither a torch checkpoint nor a safetensors file, or is truncated "
            f"({type(error).__name__})"
        ) from None


def _torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def _check_sizes(path: Path, *, archive: bool) -> None:
    """Refuse what would take more memory than the file has bytes, before it is taken.

    Raises:
        InputError: compressed members, which torch never writes, or a pickle of more operations
            than the names and shapes of a network take.
    """
    if not archive:
        with Path(path).open("rb") as file:
            _count_operations(path, file)
        return
    with zipfile.ZipFile(path) as parts:
        for part in parts.infolist():
            if part.compress_type != zipfile.ZIP_STORED:
                raise InputError(
                    f"{path}: {part.filename} is compressed, which torch never does: unpack it and "
                    "save the weights again"
                )
            if part.filename.endswith(".pkl") and part.file_size > _SHORT:
                with parts.open(part) as file:
                    _count_operations(path, file)


def _count_operations(path: Path, file: IO[bytes]) -> None:
    """Of the pickles that a file begins with; a bare one has five and then the numbers."""
    count = 0
    # Damage is for torch to name.
    with contextlib.suppress(ValueError, EOFError, OverflowError, MemoryError):
        for _ in range(5):
            for _operation in pickletools.genops(file):
                count += 1
                if count > _OPERATIONS:
                    break
    if count > _OPERATIONS:
        raise InputError(
            f"{path}: its pickle takes more than {_OPERATIONS:,} operations: save the weights alone"
        )
