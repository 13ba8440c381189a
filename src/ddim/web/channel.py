"""What a job says to its reader: results, which are kept, and frames, of which the newest is."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping

from ddim.base.errors import RunError

__all__ = ["Channel", "Stopped", "event"]

MOST = 96_000_000
"""Bytes that a job may say before any of it is read; its limits keep it far below."""


class Stopped(Exception):  # noqa: N818
    """Nobody reads any more, or the server ends."""


def event(name: str, data: Mapping[str, object]) -> bytes:
    """A server-sent event."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"event: {name}\ndata: {text}\n\n".encode()


class Channel:
    """From the thread of a job to its reader, who may be slow.

    Args:
        wake: called, on any thread, when there is something to read.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake, self._lock = wake, threading.Lock()
        self._unread: dict[object, bytes] = {}
        self._bytes, self._count = 0, 0
        self._over, self._stopped = False, False

    # -- the job's side -------------------------------------------------------------------------

    def check(self) -> None:
        """Go on only while somebody reads.

        Raises:
            Stopped: nobody does.
        """
        if self._stopped:
            raise Stopped

    def send(self, name: str, data: Mapping[str, object]) -> None:
        """Say what is to be read whenever the reader comes to it.

        Raises:
            RunError: too much is unread.
        """
        message = event(name, data)
        with self._lock:
            if self._bytes + len(message) > MOST:
                raise RunError("the page reads too slowly for so many and so large images")
            self._count += 1
            self._put(self._count, message)
        self._wake()

    def frame(self, lane: str, name: str, data: Mapping[str, object]) -> None:
        """Say what takes the place of the last of its lane, if that is still unread."""
        message = event(name, data)
        with self._lock:
            self._drop(lane)
            self._put(lane, message)
        self._wake()

    def drop(self, lane: str) -> None:
        """Take back the unread frame of a lane, which a result has overtaken."""
        with self._lock:
            self._drop(lane)

    def close(self) -> None:
        """Say that nothing comes any more."""
        self._over = True
        self._wake()

    def _put(self, key: object, message: bytes) -> None:
        self._unread[key] = message
        self._bytes += len(message)

    def _drop(self, key: object) -> None:
        self._bytes -= len(self._unread.pop(key, b""))

    # -- the reader's ---------------------------------------------------------------------------

    def stop(self) -> None:
        """Say that nobody reads any more."""
        with self._lock:
            self._stopped = True
            self._unread, self._bytes = {}, 0

    @property
    def stopped(self) -> bool:
        """Whether nobody reads any more."""
        return self._stopped

    def take(self) -> bytes | None:
        """The oldest message; nothing where there is none yet, None after the last."""
        with self._lock:
            if not self._unread:
                return None if self._over else b""
            key = next(iter(self._unread))
            message = self._unread[key]
            self._drop(key)
            return message
