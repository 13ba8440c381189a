"""What is done to a predicted clean image: clipping, dynamic thresholding."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ddim.base.errors import InputError, quoted
from ddim.denoisers.prediction import Denoiser, Prediction
from ddim.noise.schedule import Level

__all__ = ["Clip", "Clipping", "StaleEps", "Threshold"]


def _open(x0: Tensor) -> Tensor:
    """NaN in the place of infinity, which a bound would make a pixel of."""
    return x0.nan_to_num(nan=torch.nan, posinf=torch.nan, neginf=torch.nan)


class Clip:
    """Clamp the predicted x0 to ±limit and recompute eps from it."""

    def __init__(self, denoiser: Denoiser, limit: float = 1.0) -> None:
        if not limit > 0:
            raise InputError(f"the clipping limit must be positive, not {limit}")
        self.denoiser, self.limit = denoiser, limit

    def bound(self, x0: Tensor) -> Tensor:
        """x0 within ±limit, of the same shape; NaN where it is not finite."""
        return _open(x0).clamp(-self.limit, self.limit)

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict; see :class:`Denoiser`."""
        prediction = self.denoiser(x, level)
        return prediction.with_x0(self.bound(prediction.x0), x, level)


class Threshold:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3, https://arxiv.org/abs/2205.11487).

    Each image's x0 is clamped to ±s and divided by s, s being the ``ratio`` quantile of its
    absolute values, at least 1 and at most ``largest``; eps is recomputed.
    """

    def __init__(self, denoiser: Denoiser, ratio: float = 0.995, largest: float = 1.0) -> None:
        if not 0 < ratio <= 1 or largest < 1:
            raise InputError(
                f"thresholding needs a ratio in (0, 1] and a largest value of at least 1, "
                f"not {ratio} and {largest}"
            )
        self.denoiser, self.ratio, self.largest = denoiser, ratio, largest

    def bound(self, x0: Tensor) -> Tensor:
        """x0 within ±1, each image by its own threshold; shape (N, *); NaN where not finite."""
        magnitude = x0.flatten(1).abs().to(torch.promote_types(x0.dtype, torch.float32))
        s = (
            torch.quantile(magnitude, self.ratio, dim=1)
            .clamp(1.0, float(self.largest))
            .to(x0.dtype)
        )
        s = s.view(-1, *(1,) * (x0.ndim - 1))
        return _open(x0).clamp(-s, s) / s

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict; see :class:`Denoiser`."""
        prediction = self.denoiser(x, level)
        return prediction.with_x0(self.bound(prediction.x0), x, level)


class StaleEps:
    """Compatibility: x0 is bounded, and the eps that belongs to the unbounded one is kept.

    The two no longer make up the state, so this is wrong; but it is what diffusers' DDIMScheduler
    and the nngen notebook do, and their numbers can be had in no other way.
    """

    def __init__(self, clipped: Clip | Threshold) -> None:
        self.clipped = clipped

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict; see :class:`Denoiser`."""
        prediction = self.clipped.denoiser(x, level)
        return prediction._replace(x0=self.clipped.bound(prediction.x0))


@dataclasses.dataclass(frozen=True)
class Clipping:
    """What is done to the predicted x0.

    Attributes:
        kind: ``none``, ``clip`` (to ±limit) or ``threshold`` (dynamic, per image).
        limit: the clipping range, or the largest threshold.
        ratio: the quantile of dynamic thresholding.
        stale_eps: keep the old eps, as some programs do; wrong, see :class:`StaleEps`.
    """

    kind: str = "none"
    limit: float = 1.0
    ratio: float = 0.995
    stale_eps: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("none", "clip", "threshold"):
            raise InputError(f"clipping is none, clip or threshold, not {quoted(self.kind)}")

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser with this done to it."""
        if self.kind == "none":
            return denoiser
        clipped = (
            Clip(denoiser, self.limit)
            if self.kind == "clip"
            else Threshold(denoiser, self.ratio, self.limit)
        )
        return StaleEps(clipped) if self.stale_eps else clipped
