from __future__ import annotations

import threading
import time

import pytest

from asking import events
from ddim.base.errors import InputError, RunError
from ddim.web.channel import Channel
from ddim.web.jobs import EACH, WAITING, Jobs
from ddim.web.refused import Refused


def heard(channel):
    """What a channel says until it is closed."""
    found, end = b"", time.monotonic() + 10
    while (message := channel.take()) is not None:
        found += message
        assert time.monotonic() < end
        time.sleep(0.001)
    return events(found.decode())


class Held:
    """A queue whose thread stands in a job until it is let go."""

    def __init__(self) -> None:
        self.jobs, self.order, self.go = Jobs(), [], threading.Event()
        self.jobs.start()
        began = threading.Event()
        self.first = self.submit("held", lambda out: (began.set(), self.go.wait(10)))
        assert began.wait(10)

    def submit(self, client, job):
        channel = Channel(lambda: None)
        self.jobs.submit(client, job, channel)
        return channel

    def noted(self, client, name):
        return self.submit(client, lambda out: self.order.append(name))


@pytest.fixture
def held():
    made = Held()
    yield made
    made.go.set()
    assert made.jobs.close(10)


def test_clients_take_turns(held):
    channels = [held.noted("a", f"a{i}") for i in range(3)]
    channels += [held.noted("b", f"b{i}") for i in range(2)]
    channels.append(held.noted("c", "c0"))
    held.go.set()
    for channel in channels:
        heard(channel)
    assert held.order == ["a0", "b0", "c0", "a1", "b1", "a2"]


def test_positions_are_told_when_they_change(held):
    held.noted("a", "a0")
    one = held.noted("a", "a1")
    assert one.take() == b'event: queued\ndata: {"position":2}\n\n'
    held.noted("b", "b0")
    assert one.take() == b'event: queued\ndata: {"position":3}\n\n'
    held.go.set()
    heard(one)


def test_what_waits_is_bounded(held):
    for i in range(EACH):
        held.noted("a", i)
    with pytest.raises(Refused, match="of this page wait already"):
        held.noted("a", 9)
    for i in range(WAITING - EACH):
        held.noted(f"client {i}", i)
    with pytest.raises(Refused, match=f"{WAITING} jobs wait already") as error:
        held.noted("another", 9)
    assert error.value.code == "busy"


def test_a_job_whose_reader_has_gone_gives_its_place_up(held):
    first = held.noted("a", "a0")
    second = held.noted("a", "a1")
    held.jobs.drop(first)
    assert held.jobs.waiting == 1
    held.go.set()
    heard(second)
    assert held.order == ["a1"]


def test_loading_comes_before_what_waits(held):
    channel = held.noted("a", "a0")
    held.jobs.first(lambda: held.order.append("loaded"))
    held.go.set()
    heard(channel)
    assert held.order == ["loaded", "a0"]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("no such step"), "bad-request", "no such step"),
        (RunError("out of memory"), "failed", "out of memory"),
        (ZeroDivisionError("by\nzero"), "failed", "ZeroDivisionError: by zero"),
    ],
)
def test_a_job_that_fails_says_so_and_the_next_is_run(held, error, code, text):
    def fail(out):
        raise error

    failing, after = held.submit("a", fail), held.noted("a", "after")
    held.go.set()
    assert heard(failing)[-1] == ("error", {"code": code, "text": text})
    heard(after)
    assert held.order == ["after"]


def test_closing_ends_what_runs_and_what_waits():
    made, began, jobs = [], threading.Event(), Jobs()
    jobs.start()

    def run(out):
        began.set()
        while True:
            out.check()
            time.sleep(0.001)

    for job in (run, lambda out: made.append(1)):
        channel = Channel(lambda: None)
        jobs.submit("a", job, channel)
    assert began.wait(10)
    assert jobs.close(10) and not made
    assert channel.take() is None
    with pytest.raises(Refused, match="the server ends"):
        jobs.submit("a", run, Channel(lambda: None))
