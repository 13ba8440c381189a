"""Whether a set of shards is whole: every file of it, by its checksum."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from ddim.base.display import shown
from ddim.data.manifest import MANIFEST, Manifest, Shard
from ddim.data.shard_files import measure, shard_format

__all__ = ["Verified", "verify", "verifying"]


@shown
@dataclasses.dataclass(frozen=True)
class Verified:
    """What became of a check.

    Attributes:
        n: how many images the set is to have.
        shards: how many shards it is to have.
        missing: numbers of shards that are not there, or not as long as they are to be.
        damaged: numbers of those that are not what was written.
        strange: names of files that are not of the set.
    """

    n: int
    shards: int
    missing: tuple[int, ...]
    damaged: tuple[int, ...]
    strange: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether all is there and as it was written; strange files do no harm."""
        return not self.missing and not self.damaged


def verify(folder: Path | str) -> Verified:
    """Read every shard of a set and compare its SHA-256 with the manifest's.

    Raises:
        InputError: no set of shards.
    """
    found = list(verifying(Path(folder)))[-1]
    assert isinstance(found, Verified)
    return found


def verifying(folder: Path) -> Iterator[Shard | Verified]:
    """Like :func:`verify`, with each shard that was read before the result.

    Raises:
        InputError: no set of shards.
    """
    manifest = Manifest.read(folder)
    kind = shard_format(manifest.shard_format)
    missing, damaged = set(manifest.missing()), set()
    threads = min(8, os.cpu_count() or 1)

    def found(shard: Shard) -> tuple[int, str] | None:
        try:
            return measure(folder / kind.name(shard.number))
        except FileNotFoundError:
            return None
        except OSError:
            return (0, "")

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        shards = sorted(manifest.shards.values(), key=lambda shard: shard.number)
        for shard, got in zip(shards, pool.map(found, shards), strict=True):
            if got is None:
                missing.add(shard.number)
            elif got != (shard.bytes, shard.sha256):
                damaged.add(shard.number)
            yield shard
    known = {kind.name(number) for number in range(manifest.count)} | {MANIFEST, "run.toml"}
    names = {path.name for path in folder.iterdir() if path.name[0] != "."}
    missing -= damaged
    yield Verified(
        manifest.n,
        manifest.count,
        tuple(sorted(missing)),
        tuple(sorted(damaged)),
        tuple(sorted(names - known)),
    )
