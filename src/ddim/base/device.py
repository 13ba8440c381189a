"""Where a network runs, and on how many threads."""

from __future__ import annotations

import torch

from ddim.base.errors import InputError, quoted

__all__ = ["pick_device", "set_threads"]


def pick_device(name: str | torch.device) -> torch.device:
    """The device of that name; ``auto`` is CUDA where there is one, else MPS, else the CPU.

    Raises:
        InputError: no such device here.
    """
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
