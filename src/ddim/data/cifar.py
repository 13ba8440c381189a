"""The binary version of CIFAR-10: records of a label byte and 3 x 32 x 32 pixel bytes.

Reference:
    Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009;
    https://www.cs.toronto.edu/~kriz/cifar.html, section 'Binary version'.
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from ddim.base.errors import InputError
from ddim.data.base import ArrayData

__all__ = ["ARCHIVE", "find_cifar", "load_cifar"]

ARCHIVE = "cifar-10-binary.tar.gz"
CLASSES = 10
_FOLDER = "cifar-10-batches-bin"
_FILES = {
    "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "test": ("test_batch.bin",),
}
_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32
_FULL = 10_000 * _RECORD
_ARCHIVE = 6 * _FULL + (1 << 20)  # unpacked, with its two small files and padding


def find_cifar(folder: Path) -> Path | None:
    """Where a folder keeps CIFAR-10: itself, its ``cifar-10-batches-bin``, or the archive in it.

    Unpacked files come first: they read faster. The folder need not exist.
    """
    names = [name for names in _FILES.values() for name in names]
    for place in (folder, folder / _FOLDER):
        if any((place / name).is_file() for name in names):
            return place
    archive = folder / ARCHIVE
    return archive if archive.is_file() else None


def load_cifar(name: str, source: Path, split: str) -> ArrayData:
    """One split of CIFAR-10 from its binary files.

    Arguments:
        name: What the set is called.
        source: A folder that holds the ``.bin`` files, or the archive of them (``.tar.gz``), which
            is read without being unpacked.
        split: ``train`` (the five batches, in order) or ``test``.

    Returns:
        Images with shape (N, 3, 32, 32), in 10 classes.

    Raises:
        InputError: if a file is missing, unreadable, no whole number of records, or has a label
            above 9.
    """
    read = _read_archive if source.is_file() else _read_folder
    contents = read(source, _FILES[split])
    parts = [_parse(contents[file], source / file) for file in _FILES[split]]
    return ArrayData(
        name,
        torch.from_numpy(np.concatenate([images for images, _ in parts])),
        torch.from_numpy(np.concatenate([labels for _, labels in parts])).long(),
        CLASSES,
        {file: hashlib.sha256(contents[file]).hexdigest() for file in _FILES[split]},
    )


def _read_folder(folder: Path, files: tuple[str, ...]) -> dict[str, bytes]:
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise InputError(f"{folder} lacks {', '.join(missing)} of CIFAR-10's binary version")
    try:
        return {file: (folder / file).read_bytes() for file in files}
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error


class _Limited(gzip.GzipFile):
    """A gzip file that fails where no CIFAR-10 would still go on."""

    def __init__(self, archive: Path) -> None:
        super().__init__(archive)
        self.left = _ARCHIVE
        self.other = InputError(f"{archive} holds more than CIFAR-10: it is another archive")

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        self.left -= len(content)
        if self.left < 0:
            raise self.other
        return content


def _read_archive(archive: Path, files: tuple[str, ...]) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    try:
        # A stream ('|'), because seeking back in a gzip file decompresses it again from the start.
        with _Limited(archive) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
            for member in tar:
                if member.size > _FULL:
                    raise plain.other
                name = PurePosixPath(member.name).name
                stream = tar.extractfile(member) if name in files else None
                if stream is not None:
                    contents[name] = stream.read()
            # The padding, because gzip checks its content only at the very end.
            while plain.read(1 << 16):
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InputError(
            f"{archive} is a truncated or damaged archive ({error}): get it again"
        ) from error
    missing = [file for file in files if file not in contents]
    if missing:
        raise InputError(f"{archive} lacks {', '.join(missing)} of CIFAR-10's binary version")
    return contents


def _parse(content: bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 with shape (N, 3, 32, 32), and labels, uint8 with shape (N,)."""
    if not content or len(content) % _RECORD:
        raise InputError(
            f"{path} holds {len(content)} bytes, which is no whole number of CIFAR-10 records of "
            f"{_RECORD} bytes (a full file holds {_FULL}): it is truncated or another "
            "format"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    labels = records[:, 0]
    if labels.max() >= CLASSES:
        raise InputError(
            f"{path} has a label {labels.max()}: CIFAR-10's lie in 0..{CLASSES - 1}, so this is "
            "another format"
        )
    return records[:, 1:].reshape(-1, *_SHAPE), labels
