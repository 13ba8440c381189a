"""What a checkpoint of others is read into, and what its owner may say of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ddim.base.display import shown
from ddim.base.errors import InputError, quoted
from ddim.base.records import record
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.target import Target
from ddim.noise.schedule import Schedule

__all__ = ["Facts", "Hints", "Loaded"]


_LARGEST = 2**14
"""Pixels of a side, more than any network makes at once."""


@shown
@dataclasses.dataclass(frozen=True)
class Hints:
    """What a file of tensors does not say, where the published models are no guide.

    Everything is None unless told; what is then assumed is in the loaded model's
    ``facts.assumed``. See ``docs/formats.md`` for which layouts leave what open.

    Attributes:
        image_size: height and width of an image.
        heads: attention heads, the same number at every width.
        head_channels: channels of an attention head, instead of ``heads``.
        qkv_order: ``head`` where query, key and value follow one another head by head (the older
            order), ``whole`` where all queries come first.
        rescale_times: whether the network was trained on times scaled to 0..1000.
        target: what the network predicts: eps, x0 or v.

    Raises:
        InputError: numbers that are not positive, both kinds of heads, unknown names.
    """

    image_size: int | None = None
    heads: int | None = None
    head_channels: int | None = None
    qkv_order: str | None = None
    rescale_times: bool | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        for name in ("image_size", "heads", "head_channels"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(
                    f"{name} must be a whole number of at least 1, not {quoted(value)}"
                )
        if self.image_size is not None and self.image_size > _LARGEST:
            raise InputError(f"image_size must be at most {_LARGEST}, not {self.image_size}")
        if not (self.rescale_times is None or isinstance(self.rescale_times, bool)):
            raise InputError(f"rescale_times is true or false, not {quoted(self.rescale_times)}")
        if not (self.target is None or isinstance(self.target, str)):
            raise InputError(f"target is a name, not {quoted(self.target)}")
        if self.heads is not None and self.head_channels is not None:
            raise InputError("say heads or head_channels, not both: one follows from the other")
        if self.qkv_order not in (None, "head", "whole"):
            raise InputError(f"qkv_order is 'head' or 'whole', not {quoted(self.qkv_order)}")
        if self.target is not None:
            Target.named(self.target)

    def only(self, path: Path, layout: str, *names: str) -> None:
        """Refuse what was told of a file that has no use for it.

        Raises:
            InputError: a hint that is not among ``names`` was given.
        """
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is not None and field.name not in names:
                raise InputError(
                    f"{path}: {field.name} was given, but {layout} leaves only "
                    f"{', '.join(names) or 'nothing'} open"
                )


@shown
@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a model beside what decides its images.

    Attributes:
        source: the program whose layout the file has, or ``ddim``.
        weights: ``ema``, ``net`` (the raw ones), or ``only`` where there is one set.
        learned_variance: whether the network predicts a variance too.
        assumed: a phrase for everything that the file does not say.
        data: of the training data what was recorded, such as its name and checksums.
        more: everything else, for people.
    """

    source: str = "ddim"
    weights: str = "only"
    learned_variance: bool = False
    assumed: tuple[str, ...] = ()
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Facts:
        """Facts from a file's plain values.

        Raises:
            InputError: a field of another type.
        """
        own = {f.name for f in dataclasses.fields(cls)} - {"more"}
        known = {key: values[key] for key in own & values.keys()}
        more = {key: value for key, value in values.items() if key not in own}
        return record(cls, {**known, "more": more})

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not known is left out."""
        blank = Facts()
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        own = {k: v for k, v in own.items() if k != "more" and v != getattr(blank, k)}
        return {**self.more, **own}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What every reader makes of a file, ready to become a model.

    Attributes:
        net: the network, on the CPU.
        schedule: the noise schedule.
        target: what the network predicts.
        shape: of one image, (C, H, W).
        classes: number of classes, or None.
        null_label: the label for 'no class', or None.
        clipping: what is done to x0 by default.
        name: what outputs call the model; None for the file's own name.
        facts: what else is known.
    """

    net: nn.Module
    schedule: Schedule
    target: Target
    shape: tuple[int, int, int]
    classes: int | None
    clipping: Clipping
    facts: Facts
    null_label: int | None = None
    name: str | None = None
