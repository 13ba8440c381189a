"""What a set of images is, and the plain one that is held in memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ddim.base.display import shown
from ddim.base.errors import InputError

__all__ = ["ArrayData", "ImageData", "check_unpacked", "labels_fit"]

_TRUSTED = 1 << 26  # bytes
_RATIO = 100


class ImageData(Protocol):
    """A fixed, ordered set of images of one shape, read by index."""

    @property
    def name(self) -> str:
        """What the set is called in outputs: its registered name, or that of its file or folder."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of every image."""
        ...

    @property
    def classes(self) -> int | None:
        """Number of classes, or None where there are no labels."""
        ...

    @property
    def checksums(self) -> dict[str, str]:
        """SHA-256 of the files read, by name; of the uncompressed content for IDX files.

        Of a folder of images, which are too many to be read for this alone, it is of their names
        and sizes.
        """
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the files was passed over or changed, in a few words each."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def batch(self, indices: Tensor) -> Tensor:
        """The images at `indices`, with shape (B,), as uint8 with shape (B, C, H, W)."""
        ...

    def labels(self, indices: Tensor) -> Tensor | None:
        """The classes at `indices`, with shape (B,), as int64 with shape (B,), or None."""
        ...


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class ArrayData:
    """Images held in memory.

    Arguments:
        name: What the set is called.
        images: uint8 with shape (N, C, H, W).
        targets: int64 with shape (N,), each in 0..classes-1, or None.
        classes: Number of classes; None exactly when `targets` is.
        checksums: SHA-256 of the files that the images came from, by name.
        notes: What of those files was passed over, in a few words each.

    Raises:
        InputError: for another type or shape, for no image at all, or for labels that do not
            match the images or the number of classes.

    Example:
        >>> data = ArrayData("grey", torch.zeros(5, 1, 8, 8, dtype=torch.uint8), None, None)
        >>> len(data), data.shape, data.batch(torch.tensor([4, 0])).shape
        (5, (1, 8, 8), torch.Size([2, 1, 8, 8]))
    """

    name: str
    images: Tensor = dataclasses.field(repr=False)
    targets: Tensor | None = dataclasses.field(repr=False)
    classes: int | None
    checksums: dict[str, str] = dataclasses.field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        images = self.images
        if images.dtype != torch.uint8 or images.ndim != 4 or images.numel() == 0:
            raise InputError(
                f"{self.name}: images must be uint8 with shape (N, C, H, W) and not empty, "
                f"not {images.dtype} with shape {tuple(images.shape)}"
            )
        if (self.targets is None) != (self.classes is None):
            raise InputError(f"{self.name}: labels and a number of classes go together")
        if self.targets is not None and self.classes is not None:
            self._check_targets(self.targets, self.classes)

    def _check_targets(self, targets: Tensor, classes: int) -> None:
        if targets.dtype != torch.int64 or targets.ndim != 1:
            raise InputError(
                f"{self.name}: labels must be int64 with shape (N,), "
                f"not {targets.dtype} with shape {tuple(targets.shape)}"
            )
        if len(targets) != len(self.images):
            raise InputError(f"{self.name}: {len(self.images)} images but {len(targets)} labels")
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= classes:
            raise InputError(
                f"{self.name}: labels must lie in 0..{classes - 1}; they span {low}..{high}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of every image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def batch(self, indices: Tensor) -> Tensor:
        """The images at `indices`, with shape (B,), as uint8 with shape (B, C, H, W)."""
        return self.images[indices]

    def labels(self, indices: Tensor) -> Tensor | None:
        """The classes at `indices`, with shape (B,), as int64 with shape (B,), or None."""
        return None if self.targets is None else self.targets[indices]


def labels_fit(data: ImageData, classes: int) -> bool:
    """Whether images have labels that mean the classes of a model with that many.

    Numbers stand for themselves, and the highest may be lacking; a folder's class is the place of
    its name among all names.
    """
    if data.classes is None:
        return False
    named = getattr(data, "class_names", None) is not None
    return data.classes == classes if named else data.classes <= classes


def check_unpacked(path: Path, unpacked: int, packed: int) -> None:
    """Refuse a compressed file before it is unpacked, if no images compress as well as it says.

    Args:
        path: the file.
        unpacked: bytes that it declares; up to 64 MiB are taken in any case.
        packed: bytes that these are compressed to.

    Raises:
        InputError: more than a hundred bytes for each.
    """
    if unpacked > max(_TRUSTED, _RATIO * packed):
        raise InputError(
            f"{path} declares {unpacked} bytes, which {packed} compressed bytes can hardly hold: "
            "it is damaged, or unpack it first"
        )
