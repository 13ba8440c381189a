"""A run that is killed at any moment and run again leaves what one that was not killed leaves."""

from __future__ import annotations

import dataclasses
import random
import re
import shutil
import signal
from pathlib import Path

import pytest

FAST = ("--threads", "1", "--device", "cpu", "--quiet")
EVERY = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.utime", "fcntl.flock", "open")
"""Every call that can change a folder; a file is counted where it is opened for writing."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A verb's words, what is added to run it again, and at which of its renames it is killed."""

    words: str
    again: str = "--resume"
    every: int = 1


CASES = {
    "sample": Case("sample --model tiny -n 5 --batch-size 2 --steps 2 --output out", every=2),
    "encode": Case(
        "encode --model tiny --data data.npz -n 3 --steps 2 --output out/x.safetensors", "--force"
    ),
    "shards": Case(
        "sample --model tiny -n 7 --batch-size 2 --steps 2 --shard-size 3 --output out", "", 3
    ),
    "pngs": Case(
        "sample --model tiny -n 7 --batch-size 2 --steps 2 --shard-size 3 --shard-format png "
        "--output out",
        "",
        4,
    ),
    "merge": Case("merge part-0 part-1 --output out", "", 3),
    "decode": Case("decode --model tiny --latents x.safetensors --output out", "--force", 2),
    "reconstruct": Case(
        "reconstruct --model tiny --data data.npz -n 2 --codecs obelm,ddim --steps 2 --output out",
        every=3,
    ),
    "calibrate": Case(
        "calibrate tiny --calls 2 --latents 2 --moves 0 --output out/c.json", "--force"
    ),
    "evaluate": Case(
        "evaluate --model tiny --features features.py:first --data data.npz -n 4 --steps 1,2 "
        "--teacher 2 --output out",
        "",
        13,
    ),
}


def words_of(verb: str) -> list[str]:
    return [*CASES[verb].words.split(), *(FAST[-1:] if verb == "merge" else FAST)]


def content(path: Path) -> object:
    """What a file says, but for how long it took."""
    if path.suffix == ".json":
        return re.sub(r'"(seconds|ms an image)": [^,\n]*', "", path.read_text())
    if path.name in ("results.csv", "results.md", "errors.md", "quality.png", "report.html"):
        return path.stat().st_size > 0
    return path.read_bytes()


def contents(folder: Path) -> dict[str, object]:
    """Of every file and folder, hidden ones too."""
    found = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): content(p) if p.is_file() else None for p in found}


@pytest.fixture(scope="session")
def whole(run):
    """What a run that was not killed leaves, its number of renames, and its seconds."""
    assert run(*CASES["encode"].words.replace("out/", "").split(), *FAST).status == 0
    for part in (0, 1):
        words = CASES["shards"].words.replace(" out", f" part-{part} --shard {part}/2")
        assert run(*words.split(), *FAST).status == 0
    known = {}

    def look(verb):
        if verb not in known:
            out = run.folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            ended = run(*words_of(verb))
            assert ended.status == 0, ended.said
            known[verb] = contents(out), ended
        return known[verb]

    return look


def check(run, whole, verb: str, **kill) -> int:
    """Kill a run, run it again, compare; the exit status of the first."""
    wanted, _ = whole(verb)
    out = run.folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    words = words_of(verb)
    killed = run(*words, **kill)
    assert killed.status in (-signal.SIGKILL, 0), killed.said
    if killed.status == 0 and not CASES[verb].again:
        return 0  # it had come to its end: there is nothing to be done again
    ended = run(*words, *CASES[verb].again.split())
    assert ended.status == 0, (kill, ended.said)
    assert contents(out) == wanted, kill
    return killed.status


LONG = ("calibrate", "decode", "pngs", "reconstruct")
VERBS = [pytest.param(v, marks=[pytest.mark.slow] if v in LONG else []) for v in CASES]
"""Some are killed in the long run alone; of each kind there is another."""


@pytest.mark.parametrize("verb", VERBS)
def test_trap_killed_between_two_files(run, whole, verb):
    changes = whole(verb)[1].changes
    assert changes
    for change in range(1, changes + 1, CASES[verb].every):
        check(run, whole, verb, change=change)


@pytest.mark.parametrize("verb", VERBS)
def test_trap_killed_at_some_moment(run, whole, verb):
    seconds = random.Random(verb).uniform(0.01, whole(verb)[1].seconds)
    check(run, whole, verb, seconds=seconds)


@pytest.mark.parametrize("verb", ["sample", "encode", "decode", "reconstruct"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_a_file_is_written_leaves_nothing_half_done(
    run, whole, verb, number, status
):
    wanted, _ = whole(verb)
    out = run.folder / "out"
    shutil.rmtree(out)
    words = words_of(verb)
    ended = run(*words, change=2, number=number)
    assert (ended.status, ended.said.count("\n")) == (status, 1), ended.said
    assert contents(out).keys() < wanted.keys()  # no lock, nothing temporary
    assert run(*words, *CASES[verb].again.split()).status == 0
    assert contents(out) == wanted


def chain(run, whole, verb: str, moments: random.Random) -> int:
    """Kill a run again and again, each time later, until it comes to its end; how often."""
    wanted, undisturbed = whole(verb)
    out = run.folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    kills, words, latest = 0, words_of(verb), undisturbed.seconds
    while run(*words, seconds=moments.uniform(0.01, latest)).status != 0:
        kills, latest = kills + 1, latest * 1.1
        words = [*words_of(verb), *CASES[verb].again.split()]
    assert contents(out) == wanted
    return kills


@pytest.mark.parametrize("verb", ["shards", pytest.param("pngs", marks=pytest.mark.slow), "merge"])
def test_trap_killed_again_and_again(run, whole, verb):
    moments = random.Random(verb)
    assert sum(chain(run, whole, verb, moments) for _ in range(4)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("verb", CASES)
def test_trap_killed_at_every_change_and_20_moments(run, whole, verb):
    """Of all verbs together more than 200 kills, which are counted."""
    moments, change, kills = random.Random(0), 1, 0
    while check(run, whole, verb, change=change, events=EVERY) != 0:
        change += 1
    for _ in range(20):
        kills += check(run, whole, verb, seconds=moments.uniform(0.01, whole(verb)[1].seconds)) < 0
    if not CASES[verb].again:
        kills += sum(chain(run, whole, verb, moments) for _ in range(10))
    print(f"{verb}: {change - 1} kills at changes of the folder, {kills} at some moment")
    assert change > 1
