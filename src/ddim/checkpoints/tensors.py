"""Reading tensors out of files of others without running anything that is in them.

A torch checkpoint is a pickle, and a pickle is a program. It is read by torch's restricted
unpickler (``weights_only=True``), which knows tensors, numbers, strings and containers and refuses
every other name before it is looked up. There is no second attempt with fewer restrictions.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from ddim.base.errors import InputError

__all__ = ["is_pickle", "read_pickle", "read_safetensors", "tensors_of"]

PICKLES = (".pt", ".pth", ".ckpt", ".bin")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
# Earlier releases had ways around the restricted unpickler.
_TORCH = (2, 10)


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
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise InputError(f"there is no checkpoint {path}") from None
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


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, memory-mapped, and its metadata.

    Raises:
        InputError: no such file, a truncated one, or one of something else.
    """
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file, or is truncated: {error}") from None


def tensors_of(value: object) -> dict[str, Tensor] | None:
    """A state dict as a new dict, without DataParallel's prefix; None if it is not one."""
    if not isinstance(value, dict) or not value:
        return None
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items()):
        return None
    prefix = "module." if all(key.startswith("module.") for key in value) else ""
    return {key[len(prefix) :]: tensor for key, tensor in value.items()}
