"""``ddim calibrate``, and what uses what it finds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

from ddim.checkpoints.calibration import is_shared, user_file
from ddim.model.opening import load


@pytest.fixture
def features(tmp_path):
    """A function of images of one's own, in the current folder."""
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def blocks(images):\n"
        "    return torch.nn.functional.avg_pool2d(images, 4).flatten(1)\n"
    )
    return "mine.py:blocks"


@pytest.fixture
def copy(tiny, tmp_path):
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def test_calibrate_and_use(ddim, fails, copy, noise_data, features):
    arguments = ("calibrate", copy, "--latents", 4, "--moves", 6, "--batch-size", 4, "--quiet")
    answer = ddim(*arguments, "--calls", 3, 5)
    assert answer.status == 0, answer
    assert "3 calls:" in answer.out and "5 calls:" in answer.out
    assert "on 8 latents that no choice has seen" in answer.out
    assert "It says how well a sampler follows this network, not how near to data" in answer.out
    for plain in ("gradient-estimation", "unipc:order=3", "plms:nodes=quadratic"):
        assert f"\n{plain} " in answer.out
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


@pytest.mark.slow
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


@pytest.fixture
def package(tiny, conditional, tmp_path, monkeypatch):
    """The models as if they were shipped, and a cache of one's own."""
    shutil.copytree(tiny, tmp_path / "package/tiny")
    shutil.copytree(conditional, tmp_path / "package/conditional")
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: tmp_path / "cache")
    where = "ddim.checkpoints.calibration.is_shared"
    monkeypatch.setattr(where, lambda path: tmp_path / "package" in Path(path).parents)
    return tmp_path / "package"


def test_shipped_is_what_is_in_the_package(tmp_path):
    shipped = load("mnist").calibration
    assert shipped is not None and is_shared(shipped)
    assert not is_shared(tmp_path / "calibrated.json")
    one, other = (user_file(load(name).identity) for name in ("mnist", "mnist-cond"))
    assert one != other and not is_shared(one)


def files(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_found_for_a_shipped_model_is_the_users(ddim, fails, package):
    before, model = files(package), package / "tiny"
    arguments = ("calibrate", model, "--latents", 2, "--moves", 0, "--quiet")
    answer = ddim(*arguments, "--calls", 3)
    assert answer.status == 0, answer
    assert files(package) == before
    (kept,) = Path("cache").rglob("*.json")
    assert str(kept.resolve()) in answer.out and "Use it with --method calibrated" in answer.out
    use = ("sample", "--model", model, "--method", "calibrated", "-n", 1, "--quiet", "--force")
    assert ddim(*use, "--steps", 3).status == 0
    fails(2, "has a calibration for 3 calls already", *arguments, "--calls", 3)
    # Another model of the same name has a file of its own.
    other = ("calibrate", package / "conditional", "--latents", 2, "--moves", 0, "--quiet")
    assert ddim(*other, "--calls", 3).status == 0
    assert len(list(Path("cache").rglob("*.json"))) == 2


@pytest.mark.slow
def test_the_users_calibration_goes_before_the_shipped_one(ddim, package):
    """For numbers of calls that the user has not calibrated for, the shipped one still serves."""
    model = package / "tiny"
    arguments = ("calibrate", model, "--moves", 0, "--quiet")
    shipped = ("--output", model / "calibrated.json", "--latents", 3, "--calls")
    assert ddim(*arguments, *shipped, 3, 4).status == 0
    drawn = ("sample", "--model", model, "--method", "calibrated", "-n", 1, "--quiet", "--force")

    def image(steps):
        assert ddim(*drawn, "--steps", steps, "--output", "x.npz").status == 0
        return np.load("x.npz")["images"]

    before = {steps: image(steps) for steps in (3, 4)}
    assert ddim(*arguments, "--latents", 2, "--seed", 5, "--calls", 3).status == 0
    assert not np.array_equal(image(3), before[3])
    assert np.array_equal(image(4), before[4])
    assert load(model).calibrated().latents == 3


@pytest.mark.parametrize(
    ("made", "used", "said"),
    [
        (("--guidance", 2), (), "guidance 2, not guidance 1"),
        ((), ("--guidance", 1.5, "--clip", "true"), "guidance 1, clipping off, not guidance 1.5"),
        (("--clip", "true"), (), "clipping on, not clipping off"),
        (("--guidance", 2, "--clip", "false"), ("--guidance", 2), None),
    ],
)
@pytest.mark.slow
def test_another_guidance_or_clipping_than_the_calibrations(
    ddim, conditional, tmp_path, made, used, said
):
    model = shutil.copytree(conditional, tmp_path / "copy")
    found = ddim("calibrate", model, "--calls", 3, "--latents", 2, "--moves", 0, "--quiet", *made)
    assert found.status == 0, found
    words = ("--model", model, "-n", 3, "--quiet", *used)
    answer = ddim("sample", "--method", "calibrated", "--steps", 3, *words)
    compared = ddim("compare", "--methods", "calibrated", "--steps", 3, *words, "--json")
    notes = json.loads(compared.out)["notes"]
    if said is None:
        assert (answer.err, notes) == ("", [])
    else:
        assert answer.err.count("\n") == 1 and said in answer.err
        assert len(notes) == 1 and said in notes[0]


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
