"""Training by several processes is training by one: the same images, draws and losses."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from ddim.checkpoints.training import read_training
from jobs import Jobs, Process

# Fifty steps, over an epoch that ends within a batch.
SMALL = (
    "train", "--data", "data.npz", "--channels", 8, 16, "--blocks", 1, "--groups", 4, "--T", 5,
    "--beta-start", 0.1, "--beta-end", 0.8, "--batch-size", 8, "--images", 400, "--log-every", 1,
    "--save-every", 160, "--sample-every", 0, "--device", "cpu", "--threads", 1, "--quiet",
)  # fmt: skip
RANDOM = ("--classes", "--label-dropout", 0.3, "--flip")

# Each process tells which images it read, in their order, and the digest of its whole state.
WATCHED = """
import json
from pathlib import Path
from ddim.train import run, scaled
from ddim.train.checkpoint import digest

seen, states, inner_batch, inner_fit = [], [], scaled.Scaled.batch, run.fit

def batch(self, indices):
    seen.append(indices.tolist())
    return inner_batch(self, indices)

def fit(state, *others, **more):
    states.append(state)
    return inner_fit(state, *others, **more)

def after():
    Path(f"told.{rank}").write_text(json.dumps([seen, digest(states[0])]))

scaled.Scaled.batch, run.fit = batch, fit
"""

# Before step AT (from 0) one process sends SIGNAL to itself.
SIGNALLED = """
import os, signal
from ddim.train import loop

inner_rate = loop.learning_rate

def rate(config, n):
    if n == AT and rank == count - 1:
        os.kill(os.getpid(), signal.SIGNAL)
    return inner_rate(config, n)

loop.learning_rate = rate
"""

# In some steps (from 0) the noise of the batch's image 5 is no number.
SPOILT = """
from ddim.train import loop

inner_draw = loop.draw

def draw(data, indices, n, *others):
    found = inner_draw(data, indices, n, *others)
    if n in STEPS:
        found.noise[indices[others[-1]] == indices[5]] = float("nan")
    return found

loop.draw = draw
"""


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    folder = tmp_path_factory.mktemp("jobs")
    pixels = np.random.default_rng(0).integers(0, 256, (42, 8, 8), dtype=np.uint8)
    np.savez(folder / "data.npz", images=pixels, labels=np.arange(42) % 3)
    runner = Jobs(folder)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def one(jobs: Jobs) -> tuple[list[float], list[list[int]]]:
    """Losses and images of one process."""
    return watched(jobs, 1, "one", *RANDOM)


def watched(
    jobs: Jobs, count: int, output: str, *words: object
) -> tuple[list[float], list[list[int]]]:
    """The losses, and the images of each step, of a run that comes to its end."""
    if "--resume" not in words:
        shutil.rmtree(jobs.folder / output, ignore_errors=True)
    done = jobs(count, *SMALL, "--output", output, *words, code=WATCHED)
    assert [process.status for process in done] == [0] * count, done
    assert [process.said for process in done[1:]] == [""] * (count - 1)
    told = [json.loads((jobs.folder / f"told.{rank}").read_text()) for rank in range(count)]
    assert len({digest for _, digest in told}) == 1  # weights, average and moments
    steps = zip(*(seen for seen, _ in told), strict=True)
    return losses(jobs, output), [[*chain(*parts)] for parts in steps]


def lines(jobs: Jobs, output: str) -> list[dict[str, Any]]:
    text = (jobs.folder / output / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def losses(jobs: Jobs, output: str) -> list[float]:
    return [line["loss"] for line in lines(jobs, output)]


def step_saved(jobs: Jobs, output: str) -> int:
    return read_training(jobs.folder / output / "checkpoint.safetensors").step


def statuses(done: list[Process]) -> list[int]:
    return [process.status for process in done]


# -- the same as one process ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "words"),
    [(2, ()), (4, ()), (2, ("--accumulate", 2)), (2, ("--optimizer", "muon", "--lr", 1e-3))],
    ids=str,
)
def test_losses_of_fifty_steps_are_one_processs(jobs, one, count, words):
    """So are the images of every batch; and all processes end with one state."""
    if "muon" in words:
        one = watched(jobs, 1, "muon", *RANDOM, *words)
    found, images = watched(jobs, count, "several", *RANDOM, *words)
    assert len(found) == 50
    np.testing.assert_allclose(found, one[0], rtol=1e-6)
    # In parts of a batch images are read at once.
    assert images == one[1]


def test_dropout_is_a_function_of_seed_step_and_process(jobs):
    short = ("--dropout", 0.3, "--images", 64)
    found = [watched(jobs, 2, name, *short)[0] for name in ("first", "second")]
    assert found[0] == found[1]
    assert watched(jobs, 1, "alone", *short)[0] != found[0]


def test_batches_that_cannot_be_shared_are_refused(jobs):
    for count, more, parts in ((3, (), 3), (2, ("--accumulate", 8), 16)):
        done = jobs(count, *SMALL, "--output", "odd", *more)
        assert statuses(done) == [2] * count
        for process in done:
            assert f"batch_size = 8 equally: give a multiple of {parts}, such as" in process.said
            assert process.said.count("\n") == 1
    assert not (jobs.folder / "odd").exists()


def test_processes_that_are_about_to_do_different_things_are_refused(jobs):
    code = "import sys\nfrom ddim.cli import main as m\ninner = m.main\n"
    code += "m.main = lambda words: inner([*words, '--seed', str(rank)])"
    done = jobs(2, *SMALL, "--output", "odd", code=code)
    assert statuses(done) == [2, 2]
    assert done[0].said.endswith("differ in --seed: 0 in process 0, 1 in process 1\n")
    assert done[1].said == ""  # one line for the job
    assert not (jobs.folder / "odd").exists()


# -- dying, stopping, resuming --------------------------------------------------------------------


def killed(jobs: Jobs, output: str, number: str, *words: object, **more: Any) -> list[Process]:
    """Two processes, of which the second sends itself a signal within step 31."""
    shutil.rmtree(jobs.folder / output, ignore_errors=True)
    code = SIGNALLED.replace("AT", "30").replace("signal.SIGNAL", f"signal.{number}")
    return jobs(2, *SMALL, "--output", output, *words, code=code, **more)


def test_trap_a_process_that_is_killed_fails_the_run_and_any_number_resumes_it(jobs, one):
    done = killed(jobs, "killed", "SIGKILL", *RANDOM)
    assert statuses(done) == [1, -9]
    assert re.fullmatch(
        r"ddim train: process 0 of 2 waited in vain .* one has died.*\n", done[0].said
    )
    assert step_saved(jobs, "killed") == 20
    for count in (1, 4):
        output = f"resumed-{count}"
        shutil.copytree(jobs.folder / "killed", jobs.folder / output)
        (jobs.folder / output / ".lock").touch()  # as a kill leaves it
        found, images = watched(jobs, count, output, *RANDOM, "--resume")
        np.testing.assert_allclose(found, one[0], rtol=1e-6)
        assert images == one[1][20:]
        assert not [*(jobs.folder / output).glob(".*")]


def test_a_checkpoint_of_several_processes_is_one_of_one(jobs, one):
    watched(jobs, 2, "several", *RANDOM)
    files = [read_training(jobs.folder / n / "checkpoint.safetensors") for n in ("one", "several")]
    shapes = [{key: value.shape for key, value in file.tensors.items()} for file in files]
    assert shapes[0] == shapes[1]
    assert files[0].config == files[1].config
    assert files[0].facts.keys() == files[1].facts.keys()


def test_trap_a_process_that_stops_answering_fails_the_run(jobs):
    done = killed(jobs, "stopped", "SIGSTOP", patience=1.0)
    assert statuses(done) == [1, -9]
    assert done[0].said.startswith("ddim train: process 0 of 2 waited in vain for the others")
    assert done[0].said.count("\n") == 1
    assert done[0].seconds < 15


def test_a_save_may_take_longer_than_a_process_is_waited_for(jobs):
    code = """
import time
from ddim.train import run
inner = run.save_checkpoint
def save(*arguments):
    time.sleep(1.5)
    inner(*arguments)
run.save_checkpoint = save
"""
    words = (*SMALL, "--images", 40, "--sample-every", 40, "--output", "slow")
    done = jobs(2, *words, code=code, patience=0.7)
    assert statuses(done) == [0, 0], done
    assert (jobs.folder / "slow" / "samples" / "000000040.png").exists()


def test_a_save_that_fails_ends_all(jobs):
    code = """
from ddim.train import run
def save(*arguments):
    raise OSError(28, "No space left on device", "x")
run.save_checkpoint = save
"""
    done = jobs(2, *SMALL, "--images", 40, "--output", "full", code=code)
    assert statuses(done) == [1, 1]
    assert done[0].said == "ddim train: cannot write or read x: No space left on device\n"
    assert "process 1 of 2 ends because another one has failed, which says why\n" in done[1].said


def test_sigterm_to_one_ends_all_after_the_same_step(jobs, one):
    done = killed(jobs, "terminated", "SIGTERM", *RANDOM)
    assert statuses(done) == [143, 143]
    said = "ddim train: stopped at step 31 of 50; resume with: ddim train --resume --output "
    assert [process.said for process in done] == [f"{said}terminated\n", ""]
    assert step_saved(jobs, "terminated") == 31
    found, images = watched(jobs, 2, "terminated", *RANDOM, "--resume")
    np.testing.assert_allclose(found, one[0], rtol=1e-6)
    assert images == one[1][31:]


# -- losses that are not finite -------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_not_finite_stops_with_step_and_image_or_is_skipped(jobs, one, count):
    code = SPOILT.replace("STEPS", "(24, 33)")
    output = f"spoilt-{count}"
    bad = one[1][24][5]
    done = jobs(count, *SMALL, *RANDOM, "--output", output, code=code)
    assert statuses(done) == [1] * count
    for process in done:
        assert process.said == (
            f"ddim train: the loss is no longer finite at step 25, of image {bad} of the data: try "
            "a lower lr, a longer warm-up, or skip_bad_batches; "
            f"{output}/checkpoint.safetensors is the last good one, of step 20\n"
        )
    assert step_saved(jobs, output) == 20
    skip = ("--resume", "--skip-bad-batches", "--output", output)
    done = jobs(count, *SMALL, *RANDOM, *skip, code=code)
    assert statuses(done) == [0] * count
    assert done[0].said == f"{output}: trained on 400 images, 2 steps skipped\n"
    found = lines(jobs, output)
    assert [line["step"] for line in found if line["loss"] is None] == [25, 34]
    assert [line.get("skipped") for line in found[20:]] == [0] * 4 + [1] * 9 + [2] * 17
    assert losses(jobs, output)[:24] == pytest.approx(one[0][:24], rel=1e-6)


def test_skipped_steps_are_resumed_to_the_same_bits(jobs):
    code = SPOILT.replace("STEPS", "(18, 19, 20, 21)")
    skip = ("--skip-bad-batches", "--output", "skipping")
    assert statuses(jobs(1, *SMALL, *skip, code=code)) == [0]
    whole = safetensors.torch.load_file(jobs.folder / "skipping" / "checkpoint.safetensors")
    stop = SIGNALLED.replace("AT", "21").replace("signal.SIGNAL", "signal.SIGKILL")
    skip = ("--skip-bad-batches", "--output", "torn")
    assert statuses(jobs(1, *SMALL, *skip, code=code + stop)) == [-9]
    assert statuses(jobs(1, *SMALL, *skip, "--resume", code=code)) == [0]
    again = safetensors.torch.load_file(jobs.folder / "torn" / "checkpoint.safetensors")
    assert all(bool((whole[key] == again[key]).all()) for key in whole)
    assert lines(jobs, "torn")[-1]["skipped"] == 4


def test_too_many_skipped_steps_in_a_row_end_the_run(jobs):
    """Also where a resume comes between."""
    skip = ("--skip-bad-batches", "--output", "hopeless")
    code = SPOILT.replace("STEPS", "range(15, 50)")
    done = jobs(2, *SMALL, *skip, code=code)
    assert statuses(done) == [1, 1]
    found = re.fullmatch(
        r"ddim train: the loss is no longer finite at step 26, of image \d+ of the data, nor was "
        r"it in the 10 steps before, which were skipped; .* is the last good one, of step 20\n",
        done[0].said,
    )
    assert found
    again = jobs(1, *SMALL, *skip, "--resume", code=code)
    assert again[0].said == done[0].said


def test_memory_that_does_not_suffice_names_the_batch_and_the_processes_part(jobs):
    code = """
from ddim.train import loop
inner = loop.diffusion_loss
def loss(network, x0, *others, **more):
    if len(x0) > 2 and rank == 1:
        raise MemoryError
    return inner(network, x0, *others, **more)
loop.diffusion_loss = loss
"""
    done = jobs(2, *SMALL, "--output", "large", code=code)
    assert statuses(done) == [1, 1]
    assert done[1].said == (
        "ddim train: out of memory at step 1, with a batch_size of 8, of which the network sees 4 "
        "at a time: accumulate = 2 takes less, for the same weights within rounding: ddim train "
        "--resume --accumulate 2 --output large\n"
    )
    words = (*SMALL, "--images", 80, "--resume", "--accumulate", 2, "--output", "large")
    assert statuses(jobs(2, *words, code=code)) == [0, 0]


# -- torchrun itself ------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from ddim.cli.main import main
from ddim.train import loop

inner = loop.learning_rate

def rate(config, n):
    if n == 30 and os.environ["RANK"] == "1" and not Path("once").exists():
        Path("once").touch()
        os.kill({target}, signal.{number})
    if Path("once").exists() and "{number}" == "SIGTERM":
        time.sleep(0.1)
    return inner(config, n)

loop.learning_rate = rate
status = main(sys.argv[1:])
Path("status." + os.environ["RANK"]).write_text(str(status))
sys.exit(status)
"""


def torchrun(
    jobs: Jobs, output: str, *flags: str, target: str, number: str
) -> subprocess.CompletedProcess[str]:
    """Two processes, of which the second sends a signal once, in step 31."""
    for name in ("once", "status.0", "status.1"):
        (jobs.folder / name).unlink(missing_ok=True)
    (jobs.folder / "script.py").write_text(SCRIPT.format(target=target, number=number))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *flags]
    words = [str(word) for word in (*SMALL, *RANDOM, "--resume", "--output", output)]
    return subprocess.run(
        [*launch, "script.py", *words],
        cwd=jobs.folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_trap_torchrun_restarts_a_run_that_lost_a_process(jobs, one):
    """By one command, which begins in a folder with nothing in it and resumes what is there."""
    done = torchrun(jobs, "again", "--max-restarts", "3", target="os.getpid()", number="SIGKILL")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "again: trained on 400 images\n"
    assert done.stderr.count("ddim train: process 0 of 2 waited in vain") == 1
    np.testing.assert_allclose(losses(jobs, "again"), one[0], rtol=1e-6)
    assert not [*(jobs.folder / "again").glob(".*")]


@pytest.mark.slow
def test_sigterm_to_torchrun_ends_in_a_state_to_resume(jobs):
    done = torchrun(jobs, "ended", target="os.getppid()", number="SIGTERM")
    assert done.returncode == 1, done.stderr  # torchrun's own
    assert [(jobs.folder / f"status.{rank}").read_text() for rank in (0, 1)] == ["143", "143"]
    assert step_saved(jobs, "ended") >= 31
    assert not [*(jobs.folder / "ended").glob(".*")]
