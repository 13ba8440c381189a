"""Where a network runs, and on how many threads."""

from __future__ import annotations

import re

import torch

from ddim.base.errors import InputError, quoted
from ddim.base.ranks import here

__all__ = ["out_of_memory", "pick_device", "set_threads", "slow_in_bfloat16"]

_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|ALLOC_FAILED")
"""What torch's allocators and the libraries below them say in errors of no kind of their own."""


def pick_device(name: str | torch.device) -> torch.device:
    """The device of that name; ``auto`` is CUDA where there is one, else MPS, else the CPU.

    Of several processes each takes a GPU of its own, in turn.

    Raises:
        InputError: no such device here.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available() and here().count > 1:
        return torch.device("cuda", here().local % torch.cuda.device_count())
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"no device {quoted(str(name))} here: {str(error).splitlines()[0]:.200}"
        ) from None
    return device


def set_threads(count: int | None) -> None:
    """How many CPU threads torch uses; None leaves it as it is.

    Raises:
        InputError: fewer than one.
    """
    if count is None:
        return
    if count < 1:
        raise InputError(f"threads must be at least 1, not {count}")
    torch.set_num_threads(count)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or this machine, has no more memory to give.

    Example:
        >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("shapes do not match"))
        (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


def slow_in_bfloat16(device: torch.device) -> bool:
    """Whether convolutions in bfloat16 are far slower there than in float32.

    So they are on a CPU for which oneDNN has none (x86 without AVX-512): torch's own take some ten
    times as long.
    """
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return device.type == "cpu" and supported is not None and not supported()
