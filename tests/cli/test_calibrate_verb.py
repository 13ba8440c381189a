"""``ddim calibrate``, and what uses what it finds."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

from ddim.model.opening import load


@pytest.fixture
def features(tmp_path, monkeypatch):
    """A function of images of one's own, in the current folder."""
    name = "test_features_of_calibrated_samplers"
    (tmp_path / f"{name}.py").write_text(
        "import torch\n"
        "def blocks(images):\n"
        "    return torch.nn.functional.avg_pool2d(images, 4).flatten(1)\n"
    )
    monkeypatch.delitem(sys.modules, name, raising=False)
    return f"{name}:blocks"


@pytest.fixture
def copy(tiny, tmp_path):
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def test_calibrate_and_use(ddim, fails, copy, noise_data, features):
    arguments = ("calibrate", copy, "--latents", 4, "--moves", 6, "--batch-size", 4, "--quiet")
    answer = ddim(*arguments, "--calls", 3, 5)
    assert answer.status == 0, answer
    assert "3 calls:" in answer.out and "5 calls:" in answer.out
    assert "on 8 latents that no choice has seen" in answer.out
    saved = json.loads((copy / "calibrated.json").read_text())
    assert list(saved["calls"]) == ["3", "5"]
    assert saved["identity"] == load(copy).identity
    for calls, entry in saved["calls"].items():
        assert len(entry["nodes"]) == int(calls) + 1
    drawn = ddim(
        "sample", "--model", copy, "--method", "calibrated", "--steps", 3, "-n", 2, "--json",
        "--quiet", "--output", "x.npz",
    )  # fmt: skip
    facts = json.loads(drawn.out)
    assert facts["method"].startswith("calibrated ") and facts["network_calls"] == 3
    assert np.load("x.npz")["images"].shape == (2, 8, 8, 1)
    shown = ddim("inspect", "--model", copy, "--method", "calibrated", "--steps", 5)
    assert "5 steps, 6 nodes, 5 network calls" in shown.out
    analytic = ddim(
        "sample", "--model", copy, "--method", "analytic", "--steps", 4, "-n", 1, "--quiet",
        "--output", "y.png",
    )  # fmt: skip
    assert analytic.status == 0, analytic
    measured = ddim(
        "evaluate", "--model", copy, "--data", noise_data, "--features", features, "-n", 4,
        "--steps", "3,4", "--methods", "calibrated", "--teacher", 0, "--quiet", "--json",
    )  # fmt: skip
    document = json.loads(measured.out)
    assert [row["steps"] for row in document["rows"]] == [3]
    assert "The model is not calibrated for 4 steps." in document["notes"]
    fails(2, "calibrated for 3, 5 steps, not for 4", "sample", "--model", copy, "--method",
          "calibrated", "--steps", 4, "--output", "z.png")  # fmt: skip
    fails(2, "has a calibration for 3 calls already: give --force", *arguments, "--calls", 3, 4)
    assert ddim(*arguments, "--calls", 3, "--force").status == 0
    compared = ddim("compare", "--model", copy, "--methods", "calibrated", "--steps", 3, 5, "-n", 2,
                    "--quiet", "--json")  # fmt: skip
    rows = json.loads(compared.out)["rows"]
    assert [row["network calls"] for row in rows] == [3, 5]
    assert all(row["method"].startswith("calibrated ") for row in rows)


def test_a_calibration_that_cannot_be_written_is_not_begun(ddim, fails, copy, monkeypatch):
    arguments = ("calibrate", copy, "--latents", 2, "--moves", 0, "--calls", 3, "--quiet")
    path = copy / "calibrated.json"
    path.write_text("{")
    fails(2, "is not valid JSON", *arguments)
    assert ddim(*arguments, "--force").status == 0
    assert list(json.loads(path.read_text())["calls"]) == ["3"]

    def full(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("ddim.base.files.tempfile.TemporaryFile", full)
    monkeypatch.setattr("ddim.calibration.calibration.follow", None)
    fails(2, "copy cannot be written to: Read-only file system", *arguments, "--force")


def test_the_optimal_variance_is_of_the_most_latents(ddim, copy):
    arguments = ("calibrate", copy, "--moves", 0, "--quiet")
    path = copy / "calibrated.json"

    def moments():
        return json.loads(path.read_text())["moments"]

    assert ddim(*arguments, "--calls", 3, "--latents", 6).status == 0
    before = moments()
    assert before["latents"] == 6
    assert ddim(*arguments, "--calls", 4, "--latents", 2).status == 0
    assert moments() == before
    assert ddim(*arguments, "--calls", 5, "--latents", 8).status == 0
    assert moments()["latents"] == 8 and moments()["gamma"] != before["gamma"]
    entry = json.loads(path.read_text())["calls"]["4"]
    assert (entry["teacher"], entry["batch_size"], entry["latents"]) == (20, 8, [2, 2, 4])


def test_a_stale_calibration(ddim, fails, copy, conditional):
    assert (
        ddim("calibrate", copy, "--latents", 2, "--moves", 0, "--calls", 3, "--quiet").status == 0
    )
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    values = safetensors.torch.load_file(weights)
    values["conv_in.bias"] += 1
    safetensors.torch.save_file(values, weights)
    use = ("--method", "calibrated", "--steps", 3, "--output", "x.png")
    fails(2, "calibrated.json is stale", "sample", "--model", copy, *use)
    # Calibrating anew needs no --force: what is there is good for nothing.
    assert (
        ddim("calibrate", copy, "--latents", 2, "--moves", 0, "--calls", 3, "--quiet").status == 0
    )


def test_calibrate_with_classes(ddim, conditional, tmp_path):
    copy = shutil.copytree(conditional, tmp_path / "copy")
    arguments = ("calibrate", copy, "--calls", 3, "--latents", 3, "--moves", 2, "--quiet", "--json")
    document = json.loads(ddim(*arguments, "--no-weights").out)
    entry = document["calls"]["3"]
    assert "weighted" not in entry["rms"] and entry["latents"] == [3, 3, 6]


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--calls", 1], "--calls are from 2 to T = 20, not 1"),
        (["--calls", 21], "--calls are from 2 to T = 20, not 21"),
        (["--latents", 0], "--latents must be at least 1, not 0"),
        (["--moves", -1], "--moves must not be negative: -1|expected"),
        (["--labels", 1], "has no classes, so labels mean nothing"),
        (["--batch-size", 0], "the batch size must be at least 1"),
    ],
)
def test_bad_calibrations(fails, copy, flags, match):
    fails(2, match, "calibrate", copy, *flags)
    assert not (copy / "calibrated.json").exists()


MINE = """
import ddim, torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.1))

    def forward(self, x, t):
        return x * self.scale * (1 + t.view(-1, 1, 1, 1) / 20)

def model():
    return ddim.Model(Net(), ddim.Schedule.cosine(20), "eps", (1, 8, 8), name="mine")
"""


def test_a_model_of_ones_own_needs_a_file_to_keep_it_in(ddim, fails, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    arguments = ("calibrate", "mine.py:model", "--calls", 3, "--latents", 2, "--moves", 0)
    fails(2, "has no place to keep a calibration: give --output FILE", *arguments)
    answer = ddim(*arguments, "--output", "found.json")
    assert answer.status == 0, answer
    assert "calibration=Path('found.json')" in answer.out
    assert list(json.loads(Path("found.json").read_text())["calls"]) == ["3"]
    again = (*arguments, "--output", "found.json")
    fails(2, "found.json has a calibration for 3 calls already", *again)


def test_what_it_is_conditioned_on_is_recorded(ddim, conditional, tmp_path):
    path = tmp_path / "guided.json"
    arguments = ("calibrate", conditional, "--calls", 3, "--latents", 2, "--moves", 0, "--quiet")
    ddim(*arguments, "--labels", 2, 1, "--guidance", 2, "--output", path)
    entry = json.loads(path.read_text())["calls"]["3"]
    assert (entry["labels"], entry["guidance"]) == ([2, 1], 2)
    assert "clip" not in entry
