"""One set of shards from parts that processes drew in folders of their own."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from ddim.base.errors import InputError
from ddim.base.files import replacing, retried
from ddim.data.manifest import Manifest, Shard
from ddim.data.shard_files import measure, shard_format
from ddim.shards.progress import Progress

__all__ = ["merge", "merging"]

_CHUNK = 1 << 20


def merge(parts: Sequence[Path | str], folder: Path | str) -> Manifest:
    """Copy the shards of several parts of one set into a folder, each checked as it is copied.

    The folder can hold some of them already. What was killed in between is run again.

    Args:
        parts: folders of the same set, each with some of its shards; the same shard twice is
            taken once.
        folder: of the whole; shards that are still missing can be merged or drawn later.

    Returns:
        the manifest of what is in the folder then.

    Raises:
        InputError: parts of different sets, or one shard with different bytes in two of them:
            nothing is copied.
        RunError: a shard of a part is damaged.
    """
    steps = merging([Path(part) for part in parts], Path(folder))
    for _ in steps:
        pass
    return Manifest.read(Path(folder))


def merging(parts: Sequence[Path], folder: Path) -> Iterator[Shard]:
    """Like :func:`merge`, with each shard once it is there; what is refused is so at once.

    Raises:
        InputError: as :func:`merge`; or RunError.
    """
    if not parts:
        raise InputError("name the parts that are to be merged")
    read = [(part, Manifest.read(part)) for part in parts]
    first = read[0][1]
    for part, manifest in read:
        if part.resolve() == folder.resolve():
            raise InputError(f"{folder} is one of the parts: choose another --output")
        first.refuse_other(manifest, parts[0])
        if manifest.n != first.n:
            raise InputError(f"{parts[0]} is of {first.n} images, and {part} of {manifest.n}")
    places: dict[int, tuple[Path, Shard]] = {}
    for part, manifest in read:
        for number, shard in manifest.shards.items():
            _, known = places.setdefault(number, (part, shard))
            if known.count < shard.count:
                places[number] = part, shard
            elif known.count == shard.count and known.sha256 != shard.sha256:
                raise InputError(
                    f"shard {number} of {part} differs from that of {places[number][0]}: they "
                    f"were made with {dict(manifest.built_with)} and "
                    f"{dict(dict(read)[places[number][0]].built_with)}; leave one out"
                )
    progress = Progress(folder, dataclasses.replace(first, shards={}))
    return _copying(progress, places)


def _copying(progress: Progress, places: dict[int, tuple[Path, Shard]]) -> Iterator[Shard]:
    for number in sorted(places):
        part, shard = places[number]
        there = progress.finished(number)
        if there is not None and there.count == shard.count and there.sha256 != shard.sha256:
            raise InputError(f"shard {number} of {part} differs from {progress.path(number)}")
        if there is None:
            progress.sweep(number)
            retried(lambda s=shard, p=part: _copy(progress, s, p), f"shard {number} of {part}")
            progress.note(shard)
        yield shard
    progress.fold()


def _copy(progress: Progress, shard: Shard, part: Path) -> None:
    source = part / shard_format(progress.manifest.shard_format).name(shard.number)
    target = progress.path(shard.number)
    damaged = InputError(f"{source} is damaged or missing: draw it again, or leave {part} out")
    if not progress.format.folder:
        if not source.is_file():
            raise damaged
        with replacing(target) as temporary:
            if _copied(source, temporary) != shard.sha256:
                raise damaged
        return
    if not source.is_dir() or measure(source) != (shard.bytes, shard.sha256):
        raise damaged
    with progress.replacing_folder(target) as temporary:
        for file in source.iterdir():
            shutil.copyfile(file, temporary / file.name)


def _copied(source: Path, target: Path) -> str:
    """Copy a file; the SHA-256 of what was read."""
    hasher = hashlib.sha256()
    with source.open("rb") as old, target.open("wb") as new:
        while chunk := old.read(_CHUNK):
            hasher.update(chunk)
            new.write(chunk)
    return hasher.hexdigest()
