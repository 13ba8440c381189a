from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from ddim.base import device
from ddim.checkpoints.training import read_training
from ddim.cli.main import main
from ddim.data import named
from ddim.model.opening import load
from ddim.nets.unet import UNet
from ddim.train.checkpoint import saved_config
from ddim.train.loop import TrainStep
from ddim.train.metrics import Metrics

pytest.importorskip("sklearn")

# Twelve steps; checkpoints after 5, 10 and 12, lines of metrics after 2, 4, 6, …
SMALL = (
    "--channels", 8, 16, "--blocks", 1, "--groups", 4, "--T", 5, "--beta-start", 0.1,
    "--beta-end", 0.8, "--batch-size", 8, "--images", 96, "--save-every", 40, "--log-every", 2,
    "--sample-every", 0, "--device", "cpu", "--threads", 1, "--quiet",
)  # fmt: skip
DIGITS = ("train", "--data", "digits", *SMALL)


def arguments(output: Path, *flags: object) -> list[str]:
    return [str(a) for a in (*DIGITS, "--output", output, *flags)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(arguments(folder)) == 0
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics, without what the clock says."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_s"} for line in found]


def tensors(folder: Path) -> dict[str, bytes]:
    loaded = safetensors.torch.load_file(folder / "checkpoint.safetensors")
    return {key: value.numpy().tobytes() for key, value in loaded.items()}


def assert_same(one: Path, two: Path) -> None:
    """Losses, weights, moments and the model folder, to the bit."""
    assert lines(one) == lines(two)
    assert tensors(one) == tensors(two)
    weights = Path("model", "unet", "diffusion_pytorch_model.safetensors")
    assert (one / weights).read_bytes() == (two / weights).read_bytes()


def steps_saved(folder: Path) -> int:
    return load(folder / "checkpoint.safetensors").facts.more["images_seen"] // 8


# -- what it writes and says ----------------------------------------------------------------------


def test_a_run_and_its_summary(ddim, whole, tmp_path):
    answer = ddim("train", "--data", "digits", *SMALL, "--sample-every", 48)
    assert (answer.status, answer.err) == (0, "")
    assert answer.out == "run: trained on 96 images\n"
    assert_same(whole, tmp_path / "run")
    assert len([*(tmp_path / "run" / "samples").glob("*.png")]) == 2
    assert load(tmp_path / "run" / "model").shape == (1, 8, 8)


def test_json_is_on_stdout_and_progress_on_stderr(ddim, tmp_path):
    flags = [a for a in DIGITS if a != "--quiet"]
    answer = ddim(*flags, "--json")
    found = json.loads(answer.out)
    assert found.pop("loss") > 0
    assert found == {"output": "run", "finished": True, "steps": 12, "images": 96}
    assert "96.0/96.0" in answer.err
    answer = ddim(*DIGITS, "--json", "--resume")
    again = json.loads(answer.out, parse_constant=lambda name: pytest.fail(name))
    assert (again["finished"], again["loss"]) == (True, None)


def test_a_preset_under_a_file_under_flags(ddim, tmp_path):
    (tmp_path / "my.toml").write_text("images = 64\nbatch_size = 8\nchannels = [8, 16]\n")
    answer = ddim(
        "train", "--preset", "digits", "--config", "my.toml", "--images", 16, "--head-dim", 16,
        "--groups", 4, "--precision", "float32", "--sample-every", 0, "--threads", 1, "--quiet",
    )  # fmt: skip
    assert answer.status == 0
    config = saved_config(read_training(tmp_path / "run" / "checkpoint.safetensors"))
    assert (config.images, config.batch_size, config.channels) == (16, 8, (8, 16))
    assert (config.weighting, config.T) == ("min-snr", 500)  # of the preset


def test_a_preset_with_another_schedule(ddim, fails, tmp_path):
    """Its β are those of its own schedule."""
    small = ("--channels", 8, 16, "--groups", 4, "--head-dim", 8, "--images", 8, "--batch-size", 8)
    quick = (*small, "--sample-every", 0, "--threads", 1, "--quiet")
    preset = ("train", "--preset", "digits", "--schedule", "cosine", *quick)
    assert ddim(*preset).status == 0
    saved = saved_config(read_training(tmp_path / "run" / "checkpoint.safetensors"))
    assert (saved.schedule, saved.beta_end) == ("cosine", 0.02)
    fails(2, "beta_end is for linear and", *preset, "--beta-end", 0.03, "--output", "other")
    assert ddim(*preset, "--resume").status == 0


def test_help_shows_the_values_of_a_preset_in_groups(ddim, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    plain, preset = ddim("train", "--help").out, ddim("train", "--preset", "digits", "--help").out
    assert re.search(r"--lr FLOAT .*\(default: 0.0002\)", plain)
    assert re.search(r"--lr FLOAT .*\(default: 0.003\)", preset)
    for group in ("data", "network", "diffusion", "optimisation", "record"):
        assert f" {group} options " in plain


def test_a_preset_in_a_file(ddim, tmp_path):
    (tmp_path / "my.toml").write_text('preset = "digits"\nimages = 8\nbatch_size = 8\n')
    small = ("--channels", 8, 16, "--head-dim", "None", "--groups", 4, "--sample-every", 0)
    assert ddim("train", "--config", "my.toml", *small, "--threads", 1, "--quiet").status == 0
    saved = saved_config(read_training(tmp_path / "run" / "checkpoint.safetensors"))
    assert (saved.data, saved.weighting, saved.head_dim) == ("digits", "min-snr", None)
    again = ("train", "--config", "run/run.toml", "--output", "again", "--quiet")
    assert ddim(*again).status == 0
    assert saved == saved_config(read_training(tmp_path / "again" / "checkpoint.safetensors"))


def test_the_record_of_a_run_is_a_configuration(ddim, tmp_path):
    flags = ("--clip", "None", "--images", 16, "--batch-size", 8, "--sample-every", 0)
    small = ("--channels", 8, 16, "--head-dim", 16, "--groups", 4, "--threads", 1, "--quiet")
    assert ddim("train", "--preset", "digits", *flags, *small).status == 0
    again = ddim("train", "--config", "run/run.toml", "--output", "again", "--quiet")
    assert (again.status, again.err) == (0, "")
    one, two = (
        read_training(tmp_path / name / "checkpoint.safetensors") for name in ("run", "again")
    )
    assert one.config == two.config
    assert one.config["clip"] is None
    assert all(torch.equal(one.tensors[key], two.tensors[key]) for key in one.tensors)


# -- interrupted, killed, resumed -----------------------------------------------------------------

LAUNCH = """
import os, signal, sys
import torch
from pathlib import Path
from ddim.cli.main import main
from ddim.train.metrics import Metrics

inner_write, inner_replace, saves = Metrics.write, Path.replace, []

def write(self, step):
    inner_write(self, step)
    if step.step == 8 and "{how}" == "killed":
        with (self.output / "metrics.jsonl").open("a") as file:
            file.write('{{"step": 9, "ima')
        os.kill(os.getpid(), signal.SIGKILL)
    if step.step == 8 and "{how}" == "terminated":
        os.kill(os.getpid(), signal.SIGTERM)

def replace(path, target):
    saves.extend([path] if path.name.startswith(".checkpoint.safetensors.") else [])
    if len(saves) == {save} and "{how}" == "killed while saving":
        os.kill(os.getpid(), signal.SIGKILL)
    return inner_replace(path, target)

Metrics.write, Path.replace = write, replace
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("how", "status", "step"),
    [
        pytest.param("killed", -signal.SIGKILL, 5, marks=pytest.mark.slow),
        ("killed while saving", -signal.SIGKILL, 5),
        pytest.param("terminated", 143, 8, marks=pytest.mark.slow),
    ],
)
def test_trap_a_process_that_was_killed_resumes_to_the_same_bits(
    whole, tmp_path, capsys, how, status, step
):
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH.format(how=how, save=2), *arguments(folder)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == status, done.stderr
    assert steps_saved(folder) == step
    assert done.stdout == ""
    if how == "terminated":
        assert done.stderr == (
            f"ddim train: stopped at step 8 of 12; resume with: "
            f"ddim train --resume --output {folder}\n"
        )
    if how == "killed":
        assert (folder / "metrics.jsonl").read_text().endswith('{"step": 9, "ima')
    assert main(["train", "--resume", "--quiet", "--output", str(folder)]) == 0
    assert capsys.readouterr().err == ""
    assert_same(whole, folder)
    assert not [*folder.rglob(".*")]


def test_trap_a_run_killed_before_its_first_checkpoint_resumes(whole, ddim, fails, tmp_path):
    """By the same command, or by --resume alone; as it was begun, whatever this call says."""
    kill = LAUNCH.format(how="killed while saving", save=1)
    command = [sys.executable, "-c", kill, *arguments(tmp_path / "run")]
    assert subprocess.run(command, timeout=300).returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    shutil.copytree(tmp_path / "run", tmp_path / "two" / "run")
    fails(2, "begun with lr = 0.0002, not 0.001", "train", "--resume", "--quiet", "--lr", 1e-3)
    answer = ddim("train", "--resume", "--output", "run")
    assert answer.status == 0
    assert "ddim train: run has no checkpoint yet: it begins at step 0\n" in answer.err
    assert_same(whole, tmp_path / "run")
    assert ddim(*DIGITS, "--resume", "--output", "two/run").status == 0
    assert_same(whole, tmp_path / "two" / "run")
    assert not [*tmp_path.rglob(".*")]


def test_resume_where_nothing_was_begun_begins(whole, ddim, tmp_path):
    """A kill may come before anything is written; hidden files may be left of it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.toml.abcd1234.toml").write_text("half")
    assert ddim(*DIGITS, "--resume").status == 0
    assert_same(whole, tmp_path / "run")
    assert not [*(tmp_path / "run").glob(".*")]


def test_resume_touches_nothing_of_others(fails, tmp_path):
    (tmp_path / "run" / "samples").mkdir(parents=True)
    (tmp_path / "run" / "samples" / "mine.png").write_bytes(b"mine")
    fails(2, "run is no training that could be resumed", *DIGITS, "--resume")
    (tmp_path / "run" / "run.toml").write_text('method = "ddim"\n')
    fails(2, "run.toml: unknown key 'method'", *DIGITS, "--resume")
    assert (tmp_path / "run" / "samples" / "mine.png").read_bytes() == b"mine"
    fails(2, "--resume goes on .* --force begins anew", *DIGITS, "--resume", "--force")


def test_trap_a_run_killed_after_its_last_checkpoint_gets_its_model_and_its_grid(
    ddim, whole, tmp_path
):
    """What a kill between the checkpoint and the rest leaves: an older model, or none."""
    assert ddim(*DIGITS, "--sample-every", 48).status == 0
    for path in ("model/ddim.json", "samples/000000096.png"):
        broken = shutil.copytree(tmp_path / "run", tmp_path / Path(path).stem / "run")
        shutil.rmtree((broken / path).parent)
        answer = ddim("train", "--resume", "--output", broken, "--quiet")
        assert (answer.status, answer.err) == (0, "")
        assert (broken / path).read_bytes() == (tmp_path / "run" / path).read_bytes()
        assert_same(whole, broken)
    older = tmp_path / "run" / "model"
    facts = json.loads((older / "ddim.json").read_text())
    (older / "ddim.json").write_text(json.dumps({**facts, "images_seen": 80}))
    (older / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert ddim("train", "--resume", "--quiet").status == 0
    assert_same(whole, tmp_path / "run")


def test_trap_a_longer_run_that_is_killed_at_once_is_still_longer(ddim, tmp_path):
    assert ddim(*DIGITS).status == 0
    kill = LAUNCH.format(how="killed", save=2).replace("step.step == 8", "step.step == 14")
    longer = ["train", "--resume", "--images", "160", "--quiet", "--output", "run"]
    done = subprocess.run([sys.executable, "-c", kill, *longer], cwd=tmp_path, timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert ddim("train", "--resume", "--quiet").out == "run: trained on 160 images\n"


def test_control_c_finishes_the_step_saves_and_returns_130(ddim, whole, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    inner = Metrics.write

    def write(self: Metrics, step: TrainStep) -> None:
        inner(self, step)
        if step.step == 6:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "write", write)
        answer = ddim(*(a for a in DIGITS if a != "--quiet"))
    assert (answer.status, answer.out) == (130, "")
    assert "\nddim train: finishing the step and saving\n" in answer.err
    assert answer.err.endswith(
        "ddim train: stopped at step 6 of 12; resume with: ddim train --resume --output run\n"
    )
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert steps_saved(tmp_path / "run") == 6
    answer = ddim("train", "--resume", "--quiet")
    assert (answer.status, answer.out) == (0, "run: trained on 96 images\n")
    assert_same(whole, tmp_path / "run")


def test_interrupted_with_json(ddim, monkeypatch):
    inner = Metrics.write

    def write(self: Metrics, step: TrainStep) -> None:
        inner(self, step)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Metrics, "write", write)
    answer = ddim(*DIGITS, "--json")
    assert answer.status == 143
    found = json.loads(answer.out)
    assert (found["finished"], found["steps"], found["images"]) == (False, 2, 16)


def test_resuming_with_other_options(ddim, fails, tmp_path):
    short = ("train", "--data", "digits", *SMALL, "--images", 16)
    assert ddim(*short).status == 0
    before = tensors(tmp_path / "run")
    resume = ("train", "--resume", "--quiet")
    for flag, value, match in [
        ("--lr", 1e-3, "the run was begun with lr = 0.0002, not 0.001"),
        ("--batch-size", 4, "begun with batch_size = 8, not 4"),
        ("--seed", 1, "begun with seed = 0, not 1"),
        ("--preset", "mnist", "the run was begun with "),
    ]:
        fails(2, match, *resume, flag, value)
    assert tensors(tmp_path / "run") == before
    answer = ddim(*resume, "--images", 32)
    assert (answer.status, answer.out) == (0, "run: trained on 32 images\n")
    assert steps_saved(tmp_path / "run") == 4
    assert [line["step"] for line in lines(tmp_path / "run")] == [2, 4]


def test_what_cannot_be_resumed(fails, tmp_path):
    resume = ("train", "--resume", "--quiet")
    fails(2, "there is nothing to resume: run/checkpoint.safetensors does not exist", *resume)
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "checkpoint.safetensors"
    path.write_text("no tensors in here, but text")
    fails(2, "checkpoint.safetensors is not a safetensors file, or is truncated", *resume)
    safetensors.torch.save_file({}, path)
    fails(2, "checkpoint.safetensors is not a training checkpoint of ddim", *resume)


def test_force_begins_anew(ddim, fails, whole, tmp_path):
    assert ddim(*DIGITS, "--images", 24, "--lr", 0.01).status == 0
    before = tensors(tmp_path / "run")
    fails(2, "run exists already: give --force", *DIGITS)
    assert tensors(tmp_path / "run") == before
    assert ddim(*DIGITS, "--force").status == 0
    assert_same(whole, tmp_path / "run")


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "flags"),
    [
        ("say what to train: --preset", []),
        ("say what to train: --preset", ["--data-root", "x"]),
        ("unknown preset 'mnits': did you mean 'mnist'", ["--preset", "mnits"]),
        ("--preset needs a value", ["--preset"]),
        ("unknown data 'digts': did you mean 'digits'", ["--data", "digts"]),
        ("unknown data 'x/y'.*nor is there a file or folder", ["--data", "x/y"]),
        ("--leraning-rate", ["--data", "digits", "--leraning-rate", 1]),
        (
            "accumulate = 3 does not divide a batch_size of 8",
            ["--data", "digits", *SMALL, "--accumulate", 3],
        ),
        ("--lrr.* did you mean --lr", ["--data", "digits", "--lrr", 1]),
        ("^ddim train: lr must be positive, not 0.0$", ["--data", "digits", "--lr", 0]),
        ("images must be at least 1", ["--data", "digits", "--images", 0]),
        ("seed must be from 0 to", ["--data", "digits", "--seed", 2**64]),
        ("ε says nothing about the image", ["--data", "digits", "--beta-end", 1]),
        ("gamma is for the weighting min-snr", ["--data", "digits", "--gamma", 3]),
        (
            "attention is at one of the resolutions 8, 4",
            ["--data", "digits", *SMALL, "--attention", 16],
        ),
        ("threads must be at least 1, not 0", ["--data", "digits", "--threads", 0]),
        ("no device 'gpu' here", ["--data", "digits", "--device", "gpu"]),
        (
            "--optimizer is one of adam, adamw, muon, not 'sgd'",
            ["--data", "digits", "--optimizer", "sgd"],
        ),
        (
            "images of 8×8 cannot pass through 5 resolutions",
            ["--data", "digits", "--groups", 4, "--channels", 8, 8, 8, 8, 8],
        ),
        ("block_out_channels 9 is not a multiple", ["--data", "digits", "--channels", 9, 16]),
        ("digits has images of 8 x 8 pixels, not 16 x 16", ["--data", "digits", "--size", 16]),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_writes_nothing(fails, tmp_path, match, flags):
    fails(2, match, "train", *flags)
    assert not list(tmp_path.iterdir())


def test_configurations_that_are_none(fails, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('data = "digits"\nlearning_rate = 3\n')
    fails(2, "run.toml: unknown key 'learning_rate'", "train", "--config", path)
    path.write_text('data = "digits\n')
    fails(2, "run.toml is not valid TOML", "train", "--config", path)
    path.write_text('data = "digits"\n[optimizer]\nlr = 1\n')
    fails(2, "'optimizer' must be a plain value, not a table", "train", "--config", path)


def test_data_without_labels_for_a_conditional_model(fails, tmp_path):
    np.savez(tmp_path / "bare.npz", images=np.zeros((4, 8, 8), np.uint8))
    arguments = ("train", "--data", "bare.npz", *SMALL, "--classes")
    fails(2, "bare.npz has no labels, which a class-conditional model needs", *arguments)


def test_images_that_are_broken(fails, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (9, 9), (i, i, i)).save(folder / f"{i}.png")
    (folder / "1.png").write_bytes(b"\x89PNG and no more")
    arguments = ("train", "--data", "pictures", "--size", 8, *SMALL)
    fails(2, "pictures/1.png cannot be read as an image", *arguments)
    assert not (tmp_path / "run").exists()
    # One whose header is whole is found out when it is decoded.
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "1.png")
    content = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(content[: len(content) // 2])
    fails(2, "pictures/1.png cannot be read as an image", *arguments)


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def test_idx_files_that_are_truncated_or_swapped(fails, tmp_path):
    folder = tmp_path / "idx"
    folder.mkdir()
    pixels, labels = idx(np.zeros((5, 8, 8))), idx(np.arange(5))
    images = folder / "train-images-idx3-ubyte"
    classes = folder / "train-labels-idx1-ubyte"
    images.write_bytes(pixels[:-10])
    classes.write_bytes(labels)
    arguments = ("train", "--data", "idx", *SMALL)
    fails(2, "train-images-idx3-ubyte is truncated: .* bytes, .* found", *arguments)
    images.write_bytes(labels)
    classes.write_bytes(pixels)
    fails(2, "holds labels where images are expected: .*swapped", *arguments)
    images.write_bytes(pixels)
    classes.write_bytes(idx(np.arange(4)))
    fails(2, "holds 5 images but .* holds 4 labels", *arguments)
    assert not (tmp_path / "run").exists()


def test_a_download_without_a_network(fails, tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setenv("DDIM_DATA", str(data))
    nowhere = ("http://127.0.0.1:1/a/", "http://127.0.0.1:1/b/")
    offline = dataclasses.replace(named._IDX_SETS["mnist"], mirrors=nowhere)
    monkeypatch.setitem(named._IDX_SETS, "mnist", offline)
    line = fails(1, "cannot download train-images-idx3-ubyte.gz", "train", "--data", "mnist")
    assert "refused" in line
    assert f"put it at {data / 'mnist' / 'train-images-idx3-ubyte.gz'}" in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_full_disk(fails, ddim, whole, tmp_path, monkeypatch):
    inner, calls = os.fsync, []

    def fail(number: int) -> None:
        calls.append(number)
        if len(calls) > 7:  # the first checkpoint is written, the second is not
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        inner(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        line = fails(1, "", *DIGITS)
    assert (
        line
        == "ddim train: cannot write or read run/checkpoint.safetensors: No space left on device"
    )
    assert steps_saved(tmp_path / "run") == 5
    assert not list((tmp_path / "run").rglob(".*"))
    assert ddim("train", "--resume", "--quiet").status == 0
    assert_same(whole, tmp_path / "run")


def test_out_of_memory_names_the_command_that_needs_less(fails, ddim, whole, tmp_path, monkeypatch):
    """At the third step, before the first checkpoint; as the message says it is then resumed."""
    inner, calls = UNet.forward, []

    def forward(self: UNet, x: Tensor, *rest: Tensor) -> Tensor:
        calls.append(len(x))
        if len(calls) > 2 and len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")
        return inner(self, x, *rest)

    monkeypatch.setattr(UNet, "forward", forward)
    line = fails(1, "", *DIGITS)
    command = "ddim train --resume --accumulate 2 --output run"
    assert line == (
        "ddim train: out of memory at step 3, with a batch_size of 8: accumulate = 2 takes less, "
        f"for the same weights within rounding: {command}"
    )
    assert ddim(*command.split()[1:], "--quiet").status == 0
    saved = saved_config(read_training(tmp_path / "run" / "checkpoint.safetensors"))
    assert (saved.batch_size, saved.accumulate) == (8, 2)
    for one, two in zip(lines(whole), lines(tmp_path / "run"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)


def test_bfloat16_where_it_is_slow_is_said(ddim, monkeypatch):
    short = [a for a in (*DIGITS, "--images", 8, "--force") if a != "--quiet"]
    for slow, precision, said in [
        (True, "bfloat16", True),
        (True, "float32", False),
        (False, "bfloat16", False),
    ]:
        monkeypatch.setattr(device, "slow_in_bfloat16", lambda _, slow=slow: slow)
        answer = ddim(*short, "--precision", precision)
        assert answer.status == 0
        assert ("no bfloat16 arithmetic" in answer.err) == said


def test_a_loss_that_is_no_longer_finite(fails):
    fails(1, "the loss is no longer finite at step [1-9]", *DIGITS, "--lr", 1e30)
