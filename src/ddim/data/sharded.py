"""A set of images in shards, read by index: whatever its size, opening it reads the manifest."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddim.base.checksum import digest
from ddim.base.display import shown
from ddim.base.errors import InputError
from ddim.data.manifest import MANIFEST, Manifest
from ddim.data.shard_files import Opened, shard_format

__all__ = ["ShardData", "is_sharded"]

_KEPT = 16
"""Shards that are held open: of an array in a file only what was read is in memory."""


def is_sharded(folder: Path) -> bool:
    """Whether a folder is a set of shards."""
    return (Path(folder) / MANIFEST).is_file()


@shown
class ShardData:
    """The images of a set: item i is image i, or (image, label) where there are labels.

    An image is uint8 of shape (C, H, W). A sequence, so that ``torch.utils.data.DataLoader`` takes
    it, with any number of workers; neighbours are in one file, so that going through it in order,
    or in a random order of shards, is what disks are fast at.

    Args:
        folder: the set; what of it is not finished is refused when it is asked for, unless
            ``partial``.
        partial: take a set of which shards are missing; ``len`` is that of the whole.

    Raises:
        InputError: no such set, a damaged manifest, or missing shards.
    """

    def __init__(self, folder: Path | str, *, partial: bool = False) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        missing = self.manifest.missing()
        if missing and not partial:
            raise InputError(
                f"{folder} lacks {len(missing)} of {self.manifest.count} shards, the first is "
                f"{missing[0]}: run the command that makes it again, or open it as partial"
            )
        self._format = shard_format(self.manifest.shard_format)
        self._kept: OrderedDict[int, Opened] = OrderedDict()

    def _facts(self) -> dict[str, object]:
        return {"folder": str(self.folder), **self.manifest._facts()}

    def __len__(self) -> int:
        return self.manifest.n

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, int]:
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"there is no image {number} in a set of {len(self)}")
        shard, place = divmod(number % len(self), self.manifest.shard_size)
        opened = self._open(shard)
        image = opened.images([place])[0]
        return image if opened.labels is None else (image, int(opened.labels[place]))

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, int]]:
        return (self[i] for i in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}  # files are opened again

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of every image."""
        channels, height, width = self.manifest.shape
        return channels, height, width

    @property
    def classes(self) -> int | None:
        """Number of classes, or None where there are no labels."""
        return self.manifest.classes

    @property
    def checksums(self) -> dict[str, str]:
        """SHA-256 of the manifest, which has those of the shards."""
        return {MANIFEST: digest(self.folder / MANIFEST)}

    @property
    def notes(self) -> tuple[str, ...]:
        """Nothing of it is passed over."""
        return ()

    def batch(self, indices: Tensor) -> Tensor:
        """Images at the indices, shape (B,), as uint8 of shape (B, C, H, W)."""
        out = torch.empty(len(indices), *self.shape, dtype=torch.uint8)
        shards, places = indices // self.manifest.shard_size, indices % self.manifest.shard_size
        for number in shards.unique().tolist():
            here = shards == number
            out[here] = self._open(number).images(places[here].tolist())
        return out

    def labels(self, indices: Tensor) -> Tensor | None:
        """The classes at the indices, int64 of shape (B,), or None."""
        if self.classes is None:
            return None
        size = self.manifest.shard_size
        return torch.tensor([self._label(*divmod(i, size)) for i in indices.tolist()])

    def _label(self, number: int, place: int) -> int:
        labels = self._open(number).labels
        if labels is None:
            raise InputError(f"shard {number} of {self.folder} has no labels")
        return int(labels[place])

    def _open(self, number: int) -> Opened:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        if number not in self.manifest.shards:
            raise InputError(f"{self.folder} has no shard {number} yet")
        path = self.folder / self._format.name(number)
        try:
            opened = self._format.open(path)
        except FileNotFoundError:
            raise InputError(f"{path} is missing: `ddim verify {self.folder}`") from None
        except InputError:
            raise
        except Exception as error:  # zipfile, tarfile and NumPy raise nearly everything
            raise InputError(f"{path} is damaged: {error}") from error
        self._kept[number] = opened
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return opened
