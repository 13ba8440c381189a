from __future__ import annotations

import importlib
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ddim.checkpoints.calibration import write_calibration
from ddim.model.opening import load
from ddim.samplers.sampler import Sampler

FAST = ("-n", 4, "--steps", 5, 2, "--threads", 1, "--device", "cpu", "--quiet")


@pytest.mark.parametrize("kind", ["tiny", "conditional"])
def test_ddpm_in_all_steps_beside_ddim_in_few(ddim, request, tmp_path, kind):
    answer = ddim("demo", "--model", request.getfixturevalue(kind), *FAST)
    assert (answer.status, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert lines[0].split() == ["method", "network", "calls", "seconds", "images/s"]
    rows = [line.split() for line in lines[2:5]]
    assert [(row[0], int(row[1])) for row in rows] == [("DDPM", 20), ("DDIM", 5), ("DDIM", 2)]
    assert all(float(row[2]) >= 0 for row in rows)
    assert lines[-1] == "demo.png: 4 images of each, from the same latents"
    with Image.open(tmp_path / "demo.png") as image:
        assert image.format == "PNG"
        assert image.size[0] >= 512 and (image.size[0] - 16) % 3 == 0
        assert len(image.getcolors(1 << 16) or []) > 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.png", "demo.png.run.toml"]


def test_json(ddim, tiny):
    fast = [a for a in FAST if a != "--quiet"]
    answer = ddim("demo", "--model", tiny, "--json", "--batch-size", 2, *fast)
    found = json.loads(answer.out)
    assert {k: found[k] for k in ("output", "model", "images", "batch_size")} == {
        "output": "demo.png",
        "model": "tiny",
        "images": 4,
        "batch_size": 2,
    }
    assert found["threads"] == torch.get_num_threads()
    runs = [(row["method"], row["network calls"]) for row in found["runs"]]
    assert runs == [("DDPM", 20), ("DDIM", 5), ("DDIM", 2)]
    for total in ("40/40", "10/10", "4/4"):
        assert total in answer.err


def test_without_ddpm_and_with_more_images_than_a_batch(ddim, tiny, tmp_path):
    answer = ddim(
        "demo", "--model", tiny, "--no-ddpm", "--json", *FAST, "-n", 9, "--output", "new/a.png"
    )
    found = json.loads(answer.out)
    assert [row["network calls"] for row in found["runs"]] == [5, 2]
    assert found["images"] == 9
    assert (tmp_path / "new" / "a.png").exists()


def test_the_record_given_back(ddim, fails, tiny, tmp_path):
    assert ddim("demo", "--model", tiny, "--force", *FAST).status == 0
    record = (tmp_path / "demo.png.run.toml").read_text().splitlines()
    assert {"batch_size = 8", "steps = [5, 2]", "# model: tiny"} <= set(record)
    assert not [line for line in record if line.startswith(("force", "json", "quiet"))]
    fails(2, "demo.png exists already", "demo", "--config", "demo.png.run.toml")
    assert ddim("demo", "--config", "demo.png.run.toml", "--output", "b.png").status == 0


@pytest.mark.parametrize(
    ("match", "flags"),
    [
        ("steps must be from 1 to T = 20, not 50", ["--steps", 50]),
        ("the number of steps must be at least 1, not 0", ["--steps", 5, 0]),
        ("-n must be at least 1, not 0", ["-n", 0]),
        ("the batch size must be at least 1, not 0", ["--batch-size", 0]),
        ("threads must be at least 1, not -1", ["--threads", -1]),
        ("seed must be from 0", ["--seed", -1]),
        ("--output is a .png file, not demo.jpg", ["--output", "demo.jpg"]),
        ("nothing is left to draw: give --steps", ["--no-ddpm", "--steps="]),
        ("unknown model 'mnits': did you mean 'mnist'", ["--model", "mnits"]),
        ("--step.* did you mean --steps", ["--step", 3]),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_writes_nothing(fails, tiny, tmp_path, match, flags):
    fails(2, match, "demo", "--model", tiny, *FAST, *flags)
    assert not list(tmp_path.iterdir())


def test_interrupted(fails, tiny, tmp_path, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("ddim.model.drawing"), "generate", interrupt)
    fails(130, "interrupted", "demo", "--model", tiny, *FAST)
    assert not list(tmp_path.iterdir())


def test_a_calibrated_sampler_is_shown_where_there_is_one(ddim, tiny, tmp_path):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    model = load(copy)
    sampler = Sampler("dpmpp", nodes=(20, 17, 14, 12, 10, 8, 6, 4, 2, 1, 0), order=2)
    moments = (20, 0), np.array([0.5]), 1
    write_calibration(
        copy / "calibrated.json", model.identity, model.schedule, sampler, moments, {}
    )
    answer = ddim("demo", "--model", copy, "--no-ddpm", "--json", *FAST)
    runs = [(row["method"], row["network calls"]) for row in json.loads(answer.out)["runs"]]
    assert runs == [("DDIM", 5), ("DDIM", 2), ("calibrated", 10)]
    with Image.open(tmp_path / "demo.png") as image:
        assert image.size[0] >= 512 and (image.size[0] - 16) % 3 == 0
