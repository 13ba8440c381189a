"""The sets that are known by name, where they come from and how they are recognised."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path

import numpy as np
import torch

from ddim.base.checksum import mismatch
from ddim.base.errors import InputError
from ddim.data.base import ArrayData
from ddim.data.cifar import ARCHIVE, find_cifar, load_cifar
from ddim.data.download import fetch
from ddim.data.folder import FolderData
from ddim.data.idx import SPLIT_PREFIX, find_idx, load_idx, plain_name

__all__ = ["data_root", "load_named"]

log = logging.getLogger("ddim")


@dataclasses.dataclass(frozen=True)
class _IdxSet:
    """A set in MNIST's format: its mirrors, and the SHA-256 of its files once uncompressed."""

    mirrors: tuple[str, ...]
    sha256: dict[str, str]


_IDX_SETS = {
    # LeCun, Cortes, Burges, http://yann.lecun.com/exdb/mnist/.
    "mnist": _IdxSet(
        (
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
        ),
        {
            "train-images-idx3-ubyte": (
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
            ),
            "train-labels-idx1-ubyte": (
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
            ),
            "t10k-images-idx3-ubyte": (
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
            ),
            "t10k-labels-idx1-ubyte": (
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
            ),
        },
    ),
    # Xiao, Rasul, Vollgraf, Fashion-MNIST, 2017, https://arxiv.org/abs/1708.07747.
    "fashion-mnist": _IdxSet(
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        {
            "train-images-idx3-ubyte": (
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
            ),
            "train-labels-idx1-ubyte": (
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
            ),
            "t10k-images-idx3-ubyte": (
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
            ),
            "t10k-labels-idx1-ubyte": (
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
            ),
        },
    ),
}
_CIFAR_URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
# The authors publish an MD5, c32a1d4ab5d03f1284b67883e8d87530; this is the same file's SHA-256.
_CIFAR_CHECKSUM = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
_CIFAR_COUNT = {"train": 50_000, "test": 10_000}
_DIGITS_TRAIN = 1500
# What DDPM and DDIM cut out of the aligned images of 178 x 218 pixels (128 x 128 around (89, 121)),
# and the numbers of the images in the authors' partition.
_CELEBA_BOX = (25, 57, 153, 185)
_CELEBA_SPLITS = {"train": range(1, 162_771), "test": range(182_638, 202_600)}


def data_root() -> Path:
    """Where named sets are kept: the environment's ``DDIM_DATA``, or the user's cache folder.

    That is ``~/.cache/ddim/data`` on Linux (below ``XDG_CACHE_HOME``, if set),
    ``~/Library/Caches/ddim/data`` on macOS.
    """
    from platformdirs import user_cache_path

    chosen = os.environ.get("DDIM_DATA")
    if chosen:
        return Path(chosen).expanduser()
    return user_cache_path("ddim", appauthor=False) / "data"


def load_named(
    name: str,
    split: str,
    root: Path,
    *,
    download: bool,
    size: int | None = None,
    channels: int | None = None,
    skip_broken: bool = False,
) -> ArrayData | FolderData:
    """One split of a named set.

    ``digits`` comes with scikit-learn. The images of ``celeba`` (Liu et al. 2015, aligned and
    cropped, 000001.jpg to 202599.jpg) no program may download; they are looked for in
    ``root/celeba``, and of each the square that DDPM and DDIM took is resized. The others are
    looked for in ``root/name`` and then in `root`, file by file; what is missing is downloaded to
    ``root/name``.

    Arguments:
        name: One of `ddim.data.names.DATASETS`.
        split: ``train`` or ``test``.
        root: The folder of data sets.
        download: Whether missing files may be downloaded.
        size: Of the images of ``celeba``; 64 if None.
        channels: Of the images of ``celeba``; 3 if None.
        skip_broken: Leave out those images of ``celeba`` that cannot be decoded.

    Raises:
        InputError: if a file found is not the published one, one is missing and may not be
            downloaded, or scikit-learn is missing.
        RunError: if a download fails.
    """
    if name == "digits":
        return _load_digits(split)
    if name == "celeba":
        return _load_celeba(split, root, size or 64, channels or 3, skip_broken)
    if name == "cifar10":
        return _load_cifar10(split, root, download)
    return _load_mnist(name, split, root, download)


def _load_mnist(name: str, split: str, root: Path, download: bool) -> ArrayData:
    prefix = SPLIT_PREFIX[split]
    stems = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    images, labels = (_obtain_idx(name, stem, root, download) for stem in stems)
    data = load_idx(name, images, labels)
    for stem, path in zip(stems, (images, labels), strict=True):
        if data.checksums[plain_name(path)] != _IDX_SETS[name].sha256[stem]:
            raise InputError(
                f"{path} is not the {stem} of {name} (its SHA-256 differs), but damaged or of "
                "another set: replace it, or choose another data folder"
            )
    return data


def _obtain_idx(name: str, stem: str, root: Path, download: bool) -> Path:
    found = find_idx(root / name, stem) or find_idx(root, stem)
    if found is not None:
        return found
    dest = root / name / f"{stem}.gz"
    if not download:
        raise _missing(name, dest)
    urls = [f"{mirror}{stem}.gz" for mirror in _IDX_SETS[name].mirrors]
    fetch(urls, dest, _IDX_SETS[name].sha256[stem], of_uncompressed=True)
    return dest


def _load_cifar10(split: str, root: Path, download: bool) -> ArrayData:
    source = find_cifar(root / "cifar10") or find_cifar(root)
    if source is None:
        source = root / "cifar10" / ARCHIVE
        if not download:
            raise _missing("cifar10", source)
        fetch([_CIFAR_URL], source, _CIFAR_CHECKSUM, of_uncompressed=False)
    elif source.is_file():
        wrong = mismatch(source, _CIFAR_CHECKSUM, of_uncompressed=False)
        if wrong is not None:
            raise InputError(f"{source} is not the published archive ({wrong}): replace it")
    data = load_cifar("cifar10", source, split)
    if len(data) != _CIFAR_COUNT[split]:
        raise InputError(
            f"{source} holds {len(data)} {split} images where CIFAR-10 has {_CIFAR_COUNT[split]}"
        )
    return data


def _load_celeba(split: str, root: Path, size: int, channels: int, skip_broken: bool) -> FolderData:
    folder = root / "celeba"
    if not folder.is_dir():
        raise InputError(
            f"CelebA must be fetched by hand: put its images, aligned and cropped, into {folder}"
        )
    numbers = _CELEBA_SPLITS[split]

    def chosen(path: Path) -> bool:
        return path.stem.isdigit() and int(path.stem) in numbers

    data = FolderData("celeba", folder, size, channels, _CELEBA_BOX, chosen, skip_broken)
    if len(data) != len(numbers):
        log.warning("celeba: %d of its %d %s images are there", len(data), len(numbers), split)
    return data


def _load_digits(split: str) -> ArrayData:
    """8 x 8 digits of scikit-learn: the first 1,500 are for training, the last 297 for testing.

    Reference:
        Alpaydin, Kaynak, *Optical Recognition of Handwritten Digits*, UCI, 1998,
        https://doi.org/10.24432/C50P49. Its values 0..16 are spread over 0..255.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise InputError("digits needs scikit-learn: pip install 'ddim[data]'") from error
    values, classes = load_digits(return_X_y=True)
    images = torch.from_numpy(np.rint(values * 255 / 16).astype(np.uint8)).reshape(-1, 1, 8, 8)
    targets = torch.from_numpy(classes).long()
    part = slice(_DIGITS_TRAIN) if split == "train" else slice(_DIGITS_TRAIN, None)
    return ArrayData("digits", images[part], targets[part], 10)


def _missing(name: str, path: Path) -> InputError:
    return InputError(
        f"{name} is not on this machine: put its file at {path}, or allow downloading"
    )
