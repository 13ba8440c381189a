"""Images from a NumPy archive."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddim.base.checksum import digest
from ddim.base.errors import InputError
from ddim.data.base import ArrayData

__all__ = ["load_npz"]

_IMAGES = ("images", "x", "arr_0")
_LABELS = ("labels", "y")
_CHANNELS = (1, 3)
_EXPECTED = "uint8 with shape (N, H, W), (N, H, W, C) or (N, C, H, W), C being 1 or 3"
# What NumPy and zipfile raise on damaged, encrypted or pickled members.
_DAMAGED = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def load_npz(path: Path) -> ArrayData:
    """Images, and labels where there are any, from an ``.npz`` file.

    Arguments:
        path: An archive with one of the arrays ``images``, ``x`` and ``arr_0``, uint8 with shape
            (N, H, W), (N, H, W, C) or (N, C, H, W), and at most one of ``labels`` and ``y``,
            integers from 0 with shape (N,).

    Raises:
        InputError: if the file is no such archive, its arrays are of another type or shape, or it
            is ambiguous which is meant. Pickled objects are never loaded.
    """
    arrays = _read_arrays(path)
    images, labels = _pick(arrays, _IMAGES, path), _pick(arrays, _LABELS, path)
    if images is None:
        raise InputError(f"{path} has none of the arrays {', '.join(_IMAGES)}")
    pixels = _images_first(images, path)
    checksums = {path.name: digest(path)}
    if labels is None:
        return ArrayData(path.stem, pixels, None, None, checksums)
    targets = _targets(labels, len(pixels), path)
    return ArrayData(path.stem, pixels, targets, int(targets.max()) + 1, checksums)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the archive that have a meaning here, by name."""
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not an .npz archive, or is truncated")
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = [name for name in (*_IMAGES, *_LABELS) if name in archive.files]
            return {name: np.asarray(archive[name]) for name in found}
    except _DAMAGED as error:
        raise InputError(f"{path} cannot be read as plain arrays: {error}") from error


def _pick(arrays: dict[str, np.ndarray], names: Sequence[str], path: Path) -> np.ndarray | None:
    found = [name for name in names if name in arrays]
    if len(found) > 1:
        raise InputError(f"{path} is ambiguous: keep one of its arrays {' and '.join(found)}")
    return arrays[found[0]] if found else None


def _images_first(array: np.ndarray, path: Path) -> Tensor:
    """The images as uint8 with shape (N, C, H, W), wherever the channels were."""
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.size == 0:
        raise InputError(
            f"{path}: images must be {_EXPECTED}, not {array.dtype} with shape {array.shape}"
        )
    if array.ndim == 3:
        return torch.from_numpy(array)[:, None]
    first, last = array.shape[1] in _CHANNELS, array.shape[3] in _CHANNELS
    if first and last:
        raise InputError(
            f"{path}: shape {array.shape} is ambiguous, the channels could be first or last"
        )
    if not first and not last:
        raise InputError(f"{path}: images must be {_EXPECTED}, not with shape {array.shape}")
    return torch.from_numpy(array if first else np.moveaxis(array, 3, 1).copy())


def _targets(array: np.ndarray, count: int, path: Path) -> Tensor:
    if array.shape != (count,) or array.dtype.kind not in "iu" or array.min() < 0:
        raise InputError(
            f"{path}: labels must be integers from 0 with shape ({count},), one for each image, "
            f"not {array.dtype} with shape {array.shape}"
            + (" and negative values" if array.dtype.kind == "i" and array.min() < 0 else "")
        )
    return torch.from_numpy(array.astype(np.int64))
