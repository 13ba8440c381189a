"""A socket, the server on it, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ddim.base.errors import InputError
from ddim.web.guard import Address
from ddim.web.jobs import Jobs

__all__ = ["PORT", "Server", "bind", "open_browser", "serve"]

PORT = 7860
"""The port where none is asked for; the next that is free where it is taken."""
TRIED = 20
CONNECTIONS = 256
"""Connections that may be open; more are closed at once."""
PATIENCE = 1.0
"""Seconds in which all must have ended when the server is to end."""


def bind(host: str, port: int | None) -> socket.socket:
    """A socket that is bound.

    Args:
        host: an address or a name of this machine.
        port: which; None for :data:`PORT` or, where that is taken, the next that is free.

    Raises:
        InputError: the port is taken, or there is no such host here.
    """
    if port is not None and not 0 <= port < 65536:
        raise InputError(f"--port is from 0 to 65535, not {port}")
    tried = range(PORT, PORT + TRIED) if port is None else [port]
    for each in tried:
        made = _bound(host, each)
        if made is not None:
            return made
    if port is None:
        raise InputError(
            f"the ports {PORT} to {PORT + TRIED - 1} are taken: give another by --port"
        )
    for each in range(port + 1, min(port + 1 + TRIED, 65536)):
        made = _bound(host, each)
        if made is not None:
            made.close()
            raise InputError(f"port {port} is taken: --port {each} is free")
    raise InputError(f"port {port} is taken: give another by --port")


def _bound(host: str, port: int) -> socket.socket | None:
    """A bound socket; None where the port is taken."""
    try:
        kind, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise InputError(f"--host {host!r:.200} is no address or name of this machine") from None
    # With the protocol named asyncio sends at once; without, an answer waits 40 ms for an ACK.
    made = socket.socket(kind, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(where)
        made.listen(128)  # two may be bound to one port, of which one alone may listen
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            return None
        if error.errno == errno.EACCES:
            raise InputError(f"port {port} is not for this user: take one above 1023") from None
        raise InputError(f"--host {host!r:.200} is not of this machine: {error.strerror}") from None
    return made


class _Protocol(H11Protocol):
    """HTTP on a connection; those beyond the limit are closed."""

    def connection_made(self, transport: object) -> None:
        super().connection_made(transport)  # pyright: ignore[reportArgumentType]
        if len(self.connections) > CONNECTIONS:
            self.transport.abort()  # pyright: ignore[reportAttributeAccessIssue]


class Server(uvicorn.Server):
    """Begins the queue when it answers requests, and ends open streams when it is to end.

    Args:
        app: what answers.
        jobs: the queue.
        begun: called once requests are answered.
    """

    def __init__(self, app: ASGIApp, jobs: Jobs, begun: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=1,
                h11_max_incomplete_event_size=16_384,
            )
        )
        self._begun, self._jobs = begun, jobs
        self.terminated = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin."""
        await super().startup(sockets)
        self._jobs.start()
        self._begun()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End, connections that came too late among them."""
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # pyright: ignore[reportAttributeAccessIssue]
        await asyncio.sleep(0.01)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End, by a signal."""
        super().handle_exit(sig, frame)
        self.terminated = sig == signal.SIGTERM
        self.end()

    def end(self) -> None:
        """End soon; from any thread."""
        self.should_exit = True
        # Not here: a handler runs between any two instructions, and may hold the queue's lock.
        threading.Thread(target=self._jobs.close, args=(0.0,), daemon=True).start()


def serve(app: ASGIApp, listener: socket.socket, jobs: Jobs, begun: Callable[[], None]) -> None:
    """Serve until Ctrl-C or SIGTERM, which are raised again here.

    Args:
        app: what answers.
        listener: a bound socket.
        jobs: the queue, which begins to work once requests are answered.
        begun: called then.

    Raises:
        KeyboardInterrupt: it was to end.
    """
    server = Server(app, jobs, begun)
    try:
        server.run([listener])
    finally:
        if not jobs.close(PATIENCE):
            _leave(server.terminated)


def _leave(terminated: bool) -> None:
    """End although the thread of the jobs has not: it imports torch, or is in a long call."""
    what, status = ("terminated", 143) if terminated else ("interrupted", 130)
    print(f"ddim serve: {what}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


def open_browser(address: Address) -> bool:
    """Open the page in a browser, if there is one with windows; whether one was asked to."""
    windows = os.name != "posix" or sys.platform == "darwin"
    if not windows and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False

    def show() -> None:
        with contextlib.suppress(Exception):
            webbrowser.open(address.url)

    threading.Thread(target=show, daemon=True).start()
    return True
