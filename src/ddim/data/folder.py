"""Images in a folder, decoded when they are asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ddim.base.display import shown
from ddim.base.errors import InputError
from ddim.data.pictures import Header, on_white, open_picture, quietly, read_header, suffixes

__all__ = ["FolderData"]

_MODES = {1: "L", 3: "RGB"}
_WORKERS = min(8, os.cpu_count() or 1)
_NAMED = 5  # files or suffixes in a message

_T = TypeVar("_T")


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class FolderData:
    """A folder of images, searched with its subfolders and sorted by relative path; or one image.

    An image is opened by :func:`~ddim.data.pictures.open_picture`, put on white where it is
    transparent, converted to RGB or greyscale, and its central square resized to `size` x `size`
    with an antialiased bicubic filter. Every file is read whose suffix Pillow opens, unless its
    name or that of its folder begins with a dot. If every image lies in a subfolder and there are
    at least two, the subfolders, sorted by name, are the classes.

    Arguments:
        name: What the set is called.
        root: The folder, or the image's file.
        size: Height and width of the images given out, in pixels.
        channels: 3 for RGB, 1 for greyscale; if None, 1 where no image has colours, else 3.
        box: Left, top, right and bottom in pixels of what is cut out of every image and resized,
            instead of its central square.
        chosen: Which of the files belong to the set; all if None.
        skip_broken: Decode every image now, and leave out those that cannot be.

    Attributes:
        notes: What was passed over or changed, in a few words each.

    Raises:
        InputError: if the folder holds no image, or one cannot be read and is not to be skipped;
            without `skip_broken` only headers are looked at.
    """

    name: str
    root: Path
    size: int = 64
    channels: int | None = None
    box: tuple[int, int, int, int] | None = None
    chosen: Callable[[Path], bool] | None = dataclasses.field(default=None, repr=False)
    skip_broken: bool = False
    files: tuple[Path, ...] = dataclasses.field(init=False, repr=False)
    shape: tuple[int, int, int] = dataclasses.field(init=False)
    class_names: tuple[str, ...] | None = dataclasses.field(init=False)
    targets: Tensor | None = dataclasses.field(init=False, repr=False)
    checksums: dict[str, str] = dataclasses.field(init=False, repr=False)
    notes: tuple[str, ...] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"size must be at least 1 pixel, not {self.size}")
        if self.channels not in (None, *_MODES):
            raise InputError(f"channels must be 1 or 3, not {self.channels}")
        found, others = _find_images(self.root)
        found = list(filter(self.chosen or bool, found))
        looked = _in_threads(lambda path: _examine(path, self.skip_broken), found)
        broken = [error for error in looked if isinstance(error, InputError)]
        if broken and not self.skip_broken:
            raise broken[0]
        headers = {path: h for path, h in zip(found, looked, strict=True) if isinstance(h, Header)}
        if not headers:
            passed = "; ".join(_passed_over(self.root, broken, others))
            raise InputError(
                f"{self.root} holds no images, in any subfolder" + (passed and f" ({passed})")
            )
        files = tuple(headers)
        grey = sum(header.grey for header in headers.values())
        channels = self.channels or (1 if grey == len(files) else 3)
        names, targets = None, None
        if self.root.is_dir():
            names, targets = _find_classes([file.relative_to(self.root) for file in files])
        notes = _passed_over(self.root, broken, others)
        notes += _changed(list(headers.values()), channels, asked=self.channels is not None)
        object.__setattr__(self, "files", files)
        object.__setattr__(self, "shape", (channels, self.size, self.size))
        object.__setattr__(self, "class_names", names)
        object.__setattr__(self, "targets", targets)
        object.__setattr__(self, "checksums", {"names and sizes": _fingerprint(self.root, files)})
        object.__setattr__(self, "notes", tuple(notes))

    def __len__(self) -> int:
        return len(self.files)

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
        pixels = _square(path, self.size, _MODES[self.shape[0]], self.box)
        return torch.from_numpy(pixels.reshape(self.size, self.size, -1)).permute(2, 0, 1)


def _find_images(root: Path) -> tuple[list[Path], list[Path]]:
    """The images below a folder, and its other files, both sorted by relative path."""
    if not root.is_dir():
        return [root], []

    def stop(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error

    images: list[Path] = []
    others: list[Path] = []
    for folder, subfolders, names in os.walk(root, onerror=stop, followlinks=True):
        real = Path(folder).resolve()
        subfolders[:] = [
            name
            for name in subfolders
            # A link to a folder that it lies in would be followed for ever.
            if not name.startswith(".") and not real.is_relative_to(Path(folder, name).resolve())
        ]
        for name in names:
            known, hidden = Path(name).suffix.lower() in suffixes(), name.startswith(".")
            if known and not hidden:
                images.append(Path(folder, name))
            elif known or not hidden:
                others.append(Path(folder, name))
    for files in (images, others):
        files.sort(key=lambda path: path.relative_to(root).as_posix())
    return images, others


def _examine(path: Path, whole: bool) -> Header | InputError:
    try:
        if whole:
            open_picture(path)
        return read_header(path)
    except InputError as error:
        return error


def _passed_over(root: Path, broken: Sequence[InputError], others: Sequence[Path]) -> list[str]:
    """Which files were not used, and why."""
    notes: list[str] = []
    if broken:
        # Names in the folder are enough.
        reasons = [str(error).removeprefix(f"{root}{os.sep}") for error in broken[:_NAMED]]
        more = "; …" if len(broken) > _NAMED else ""
        notes.append(f"{len(broken)} broken ({'; '.join(reasons)}{more})")
    hidden = sum(path.name.startswith(".") for path in others)
    if hidden:
        notes.append(f"{hidden} hidden")
    kinds = Counter(p.suffix.lower()[:12] or p.name[:12] for p in others if p.name[0] != ".")
    if kinds:
        named = ", ".join(kind for kind, _ in kinds.most_common(_NAMED))
        more = ", …" if len(kinds) > _NAMED else ""
        notes.append(f"{kinds.total()} of other kinds ({named}{more})")
    return [f"{note} passed over" for note in notes]


def _changed(headers: Sequence[Header], channels: int, *, asked: bool) -> list[str]:
    """What of the pictures is not taken as it is."""
    total, grey = len(headers), sum(header.grey for header in headers)
    alpha, frames = sum(h.alpha for h in headers), sum(h.frames for h in headers)
    notes: list[str] = []
    if alpha:
        notes.append(f"{alpha} with transparency put on white")
    if frames:
        notes.append(f"{frames} with several frames, of which the first is taken")
    if channels == 1 and grey < total:
        notes.append(f"{total - grey} in colour turned grey")
    if not asked and grey:
        notes.append(
            "all greyscale, so images have 1 channel unless 3 are asked for"
            if grey == total
            else f"{grey} greyscale among others, so all have 3 channels"
        )
    return notes


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


def _square(path: Path, size: int, mode: str, box: tuple[int, int, int, int] | None) -> np.ndarray:
    """The box or the central square as uint8 with shape (size, size) or (size, size, 3)."""
    from PIL import Image

    image = on_white(open_picture(path))
    if image.mode != mode:
        image = image.convert(mode)
    if box is None:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
    # Cut out first: resize(box=…) lets in what lies around the box.
    return np.array(image.crop(box).resize((size, size), Image.Resampling.BICUBIC))


def _in_threads(use: Callable[[Path], _T], paths: Iterable[Path]) -> list[_T]:
    # Pillow decodes and resizes with the interpreter lock released.
    with quietly(), ThreadPoolExecutor(_WORKERS) as pool:
        return list(pool.map(use, paths))
