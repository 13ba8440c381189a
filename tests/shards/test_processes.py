"""Processes that draw one set together: under torchrun, side by side, killed and told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ddim
from ddim.data.manifest import Manifest

SETTINGS = "-n 22 --steps 3 --batch-size 2 --shard-size 4 --device cpu --backend torch --quiet"
SLOW = "-n 120 --steps 20 --batch-size 2 --shard-size 40 --device cpu --backend torch --quiet"
TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node"


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model, conditional) -> Path:
    """A folder with models and a network of the user's."""
    folder = tmp_path_factory.mktemp("models")
    model.save(folder / "tiny")
    conditional.save(folder / "conditional")
    (folder / "mine.py").write_text(
        "import torch, ddim\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.weight = torch.nn.Parameter(torch.ones(1))\n"
        "    def forward(self, x, t):\n"
        "        return self.weight * 0.1 * x.sin()\n"
        "model = ddim.Model(\n"
        "    Net().eval(), ddim.Schedule.linear(20, 0.01, 0.4), 'eps', (1, 8, 8)\n"
        ")\n"
    )
    return folder


def start(folder: Path, words: str, python: str = "") -> subprocess.Popen[str]:
    """A process that runs ``ddim WORDS`` in a folder."""
    return subprocess.Popen(
        [sys.executable, *python.split(), "-m", "ddim", *words.split()],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What it said, at its end, which is a good one."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (2, "--model tiny"),
        pytest.param(4, "--model tiny", marks=pytest.mark.slow),
        pytest.param(2, "--model tiny --method ddpm --shard-format tar", marks=pytest.mark.slow),
        pytest.param(2, "--model conditional --guidance 2", marks=pytest.mark.slow),
        pytest.param(4, "--model mine.py:model --shard-format png", marks=pytest.mark.slow),
    ],
)
def test_under_torchrun_the_bytes_are_those_of_one_process(saved, tmp_path, files, count, words):
    one, many = tmp_path / "one", tmp_path / "many"
    finish(start(saved, f"sample {words} {SETTINGS} --output {one}"))
    said = finish(start(saved, f"sample {words} {SETTINGS} --output {many}", f"{TORCHRUN} {count}"))
    assert said.count("22 images drawn of 22, in 6 shards") == 1
    wanted, found = files(one), files(many)
    assert wanted.pop("run.toml") != found.pop("run.toml")  # the name of the folder
    assert found == wanted


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_one_is_killed_and_the_others_draw_its_shard(saved, tmp_path, files):
    """Two side by side, of which one is killed at work, without another command."""
    one, many = tmp_path / "one", tmp_path / "many"
    finish(start(saved, f"sample --model tiny {SLOW} --output {one}"))
    killed = start(saved, f"sample --model tiny {SLOW} --output {many}")
    until(lambda: list(many.glob(".claims/*")))
    other = start(saved, f"sample --model tiny {SLOW} --output {many}")
    until(lambda: len(list(many.glob(".claims/*"))) == 2)
    killed.kill()
    killed.communicate()
    finish(other)
    wanted, found = files(one), files(many)
    assert wanted.pop("run.toml") != found.pop("run.toml")
    assert found == wanted


@pytest.mark.slow
def test_told_to_stop_it_keeps_what_it_has_drawn(saved, tmp_path, files):
    one, cut = tmp_path / "one", tmp_path / "cut"
    words = f"sample --model tiny {SLOW}"
    finish(start(saved, f"{words} --output {one}"))
    stopped = start(saved, f"{words} --output {cut}")
    until(lambda: list(cut.glob(".claims/*")))
    time.sleep(0.2)
    asked = time.monotonic()
    stopped.send_signal(signal.SIGTERM)
    _, err = stopped.communicate(timeout=30)
    assert (stopped.returncode, err) == (143, "ddim sample: terminated\n")
    assert time.monotonic() - asked < 10
    begun = Manifest.read(cut).shards
    assert not list(cut.glob(".claims"))
    left = 120 - sum(shard.count for shard in begun.values())
    said = finish(start(saved, f"{words} --output {cut}"))
    assert f"{left} images drawn of 120" in said
    wanted, found = files(one), files(cut)
    assert wanted.pop("run.toml") != found.pop("run.toml")
    assert found == wanted


@pytest.mark.slow
def test_processes_that_were_given_different_things_are_refused(saved, tmp_path):
    """Ranks of one job with different models: one line each, nothing written."""
    script = tmp_path / "by_rank.py"
    script.write_text(
        "import os, sys\n"
        "from ddim.cli.main import main\n"
        "seed = os.environ['RANK']\n"
        "sys.exit(main([*sys.argv[1:], '--seed', seed]))\n"
    )
    words = f"{TORCHRUN} 2 {script} sample --model tiny {SETTINGS} --output {tmp_path / 'set'}"
    done = subprocess.run(
        [sys.executable, *words.split()],
        cwd=saved,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode != 0
    wanted = "the processes of this job differ in --seed: 0 in process 0, 1 in process 1"
    assert wanted in done.stderr
    assert not (tmp_path / "set").exists()


def test_the_images_are_those_of_the_library(saved, tmp_path, model):
    finish(start(saved, f"sample --model tiny {SETTINGS} --output {tmp_path / 'set'}"))
    wanted = ddim.to_pixels(ddim.sample(model, 22, steps=3, batch_size=2))
    found = ddim.shards.open(tmp_path / "set")
    assert all(bool((found[i] == wanted[i]).all()) for i in range(22))
