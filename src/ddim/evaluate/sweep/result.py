"""What a sampler measured, as the reports show it."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from ddim.base.display import shown
from ddim.evaluate.distances.comparison import Comparison, Summary
from ddim.samplers.sampler import Sampler

__all__ = ["STRIP", "Result"]

STRIP = 10
"""How many images stand side by side in a report."""


@shown
@dataclasses.dataclass(frozen=True)
class Result:
    """What a sampler measured.

    Attributes:
        sampler: which.
        calls: network calls for one image.
        summary: over the seeds.
        seeds: each seed's own figures, those of every seed that is in the folder.
        seconds: of generation for one image, metrics not included.
        rms: RMS to the model's own full-length solution on [-1, 1]; None where the sampler draws
            noise or no teacher was asked for.
        psnr: the same in dB.
        strip: the first images, (STRIP, C, H, W).
    """

    sampler: Sampler
    calls: int
    summary: Summary
    seeds: tuple[Comparison, ...]
    seconds: float
    rms: float | None
    psnr: float | None
    strip: Tensor

    def _facts(self) -> dict[str, object]:
        facts = {"sampler": self.sampler, "calls": self.calls}
        figures = {self.summary.distance: self.summary.figures["fd"]}
        known = {"RMS": self.rms, "PSNR dB": self.psnr, "seconds": self.seconds}
        return {**facts, **figures, **{k: v for k, v in known.items() if v is not None}}

    @property
    def fd(self) -> float:
        """The Fréchet distance, a mean over the seeds."""
        return self.summary.figures["fd"].mean
