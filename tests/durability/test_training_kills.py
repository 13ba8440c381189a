"""A training that is killed at any moment, and resumed, ends as one that was not."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ddim.checkpoints.training import read_training
from jobs import Jobs

# Six steps, checkpoints after 2, 4 and 6, a grid of samples after 3 and 6. One command begins it
# and resumes it.
WORDS = (
    "train", "--resume", "--data", "data.npz", "--channels", 8, 16, "--blocks", 1, "--groups", 4,
    "--T", 5, "--beta-start", 0.1, "--beta-end", 0.8, "--batch-size", 4, "--images", 24,
    "--save-every", 8, "--log-every", 1, "--sample-every", 12, "--output", "out", "--threads", 1,
    "--device", "cpu", "--quiet",
)  # fmt: skip
CHAINS = 5
EVERY = ("os.rename", "os.remove", "os.mkdir")


def contents(folder: Path) -> dict[str, object]:
    """What every file and folder says, hidden ones too, but for how fast it was."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*"))}
    return {name: content(path) if path.is_file() else None for name, path in found.items()}


def content(path: Path) -> object:
    if path.name != "metrics.jsonl":
        return path.read_bytes()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{**line, "images_per_s": None} for line in lines]


@pytest.fixture(scope="module")
def whole(run):
    """What a run that was not killed leaves, and how it ended."""
    shutil.rmtree(run.folder / "out", ignore_errors=True)  # of other verbs' kills
    ended = run(*WORDS)
    assert ended.status == 0, ended.said
    return contents(run.folder / "out"), ended


def killed_and_resumed(run, whole, *kills) -> list[int]:
    """The exit statuses of a chain of kills; what is left after the last resume is compared."""
    shutil.rmtree(run.folder / "out", ignore_errors=True)
    statuses = [run(*WORDS, **kill).status for kill in kills]
    assert set(statuses) <= {0, -signal.SIGKILL}
    ended = run(*WORDS)
    assert ended.status == 0, (kills, ended.said)
    assert contents(run.folder / "out") == whole[0], kills
    return statuses


def test_trap_training_killed_between_two_files(run, whole):
    for change in range(1, whole[1].changes + 1, 8):
        assert killed_and_resumed(run, whole, {"change": change}) == [-signal.SIGKILL]


@pytest.mark.slow
def test_trap_training_killed_twice_at_some_moment(run, whole):
    moments = random.Random(1)
    killed_and_resumed(
        run, whole, *({"seconds": moments.uniform(0.01, whole[1].seconds)} for _ in range(2))
    )


@pytest.mark.slow
def test_trap_training_killed_at_every_file_and_30_moments(run, whole):
    """And in ten chains of three."""
    moments, change = random.Random(2), 1
    while killed_and_resumed(run, whole, {"change": change, "events": EVERY}) != [0]:
        change += 1
    for count in [1] * 20 + [3] * 10:
        kills = [{"seconds": moments.uniform(0.01, whole[1].seconds)} for _ in range(count)]
        killed_and_resumed(run, whole, *kills)


# -- several processes ----------------------------------------------------------------------------

# Each process says what it reads in a step; one of them kills itself somewhere in it.
STEP = """
import os, random, signal, threading, time
from pathlib import Path
from ddim.train import loop

inner_rate, (step, seconds, victim) = loop.learning_rate, MOMENT

def rate(config, n):
    if n == step and rank == victim % count:
        def kill():
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Thread(target=kill, daemon=True).start()
    return inner_rate(config, n)

loop.learning_rate = rate
"""


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    folder = tmp_path_factory.mktemp("jobs")
    pixels = np.random.default_rng(0).integers(0, 256, (42, 8, 8), dtype=np.uint8)
    np.savez(folder / "data.npz", images=pixels)
    runner = Jobs(folder)
    yield runner
    runner.close()


@pytest.mark.slow
def test_trap_chains_of_killed_processes_with_changing_numbers(jobs):
    """A process of 1, 2 or 4 is killed, again and again, until a run comes to its end."""
    chance = random.Random(3)
    words = [*WORDS, "--batch-size", 8, "--images", 160]
    assert [process.status for process in jobs(1, *words, "--output", "whole")] == [0]
    wanted = losses(jobs.folder / "whole")
    kills = 0
    for _ in range(CHAINS):
        shutil.rmtree(jobs.folder / "out", ignore_errors=True)
        for step in [*sorted(chance.sample(range(20), 5)), 99]:
            count = chance.choice((1, 2, 4))
            code = STEP.replace(
                "MOMENT", repr((step, chance.uniform(0, 0.05), chance.randrange(4)))
            )
            statuses = [process.status for process in jobs(count, *words, code=code)]
            kills += -9 in statuses
            assert set(statuses) <= {0, 1, -9}
            if set(statuses) == {0}:
                break
        np.testing.assert_allclose(losses(jobs.folder / "out"), wanted, rtol=1e-6)
        assert read_training(jobs.folder / "out" / "checkpoint.safetensors").step == 20
        assert not [*(jobs.folder / "out").rglob(".*")]
    assert kills >= 2 * CHAINS


def losses(folder: Path) -> list[float]:
    return [
        json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
