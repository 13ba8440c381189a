"""Batches side by side: order, bounds, modes, errors, and nothing left behind."""

from __future__ import annotations

import _thread
import contextvars
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

import ddim
from ddim.backends.workers import side_by_side, worker_count

VARIABLE = contextvars.ContextVar("VARIABLE", default=0)


def none_left() -> bool:
    return not [t for t in threading.enumerate() if t.name == "ddim worker"]


@pytest.fixture(autouse=True)
def nothing_left():
    before = torch.get_num_threads()
    yield
    gc.collect()
    assert none_left()
    assert torch.get_num_threads() == before


def one(job, count, workers):
    return side_by_side(lambda n: [job(n)], count, workers, ends=lambda _: True)


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 8, 64])
def test_results_come_in_order(workers):
    def job(number):
        time.sleep(random.Random(number).random() / 300)
        return number

    assert list(one(job, 23, workers)) == list(range(23))


def test_ends_come_in_order_and_the_rest_as_it_happens():
    second_is_done = threading.Event()

    def job(number):
        yield number, "step"
        if number == 0:
            assert second_is_done.wait(10)
        yield number, "end"
        second_is_done.set()

    def gone_through(number):
        yield from job(number)

    # The second job ends before the first, whose end is waited for all the same.
    events = list(side_by_side(gone_through, 2, 2, ends=lambda e: e[1] == "end"))
    assert [e for e in events if e[1] == "end"] == [(0, "end"), (1, "end")]
    assert events.index((1, "step")) < events.index((0, "end"))


def test_memory_is_bounded():
    """Three workers hold six jobs at most, under way or waiting for their turn."""
    first, begun = threading.Event(), []

    def job(number):
        begun.append(number)
        if number == 0:
            first.wait(0.5)
        return number

    found = one(job, 100, 3)
    threading.Timer(0.3, lambda: (most.append(len(begun)), first.set())).start()
    most: list[int] = []
    assert next(found) == 0
    assert most == [6]
    found.close()


def test_the_caller_s_modes_reach_the_workers():
    def seen(_):
        return (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.get_num_threads(),
            VARIABLE.get(),
        )

    VARIABLE.set(7)
    half = torch.autocast("cpu", dtype=torch.float16)
    for mode in (torch.no_grad(), torch.enable_grad(), torch.inference_mode(), half):
        with mode:
            here = seen(0)
            (there,) = one(seen, 1, 2)
        assert there == (*here[:4], 1, 7)


def test_the_caller_keeps_its_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for _ in one(lambda n: n, 4, 2):
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 3
        # What the caller sets meanwhile stays; a new thread has it too.
        for n in one(lambda n: n, 4, 2):
            torch.set_num_threads(4 + (n > 0))
        there = []
        thread = threading.Thread(target=lambda: there.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert torch.get_num_threads() == 5 and there == [5]
        assert worker_count(torch.device("cpu")) == 5
        assert worker_count(torch.device("cpu"), 2) == 2
        assert worker_count(torch.device("meta")) == 0
    finally:
        torch.set_num_threads(before)


def test_the_first_error_is_raised_and_the_workers_end():
    begun = []

    def job(number):
        begun.append(number)
        if number == 3:
            raise RuntimeError("third")
        time.sleep(0.001)
        return number

    with pytest.raises(RuntimeError, match="third"):
        list(one(job, 10_000, 4))
    assert none_left()
    assert len(begun) < 100


def test_an_iterator_that_is_closed_closes_its_jobs():
    closed = []

    def job(number):
        try:
            while True:
                yield number
        finally:
            closed.append(number)

    events = side_by_side(job, 8, 3, ends=lambda _: False)
    for _ in range(50):
        next(events)
    events.close()
    assert none_left()
    gc.collect()
    assert sorted(closed) == [0, 1, 2]


def test_an_interruption_ends_the_workers_soon():
    # A job in the background ignores interruptions, and so would this process.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def job(number):
        for _ in range(100):
            time.sleep(0.05)  # a network call
            yield number

    threading.Timer(0.3, _thread.interrupt_main).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            for _ in side_by_side(job, 4, 2, ends=lambda _: False):
                began = time.perf_counter()
    finally:
        signal.signal(signal.SIGINT, before)
    assert none_left()
    assert time.perf_counter() - began < 0.5 + 0.05 + 0.3


def test_a_thousand_starts_and_stops():
    for n in range(1000):
        found = one(lambda number: number, 4, 1 + n % 3)
        if n % 2:
            assert list(found) == [0, 1, 2, 3]
        else:
            assert next(found) == 0
            found.close()
    assert none_left()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_can_fork_afterwards():
    script = (
        "import os, ddim, torch; model = ddim.load('mnist').with_backend('torch')\n"
        "torch.set_num_threads(2); before = ddim.sample(model, 9, steps=2)\n"
        "pid = os.fork()\n"
        "same = torch.equal(before, ddim.sample(model, 9, steps=2))\n"
        "if pid == 0: os._exit(0 if same else 3)\n"
        "assert same and os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_an_interpreter_ends_with_an_iterator_half_way():
    script = (
        "import time\nfrom ddim.backends.workers import side_by_side\n"
        "kept = side_by_side(lambda n: iter(lambda: n, -1), 4, 2, ends=lambda _: False)\n"
        "print(next(kept) in (0, 1)); kept.keep = kept if False else None"
    ).replace("; kept.keep = kept if False else None", "")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def draws(model, threads, **options):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        return ddim.sample(model, **options)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("method", ["ddim", "ddpm", "dpmpp:order=3"])
def test_images_do_not_depend_on_the_workers(method):
    model = ddim.load("mnist-cond").with_backend("torch")
    given = {"n": 7, "method": method, "steps": 4, "guidance": 2.0, "batch_size": 2}
    expected = draws(model, 1, **given)
    for threads in (2, 3, 64):
        assert torch.equal(draws(model, threads, **given), expected)


class Remembers(torch.nn.Module):
    """Its second half reads what its first has left somewhere."""

    def __init__(self, where):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.where = where

    def forward(self, x, t):
        self.keep(x)
        time.sleep(0.002)  # another thread comes in between
        return 0.5 * self.kept() * self.weight

    def keep(self, x):
        if self.where == "attribute":
            self.state = x
        elif self.where == "helper":
            keep_held(x)
        elif self.where == "dictionary":
            self.__dict__.setdefault("states", {})["x"] = x
        elif self.where == "global":
            global STATE
            STATE = x
        else:
            HELD["x"] = x

    def kept(self):
        if self.where == "attribute":
            found, self.state = self.state, None
            return found
        if self.where == "dictionary":
            return self.states["x"]
        return STATE if self.where == "global" else HELD["x"]


STATE: torch.Tensor | None = None
HELD: dict[str, torch.Tensor] = {}


def keep_held(x):
    HELD["x"] = x


@pytest.mark.parametrize("where", ["attribute", "dictionary", "global", "held", "helper"])
def test_a_network_that_remembers_its_calls_gets_one_worker(where, caplog):
    model = ddim.Model(Remembers(where), ddim.Schedule.linear(10), "eps", (1, 2, 2))
    given = {"n": 12, "steps": 3, "batch_size": 2}
    expected = draws(model.replace(workers=1), 2, **given)
    assert not caplog.records
    assert torch.equal(draws(model, 4, **given), expected)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "batches run one after another" in caplog.text


def test_a_network_that_remembers_nothing_gets_them_all():
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x, t):
            threads.add(threading.get_ident())
            together.wait(10)  # broken unless three are here at once
            return x * self.weight

    threads: set[int] = set()
    together = threading.Barrier(1)
    model = ddim.Model(Plain(), ddim.Schedule.linear(10), "v", (1, 2, 2))
    draws(model, 3, n=12, steps=3, batch_size=2)
    assert len(threads) > 1
    with pytest.raises(ddim.InputError, match="workers must be at least 1"):
        model.replace(workers=0)


def test_hooks_get_one_worker_on_any_network(caplog):
    model = ddim.load("mnist").with_backend("torch")
    held = {}
    first, last = model.net.conv_in, model.net.conv_out
    hooks = [
        first.register_forward_hook(lambda m, given, out: held.update(x=given[0])),
        last.register_forward_hook(lambda m, given, out: out + 0.1 * held["x"]),
    ]
    try:
        given = {"n": 6, "steps": 2, "batch_size": 1}
        expected = draws(model.replace(workers=1), 2, **given)
        assert torch.equal(draws(model, 3, **given), expected)
        assert "it has hooks" in caplog.text
    finally:
        for hook in hooks:
            hook.remove()


def test_threads_that_overlap_leave_the_number_of_threads():
    """Two of the user's threads draw at once; a thread made later has as many as ever."""
    script = (
        "import threading, time, torch; from ddim.backends.workers import side_by_side\n"
        "torch.set_num_threads(3)\n"
        "def run(): list(side_by_side(lambda n: [time.sleep(0.05)], 6, 2, ends=lambda _: True))\n"
        "threads = [threading.Thread(target=run) for _ in range(2)]\n"
        "for thread in threads: thread.start(); time.sleep(0.08)\n"
        "for thread in threads: thread.join()\n"
        "seen = []; last = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))\n"
        "last.start(); last.join(); assert (seen, torch.get_num_threads()) == ([3], 3), seen"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_thread_of_the_user_s_draws_to_the_end_after_the_main_one():
    script = (
        "import threading, time; from ddim.backends.workers import side_by_side\n"
        "def run(): print(len(list(side_by_side(lambda n: [time.sleep(0.05)], 12, 2, "
        "ends=lambda _: True))))\n"
        "threading.Thread(target=run).start()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "12\n", "")
