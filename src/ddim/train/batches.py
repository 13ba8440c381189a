"""What a training step sees: which images, at which noise levels, with which noise and labels.

All of it follows from the seed and the step's number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ddim.base.display import shown
from ddim.base.errors import InputError
from ddim.noise.draws import derive
from ddim.noise.schedule import Schedule
from ddim.train.config import TrainConfig
from ddim.train.loss import draw_nodes

__all__ = ["Batch", "Stream", "TensorData", "Trainable", "check_labels", "draw", "order"]

_ALL = slice(None)


class Trainable(Protocol):
    """The images that training reads: as :class:`ddim.data.base.ImageData`, already in [-1, 1]."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Tensor:
        """Images at the indices, float32 in [-1, 1], shape (B, C, H, W)."""
        ...

    def labels(self, indices: Tensor) -> Tensor | None:
        """Class indices, int64 of shape (B,), or None."""
        ...


@shown
@dataclasses.dataclass(frozen=True)
class TensorData:
    """Images that are already tensors; arrays become such.

    Attributes:
        images: floating-point numbers in [-1, 1], shape (N, C, H, W); for a loss of one's own
            whatever that takes, of any shape (N, *).
        targets: class indices, whole numbers of shape (N,), or None.

    Raises:
        InputError: another shape, targets that are no class indices, or pixels in 0..255 among
            floating-point numbers.
    """

    images: Tensor
    targets: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("images", "targets"):
            value = getattr(self, name)
            if isinstance(value, np.ndarray):
                object.__setattr__(self, name, torch.from_numpy(value))
            elif not isinstance(value, Tensor) and (name, value) != ("targets", None):
                raise InputError(f"{name} must be a tensor, not a {type(value).__name__}")
        images, targets = self.images, self.targets
        if images.ndim < 2:
            raise InputError(f"images must have a shape (N, *), not {tuple(images.shape)}")
        if targets is not None and targets.shape != images.shape[:1]:
            raise InputError(
                f"{len(images)} images have targets of shape ({len(images)},), "
                f"not {tuple(targets.shape)}"
            )
        if images.is_floating_point() and images.ndim == 4 and len(images):
            least, most = (float(value) for value in images.aminmax())
            if least >= 0 and most > 16:  # whatever is scaled to about 1 has values below 0
                raise InputError(
                    f"images run from {least:g} to {most:g}, not from -1 to 1: pixels are "
                    "pixels/127.5 - 1"
                )

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> Tensor:
        """Images at the indices."""
        return self.images[indices]

    def labels(self, indices: Tensor) -> Tensor | None:
        """Class indices at the indices, or None."""
        return None if self.targets is None else self.targets[indices]


def order(seed: int, length: int, start: int, count: int) -> Tensor:
    """Which images make up positions ``start .. start+count`` of an endless shuffled stream.

    Every epoch is its own permutation of all images; batches run on across epochs, so that no
    image is left out.

    Returns:
        int64 of shape (count,).
    """
    parts = []
    while count > 0:
        epoch, offset = divmod(start, length)
        generator = torch.Generator().manual_seed(derive(seed, 0, epoch))
        part = torch.randperm(length, generator=generator)[offset : offset + count]
        parts.append(part)
        start += len(part)
        count -= len(part)
    return torch.cat(parts)


class Stream:
    """:func:`order` with the current epoch kept."""

    def __init__(self, seed: int, length: int) -> None:
        self.seed, self.length = seed, length
        self.epoch, self.shuffled = -1, torch.empty(0, dtype=torch.long)

    def take(self, start: int, count: int) -> Tensor:
        """The images at positions ``start .. start+count``."""
        epoch, offset = divmod(start, self.length)
        if offset + count > self.length:
            return order(self.seed, self.length, start, count)
        if epoch != self.epoch:
            self.epoch = epoch
            self.shuffled = order(self.seed, self.length, epoch * self.length, self.length)
        return self.shuffled[offset : offset + count]


@shown
@dataclasses.dataclass(frozen=True)
class Batch:
    """Images (N, *), nodes (N,), noise (N, *) and, for a network with classes, labels (N,)."""

    images: Tensor
    k: Tensor
    noise: Tensor
    labels: tuple[Tensor, ...]

    def parts(self, count: int) -> Iterator[Batch]:
        """The batch in equal parts, one after the other."""
        size = len(self.images) // count
        for start in range(0, len(self.images), size):
            here = slice(start, start + size)
            labels = tuple(each[here] for each in self.labels)
            yield Batch(self.images[here], self.k[here], self.noise[here], labels)


def check_labels(data: Trainable, config: TrainConfig, null_label: int | None) -> None:
    """Refuse labels that cannot be trained with, and a label for none that is not one.

    Raises:
        InputError: no labels, or labels that are no class indices; no label for none where labels
            are dropped, one that is a class, or one where none is dropped.
    """
    if not config.classes:
        if null_label is not None:
            raise InputError("null_label is for training with classes, which is not asked for")
        return
    labels = data.labels(torch.arange(len(data)))
    if labels is None:
        raise InputError("training with classes needs data with labels")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        raise InputError(f"labels must be whole numbers, not {labels.dtype}")
    if config.label_dropout == 0:
        return
    if null_label is None:
        raise InputError(
            f"label_dropout = {config.label_dropout} puts null_label in the place of labels: give "
            "one that is no class, or label_dropout = 0"
        )
    if bool((labels == null_label).any()):
        raise InputError(
            f"null_label = {null_label} is a class of the data, from which a network could not "
            "tell 'no class': give another"
        )


def draw(
    data: Trainable,
    indices: Tensor,
    n: int,
    schedule: Schedule,
    config: TrainConfig,
    null_label: int | None,
    device: torch.device,
    part: slice = _ALL,
) -> Batch:
    """Everything random about step n, but for the network's own dropout.

    It is drawn for the whole batch, whichever part of it is wanted, so that an image gets the same
    in every division of the batch; only the images of the part are read.

    Args:
        data: the images.
        indices: which of them make up the batch.
        n: the step, from 0.
        schedule: the noise schedule.
        config: the run.
        null_label: the label that stands for no class.
        device: where the batch goes.
        part: which of the batch's images are wanted.
    """
    # What is small is drawn on the CPU, the noise where it is used.
    generator = torch.Generator().manual_seed(derive(config.seed, 1, n))
    size, own = len(indices), indices[part]
    images = data.batch(own)
    k = draw_nodes(size, schedule.T, generator, antithetic=config.antithetic, focus=config.focus)
    if config.flip:
        if images.ndim < 3:
            raise InputError(f"flip mirrors images, and these are of shape {tuple(images.shape)}")
        mirrored = (torch.rand(size, generator=generator) < 0.5)[part]
        mirrored = mirrored.view(-1, *(1,) * (images.ndim - 1))
        images = torch.where(mirrored, images.flip(-1), images)
    labels: tuple[Tensor, ...] = ()
    if config.classes:
        given = data.labels(own)
        assert given is not None  # by check_labels
        dropped = (torch.rand(size, generator=generator) < config.label_dropout)[part]
        if null_label is not None:
            given = given.long().masked_fill(dropped, null_label)
        labels = (given.to(device),)
    if device.type != "cpu":
        generator = torch.Generator(device).manual_seed(derive(config.seed, 1, n))
    images = images.to(device, non_blocking=True)
    noise = torch.randn((size, *images.shape[1:]), generator=generator, device=device)[part]
    return Batch(images, k[part].to(device), noise, labels)
