"""Whether a file is the one it should be."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path

__all__ = ["digest", "mismatch"]

_CHUNK = 1 << 20


def digest(path: Path, *, of_uncompressed: bool = False) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces.

    Arguments:
        path: The file.
        of_uncompressed: Whether to take it of what the gzip file contains.

    Raises:
        OSError, EOFError, zlib.error: if the file cannot be read or uncompressed.
    """
    hasher = hashlib.sha256()
    with gzip.open(path) if of_uncompressed else path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def mismatch(path: Path, checksum: str, *, of_uncompressed: bool) -> str | None:
    """What is wrong with a file, in a few words, or None if it is the right one.

    Arguments:
        path: The file.
        checksum: Hexadecimal SHA-256.
        of_uncompressed: Whether the checksum is of what the gzip file contains, which, unlike the
            gzip file itself, is the same at every mirror.
    """
    try:
        found = digest(path, of_uncompressed=of_uncompressed)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return "not a whole gzip file"
    except OSError as error:
        return f"unreadable: {error.strerror}"
    if found == checksum:
        return None
    return f"sha256 {found[:12]}.. where {checksum[:12]}.. is expected"
