"""Images in a folder, decoded when they are asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from ddim.base.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["SUFFIXES", "FolderData"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
_MODES = {1: "L", 3: "RGB"}
# Pillow converts these to 8 bits by clipping at 255, which would turn most pixels white.
_DEEP_MODES = ("I", "F")
_WORKERS = min(8, os.cpu_count() or 1)

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, eq=False)
class FolderData:
    """A folder of images, searched with its subfolders and sorted by relative path; or one image.

    An image is turned upright as its EXIF orientation says, converted to RGB or greyscale, and its
    central square resized to `size` x `size` with an antialiased bicubic filter; transparency is
    dropped, and of an animation the first frame is taken. Files and folders whose names begin with
    a dot are passed over. If every image lies in a subfolder and there are at least two, the
    subfolders, sorted by name, are the classes.

    Arguments:
        name: What the set is called.
        root: The folder, or the image's file.
        size: Height and width of the images given out, in pixels.
        channels: 3 for RGB, 1 for greyscale.
        box: Left, top, right and bottom in pixels of what is cut out of every image and resized,
            instead of its central square.
        chosen: Which of the files belong to the set; all if None.

    Raises:
        InputError: if the folder holds no image, or the header of one cannot be read, or one has
            more than 8 bits a channel where that would be lost by clipping.
    """

    name: str
    root: Path
    size: int = 64
    channels: int = 3
    box: tuple[int, int, int, int] | None = None
    chosen: Callable[[Path], bool] | None = dataclasses.field(default=None, repr=False)
    files: tuple[Path, ...] = dataclasses.field(init=False, repr=False)
    class_names: tuple[str, ...] | None = dataclasses.field(init=False)
    targets: Tensor | None = dataclasses.field(init=False, repr=False)
    checksums: dict[str, str] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"size must be at least 1 pixel, not {self.size}")
        if self.channels not in _MODES:
            raise InputError(f"channels must be 1 or 3, not {self.channels}")
        files = tuple(filter(self.chosen or bool, _find_images(self.root)))
        if not files:
            raise InputError(
                f"{self.root} holds no images ({', '.join(sorted(SUFFIXES))}, in any subfolder)"
            )
        names, targets = None, None
        if self.root.is_dir():
            names, targets = _find_classes([file.relative_to(self.root) for file in files])
        object.__setattr__(self, "files", files)
        object.__setattr__(self, "class_names", names)
        object.__setattr__(self, "targets", targets)
        _in_threads(_check_header, files)
        object.__setattr__(self, "checksums", {"names and sizes": _fingerprint(self.root, files)})

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of every image given out."""
        return self.channels, self.size, self.size

    @property
    def classes(self) -> int | None:
        """Number of subfolders that are classes, or None."""
        return None if self.class_names is None else len(self.class_names)

    def batch(self, indices: Tensor) -> Tensor:
        """The images at `indices`, with shape (B,), as uint8 with shape (B, C, size, size).

        Raises:
            InputError: naming the file, if one cannot be decoded.
        """
        images = _in_threads(self._decode, [self.files[i] for i in indices.tolist()])
        return torch.stack(images) if images else torch.empty(0, *self.shape, dtype=torch.uint8)

    def labels(self, indices: Tensor) -> Tensor | None:
        """The classes at `indices`, with shape (B,), as int64 with shape (B,), or None."""
        return None if self.targets is None else self.targets[indices]

    def _decode(self, path: Path) -> Tensor:
        pixels = _open_with(
            path, lambda image: _square(image, self.size, _MODES[self.channels], self.box)
        )
        return torch.from_numpy(pixels.reshape(self.size, self.size, -1)).permute(2, 0, 1)


def _find_images(root: Path) -> tuple[Path, ...]:
    if not root.is_dir():
        return (root,)
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [
            Path(folder, name)
            for name in names
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        ]
    return tuple(sorted(found, key=lambda path: path.relative_to(root).as_posix()))


def _fingerprint(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 of the files' names and sizes, which tells one folder from another."""
    hasher = hashlib.sha256()
    for file in files:
        name = file.name if file == root else file.relative_to(root).as_posix()
        hasher.update(f"{name}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape"))
    return hasher.hexdigest()


def _find_classes(files: Iterable[Path]) -> tuple[tuple[str, ...] | None, Tensor | None]:
    """Names and int64 labels with shape (N,) by first subfolder, or None twice."""
    tops = [file.parts[0] if len(file.parts) > 1 else None for file in files]
    names = sorted({top for top in tops if top is not None})
    if None in tops or len(names) < 2:
        return None, None
    number = {name: i for i, name in enumerate(names)}
    return tuple(names), torch.tensor([number[top] for top in tops if top is not None])


def _check_header(path: Path) -> None:
    mode = _open_with(path, lambda image: image.mode)
    if mode.split(";")[0] in _DEEP_MODES:
        raise InputError(f"{path} has more than 8 bits a pixel (mode {mode}): convert it to 8 bits")


def _square(
    image: Image.Image, size: int, mode: str, box: tuple[int, int, int, int] | None
) -> np.ndarray:
    """The box or the central square as uint8 with shape (size, size) or (size, size, 3)."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode == "P":
        # Straight to RGB, Pillow warns about transparency kept beside the palette.
        image = image.convert("RGBA")
    image = image.convert(mode)
    if box is None:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
    # Cut out first: resize(box=…) lets in what lies around the box.
    return np.array(image.crop(box).resize((size, size), Image.Resampling.BICUBIC))


def _open_with(path: Path, use: Callable[[Image.Image], _T]) -> _T:
    """What `use` makes of an image; whatever Pillow raises on a bad file names that file."""
    from PIL import Image

    # Not only OSError: Pillow's readers raise all of these on damaged files.
    damaged = (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        Image.DecompressionBombError,
    )
    try:
        with Image.open(path) as image:
            return use(image)
    except damaged as error:
        raise InputError(f"{path} cannot be read as an image: {error}") from error


def _in_threads(use: Callable[[Path], _T], paths: Iterable[Path]) -> list[_T]:
    # Pillow decodes and resizes with the interpreter lock released.
    with ThreadPoolExecutor(_WORKERS) as pool:
        return list(pool.map(use, paths))
