"""How far a set of shards has come: what is finished, in the manifest or in a record of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ddim.base.files import held, replacing, retried, sweep, write_json
from ddim.data.manifest import (
    MANIFEST,
    RECORDS,
    Manifest,
    Shard,
    read_record,
    record_path,
)
from ddim.data.shard_files import ShardFormat, content_of, measure, shard_format

__all__ = ["Progress"]

log = logging.getLogger("ddim")

_PATIENCE = 60.0
"""Seconds for which another process may hold the manifest; it writes it and goes."""


class Progress:
    """The folder of a set, as one process sees it and adds to it.

    A shard is written beside and renamed, then its record is; so a kill in between leaves a shard
    that is drawn again, to the same bytes. The manifest is written under a lock, for moments only.

    Args:
        folder: the set; made if need be.
        wanted: what it is to become.

    Raises:
        InputError: another set stands there, or one with more images.
    """

    def __init__(self, folder: Path, wanted: Manifest) -> None:
        self.folder = Path(folder)
        self.format: ShardFormat = shard_format(wanted.shard_format)
        self.folder.mkdir(parents=True, exist_ok=True)
        with held(self.folder / MANIFEST, _PATIENCE):
            self.manifest = self._agreed(wanted)
        self._stamp: tuple[int, ...] | None = None
        self._forget_lost()

    def _agreed(self, wanted: Manifest) -> Manifest:
        """The manifest, begun or grown if need be."""
        if not (self.folder / MANIFEST).exists():
            retried(lambda: wanted.write(self.folder), str(self.folder / MANIFEST))
            return Manifest.read(self.folder)
        there = Manifest.read(self.folder)
        there.refuse_other(wanted, self.folder)
        for key, value in wanted.built_with.items():
            if there.built_with.get(key) != value:
                log.warning(
                    "%s was begun with %s %s, and this is %s: last bits may differ",
                    *(self.folder, key, there.built_with.get(key), value),
                )
        if there.n < wanted.n:
            there = dataclasses.replace(there, n=wanted.n)
            retried(lambda: there.write(self.folder), str(self.folder / MANIFEST))
        return there

    def path(self, number: int) -> Path:
        """Where a shard is."""
        return self.folder / self.format.name(number)

    def finished(self, number: int) -> Shard | None:
        """The shard, if it is whole, by whoever finished it."""
        count = len(self.manifest.images(number))
        record = read_record(record_path(self.folder, number))
        if record is None or record.count < count:
            self._refresh()  # a record goes once the manifest has it
            record = self.manifest.shards.get(number)
        return record if record is not None and record.count >= count else None

    def begun(self, number: int) -> Shard | None:
        """A shard that was finished when the set was smaller, or as far as it was drawn."""
        record = read_record(record_path(self.folder, number))
        return record or self.manifest.shards.get(number)

    def write(self, number: int, pixels: np.ndarray, labels: np.ndarray | None) -> Shard:
        """Write a shard and then its record.

        Args:
            number: which.
            pixels: its images from the first on, uint8 of shape (N, H, W, C).
            labels: one each, or None.

        Raises:
            OSError: it cannot be written.
        """
        path, first = self.path(number), self.manifest.images(number).start
        retried(lambda: self._write(path, pixels, labels, first), str(path))
        size, sha256 = retried(lambda: measure(path), str(path))
        shard = Shard(number, len(pixels), size, sha256)
        self.note(shard)
        return shard

    def note(self, shard: Shard) -> None:
        """Write the record of a shard that is there."""
        path = record_path(self.folder, shard.number)
        retried(lambda: write_json(path, dataclasses.asdict(shard)), str(path))

    def _write(self, path: Path, pixels: np.ndarray, labels: np.ndarray | None, first: int) -> None:
        if not self.format.folder:
            with replacing(path) as temporary:
                self.format.write(temporary, pixels, labels, first)
            return
        with self.replacing_folder(path) as temporary:
            self.format.write(temporary, pixels, labels, first)

    @contextlib.contextmanager
    def replacing_folder(self, path: Path):
        """A new folder beside another, which takes its place at the end."""
        temporary = path.with_name(f".{path.name}.new")
        shutil.rmtree(temporary, ignore_errors=True)  # only who has the shard's claim writes it
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.iterdir():
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
            if path.exists():  # no folder is renamed onto one: without it the shard is drawn again
                shutil.rmtree(path)
            temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def sweep(self, number: int) -> None:
        """Remove what a killed process left of a shard that is claimed now."""
        path = self.path(number)
        shutil.rmtree(path.with_name(f".{path.name}.new"), ignore_errors=True)
        sweep(path)

    def fold(self) -> None:
        """Put the records of finished shards into the manifest, and remove what is needless then.

        Done at the end of each process; where the set is whole, nothing but it is left.
        """
        with held(self.folder / MANIFEST, _PATIENCE):
            self.manifest = Manifest.read(self.folder)
            retried(lambda: self.manifest.write(self.folder), str(self.folder / MANIFEST))
            for shard in self.manifest.shards.values():
                path = record_path(self.folder, shard.number)
                record = read_record(path)
                if record is not None and record.count <= shard.count:
                    path.unlink(missing_ok=True)
            for name in (MANIFEST, "run.toml"):
                sweep(self.folder / name)
            if (self.folder / RECORDS).exists():
                sweep(self.folder / RECORDS)
        with contextlib.suppress(OSError):  # records of others, or temporary ones
            (self.folder / RECORDS).rmdir()

    def forget(self, numbers: Iterable[int]) -> None:
        """Take shards that are not there, or not as long as they were, out of the manifest."""
        with held(self.folder / MANIFEST, _PATIENCE):
            manifest = Manifest.read(self.folder)
            gone = [k for k in numbers if k in manifest.shards and self._lost(manifest.shards[k])]
            kept = {k: v for k, v in manifest.shards.items() if k not in gone}
            for number in gone:
                record_path(self.folder, number).unlink(missing_ok=True)
            self.manifest = dataclasses.replace(manifest, shards=kept)
            retried(lambda: self.manifest.write(self.folder), str(self.folder / MANIFEST))

    def _forget_lost(self) -> None:
        lost = [k for k, shard in self.manifest.shards.items() if self._lost(shard)]
        if lost:
            self.forget(lost)

    def _lost(self, shard: Shard) -> bool:
        return content_of(self.path(shard.number)) != shard.bytes

    def _refresh(self) -> None:
        """Read the manifest again where another process has written it."""
        status = (self.folder / MANIFEST).stat()
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp != self._stamp:
            self.manifest = dataclasses.replace(Manifest.read(self.folder), n=self.manifest.n)
            self._stamp = stamp
