"""Claims: who is alive is a guess that saves work, and no clock of two machines is compared."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from ddim.shards import claims as module
from ddim.shards.claims import Claims

TAKES = """
import sys, time
from ddim.shards.claims import Claims
claims = Claims(sys.argv[1]).__enter__()
assert claims.take(3)
print("taken", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """A process of this machine that holds claim 3."""
    process = subprocess.Popen(
        [sys.executable, "-c", TAKES, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "taken\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Claim 3 of another machine, that says nothing more."""
    monkeypatch.setattr(module, "_machine", lambda: "elsewhere/1")
    claims = Claims(tmp_path)
    tmp_path.mkdir(exist_ok=True)
    assert claims.take(3)
    os.close(claims._held.pop(3))
    monkeypatch.setattr(module, "_machine", lambda: "here/1")
    return tmp_path / "000003"


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


def test_one_takes_it_and_gives_it_back(tmp_path):
    folder = tmp_path / "claims"
    with Claims(folder) as first, Claims(folder) as second:
        assert first.take(0)
        assert not second.take(0)
        assert second.take(1)
        first.release(0)
        assert second.take(0)
    assert not folder.exists()


def test_a_dead_process_of_this_machine_is_known_at_once(tmp_path, other):
    with Claims(tmp_path, lease=1000) as claims:
        assert not claims.take(3)
        other.kill()
        other.wait()
        assert claims.take(3)
        assert (tmp_path / "000003").read_bytes() == claims._token


def test_a_stopped_process_keeps_its_claim(tmp_path, other):
    import signal

    other.send_signal(signal.SIGSTOP)
    with Claims(tmp_path, lease=0.01) as claims:
        for _ in range(3):
            assert not claims.take(3)
            time.sleep(0.02)


def test_another_machine_is_given_up_after_the_lease(tmp_path, elsewhere, monkeypatch):
    clock, claims = Clock(monkeypatch), Claims(tmp_path, lease=120)
    assert not claims.take(3)
    clock.now += 119
    assert not claims.take(3)
    clock.now += 2
    assert claims.take(3)


def test_another_machine_that_renews_its_claim_keeps_it(tmp_path, elsewhere, monkeypatch):
    clock, claims = Clock(monkeypatch), Claims(tmp_path, lease=120)
    for moment in range(5):
        assert not claims.take(3)
        clock.now += 100
        os.utime(elsewhere, (moment, moment))


@pytest.mark.parametrize("day", [86400, -86400])
def test_a_clock_that_jumps_by_a_day_changes_nothing(tmp_path, elsewhere, monkeypatch, day):
    clock, claims = Clock(monkeypatch), Claims(tmp_path, lease=120)
    now = time.time()
    assert not claims.take(3)
    monkeypatch.setattr(time, "time", lambda: now + day)
    monkeypatch.setattr(time, "time_ns", lambda: int((now + day) * 1e9))
    assert not claims.take(3)
    os.utime(elsewhere, (now + day, now + day))  # the other's clock jumped, and it is alive
    clock.now += 121
    assert not claims.take(3)
    clock.now += 119
    assert not claims.take(3)
    clock.now += 2
    assert claims.take(3)


def test_without_locks_leases_are_left(tmp_path, monkeypatch):
    """A file system without locks: even of this machine a claim ends by silence alone."""
    monkeypatch.setattr(module, "fcntl", None)
    clock = Clock(monkeypatch)
    first, second = Claims(tmp_path, lease=120), Claims(tmp_path, lease=120)
    assert first.take(0)
    assert not second.take(0)
    clock.now += 121
    assert second.take(0)
    first.release(0)  # it was taken over: the file stays
    assert (tmp_path / "000000").read_bytes() == second._token


def test_the_thread_renews_what_is_held(tmp_path):
    with Claims(tmp_path, lease=0.08) as claims:
        claims.take(0)
        os.utime(tmp_path / "000000", (1, 1))
        until = time.monotonic() + 10
        while (tmp_path / "000000").stat().st_mtime == 1:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_claim_that_was_killed_while_it_was_made_ends_by_the_lease(tmp_path, monkeypatch):
    (tmp_path / "000003").touch()
    clock, claims = Clock(monkeypatch), Claims(tmp_path, lease=120)
    assert not claims.take(3)
    clock.now += 121
    assert claims.take(3)
