"""The file, or the folder, of one shard: bytes of images by their place in it, and their labels.

Equal images have equal bytes: no time, no name and no compression whose library could differ is in
them, except that ``tar`` and ``png`` hold PNG files, which are as equal as Pillow's zlib is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddim.base.checksum import digest
from ddim.base.errors import InputError, unknown
from ddim.data.npz import read_array_header
from ddim.data.pixels import picture

__all__ = ["FORMATS", "Opened", "ShardFormat", "content_of", "measure", "shard_format"]

LABELS = "dataset.json"
"""The labels of a folder of PNGs, as NVIDIA's data sets have them."""
_HEADER = 30
"""Bytes of a zip member's own header, before its name."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """A shard to read from.

    Attributes:
        images: uint8 of shape (len(places), C, H, W) for places in the shard.
        labels: of all its images, int64; None where there are none.
    """

    images: Callable[[Sequence[int]], Tensor]
    labels: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class ShardFormat:
    """A way to keep a shard.

    Attributes:
        suffix: of its file; of a folder none.
        write: called with a path, pixels (N, H, W, C) as bytes, labels or None, and the number of
            the first image.
        open: called with a path.
    """

    suffix: str
    write: Callable[[Path, np.ndarray, np.ndarray | None, int], None]
    open: Callable[[Path], Opened]

    @property
    def folder(self) -> bool:
        """Whether a shard is a folder."""
        return not self.suffix

    def name(self, number: int) -> str:
        """The name of a shard: ``000017.npz``."""
        return f"{number:06d}{self.suffix}"


def shard_format(name: str) -> ShardFormat:
    """The format of that name.

    Raises:
        InputError: there is none.
    """
    if name not in FORMATS:
        raise unknown("format of shards", name, FORMATS)
    return FORMATS[name]


def measure(path: Path) -> tuple[int, str]:
    """Bytes and SHA-256 of a shard; of a folder that of its files' names and SHA-256s.

    Raises:
        OSError: it cannot be read, or is not there.
    """
    if not path.is_dir():
        return path.stat().st_size, digest(path)
    hasher, size = hashlib.sha256(), 0
    for file in sorted(path.iterdir()):
        size += file.stat().st_size
        hasher.update(f"{digest(file)}  {file.name}\n".encode())
    return size, hasher.hexdigest()


def content_of(path: Path) -> int | None:
    """Bytes of a shard, by the sizes of its files alone; None where it is not there."""
    try:
        if not path.is_dir():
            return path.stat().st_size
        with os.scandir(path) as entries:
            return sum(entry.stat().st_size for entry in entries)
    except FileNotFoundError:
        return None


# -- npz -------------------------------------------------------------------------------------------


def _write_npz(path: Path, pixels: np.ndarray, labels: np.ndarray | None, first: int) -> None:
    arrays = {"images": pixels, **({} if labels is None else {"labels": labels})}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            # A ZipInfo has the date 1980-01-01; stored, an array can be read where it lies.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


def _open_npz(path: Path) -> Opened:
    with zipfile.ZipFile(path) as archive:
        arrays = {info.filename: _mapped(path, archive, info) for info in archive.infolist()}
    if "images.npy" not in arrays:
        raise InputError(f"{path} has no images in it")
    images = arrays["images.npy"]
    if images.dtype != np.uint8 or images.ndim != 4:
        raise InputError(f"{path}: images are uint8 of shape (N, H, W, C), not {images.dtype}")
    return _opened(images, arrays.get("labels.npy"))


def _mapped(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """An array of an archive, left on the disk until it is used."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise InputError(f"{path}: a shard's arrays are stored, and {info.filename} is compressed")
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(_HEADER)
        name, extra = struct.unpack_from("<HH", header, 26)
        file.seek(info.header_offset + _HEADER + name + extra)
        shape, fortran, dtype = read_array_header(file, f"{path}: {info.filename}")
        if fortran or dtype.hasobject:
            raise InputError(f"{path}: {info.filename} is not a plain array in C order")
        return np.memmap(path, dtype, "r", file.tell(), shape)


def _opened(images: np.ndarray, labels: np.ndarray | None) -> Opened:
    def chosen(places: Sequence[int]) -> Tensor:
        part = np.asarray(images[list(places)])
        return torch.from_numpy(part.transpose(0, 3, 1, 2).copy())

    return Opened(chosen, None if labels is None else np.asarray(labels))


# -- safetensors -----------------------------------------------------------------------------------


def _write_safetensors(
    path: Path, pixels: np.ndarray, labels: np.ndarray | None, first: int
) -> None:
    from safetensors.numpy import save_file

    arrays = {"images": np.ascontiguousarray(pixels)}
    if labels is not None:
        arrays["labels"] = labels
    save_file(arrays, path, metadata={"first": str(first)})


def _open_safetensors(path: Path) -> Opened:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, "np")
        images = file.get_slice("images")
        labels = file.get_tensor("labels") if "labels" in list(file.keys()) else None
    except SafetensorError as error:
        raise InputError(f"{path} is no shard: {error}") from None

    def chosen(places: Sequence[int]) -> Tensor:
        low, high = min(places), max(places) + 1
        part = images[low:high][[place - low for place in places]]
        return torch.from_numpy(part.transpose(0, 3, 1, 2).copy())

    return Opened(chosen, labels)


# -- tar and png -----------------------------------------------------------------------------------


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    picture(torch.from_numpy(pixels).permute(2, 0, 1)).save(buffer, "PNG")
    return buffer.getvalue()


def _decoded(data: bytes, where: str) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            array = np.asarray(image)
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise InputError(f"{where} is no PNG: {error}") from None
    array = array[..., None] if array.ndim == 2 else array
    return torch.from_numpy(array.transpose(2, 0, 1).copy())


def _key(index: int) -> str:
    return f"{index:09d}"


def _write_tar(path: Path, pixels: np.ndarray, labels: np.ndarray | None, first: int) -> None:
    """As WebDataset reads it: files of one image stand together and share their name."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for i, image in enumerate(pixels):
            parts = {"png": _png(image)}
            if labels is not None:
                parts["cls"] = str(int(labels[i])).encode()
            for kind, data in parts.items():
                info = tarfile.TarInfo(f"{_key(first + i)}.{kind}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def _open_tar(path: Path) -> Opened:
    with tarfile.open(path, "r:") as archive:
        members = [member for member in archive if member.isfile()]
    pictures = [(m.offset_data, m.size, m.name) for m in members if m.name.endswith(".png")]
    classes = [(m.offset_data, m.size) for m in members if m.name.endswith(".cls")]

    def chosen(places: Sequence[int]) -> Tensor:
        with path.open("rb") as file:
            return torch.stack([_at(file, path, *pictures[place]) for place in places])

    labels: list[int] = []
    with path.open("rb") as file:
        for offset, size in classes:
            file.seek(offset)
            labels.append(int(file.read(size)))
    return Opened(chosen, np.asarray(labels) if labels else None)


def _at(file: io.BufferedReader, path: Path, offset: int, size: int, name: str) -> Tensor:
    file.seek(offset)
    return _decoded(file.read(size), f"{path}: {name}")


def _write_png(path: Path, pixels: np.ndarray, labels: np.ndarray | None, first: int) -> None:
    path.mkdir(exist_ok=True)
    names = [f"{_key(first + i)}.png" for i in range(len(pixels))]
    for name, image in zip(names, pixels, strict=True):
        (path / name).write_bytes(_png(image))
    if labels is not None:
        pairs = [[name, int(label)] for name, label in zip(names, labels, strict=True)]
        (path / LABELS).write_text(json.dumps({"labels": pairs}) + "\n")


def _open_png(path: Path) -> Opened:
    names = sorted(file.name for file in path.glob("*.png"))
    labels = None
    if (path / LABELS).exists():
        pairs = json.loads((path / LABELS).read_text())["labels"]
        labels = np.asarray([label for _, label in pairs])

    def chosen(places: Sequence[int]) -> Tensor:
        files = [path / names[place] for place in places]
        return torch.stack([_decoded(file.read_bytes(), str(file)) for file in files])

    return Opened(chosen, labels)


FORMATS = {
    "npz": ShardFormat(".npz", _write_npz, _open_npz),
    "safetensors": ShardFormat(".safetensors", _write_safetensors, _open_safetensors),
    "tar": ShardFormat(".tar", _write_tar, _open_tar),
    "png": ShardFormat("", _write_png, _open_png),
}
"""The formats of shards, by name."""
