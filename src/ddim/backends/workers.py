"""Batches side by side: worker threads, each with a batch and single-threaded operations.

Threads inside operations wait for each other at every one of them, which is slow for small networks
and ten times slower beside another program; and how many there are decides the last bits. Batches
share nothing, so that neither is true of them.
"""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Generic, TypeVar

import torch

from ddim.base.errors import InputError, RunError

__all__ = ["side_by_side", "worker_count"]

T = TypeVar("T")
PROMPT = 0.02
"""Seconds for which a worker gathers what its job yields before it hands it over."""
GATHERED = 4
"""The most that a worker gathers."""
PATIENCE = 0.1
"""Seconds after which a thread that waits looks whether it is to end."""


def worker_count(device: torch.device, most: int | None = None) -> int:
    """How many worker threads batches on a device get; 0 where the caller's own runs them.

    On a CPU as many as torch would use threads, which ``torch.set_num_threads`` and
    ``OMP_NUM_THREADS`` say. An accelerator is kept busy by one thread.

    Args:
        device: where the network is.
        most: as many as this at most; 1 for a network that is not safe to call from two threads.

    Raises:
        InputError: a limit below 1.
    """
    if most is not None and most < 1:
        raise InputError(f"workers must be at least 1, not {most}")
    if device.type != "cpu":
        return 0
    threads = torch.get_num_threads()
    return threads if most is None else min(threads, most)


def side_by_side(
    job: Callable[[int], Iterable[T]],
    count: int,
    workers: int,
    *,
    ends: Callable[[T], bool],
    alone: Callable[[bool], bool | None] | None = None,
) -> Generator[T, None, None]:
    """Run jobs on worker threads and yield what they yield.

    What a job yields comes in its order; what ``ends`` a job comes in the order of the jobs, the
    rest as it happens. Torch's operations are single-threaded within a job, and follow the caller's
    gradient, inference and autocast modes. At most ``workers`` jobs are under way, and as many
    ended ones are kept until it is their turn. The first error is raised here; then, and where the
    iterator is closed, the workers stop at the next thing that they would yield, and have ended
    when this returns.

    Args:
        job: called with its number; its iterable is gone through on one thread.
        count: how many jobs there are.
        workers: how many threads; 0 runs them one after another on the caller's own.
        ends: whether that is what a job was run for.
        alone: asked after each thing that the first job yields, and told whether that has ended,
            before another worker comes: whether one must do them all, or None to be asked again.
    """
    if workers == 0:
        for number in range(count):
            yield from job(number)
        return
    crew = _Crew(job, count, workers)
    try:
        crew.hire(1 if alone else min(workers, count))
        for item in crew.items(ends):
            yield item
            answer = None if alone is None else alone(crew.turn > 0)
            if answer is not None:
                crew.hire(0 if answer else min(workers, count) - 1)
                alone = None
    finally:
        crew.dismiss()


class _Crew(Generic[T]):
    """The threads of one call, and what they hand over."""

    def __init__(self, job: Callable[[int], Iterable[T]], count: int, workers: int) -> None:
        self.job, self.count, self.window = job, count, 2 * workers
        self.done = False
        self._owner = threading.current_thread()
        self._modes = _Modes()
        self._threads: list[threading.Thread] = []
        self._moved = threading.Condition()
        self._begun = self.turn = 0
        # A job's number, and what it yielded, an empty list at its end, or its error.
        self._handed: queue.Queue[tuple[int, list[T] | BaseException]] = queue.Queue(workers)

    def hire(self, count: int) -> None:
        for _ in range(count):
            target = contextvars.copy_context().run
            thread = threading.Thread(target=target, args=(self._work,), name="ddim worker")
            _single_threaded.enter()
            self._threads.append(thread)
            thread.start()

    def items(self, ends: Callable[[T], bool]) -> Iterator[T]:
        kept: dict[int, list[T]] = {}
        ended: set[int] = set()
        while self.turn < self.count:
            number, handed = self._take()
            if isinstance(handed, BaseException):
                raise handed
            for item in handed:
                if ends(item):
                    kept.setdefault(number, []).append(item)
                else:
                    yield item
            if not handed:
                ended.add(number)
            while self.turn in ended:
                yield from kept.pop(self.turn, [])
                with self._moved:
                    self.turn += 1
                    self._moved.notify_all()

    def dismiss(self) -> None:
        """End the threads, each after the network call that it is in."""
        self.done = True
        with contextlib.ExitStack() as stack:  # an interruption here leaves nothing undone either
            for _ in self._threads:
                stack.callback(_single_threaded.leave)
            # Where the last reference goes on a worker's own thread, that one ends by itself.
            for thread in set(self._threads) - {threading.current_thread()}:
                while thread.is_alive():
                    with contextlib.suppress(queue.Empty):
                        self._handed.get_nowait()  # one that waits to hand something over
                    thread.join(PATIENCE / 10)

    def _take(self) -> tuple[int, list[T] | BaseException]:
        self._owner = threading.current_thread()
        while True:
            alive = any(thread.is_alive() for thread in self._threads)
            with contextlib.suppress(queue.Empty):
                return self._handed.get(timeout=PATIENCE)
            if not alive:
                raise RunError("the threads that were at work have ended")

    # -- on a worker's thread -------------------------------------------------------------------

    def _work(self) -> None:
        number = 0
        try:
            torch.set_num_threads(1)
            with self._modes():
                while (number := self._next()) < self.count:
                    if not self._do(number):
                        return
        except BaseException as error:  # raised again where the iterator is
            self._hand(number, error)

    def _do(self, number: int) -> bool:
        """Go through a job; false if nobody takes what it yields any more."""
        items: list[T] = []
        handed = time.monotonic()
        for item in self.job(number):
            items.append(item)
            # One by one would cost as much as a step of a small network.
            if len(items) == GATHERED or time.monotonic() - handed >= PROMPT:
                if not self._hand(number, items):
                    return False
                items, handed = [], time.monotonic()
            if self._over():
                return False
        return (not items or self._hand(number, items)) and self._hand(number, [])

    def _next(self) -> int:
        """The number of the next job, once the window has reached it; ``count`` if none is left."""
        with self._moved:
            while self._begun >= self.turn + self.window and not self._over():
                self._moved.wait(PATIENCE)
            if self._over() or self._begun >= self.count:
                return self.count
            self._begun += 1
            return self._begun - 1

    def _hand(self, number: int, what: list[T] | BaseException) -> bool:
        """Hand something over; false if nobody takes it any more."""
        while not self._over():
            with contextlib.suppress(queue.Full):
                self._handed.put((number, what), timeout=PATIENCE)
                return not self._over()
        return False

    def _over(self) -> bool:
        # An interpreter that ends joins its threads, and nobody closes the iterator before; but a
        # thread of the user's that goes through it is waited for.
        ends = not threading.main_thread().is_alive()
        return self.done or (ends and self._owner is threading.main_thread())


class _SingleThreaded:
    """While a worker is there torch has 1 for the number of threads of those that are new.

    When the last worker has gone that is the caller's again. A thread whose first operation comes
    in between keeps 1.
    """

    def __init__(self) -> None:
        self._lock, self._workers, self._threads = threading.Lock(), 0, 1

    def enter(self) -> None:
        with self._lock:
            if self._workers == 0:
                self._threads = torch.get_num_threads()
            self._workers += 1

    def leave(self) -> None:
        with self._lock:
            self._workers -= 1
            if self._workers == 0 and threading.main_thread().is_alive():
                # On a thread that ends at once: each thread's own number stays what it is.
                most = max(self._threads, torch.get_num_threads())
                thread = threading.Thread(target=torch.set_num_threads, args=(most,))
                thread.start()
                thread.join()


_single_threaded = _SingleThreaded()


class _Modes:
    """The modes of torch that each thread has for itself, of the thread that made this."""

    def __init__(self) -> None:
        self.grad, self.inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        self.autocast = [
            (device, torch.get_autocast_dtype(device))
            for device in ("cpu", "cuda")
            if torch.is_autocast_enabled(device)
        ]

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self.inference:
                stack.enter_context(torch.inference_mode())
            stack.enter_context(torch.set_grad_enabled(self.grad))
            for device, dtype in self.autocast:
                stack.enter_context(torch.autocast(device, dtype))
            yield
