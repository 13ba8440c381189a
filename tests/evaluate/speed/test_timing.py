"""Statistics against closed forms, the order of rounds, and the process that keeps a core busy."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from ddim.base.errors import InputError
from ddim.evaluate.speed import contestants, machine, timing
from ddim.evaluate.speed.accuracy import Exact, deviation
from ddim.evaluate.speed.busy import busy_process
from ddim.evaluate.speed.contestants import Ours, threads
from ddim.evaluate.speed.plan import DEFAULT_PARTS, Plan
from ddim.evaluate.speed.race import Entry, Result, best_batch_size, race
from ddim.evaluate.speed.tables import Report, Table
from ddim.evaluate.speed.timing import Spread, Timing, interleave, median, once, speedup, spread
from ddim.model.opening import load


def test_quartiles_are_those_of_the_closed_form():
    assert spread([4, 1, 3, 2, 5]) == Spread(3, 2, 4)
    assert spread([1.0, 2.0]) == Spread(1.5, 1.25, 1.75)
    assert spread([7.0]) == Spread(7, 7, 7)
    assert str(spread([1.0, 2.0])) == "1.5 [1.25, 1.75]"


def test_ratios_are_paired_by_round():
    """A machine that slows down in the middle slows both, and the ratio stays."""
    load = [1.0, 1.0, 10.0, 3.0, 1.0, 100.0, 1.0]
    slow = [Timing(2 * x, 3.0) for x in load]
    fast = [Timing(x, 2.0) for x in load]
    assert speedup(slow, fast) == Spread(2, 2, 2)
    assert speedup(slow, fast, "cpu") == Spread(1.5, 1.5, 1.5)
    assert median(slow) == 2 and median(slow, "cpu") == 3
    with pytest.raises(ValueError, match="shorter"):
        speedup(slow, fast[1:])


def test_once_tells_wall_time_from_cpu_time():
    slept = once(lambda: time.sleep(0.05))
    assert slept.wall >= 0.05 > slept.cpu


def test_every_round_has_all_of_them_in_a_new_order():
    seen: list[str] = []
    actions = {name: name for name in "abcd"}
    kept = interleave(actions, 20, lambda name: seen.append(name) or len(seen))
    rounds = [seen[i : i + 4] for i in range(0, len(seen), 4)]
    assert len(rounds) == timing.WARM_UPS + 20
    assert all(sorted(one) == list("abcd") for one in rounds)
    assert len({tuple(one) for one in rounds}) > 8
    # What the first two rounds returned is not kept, and the rest in order.
    assert all(len(values) == 20 and values == sorted(values) for values in kept.values())
    assert min(itertools.chain(*kept.values())) == 4 * timing.WARM_UPS + 1
    again: list[str] = []
    interleave(actions, 20, again.append)
    assert again == seen


class Sleeper:
    """Takes a while for each call, and a while for each image."""

    name = "sleeper"

    def __init__(self, call: float = 0.0, image: float = 0.0) -> None:
        self.call, self.image, self.threads = call, image, []

    def draw(self, noise, steps, batch_size):
        self.threads.append(torch.get_num_threads())
        time.sleep(-(-len(noise) // batch_size) * self.call + len(noise) * self.image)
        return noise * steps


def test_a_race_gives_each_entry_its_images_and_threads():
    noise = torch.randn(8, 1, 2, 2)
    one, other = Sleeper(image=0.001), Sleeper(image=0.003)
    first, second = Entry(one, 8, 8, 1), Entry(other, 4, 4, 3)
    before = torch.get_num_threads()
    plan = Plan(steps=2, rounds=3)
    result = race([first, second, first], noise, plan)
    assert torch.get_num_threads() == before
    assert one.threads == [1] * 5 and other.threads == [3] * 5
    assert len(result.timings[first]) == len(result.timings[second]) == 3
    assert torch.equal(result.images[second], noise[:4] * 2)


def test_ratios_are_of_an_image():
    few, many = Entry(Sleeper(), 4, 4, 1), Entry(Sleeper(), 8, 4, 1)
    timings = {few: [Timing(2.0, 1.0)] * 3, many: [Timing(2.0, 4.0)] * 3}
    result = Result(timings, {})
    assert result.rate(few) == 2 and result.rate(many) == 4
    assert result.ratio(many, few) == Spread(2, 2, 2)
    assert result.ratio(many, few, "cpu") == Spread(0.5, 0.5, 0.5)


def test_the_best_batch_size_is_found():
    noise = torch.zeros(20, 1, 2, 2)
    assert best_batch_size(Sleeper(call=0.01), noise, 1, Plan(n=20)) == 16  # 32 would be more
    assert best_batch_size(Sleeper(), noise[:1], 1, Plan()) == 1


def test_threads_come_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), threads(before + 2):
        assert torch.get_num_threads() == before + 2
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
def test_the_busy_process_ends_with_the_block(error):
    with pytest.raises(error or RuntimeError), busy_process() as process:
        assert alive(process)
        raise error or RuntimeError
    assert not alive(process)


CTRL_C = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from ddim.evaluate.speed.busy import busy_process
with busy_process() as process:
    print(process, flush=True)
    while True:
        pass
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_the_busy_process_is_not_left_behind(number):
    with subprocess.Popen(
        [sys.executable, "-c", CTRL_C], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout is not None
        process = int(parent.stdout.readline())
        assert alive(process)
        parent.send_signal(number)
        parent.wait(60)
    end = time.monotonic() + 60
    while alive(process) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(process)


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="reads /proc")  # noqa: PTH110
def test_the_busy_process_is_busy():
    def ticks(process: int) -> int:
        with open(f"/proc/{process}/stat") as file:  # noqa: PTH123
            return int(file.read().rsplit(")", 1)[1].split()[11])

    with busy_process() as process:
        end = time.monotonic() + 60
        before = ticks(process)
        while ticks(process) < before + 5 and time.monotonic() < end:
            time.sleep(0.05)
        assert ticks(process) >= before + 5


def test_deviation_against_the_closed_form():
    x = torch.zeros(2, 1, 4, 4)
    assert deviation(x, x) == (0, 0, None)
    off = deviation(x + torch.tensor([0.3, 0.1]).view(2, 1, 1, 1), x)
    assert off.largest == pytest.approx(0.3)
    assert off.rms == pytest.approx(math.sqrt(0.05))
    assert off.psnr == pytest.approx(-10 * math.log10(0.05), abs=0.01)


def test_the_networks_error_is_that_of_rounding():
    model = load("mnist").with_backend("torch")
    exact = Exact(model, torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)))
    error = exact.error(Ours(model, "torch"))
    assert error is not None and 1e-8 < error < 1e-5
    assert model.dtype is torch.float32
    half = exact.error(Ours(contestants.halved(model), "bfloat16"))
    assert half is not None and 1e-4 < half < 1e-1
    assert model.dtype is torch.float32


def test_the_machine_is_described(monkeypatch, tmp_path):
    facts = machine.machine(["torch", "no-such-package"])
    assert {"cpu", "cores", "python", "torch", "load average"} == set(facts)
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "CPUINFO", path)
    assert not machine.has_bfloat16()
    path.write_text("model name\t: A processor\nflags\t\t: sse2 avx512_bf16\n")
    assert machine.has_bfloat16() and machine.machine([])["cpu"] == "A processor"
    path.write_text("Features\t: fp asimd\n")
    assert not machine.has_bfloat16()


def test_a_plan_checks_itself(refuses):
    assert Plan().parts == DEFAULT_PARTS and "start" not in DEFAULT_PARTS
    quick = Plan(quick=True)
    assert (quick.n, quick.steps, quick.rounds, quick.few) == (8, 2, 2, 8)
    for wrong, match in (
        ({"n": 0}, "n must be at least 1"),
        ({"steps": 0}, "steps must be"),
        ({"rounds": 0}, "rounds must be"),
        ({"parts": ("imagse",)}, "did you mean 'images'"),
        ({"parts": ("dtype",), "dtype": "float32"}, "leaves out"),
        ({"parts": ("one",), "dtype": "bfloat16"}, "not among the parts"),
    ):
        with refuses(match):
            Plan(**wrong)
    with refuses("nothing else to measure, and so it is"):
        Plan(parts=("busy",)).without("busy", why="so it is")
    with pytest.raises(InputError):
        Plan(n=-1)


def test_a_table_for_people_and_for_programs():
    rows = [
        {"contestant": "torch", "batch": 8, "images/s": 1234.5, "ratio": Spread(1.0, 0.9, 1.25)},
        {"contestant": "x", "batch": 12345, "images/s": 0.5, "ratio": None},
    ]
    table = Table("name", "A title", "a note", rows, {"images/s": ".1f"})
    assert table.text().splitlines() == [
        "A title",
        "(a note)",
        "",
        "contestant   batch  images/s              ratio",
        "torch            8    1234.5  1.00 [0.90, 1.25]",
        "x           12,345       0.5                  -",
    ]
    assert table.markdown().splitlines() == [
        "### A title",
        "",
        "a note",
        "",
        "| contestant | batch | images/s | ratio |",
        "|---|---:|---:|---:|",
        "| torch | 8 | 1234.5 | 1.00 [0.90, 1.25] |",
        "| x | 12,345 | 0.5 | - |",
    ]
    document = Report("t", {}, {}, {}, ["a note"], [table]).to_json()
    assert document["tables"]["name"]["rows"][0] == {
        "contestant": "torch",
        "batch": 8,
        "images/s": 1234.5,
        "ratio": {"median": 1.0, "low": 0.9, "high": 1.25},
    }
