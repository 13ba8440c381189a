"""The statistics that FID programs publish: ``mu`` and ``sigma`` in an ``.npz``."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddim.base.errors import InputError
from ddim.data.npz import read_array_header

__all__ = ["read_published"]

_WIDEST = 8192
"""Features of any network whose covariance is published: Inception has 2,048."""


def read_published(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean, shape (D,), and the covariance, shape (D, D), of an ``.npz``.

    Sizes are read from the headers before any memory is taken.

    Raises:
        InputError: no such archive, other arrays, or values that are not finite.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [Path(name).stem for name in archive.namelist()]
            if not {"mu", "sigma"} <= set(names):
                raise InputError(
                    f"{path} has no arrays mu and sigma, which published statistics have: it has "
                    f"{', '.join(names[:12]) or 'none'}"
                )
            mean, cov = (_array(archive, name, axes) for name, axes in (("mu", 1), ("sigma", 2)))
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from None
    # What NumPy and zipfile raise on damaged, encrypted or pickled members.
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read as an .npz archive: {error}") from None
    if cov.shape != (len(mean), len(mean)) or not (
        np.isfinite(mean).all() and np.isfinite(cov).all()
    ):
        raise InputError(
            f"{path}: mu {mean.shape} and sigma {cov.shape} are no finite mean and covariance"
        )
    return mean, cov


def _array(archive: zipfile.ZipFile, name: str, axes: int) -> NDArray[np.float64]:
    with archive.open(f"{name}.npy") as file:
        shape, _, kind = read_array_header(file, name)
        if len(shape) != axes or max(shape) > _WIDEST or kind.kind != "f":
            raise InputError(f"{name} is {kind} of shape {shape}, no moments of features")
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False).astype(np.float64)
