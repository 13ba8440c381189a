"""What a checkpoint of others is read into, and what its owner may say of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ddim.base.errors import InputError
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.target import Target
from ddim.noise.schedule import Schedule

__all__ = ["Hints", "Loaded"]


@dataclasses.dataclass(frozen=True)
class Hints:
    """What a file of tensors does not say, where the published models are no guide.

    Everything is None unless told; what is then assumed is in the loaded model's
    ``facts["assumed"]``. See ``docs/formats.md`` for which layouts leave what open.

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
                raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")
        if not (self.rescale_times is None or isinstance(self.rescale_times, bool)):
            raise InputError(f"rescale_times is true or false, not {self.rescale_times!r}")
        if not (self.target is None or isinstance(self.target, str)):
            raise InputError(f"target is a name, not {self.target!r}")
        if self.heads is not None and self.head_channels is not None:
            raise InputError("say heads or head_channels, not both: one follows from the other")
        if self.qkv_order not in (None, "head", "whole"):
            raise InputError(f"qkv_order is 'head' or 'whole', not {self.qkv_order!r}")
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


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A foreign checkpoint, ready to run.

    Attributes:
        net: the network, in float32 on the CPU, in evaluation mode.
        schedule: the noise schedule.
        target: what the network predicts.
        shape: of one image, (C, H, W).
        classes: number of classes, or None.
        clipping: what the program that trained it does to x0 when it samples.
        facts: ``source`` (the layout), ``weights`` (``ema``, ``net``, or ``only`` where the file
            has one set), ``learned_variance``, and ``assumed``: a phrase for everything that the
            file does not say.
    """

    net: nn.Module
    schedule: Schedule
    target: Target
    shape: tuple[int, int, int]
    classes: int | None
    clipping: Clipping
    facts: Mapping[str, Any]
