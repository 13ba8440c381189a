"""One queue for all that needs a network: bounded, fair, one thing at a time."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator

from ddim.base.errors import InputError, RunError
from ddim.web.channel import Channel, Stopped
from ddim.web.refused import Refused

__all__ = ["EACH", "WAITING", "Job", "Jobs"]

log = logging.getLogger("ddim")

Job = Callable[[Channel], None]
"""What is run on the thread of the models; it sends what it finds, and checks for its reader."""
WAITING = 8
"""Jobs that may wait, of all clients."""
EACH = 4
"""Jobs of one client that may wait."""


class Jobs:
    """A thread that loads models and runs jobs, and what waits for it.

    Clients take turns: each one's oldest job comes before any other's second. Loading comes before
    all jobs. All is done on one thread, since only one of them can have the processor at its best.
    """

    def __init__(self) -> None:
        self._moved = threading.Condition()
        self._first: deque[Callable[[], None]] = deque()
        self._turns: dict[str, deque[tuple[Job, Channel]]] = {}
        self._running: Channel | None = None
        self._busy = self._closed = False
        self._thread = threading.Thread(target=self._work, name="ddim jobs", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self, patience: float) -> bool:
        """Stop whatever runs at its next step; whether it has ended within some seconds."""
        with self._moved:
            self._closed = True
            channels = [channel for _, channel in self._order()]
            self._turns.clear()
            running = self._running
            self._moved.notify_all()
        for channel in (*channels, *([running] if running else [])):
            channel.stop()
            channel.close()
        if self._thread.is_alive():
            self._thread.join(patience)
        return not self._thread.is_alive()

    def first(self, call: Callable[[], None]) -> None:
        """Call something on the thread before any job that waits; it must not raise."""
        with self._moved:
            self._first.append(call)
            self._moved.notify_all()

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return sum(map(len, self._turns.values()))

    @property
    def running(self) -> bool:
        """Whether a job runs."""
        return self._running is not None

    def check(self, client: str) -> None:
        """Refuse another job of a client where too many wait.

        Raises:
            Refused: busy.
        """
        if self._closed:
            raise Refused("busy", "the server ends")
        if len(self._turns.get(client, ())) >= EACH:
            raise Refused("busy", f"{EACH} jobs of this page wait already: try again in a moment")
        if self.waiting >= WAITING + (not self._busy):
            raise Refused("busy", f"{WAITING} jobs wait already: try again in a moment")

    def submit(self, client: str, job: Job, channel: Channel) -> None:
        """Let a job wait for its turn.

        Args:
            client: whose turn.
            job: what to run.
            channel: what it says its results to.

        Raises:
            Refused: busy.
        """
        with self._moved:
            self.check(client)
            self._turns.setdefault(client, deque()).append((job, channel))
            self._tell()
            self._moved.notify_all()

    def drop(self, channel: Channel) -> None:
        """Stop a job, whether it waits or runs."""
        channel.stop()
        with self._moved:
            for client, waiting in list(self._turns.items()):
                kept = deque(each for each in waiting if each[1] is not channel)
                if not kept:
                    del self._turns[client]
                elif len(kept) < len(waiting):
                    self._turns[client] = kept
            self._tell()

    def _order(self) -> list[tuple[Job, Channel]]:
        """What waits, in the order in which it will be run."""
        lines = [list(line) for line in self._turns.values()]
        most = max(map(len, lines), default=0)
        return [line[i] for i in range(most) for line in lines if i < len(line)]

    def _tell(self) -> None:
        """Tell those who wait how many are before them."""
        for position, (_, channel) in enumerate(self._order(), start=int(self._busy)):
            if position:
                channel.frame("queued", "queued", {"position": position})

    # -- on the thread --------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._moved:
                self._busy, self._running = False, None
                while not (self._first or self._turns or self._closed):
                    self._moved.wait()
                if self._closed:
                    return
                self._busy = True
                call = self._first.popleft() if self._first else None
                job, channel = (None, None) if call else self._next()
                self._running = channel
                self._tell()
            if call is not None:
                call()
            elif job is not None and channel is not None:
                channel.drop("queued")
                with _told(channel):
                    channel.check()
                    job(channel)

    def _next(self) -> tuple[Job, Channel]:
        """The job whose turn it is; its client is the last then."""
        client = next(iter(self._turns))
        line = self._turns.pop(client)
        job = line.popleft()
        if line:
            self._turns[client] = line
        return job


@contextlib.contextmanager
def _told(channel: Channel) -> Iterator[None]:
    """Say in the channel how a job has failed, and close it."""
    try:
        yield
    except Stopped:
        channel.send("cancelled", {})
    except InputError as error:
        channel.send("error", Refused("bad-request", str(error)).body()["error"])  # pyright: ignore[reportArgumentType]
    except Exception as error:
        text = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
        if not isinstance(error, RunError):
            log.warning("a job failed: %.300s", text)
        channel.send("error", Refused("failed", text[:1000]).body()["error"])  # pyright: ignore[reportArgumentType]
    finally:
        channel.close()
