"""The one way to open images: by name or by path."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypeVar

from ddim.base.errors import InputError, quoted, unknown
from ddim.data.base import ArrayData, ImageData
from ddim.data.cifar import find_cifar, load_cifar
from ddim.data.folder import FolderData
from ddim.data.idx import SPLIT_PREFIX, find_idx, find_labels, load_idx, plain_name
from ddim.data.named import data_root, load_named
from ddim.data.names import ALIASES, DATASETS, SPLITS
from ddim.data.npz import load_npz
from ddim.data.pictures import suffixes
from ddim.data.sharded import ShardData, is_sharded

__all__ = ["NoSuchSplitError", "load_data"]

log = logging.getLogger("ddim")

Images = TypeVar("Images", ArrayData, ArrayData | FolderData | ShardData)

_VALIDATION = frozenset({"val", "valid", "validation"})


class NoSuchSplitError(InputError):
    """The images are there, but not parted into the one that was asked for."""


def load_data(
    source: str,
    *,
    split: str = "train",
    size: int | None = None,
    channels: int | None = None,
    root: Path | None = None,
    download: bool = True,
    skip_broken: bool = False,
) -> ImageData:
    """Open a set of images.

    What of a folder is passed over, or changed, is said in one line of the log ``ddim``.

    Arguments:
        source: A name (``mnist``, ``fashion-mnist`` or ``fashion``, ``cifar10``, ``celeba``,
            ``digits``; a folder of the same name is ``./mnist``), or a path: a folder of MNIST's
            IDX files, of CIFAR-10's binary files, of images or of shards that ``ddim sample`` drew,
            an ``.npz`` file, one image, or a file of IDX images, whose labels are taken from the
            file beside it that is named alike.
        split: ``train`` or ``test``. A folder of images is split by its subfolders ``train`` and
            ``test``; without them, all of it is for training, as a single file is.
        size: Height and width in pixels. Image files are resized to it (64 if None);
            elsewhere it must be what the images have.
        channels: Number of channels, 1 or 3. Image files are converted to it (if None, to 1 where
            none has colours, else to 3); elsewhere it must be what the images have.
        root: Where named sets are kept; :func:`~ddim.data.named.data_root` if None.
        download: Whether a named set that is not there may be downloaded.
        skip_broken: Decode all image files now and leave out those that cannot be.

    Raises:
        InputError: if there is no such set, split, size or number of channels, or a file is not
            what it should be.
        RunError: if a download fails.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    name = ALIASES.get(source, source)
    beside: list[str] = []
    if name in DATASETS:
        data = load_named(
            *(name, split, root or data_root()),
            download=download,
            size=size,
            channels=channels,
            skip_broken=skip_broken,
        )
    else:
        data, beside = _load_path(source, split, size, channels, skip_broken)
    if skip_broken and not isinstance(data, FolderData):
        raise InputError(f"{data.name} is no folder of image files, of which some could be skipped")
    data = _require(data, size, channels)
    notes = [*data.notes, *([f"{quoted(beside)} beside them passed over"] if beside else [])]
    if notes:
        used = f"{len(data)} image{'s' * (len(data) > 1)} used"
        log.warning("%s: %s; %s", data.name, used, "; ".join(notes))
    return data


def _load_path(
    source: str, split: str, size: int | None, channels: int | None, skip_broken: bool
) -> tuple[ArrayData | FolderData | ShardData, list[str]]:
    """A file or folder, and what of the folder beside the images was passed over."""
    path = Path(source).expanduser()
    if not source or not path.exists():
        raise InputError(
            f"{unknown('data', source, DATASETS)}; nor is there a file or folder of that name"
        )
    if not path.is_dir() and split != "train":
        raise NoSuchSplitError(f"{path} is a single file and has no {split} split: give another")
    if not path.is_dir() and path.suffix.lower() not in suffixes():
        return _load_file(path), []
    if is_sharded(path):
        if split != "train":
            raise NoSuchSplitError(f"{path} is a set of shards and has no {split} split")
        return ShardData(path), []
    data = _load_array_folder(path, split) if path.is_dir() else None
    if data is not None:
        return data, sorted(p.name for p in path.iterdir() if p.suffix.lower() in suffixes())
    root = _image_folder(path, split) if path.is_dir() else path
    size = 64 if size is None else size
    data = FolderData(_name(path), root, size, channels, skip_broken=skip_broken)
    parted = root != path
    return data, sorted(_names(path) - {*SPLITS, *_VALIDATION}) if parted else []


def _load_file(path: Path) -> ArrayData:
    if path.suffix.lower() == ".npz":
        return load_npz(path)
    return load_idx(plain_name(path), path, find_labels(path))


def _load_array_folder(folder: Path, split: str) -> ArrayData | None:
    """What is in a folder of IDX files or of CIFAR-10's; None if it is neither."""
    stems = {part: f"{prefix}-images-idx3-ubyte" for part, prefix in SPLIT_PREFIX.items()}
    found = {part: find_idx(folder, stem) for part, stem in stems.items()}
    if any(found.values()):
        images = found[split]
        if images is None:
            raise NoSuchSplitError(
                f"{folder} has no {split} split: {stems[split]}[.gz] is not in it"
            )
        return load_idx(_name(folder), images, find_labels(images))
    cifar = find_cifar(folder)
    return None if cifar is None else load_cifar(_name(folder), cifar, split)


def _image_folder(folder: Path, split: str) -> Path:
    """The folder that holds the images of a split."""
    names = {name for name in _names(folder) if (folder / name).is_dir()}
    # A class can be called 'train' too: among others it is one, unless 'test' is there as well.
    is_split = names >= set(SPLITS) or names <= {*SPLITS, *_VALIDATION}
    if names.isdisjoint(SPLITS) or not is_split:
        if split != "train":
            raise NoSuchSplitError(
                f"{folder} has no {split} split: there is no subfolder {quoted(split)}"
            )
        return folder
    if split not in names:
        raise NoSuchSplitError(
            f"{folder} has no {split} split: its subfolders are {quoted(sorted(names))}"
        )
    return folder / split


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name[0] != "."}


def _name(folder: Path) -> str:
    return folder.resolve().name


def _require(data: Images, size: int | None, channels: int | None) -> Images:
    found, height, width = data.shape
    if size is not None and (height, width) != (size, size):
        raise InputError(
            f"{data.name} has images of {height} x {width} pixels, not {size} x {size}: only a "
            "folder of images is resized"
        )
    if channels is not None and found != channels:
        raise InputError(
            f"{data.name} has images with {found} channel{'s' * (found > 1)}, not {channels}: "
            "only a folder of images is converted"
        )
    return data
