"""What a set of images in shards is, and what it is made of: ``manifest.json``.

Beside it stand the shards; while a set grows each finished shard has a record of its own in
``.records``, so that noting one costs the same however many there are, and no two processes write
one file. :meth:`Manifest.read` takes both together.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ddim.base.display import shown
from ddim.base.errors import InputError, quoted
from ddim.base.files import write_bytes
from ddim.base.records import checked, in_file, parse_json, read_text, record

__all__ = ["MANIFEST", "RECORDS", "Manifest", "Shard", "read_record", "record_path"]

MANIFEST = "manifest.json"
RECORDS = ".records"
KIND, VERSION = "ddim shards", 1
_BYTES = 1_000_000_000
"""The most that a manifest may have: of some ten million shards."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished shard: which, how many images are in it, its bytes and its SHA-256."""

    number: int
    count: int
    bytes: int
    sha256: str


@shown
@dataclasses.dataclass(frozen=True)
class Manifest:
    """A set of images.

    Attributes:
        n: how many images there will be.
        shard_size: how many are in a shard, of which only the last may have fewer.
        shard_format: ``npz``, ``safetensors``, ``tar`` or ``png``.
        shape: of an image, (C, H, W).
        classes: of their labels; None where there are none.
        made_by: what decides the images: model, sampler, condition, seed and so on.
        built_with: what decides their last bits too: versions, the kind of processor.
        shards: those that are finished, by number.
    """

    n: int
    shard_size: int
    shard_format: str
    shape: tuple[int, ...]
    classes: int | None
    made_by: Mapping[str, Any]
    built_with: Mapping[str, str]
    shards: Mapping[int, Shard] = dataclasses.field(default_factory=dict)

    def _facts(self) -> dict[str, object]:
        done = self.count - len(self.missing())
        facts = {"n": self.n, "shards": f"{done} of {self.count}", "format": self.shard_format}
        return {**facts, "shape": self.shape, "classes": self.classes}

    @property
    def count(self) -> int:
        """How many shards there will be."""
        return -(-self.n // self.shard_size)

    def images(self, number: int) -> range:
        """Which images are in a shard."""
        return range(number * self.shard_size, min((number + 1) * self.shard_size, self.n))

    def missing(self) -> list[int]:
        """Shards that are not finished, or not yet as long as they are to be."""
        return [
            k
            for k in range(self.count)
            if k not in self.shards or self.shards[k].count < len(self.images(k))
        ]

    def with_shards(self, shards: Iterable[Shard]) -> Manifest:
        """This with more shards; of one that is there already the longer stays."""
        known = dict(self.shards)
        for shard in shards:
            if shard.number not in known or known[shard.number].count < shard.count:
                known[shard.number] = shard
        return dataclasses.replace(self, shards=known)

    def refuse_other(self, wanted: Manifest, where: Path) -> None:
        """Refuse to go on with a set that is to become another.

        Args:
            wanted: what it is to become; only ``n`` may be larger.
            where: its folder, for messages.

        Raises:
            InputError: the first key that differs, or fewer images than there were to be.
        """
        mine, other = (_keys(m) for m in (self, wanted))
        if mine.get("tableau") == other.get("tableau"):  # one sampler can be spelled in two ways
            mine["sampler"] = other["sampler"] = None
        for key in {**mine, **other}:
            if mine.get(key) != other.get(key):
                raise InputError(
                    f"{where} is a set with {key} = {quoted(mine.get(key))}, not "
                    f"{quoted(other.get(key))}: choose another --output"
                )
        if wanted.n < self.n:
            raise InputError(
                f"{where} is a set of {self.n} images, which may grow but not shrink to {wanted.n}"
            )

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a folder, with the records of shards that it does not name yet.

        Raises:
            InputError: no set of shards, a damaged manifest, or one of a newer version.
        """
        path = Path(folder) / MANIFEST
        if not path.exists():
            raise InputError(f"{folder} is no set of shards: it has no {MANIFEST}")
        # Before the manifest: a record goes once the manifest has it.
        found = _records(Path(folder))
        return cls._read(path).with_shards(found)

    @classmethod
    def _read(cls, path: Path) -> Manifest:
        values = parse_json(read_text(path, "JSON", _BYTES), path)
        with in_file(path):
            if values.pop("kind", None) != KIND:
                raise InputError("it is no manifest of shards")
            version = checked("version", values.pop("version", None), int)
            if version > VERSION:
                raise InputError(
                    f"it is of version {version}, and this ddim reads up to {VERSION}: update ddim"
                )
            table = checked("shards", values.pop("shards", None), Mapping[str, Any])
            kinds = (list[int], list[int], list[int], list[str])
            columns = [
                checked(name, table.get(name), kind)
                for name, kind in zip(("number", "count", "bytes", "sha256"), kinds, strict=True)
            ]
            if len({len(column) for column in columns}) != 1:
                raise InputError("its shards have columns of different lengths")
            made = record(cls, values)
            if made.n < 1 or made.shard_size < 1 or len(made.shape) != 3:
                raise InputError("n and shard_size are at least 1, and shape has three numbers")
            return made.with_shards(Shard(*row) for row in zip(*columns, strict=True))

    def write(self, folder: Path) -> None:
        """Write ``manifest.json``, whole or not at all; equal content has equal bytes."""
        values = {"kind": KIND, "version": VERSION, **_plain(self)}
        rows = [self.shards[k] for k in sorted(self.shards)]
        values["shards"] = {
            field.name: [getattr(row, field.name) for row in rows]
            for field in dataclasses.fields(Shard)
        }
        lines = [f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in values.items()]
        write_bytes(Path(folder) / MANIFEST, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def _plain(manifest: Manifest) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(manifest) if field.name != "shards"]
    return {name: getattr(manifest, name) for name in names}


def _keys(manifest: Manifest) -> dict[str, Any]:
    """What must be equal for a set to be continued, as a file gives it back."""
    values = json.loads(json.dumps(_plain(manifest)))
    del values["n"], values["built_with"]
    return {**values.pop("made_by"), **values}


def record_path(folder: Path, number: int) -> Path:
    """Where the record of a finished shard is, until the manifest has it."""
    return Path(folder) / RECORDS / f"{number:06d}.json"


def read_record(path: Path) -> Shard | None:
    """The shard that a record is of; None where there is none, or it is damaged."""
    try:
        return record(Shard, parse_json(read_text(path, "JSON", 1000), path))
    except InputError:
        return None


def _records(folder: Path) -> list[Shard]:
    try:
        with os.scandir(folder / RECORDS) as entries:
            names = [entry.name for entry in entries if entry.name[0] != "."]
    except FileNotFoundError:
        return []
    found = [read_record(folder / RECORDS / name) for name in names]
    return [shard for shard in found if shard is not None]
