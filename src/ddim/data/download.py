"""Files from the network: tried at several addresses, checked, and put in place whole."""

from __future__ import annotations

import http.client
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from ddim.base.checksum import mismatch
from ddim.base.errors import RunError
from ddim.base.progress import meter

__all__ = ["fetch"]

_USER_AGENT = "ddim/0.1"
_TIMEOUT = 30.0  # seconds without an answer or a byte
_CHUNK = 1 << 18


def fetch(urls: Sequence[str], dest: Path, checksum: str, *, of_uncompressed: bool) -> None:
    """Download a file from the first address that gives the right one.

    The file is written beside `dest`, checked and renamed: `dest` is never incomplete, and nothing
    is left behind by a failure. Progress goes to stderr where that is a terminal.

    Arguments:
        urls: Addresses (http or https) of the same file, tried in turn.
        dest: Where it goes; the folder is made.
        checksum: Hexadecimal SHA-256.
        of_uncompressed: Whether the checksum is of what the gzip file contains.

    Raises:
        RunError: if no address gives the right file, saying why each did not.
    """
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {dest.parent}: {error.strerror}") from error
    # The process id keeps apart the workers of one run that find the file missing together.
    part = dest.with_name(f".{dest.name}.{os.getpid()}.part")
    failures: list[str] = []
    for url in urls:
        failure = _attempt(url, part, dest, checksum, of_uncompressed)
        if failure is None:
            return
        failures.append(f"{url}: {failure}")
    raise RunError(
        f"cannot download {dest.name} ({'; '.join(failures)}); get it elsewhere and put it at "
        f"{dest}"
    )


def _attempt(url: str, part: Path, dest: Path, checksum: str, of_uncompressed: bool) -> str | None:
    """Download to `part`, check, rename to `dest`; the reason why not, or None."""
    try:
        _stream(url, part)
        wrong = mismatch(part, checksum, of_uncompressed=of_uncompressed)
        if wrong is None:
            part.replace(dest)
        return wrong
    except urllib.error.HTTPError as error:
        error.close()
        return f"HTTP {error.code}"
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        part.unlink(missing_ok=True)


def _stream(url: str, part: Path) -> None:
    """Write what is at `url` to `part`, with the length that the server announced."""
    request = urllib.request.Request(url, headers={"User-Agent": _USER_AGENT})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response, part.open("wb") as file:
        total = response.length  # None where the server does not say
        name = url.rpartition("/")[2]
        quiet = not sys.stderr.isatty()
        with meter(quiet=quiet, desc=name, total=total, unit="B", unit_scale=True) as progress:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
        # http.client notices a connection that closed early only when it reads to the end at once.
        if total is not None and file.tell() != total:
            raise ConnectionError(f"truncated, {file.tell()} of {total} bytes")
