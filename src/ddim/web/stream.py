"""A channel as an answer: server-sent events for as long as the client stays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from starlette.types import Receive, Scope, Send

from ddim.web.channel import Channel

__all__ = ["EventStream"]

HEARTBEAT = 2.0
"""Seconds after which a silent stream says that it is there."""
PATIENCE = 30.0
"""Seconds that a client may take to read a piece."""
PIECE = 1 << 16


class EventStream:
    """What a job says, as it says it; made in the event loop that answers.

    Args:
        ended: called with the channel when nobody reads any more.
    """

    def __init__(self, ended: Callable[[Channel], None]) -> None:
        loop = asyncio.get_running_loop()
        self._said, self._ended = asyncio.Event(), ended

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._said.set)

        self.channel = Channel(wake)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the events until there are no more, or the client has gone."""
        writer = asyncio.ensure_future(self._write(send))
        leaver = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((writer, leaver), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._ended(self.channel)
            for task in (writer, leaver):
                task.cancel()
            await asyncio.gather(writer, leaver, return_exceptions=True)

    async def _write(self, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while True:
            self._said.clear()
            message = self.channel.take()
            if message is None:
                break
            if not message:
                try:
                    await asyncio.wait_for(self._said.wait(), HEARTBEAT)
                    continue
                except TimeoutError:
                    message = b": \n\n"
            for start in range(0, len(message), PIECE):
                body = message[start : start + PIECE]
                sending = send({"type": "http.response.body", "body": body, "more_body": True})
                await asyncio.wait_for(sending, PATIENCE)
        await send({"type": "http.response.body", "body": b""})


async def _left(receive: Receive) -> None:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
