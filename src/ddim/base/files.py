"""Writing files so that a kill leaves the old one or the new one, and one process at a time.

Of several processes that come to the same results (:mod:`ddim.base.ranks`) the first writes; what
the others would write is dropped.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import logging
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ddim.base.errors import InputError
from ddim.base.ranks import here
from ddim.base.records import JSON_BYTES, parse_json, read_text

try:
    import fcntl
except ImportError:  # Windows, which removes no file that a process has open
    fcntl = None

__all__ = [
    "check_writable",
    "held",
    "locked",
    "read_json",
    "refuse_existing",
    "replacing",
    "retried",
    "sweep",
    "write_bytes",
    "write_json",
]

log = logging.getLogger("ddim")

T = TypeVar("T")
# Of a file in writing, and the lock of a file: both locked by the process that they are of.
_TEMPORARY = re.compile(r"\..*(\.[^.]+)\.[a-z0-9_]{8}\1|\..*\.[a-z]+\.lock")
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
_PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR)
_DEPTH = 2
"""How many folders down an output's own files are: cells/NAME of a sweep, model/unet of a run."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed onto it at the end; removed if anything fails.

    The folder is made if need be. The suffix stays, for writers that go by it. What a killed
    process leaves is removed by whoever takes the output's lock next, :func:`locked`.

    Raises:
        OSError: whatever failed; it names ``path`` where the system named no file, as for a full
            disk.
    """
    path = Path(path)
    if not here().first:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder, path.name)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = _temporary(path)
    try:
        yield temporary
        os.fsync(handle)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def _temporary(path: Path) -> tuple[int, Path]:
    """An empty file beside another, and the handle whose lock says that somebody is writing it."""
    while True:
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent
        )
        with contextlib.suppress(OSError):  # a file system without locks
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # swept before it was locked


def sweep(path: Path) -> None:
    """Remove the temporary files and locks of an output that are of no running process."""
    for temporary in _temporaries(path):
        with contextlib.suppress(OSError):
            handle = os.open(temporary, os.O_RDWR)
            try:
                if fcntl is not None:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                temporary.unlink()
            finally:
                os.close(handle)


def _temporaries(path: Path) -> Iterator[Path]:
    """Those of a file and of its record, or of all that stands in a folder."""
    if not path.is_dir():
        found = path.parent.glob(f".{glob.escape(path.name)}.*")
        yield from (p for p in found if _TEMPORARY.fullmatch(p.name))
        return
    for root, folders, files in os.walk(path):
        deep = len(Path(root).relative_to(path).parts) == _DEPTH
        folders[:] = [] if deep else [name for name in folders if name[0] != "."]
        yield from (Path(root, name) for name in files if _TEMPORARY.fullmatch(name))


def retried(action: Callable[[], T], what: str, *, tries: int = 6, pause: float = 0.5) -> T:
    """Do something to files again where a network file system answers with an error that passes.

    The pauses double, so that by default it is given up after 16 seconds. A full disk, or one that
    must not be written to, is no such error.

    Args:
        action: what is done; it can be done again.
        what: for a line of the log each time.
        tries: how many times at most.
        pause: seconds before the second time.

    Raises:
        OSError: another error, or the last one.
    """
    for _ in range(tries - 1):
        try:
            return action()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            log.warning("%s: %s; trying again in %g s", what, error.strerror, pause)
        time.sleep(pause)
        pause *= 2
    return action()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: the file is not there, or is not a JSON object that
            :func:`ddim.base.records.parse_json` takes.
    """
    return parse_json(read_text(path, "JSON", JSON_BYTES), path)


@contextlib.contextmanager
def locked(path: Path, *, folder: bool = False) -> Iterator[None]:
    """Keep every other process, and every other call in this one, from writing the same output.

    The system holds the lock, so that it goes with a process that is killed; the file that it is
    held on, hidden in a folder and beside a file, is empty and removed at the end. Temporary files
    that killed processes left of the output are removed first.

    Args:
        path: the output.
        folder: whether it is to become a folder, if it is not there. Folders that are made for the
            lock are removed at the end if nothing stands in them.

    Raises:
        InputError: somebody else is writing it.
    """
    path = Path(path)
    if not here().first:
        yield
        return
    with _folder(path if folder and not path.is_file() else path.parent), held(path):
        sweep(path)
        yield


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[None]:
    """See to it that a folder is there; what is made of it goes again if it stays empty."""
    made = [part for part in (path, *path.parents) if not part.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            for part in made:
                part.rmdir()


@contextlib.contextmanager
def held(path: Path, wait: float = 0) -> Iterator[None]:
    """Hold the lock of a file or folder, for a short while: nothing is swept or made.

    Args:
        path: the output.
        wait: seconds in which another process may come to its end.

    Raises:
        InputError: somebody else is writing it.
    """
    from filelock import FileLock, Timeout

    lock = _lock_file(path)
    # Not a lock of the thread, which another thread could not give back.
    held = FileLock(lock, timeout=wait, thread_local=False, preserve_lock_file=True)
    try:
        held.acquire()
    except Timeout:
        raise InputError(
            f"{path} is being written by another process: wait for it, or choose another output"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            error.filename = str(path)
            raise
        what = "is on a file system without locks: nothing keeps a second writer away"
        warnings.warn(f"{path} {what}", stacklevel=2)
    try:
        yield
    finally:
        # While it is held: whoever opened the file before it went is refused it, and whoever comes
        # later makes a new one. Windows removes no open file; left there, it blocks nobody.
        with contextlib.suppress(OSError):
            lock.unlink()
        held.release()


def _lock_file(path: Path) -> Path:
    path = path.resolve()
    return path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")


def check_writable(path: Path) -> None:
    """Refuse a file that could not be written in the end, before the work for it is done.

    Raises:
        InputError: its folder cannot be written to.
    """
    folder = Path(path).parent
    if not here().first:
        return
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{folder} cannot be written to: {error.strerror}") from None


def refuse_existing(path: Path, *, force: bool, other: str = "another --output") -> None:
    """Refuse to write over something, unless told to.

    Raises:
        InputError: the path exists (as a folder: and holds more than the lock of a killed process),
            and ``force`` is off.
    """
    path = Path(path)
    if force or not here().first or not path.exists():
        return
    if path.is_dir() and all(p.name == ".lock" for p in path.iterdir()):
        return
    raise InputError(f"{path} exists already: give --force to write over it, or {other}")
