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
EVERY = ("os.rename", "os.remove", "os.mkdir")


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
    known = {}

    def look(verb):
        if verb not in known:
            out = run.folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            ended = run(*CASES[verb].words.split(), *FAST)
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
    words = [*CASES[verb].words.split(), *FAST]
    killed = run(*words, **kill)
    assert killed.status in (-signal.SIGKILL, 0), killed.said
    if killed.status == 0 and not CASES[verb].again:
        return 0  # it had come to its end: there is nothing to be done again
    ended = run(*words, *CASES[verb].again.split())
    assert ended.status == 0, (kill, ended.said)
    assert contents(out) == wanted, kill
    return killed.status


@pytest.mark.parametrize("verb", CASES)
def test_trap_killed_between_two_files(run, whole, verb):
    changes = whole(verb)[1].changes
    assert changes
    for change in range(1, changes + 1, CASES[verb].every):
        check(run, whole, verb, change=change)


@pytest.mark.parametrize("verb", CASES)
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
    words = [*CASES[verb].words.split(), *FAST]
    ended = run(*words, change=2, number=number)
    assert (ended.status, ended.said.count("\n")) == (status, 1), ended.said
    assert contents(out).keys() < wanted.keys()  # no lock, nothing temporary
    assert run(*words, *CASES[verb].again.split()).status == 0
    assert contents(out) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("verb", CASES)
def test_trap_killed_at_every_change_and_20_moments(run, whole, verb):
    """Of all verbs together more than 200 kills."""
    moments, change = random.Random(0), 1
    while check(run, whole, verb, change=change, events=EVERY) != 0:
        change += 1
    for _ in range(20):
        check(run, whole, verb, seconds=moments.uniform(0.01, whole(verb)[1].seconds))
