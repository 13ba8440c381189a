"""What a measurement of speed is to consist of. No torch here."""

from __future__ import annotations

import dataclasses

from ddim.base.errors import InputError, unknown
from ddim.evaluate.speed.timing import ROUNDS, WARM_UPS

__all__ = ["DEFAULT_PARTS", "PARTS", "Plan"]

PARTS = {
    "images": "N images on all cores",
    "one": "one image",
    "threads": "a quarter of the images, but at least 8, on one thread, by CPU time",
    "busy": "beside a process that computes without a pause",
    "dtype": "the network in bfloat16",
    "training": "training steps of N images",
    "start": "fresh processes: imports, opening",
}
DEFAULT_PARTS = tuple(part for part in PARTS if part != "start")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        n: how many images are drawn at a time.
        steps: of DDIM.
        rounds: that are counted.
        parts: among :data:`PARTS`; None for all but ``start``.
        dtype: ``float32`` leaves bfloat16 out, ``bfloat16`` measures it on any processor; ``auto``
            on those that have instructions for it.
        quick: few images, steps and rounds, to see that it runs.

    Raises:
        InputError: numbers below 1, unknown names, parts and a precision that contradict each
            other.
    """

    n: int = 64
    steps: int = 4
    rounds: int = ROUNDS
    parts: tuple[str, ...] | None = None
    dtype: str = "auto"
    quick: bool = False
    warm_ups: int = dataclasses.field(init=False, default=WARM_UPS)

    def __post_init__(self) -> None:
        for name, value in (("n", self.n), ("steps", self.steps), ("rounds", self.rounds)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        for part in self.parts or ():
            if part not in PARTS:
                raise unknown("part", part, PARTS)
        if self.parts and "dtype" in self.parts and self.dtype == "float32":
            raise InputError("the part dtype is bfloat16, which the dtype float32 leaves out")
        if self.parts and self.dtype == "bfloat16" and not self.has("dtype", "training"):
            raise InputError(
                "bfloat16 is measured in dtype and training, which are not among the parts"
            )
        settled = {"parts": self.parts or DEFAULT_PARTS}
        if self.quick:
            few = {"n": min(self.n, 8), "steps": min(self.steps, 2), "rounds": min(self.rounds, 2)}
            settled |= {**few, "warm_ups": 1}
        for name, value in settled.items():
            object.__setattr__(self, name, value)

    def has(self, *parts: str) -> bool:
        """Whether one of the parts is measured."""
        return not set(parts).isdisjoint(self.parts or ())

    def without(self, *parts: str, why: str) -> Plan:
        """The same, less some parts.

        Raises:
            InputError: there are no others; it says why these cannot be measured.
        """
        left = tuple(part for part in self.parts or () if part not in parts)
        if not left:
            raise InputError(f"there is nothing else to measure, and {why}")
        return dataclasses.replace(self, parts=left)

    @property
    def racing(self) -> bool:
        """Whether contestants draw images in this process."""
        return not {"start", "training"}.issuperset(self.parts or ())

    @property
    def few(self) -> int:
        """How many images one thread draws."""
        return min(self.n, max(8, self.n // 4))
