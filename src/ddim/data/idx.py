"""The IDX format of MNIST: a magic number, the dimensions, then unsigned bytes.

Reference:
    LeCun, Cortes, Burges, *The MNIST database of handwritten digits*, section 'File formats',
    http://yann.lecun.com/exdb/mnist/. The magic number is two zero bytes, the type of the
    elements (8: unsigned byte) and the number of dimensions; each dimension is a big-endian
    32-bit integer.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from ddim.base.errors import InputError
from ddim.data.base import ArrayData

__all__ = ["SPLIT_PREFIX", "find_idx", "find_labels", "load_idx", "plain_name", "read_idx"]

SPLIT_PREFIX = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTE = 8
_KIND = {1: "labels", 3: "images"}


def find_idx(folder: Path, stem: str) -> Path | None:
    """The IDX file called `stem` in a folder, in any of its usual spellings.

    Arguments:
        folder: Where to look; it need not exist.
        stem: As in ``train-images-idx3-ubyte``; ``train-images.idx3-ubyte`` is the same file,
            and so are both with ``.gz``.
    """
    for name in (stem, stem.replace("-idx", ".idx")):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def find_labels(images: Path) -> Path | None:
    """The labels file that belongs to an images file by its name, or None."""
    stem = plain_name(images).replace(".idx", "-idx")
    wanted = stem.replace("images", "labels").replace("idx3", "idx1")
    return find_idx(images.parent, wanted) if wanted != stem else None


def plain_name(path: Path) -> str:
    """The name of a file without ``.gz``: the name of what its checksum is taken of."""
    return path.name.removesuffix(".gz")


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file of unsigned bytes, compressed with gzip or not.

    Compression is recognised by the content, not by the name.

    Returns:
        uint8 with as many dimensions as the file declares: (N,) for labels, (N, H, W) for images.

    Raises:
        InputError: if the file cannot be read, is not IDX, holds another type than unsigned
            bytes, or is shorter or longer than its dimensions say.
    """
    return _parse(_read_plain(path), path)


def load_idx(name: str, images: Path, labels: Path | None) -> ArrayData:
    """Images with their labels from a pair of IDX files.

    Arguments:
        name: What the set is called.
        images: The file of images, with shape (N, H, W); they get one channel.
        labels: The file of labels, with shape (N,), or None.

    Raises:
        InputError: as :func:`read_idx`, and if one file is where the other is expected or their
            numbers differ.
    """
    pixels, checksums = _read_kind(images, 3)
    if labels is None:
        return ArrayData(name, torch.from_numpy(pixels)[:, None], None, None, checksums)
    classes, more = _read_kind(labels, 1)
    if len(pixels) != len(classes):
        raise InputError(
            f"{images.name} holds {len(pixels)} images but {labels.name} holds {len(classes)} "
            f"labels ({images.parent}): they must be of the same set"
        )
    return ArrayData(
        name,
        torch.from_numpy(pixels)[:, None],
        torch.from_numpy(classes).long(),
        int(classes.max()) + 1,
        checksums | more,
    )


def _read_kind(path: Path, ndim: int) -> tuple[np.ndarray, dict[str, str]]:
    """The array in a file that must have `ndim` dimensions, and its checksum by name."""
    content = _read_plain(path)
    array = _parse(content, path)
    if array.ndim != ndim:
        found = _KIND.get(array.ndim, f"an array of {array.ndim} dimensions")
        raise InputError(
            f"{path} holds {found} where {_KIND[ndim]} are expected"
            + (": are the images and labels files swapped?" if array.ndim in _KIND else "")
        )
    return array, {plain_name(path): hashlib.sha256(content).hexdigest()}


def _read_plain(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"{path} is a truncated or damaged gzip file ({error}): get it again"
        ) from error


def _parse(content: bytes, path: Path) -> np.ndarray:
    if len(content) < 4 or content[:2] != b"\0\0" or content[3] == 0:
        raise InputError(
            f"{path} is not an IDX file: it begins with {content[:4].hex(' ') or 'nothing'}, where "
            "00 00 08 03 (images) or 00 00 08 01 (labels) is expected"
        )
    kind, ndim = content[2], content[3]
    if kind != _UNSIGNED_BYTE:
        raise InputError(
            f"{path} is an IDX file of element type {kind:#04x}: only unsigned bytes (0x08) "
            "are read"
        )
    start = 4 + 4 * ndim
    if len(content) < start:
        raise InputError(
            f"{path} is truncated: {start} bytes of header expected, {len(content)} found"
        )
    dims = struct.unpack(f">{ndim}I", content[4:start])
    if 0 in dims:
        raise InputError(f"{path} is empty: its dimensions are {dims}")
    expected = start + math.prod(dims)
    if len(content) != expected:
        wrong = "truncated" if len(content) < expected else "too long"
        raise InputError(
            f"{path} is {wrong}: dimensions {dims} need {expected} bytes, {len(content)} found"
        )
    # A copy, because torch.from_numpy refuses the read-only view of `bytes` with a warning.
    return np.frombuffer(content, np.uint8, offset=start).reshape(dims).copy()
