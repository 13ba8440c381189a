"""Images from a NumPy archive."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch

from ddim.base.checksum import digest
from ddim.base.errors import InputError, quoted
from ddim.data.base import ArrayData, check_unpacked

__all__ = ["load_npz", "read_array_header"]

_IMAGES = ("images", "x", "arr_0")
_LABELS = ("labels", "y")
_CHANNELS = (1, 3)
_EXPECTED = "uint8 with shape (N, H, W), (N, H, W, C) or (N, C, H, W), C being 1 or 3"
_LARGEST = 2**31 - 1
_READ = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def load_npz(path: Path) -> ArrayData:
    """Images, and labels where there are any, from an ``.npz`` file.

    Types, shapes and sizes are read from the headers of its arrays, before one is unpacked. Arrays
    of other names are passed over, which is said.

    Arguments:
        path: An archive with one of the arrays ``images``, ``x`` and ``arr_0``, uint8 with shape
            (N, H, W), (N, H, W, C) or (N, C, H, W), and at most one of ``labels`` and ``y``,
            integers from 0 with shape (N,).

    Raises:
        InputError: if the file is no such archive, its arrays are of another type or shape, or it
            is ambiguous which is meant. Pickled objects are never loaded.
    """
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not an .npz archive, or is truncated")
    try:
        with zipfile.ZipFile(path) as archive:
            return _load(path, archive)
    except InputError:
        raise
    except Exception as error:  # NumPy and zipfile raise nearly everything on damaged members.
        raise InputError(f"{path} cannot be read as plain arrays: {error}") from error


def _load(path: Path, archive: zipfile.ZipFile) -> ArrayData:
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    images, labels = _pick(members, _IMAGES, path), _pick(members, _LABELS, path)
    if images is None:
        raise InputError(f"{path} has none of the arrays {', '.join(_IMAGES)}")
    dtype, shape = _header(archive, images, path)
    last = _channels_last(dtype, shape, path)
    if labels is not None:
        _check_labels(*_header(archive, labels, path), shape[0], path)
    pixels = torch.from_numpy(_array(archive, images)).reshape(shape)
    if last is not False:
        pixels = pixels[:, None] if last is None else pixels.movedim(3, 1).contiguous()
    checksums = {path.name: digest(path)}
    other = members.keys() - {*_IMAGES, *_LABELS}
    notes = (f"other arrays {quoted(sorted(other))} passed over",) if other else ()
    if labels is None:
        return ArrayData(path.stem, pixels, None, None, checksums, notes)
    values = _array(archive, labels)
    if values.min() < 0 or values.max() > _LARGEST:
        raise InputError(
            f"{path}: labels must be integers from 0 to {_LARGEST}; they span {values.min()} to "
            f"{values.max()}"
        )
    targets = torch.from_numpy(values.astype(np.int64))
    return ArrayData(path.stem, pixels, targets, int(targets.max()) + 1, checksums, notes)


def _pick(
    members: dict[str, zipfile.ZipInfo], names: Sequence[str], path: Path
) -> zipfile.ZipInfo | None:
    found = [name for name in names if name in members]
    if len(found) > 1:
        raise InputError(f"{path} is ambiguous: keep one of its arrays {' and '.join(found)}")
    return members[found[0]] if found else None


def _header(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path
) -> tuple[np.dtype, tuple[int, ...]]:
    """Type and shape of an array, if the archive can hold what it declares."""
    name = info.filename
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{path}: {name} is compressed in a way that NumPy does not write")
    with archive.open(info) as file:
        shape, _, dtype = read_array_header(file, f"{path}: {name}")
        declared = file.tell() + math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise InputError(f"{path} cannot be read as plain arrays: {name} is pickled")
    if declared != info.file_size or any(length < 0 for length in shape):
        raise InputError(
            f"{path}: {name} has shape {quoted(shape)} and type {dtype.name}, which needs "
            f"{declared:.6g} bytes, and it holds {info.file_size}: it is damaged"
        )
    check_unpacked(path, info.file_size, min(info.compress_size, path.stat().st_size))
    return dtype, shape


def read_array_header(file: IO[bytes], what: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type of an array in NumPy's format; the file is at its values then.

    Args:
        file: at its beginning.
        what: which array it is, for messages.

    Raises:
        InputError: the format is of another version than 1.0 and 2.0.
        ValueError: it is no such array.
    """
    version = np.lib.format.read_magic(file)
    if version not in _READ:
        raise InputError(f"{what} is in version {version} of NumPy's format, not 1.0 or 2.0")
    return _READ[version](file)


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _channels_last(dtype: np.dtype, shape: tuple[int, ...], path: Path) -> bool | None:
    """Whether channels come last, or after the images' numbers; None if there is no such axis."""
    if dtype != np.uint8 or len(shape) not in (3, 4) or math.prod(shape) == 0:
        raise InputError(
            f"{path}: images must be {_EXPECTED}, not {dtype.name} with shape {quoted(shape)}"
        )
    if len(shape) == 3:
        return None
    first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS
    if first and last:
        raise InputError(f"{path}: shape {shape} is ambiguous, the channels could be first or last")
    if not first and not last:
        raise InputError(f"{path}: images must be {_EXPECTED}, not with shape {shape}")
    return last


def _check_labels(dtype: np.dtype, shape: tuple[int, ...], count: int, path: Path) -> None:
    if shape != (count,) or dtype.kind not in "iu":
        raise InputError(
            f"{path}: labels must be integers from 0 with shape ({count},), one for each image, "
            f"not {dtype.name} with shape {quoted(shape)}"
        )
