"""How far a back end's answer is from torch's, and how far it may be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["CLOSE", "distance", "precision_flags", "tolerance"]

CLOSE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far from torch's an answer may be, of the largest number in it, by the network's type."""
TF32_CLOSE = 1e-2
"""The same of float32 on CUDA where torch may round to TF32, which has float16's digits."""


def tolerance(net: nn.Module) -> float:
    """How far a back end's answer may be from torch's, of the largest number in that."""
    weight = next(p for p in net.parameters() if p.is_floating_point())
    if weight.dtype is torch.float32 and weight.device.type == "cuda" and "tf32" in _products():
        return TF32_CLOSE
    return CLOSE[weight.dtype]


def distance(found: Sequence[Tensor], true: Sequence[Tensor]) -> float:
    """The largest difference, of the largest number in what is true; NaN equals itself.

    Args:
        found: a back end's answers.
        true: torch's, of the same shapes.
    """
    apart = []
    for mine, theirs in zip(found, true, strict=True):
        mine, theirs = mine.detach().double(), theirs.detach().double()
        failed = theirs.isnan()
        off = torch.where(failed & mine.isnan(), 0, mine - theirs).abs().max()
        apart.append(off / torch.where(failed, 0, theirs).abs().max().clamp(min=1e-30))
    return float(torch.stack(apart).max())


def precision_flags() -> tuple[object, ...]:
    """What the user told torch about precision and determinism, which decides its kernels."""
    cudnn = torch.backends.cudnn
    fixed = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    return *_products(), *fixed


def _products() -> tuple[str, str]:
    """What float32 is rounded to in convolutions and in matrix products."""
    # Since torch 2.9; what the older flags say is in them too.
    conv = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    return str(conv.fp32_precision), str(torch.backends.cuda.matmul.fp32_precision)
