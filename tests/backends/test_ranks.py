"""Several processes of one job: the same bits as one, one word for all errors."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HELPERS = Path(__file__).parents[1] / "helpers"
MODELS = HELPERS / "rank_models.py"


def of(name: str) -> str:
    return f"{MODELS}:{name}"


KILLED = [
    *("evaluate", "--model", of("dies"), "--data", "digits", "--features", of("features")),
    *("--steps", "2,3", "-n", "30", "--teacher", "0", "--quiet", "--output", "killed"),
]
DRAWING = ["--steps", "4", "--batch-size", "4", "-n", "21"]
CODING = ["--data", "digits", "--steps", "4", "--batch-size", "4", "-n", "10"]
WORKS = [
    ["sample", "--model", of("plain"), *DRAWING, "--output", "plain.npz"],
    ["sample", "--model", of("plain"), *DRAWING, "--method", "ddpm", "--output", "noisy.png"],
    ["sample", "--model", of("classes"), *DRAWING, "--guidance", "2", "--output", "classes.npz"],
    ["sample", "--model", of("own"), *DRAWING, "--eta", "0.5", "--output", "own.npz"],
    ["encode", "--model", of("plain"), *CODING],
    ["decode", "--model", of("plain"), "--output", "decoded"],
    ["encode", "--model", of("own"), *CODING, "--codec", "implicit", "--output", "i.safetensors"],
    ["interpolate", "--model", of("plain"), "--steps", "4", "--output", "line.png"],
    ["compare", "--model", of("plain"), "--steps", "2", "3", "-n", "10", "--output", "rows.png"],
    [
        *("reconstruct", "--model", of("plain"), "--data", "digits", "-n", "9"),
        *("--codecs", "obelm", "--steps", "4"),
    ],
    [
        *("evaluate", "--model", of("plain"), "--data", "digits", "--bits", "5"),
        *("--features", of("features"), "--steps", "2,3", "-n", "30", "--teacher", "9"),
    ],
    [
        *("calibrate", of("own"), "--calls", "3", "--latents", "3", "--moves", "2"),
        *("--batch-size", "2", "--output", "found.json"),
    ],
    KILLED,
]
FAILS = {
    ("sample", "--model", of("breaks"), *DRAWING, "--output", "no.png"): (
        1,
        "ddim sample: process 1 of {N}: ValueError: this network is broken",
    ),
    ("sample", "--model", of("large"), *DRAWING, "--output", "no.png"): (
        1,
        "process 1 of {N}: out of memory with a batch size of 4: a smaller one",
    ),
    ("sample", "--model", of("remembers"), *DRAWING, "--output", "no.png"): (
        2,
        "of remembers may remember its calls (Remembers.forward writes calls), so that several",
    ),
    ("sample", "--model", of("plain"), *DRAWING, "--output", "no-{RANK}.png"): (
        2,
        "the processes of this job differ in --output: 'no-0.png' in process 0, 'no-1.png' in",
    ),
    ("sample", "--model", of("differs"), *DRAWING, "--output", "no.png"): (
        2,
        "the processes of this job differ in the model: 'differs (",
    ),
    ("sample", "--model", of("plain"), *DRAWING, "--output", "plain.npz"): (
        2,
        "ddim sample: plain.npz exists already: give --force",
    ),
    ("demo", "-n", "1"): (2, "ddim demo: ddim demo runs in one process: start it without"),
    ("bench", "--quick"): (2, "ddim bench: ddim bench runs in one process: start it without"),
}


def launch(folder: Path, count: int, commands: list[list[str]]) -> list[dict]:
    """Run the commands in so many processes, one after another; what each of these says."""
    folder.mkdir()
    (folder / "commands.json").write_text(json.dumps([commands, of("plain")]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for rank in range(count):
        known = {**job, "RANK": rank, "LOCAL_RANK": rank} if count > 1 else {}
        processes.append(
            subprocess.Popen(
                [sys.executable, str(HELPERS / "ranks_job.py"), "commands.json"],
                cwd=folder,
                env={**environment(), **{key: str(value) for key, value in known.items()}},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in processes:
        said = process.communicate(timeout=240)[1]
        assert process.returncode == 0, said
    return [json.loads((folder / f"said-{rank}.json").read_text()) for rank in range(count)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{HELPERS}:{os.environ.get('PYTHONPATH', '')}"}


def contents(folder: Path) -> dict[str, str]:
    """The checksums of all files that do not hold how long something took."""
    timed = ("said-*", "run.toml", "*.run.toml", "commands.json", "errors.*", "seed-*.json")
    timed += ("results.*", "report.html", "quality.png")
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(path.match(pattern) for pattern in timed)
    }


def figures(sweep: Path) -> list[dict]:
    """What was measured, but for the time that it took."""
    rows = json.loads((sweep / "results.json").read_text())["rows"]
    return [{k: v for k, v in row.items() if k not in ("ms an image", "front")} for row in rows]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks") / "1"
    said = launch(folder, 1, WORKS)[0]
    assert [status for status, _ in said["commands"]] == [0] * len(WORKS), said
    return folder


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_make_the_files_of_one(alone, tmp_path, count):
    folder = tmp_path / "job"
    fails = [list(words) for words in FAILS]
    said = launch(folder, count, [*WORKS, *fails])
    expected = [0] * len(WORKS) + [status for status, _ in FAILS.values()]
    for rank in said:
        assert [status for status, _ in rank["commands"]] == expected, rank
        assert rank["steps"][0] == rank["steps"][1]
    # The first process speaks, in one line where something fails.
    assert all(text == "" for rank in said[1:] for _, text in rank["commands"])
    failed = said[0]["commands"][len(WORKS) :]
    for (_, text), (_, line) in zip(failed, FAILS.values(), strict=True):
        last = text.splitlines()[-1]
        assert line.replace("{N}", str(count)) in last, text
    assert contents(folder) == contents(alone)
    assert figures(folder / "evaluation") == figures(alone / "evaluation")
    assert not list(folder.rglob("*.lock"))


@pytest.mark.slow
def test_a_killed_process_ends_the_job_which_is_resumed(alone, tmp_path):
    """Process 1 dies in the second cell: nothing is left of that, and the rest is kept."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *torchrun, "ddim", *KILLED],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=240,
        )

    (tmp_path / "kill").touch()
    killed = run()
    assert killed.returncode == 1
    assert "SIGKILL" in killed.stderr, killed.stderr
    assert not (tmp_path / "kill").exists()
    assert len(list((tmp_path / "killed" / "cells").glob("*/seed-0.safetensors"))) == 1
    again = run()
    assert again.returncode == 0, again.stderr
    assert again.stderr == ""
    assert again.stdout.count("report.html: everything") == 1
    assert contents(tmp_path / "killed") == contents(alone / "killed")
    assert figures(tmp_path / "killed") == figures(alone / "killed")
