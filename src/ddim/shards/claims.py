"""Who is at work on which shard: a file for each claim, which is worth as long as it is renewed.

Claims save work and decide nothing: two processes that draw the same shard write the same bytes.
So a mistake about who is alive costs time alone, on file systems without locks too.

A claim of this machine is held by the system's lock on its file, which goes with its process. One
of another machine is given up for dead when its file has not changed for as long as the lease, by
the clock of whoever looks at it: no two machines' clocks are compared, and none is asked for the
date.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import threading
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: leases alone
    fcntl = None

__all__ = ["LEASE", "Claims"]

LEASE = 120.0
"""Seconds without a sign of life after which another machine's claim is given up. Network file
systems show a change some 60 seconds late."""
_BUSY = (errno.EWOULDBLOCK, errno.EACCES)


class Claims:
    """The claims of one process on shards of a folder, renewed by a thread while it is entered.

    Args:
        folder: where claims are kept.
        lease: seconds, see :data:`LEASE`.
    """

    def __init__(self, folder: Path, lease: float = LEASE) -> None:
        self.folder, self.lease = Path(folder), lease
        self._machine = _machine()
        self._token = f"{self._machine} {os.getpid()} {secrets.token_hex(8)}".encode()
        self._held: dict[int, int] = {}
        self._seen: dict[int, tuple[object, float]] = {}
        self._over, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._renew, name="ddim claims", daemon=True)

    def __enter__(self) -> Claims:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for number in list(self._held):
            self.release(number)
        with contextlib.suppress(OSError):  # others' are in it
            self.folder.rmdir()

    def take(self, number: int) -> bool:
        """Claim a shard that nobody has, or whose owner is dead; whether it is ours now."""
        path = self._path(number)
        try:
            handle, new = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            try:
                handle, new = os.open(path, os.O_RDWR), False
            except FileNotFoundError:  # it has just been released
                return False
        except FileNotFoundError:  # the folder went with the last claim of somebody else
            self.folder.mkdir(parents=True, exist_ok=True)
            return self.take(number)
        if not self._free(number, handle, new) or not _same(handle, path):
            os.close(handle)
            return False
        os.lseek(handle, 0, os.SEEK_SET)
        os.ftruncate(handle, 0)
        os.write(handle, self._token)
        with self._lock:
            self._held[number] = handle
        self._seen.pop(number, None)
        return True

    def release(self, number: int) -> None:
        """Give a claim up, if it has not been taken over."""
        path = self._path(number)
        with contextlib.suppress(OSError):
            if path.read_bytes() == self._token:
                path.unlink()
        with self._lock:
            os.close(self._held.pop(number))

    def sweep(self) -> None:
        """Remove claims of the dead, whose shards others have finished."""
        found: list[str] = []
        with contextlib.suppress(FileNotFoundError):  # it went with the last claim
            found = os.listdir(self.folder)  # noqa: PTH208
        for name in found:
            if name.isdigit() and self.take(int(name)):
                self.release(int(name))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}"

    def _free(self, number: int, handle: int, new: bool) -> bool:
        """Whether a claim that was opened is nobody's; the lock on it is ours then."""
        locked = fcntl is not None
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _BUSY:
                    return False
                locked = False  # a file system without locks
        if new:
            return True
        owner = os.read(handle, 1000)
        if locked and owner.startswith(f"{self._machine} ".encode()):
            return True  # its process is gone, or the system would not give us its lock
        status, now = os.fstat(handle), time.monotonic()
        sign = owner, status.st_mtime_ns, status.st_ino
        since = self._seen.get(number)
        if since is None or since[0] != sign:
            self._seen[number] = sign, now
            return False
        return now - since[1] >= self.lease

    def _renew(self) -> None:
        while not self._over.wait(self.lease / 8):
            with self._lock:
                for number in self._held:
                    with contextlib.suppress(OSError):  # a file system that answers late
                        os.utime(self._path(number))


def _machine() -> str:
    """This machine since it was started: its name, and the number of its kernel's run."""
    run = ""
    with contextlib.suppress(OSError):
        run = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname() or 'machine'}/{run}"


def _same(handle: int, path: Path) -> bool:
    """Whether a path still is the file that was opened."""
    try:
        there = path.stat()
    except OSError:
        return False
    opened = os.fstat(handle)
    return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)
