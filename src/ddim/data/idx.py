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
import io
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from ddim.base.errors import InputError
from ddim.data.base import ArrayData, check_unpacked

__all__ = ["SPLIT_PREFIX", "find_idx", "find_labels", "load_idx", "plain_name", "read_idx"]

SPLIT_PREFIX = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTE = 8
_KIND = {1: "labels", 3: "images"}
_SMALL = 1 << 26  # bytes that are unpacked to see whether they are there
_CHUNK = 1 << 20


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


def read_idx(path: Path, ndim: int) -> tuple[np.ndarray, str]:
    """The array in an IDX file of unsigned bytes, compressed with gzip or not.

    Compression is recognised by the content, not by the name. The header is compared with what is
    there before anything is unpacked.

    Args:
        path: the file.
        ndim: dimensions that it must have: 3 for images, 1 for labels.

    Returns:
        uint8 of shape (N, H, W) or (N,), and the SHA-256 of the file's uncompressed content.

    Raises:
        InputError: if the file cannot be read, is not IDX, holds another type than unsigned
            bytes or other dimensions, or is shorter or longer than its dimensions say.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            size = raw.seek(0, os.SEEK_END)
            raw.seek(max(size - 4, 0))
            trailer = int.from_bytes(raw.read(4), "little")
            raw.seek(0)
            file = gzip.GzipFile(fileobj=raw) if packed else raw
            header, dims = _read_header(file, path, ndim)
            expected = len(header) + math.prod(dims)
            if packed:
                _check_packed(path, expected, size, trailer)
            elif size != expected:
                raise _wrong_size(path, dims, expected, size)
            return _read_body(file, path, header, dims)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"{path} is a truncated or damaged gzip file ({error}): get it again"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


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
    pixels, digest = read_idx(images, 3)
    checksums = {plain_name(images): digest}
    if labels is None:
        return ArrayData(name, torch.from_numpy(pixels)[:, None], None, None, checksums)
    classes, digest = read_idx(labels, 1)
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
        checksums | {plain_name(labels): digest},
    )


def _read_header(file: io.BufferedIOBase, path: Path, ndim: int) -> tuple[bytes, tuple[int, ...]]:
    """The header of an IDX file, and the dimensions that it declares."""
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[3] == 0:
        raise InputError(
            f"{path} is not an IDX file: it begins with {start.hex(' ') or 'nothing'}, where "
            "00 00 08 03 (images) or 00 00 08 01 (labels) is expected"
        )
    if start[2] != _UNSIGNED_BYTE:
        raise InputError(
            f"{path} is an IDX file of element type {start[2]:#04x}: only unsigned bytes (0x08) "
            "are read"
        )
    if start[3] != ndim:
        found = _KIND.get(start[3], f"an array of {start[3]} dimensions")
        raise InputError(
            f"{path} holds {found} where {_KIND[ndim]} are expected"
            + (": are the images and labels files swapped?" if start[3] in _KIND else "")
        )
    rest = file.read(4 * ndim)
    if len(rest) < 4 * ndim:
        raise InputError(
            f"{path} is truncated: {4 + 4 * ndim} bytes of header expected, {4 + len(rest)} found"
        )
    dims = struct.unpack(f">{ndim}I", rest)
    if 0 in dims:
        raise InputError(f"{path} is empty: its dimensions are {dims}")
    return start + rest, dims


def _check_packed(path: Path, expected: int, size: int, trailer: int) -> None:
    """Refuse a gzip file that cannot hold what its content declares, before it is unpacked."""
    check_unpacked(path, expected, size)
    # gzip ends with the length of what it holds; small files are read and said to be what they are.
    if expected > _SMALL and trailer != expected % 2**32:
        raise InputError(
            f"{path} is a truncated or damaged gzip file, or several in one: it ends as one of "
            f"{trailer} bytes, and its dimensions need {expected}: get it again, or unpack it"
        )


def _read_body(
    file: io.BufferedIOBase, path: Path, header: bytes, dims: tuple[int, ...]
) -> tuple[np.ndarray, str]:
    """The array after the header, and the SHA-256 of both."""
    hasher, array = hashlib.sha256(header), np.empty(math.prod(dims), np.uint8)
    view, got, expected = array.data, 0, len(header) + len(array)
    while got < len(view) and (count := file.readinto(view[got : got + _CHUNK])):
        hasher.update(view[got : got + count])
        got += count
    if got < len(view):
        raise _wrong_size(path, dims, expected, len(header) + got)
    if file.read(1):  # which also makes gzip compare its checksum
        raise _wrong_size(path, dims, expected, None)
    return array.reshape(dims), hasher.hexdigest()


def _wrong_size(path: Path, dims: tuple[int, ...], expected: int, found: int | None) -> InputError:
    """What is wrong with a file of so many bytes; None for more than there should be."""
    wrong = "truncated" if found is not None and found < expected else "too long"
    return InputError(
        f"{path} is {wrong}: dimensions {dims} need {expected} bytes, {found or 'more'} found"
    )
