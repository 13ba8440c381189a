"""Whether a file is the one it should be."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path

__all__ = ["digest", "mismatch"]

_CHUNK = 1 << 20


def digest(path: Path, algorithm: str = "sha256", *, of_uncompressed: bool = False) -> str:
    """Hexadecimal digest of a file, read in pieces.

    Arguments:
        path: The file.
        algorithm: A name known to hashlib.
        of_uncompressed: Whether to take it of what the gzip file contains.

    Raises:
        OSError, EOFError, zlib.error: if the file cannot be read or uncompressed.
    """
    hasher = hashlib.new(algorithm, usedforsecurity=False)
    with gzip.open(path) if of_uncompressed else path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def mismatch(path: Path, checksum: str, *, of_uncompressed: bool) -> str | None:
    """What is wrong with a file, in a few words, or None if it is the right one.

    Arguments:
        path: The file.
        checksum: Hexadecimal SHA-256, or ``md5:`` and an MD5 where nothing better is published.
        of_uncompressed: Whether the checksum is of what the gzip file contains, which, unlike the
            gzip file itself, is the same at every mirror.
    """
    prefix, _, expected = checksum.rpartition(":")
    algorithm = prefix or "sha256"
    try:
        found = digest(path, algorithm, of_uncompressed=of_uncompressed)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return "not a whole gzip file"
    except OSError as error:
        return f"unreadable: {error.strerror}"
    if found == expected:
        return None
    return f"{algorithm} {found[:12]}.. where {expected[:12]}.. is expected"
