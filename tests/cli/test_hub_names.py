"""Models by their names on the Hub, in the command."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from ddim.checkpoints.calibration import user_file
from ddim.model.opening import load
from fake_hub import FakeHub


@pytest.fixture
def name(hub: FakeHub, tiny) -> str:
    hub.add("someone/tiny", tiny)
    return "someone/tiny"


def other_weights(tiny: Path, folder: Path) -> Path:
    shutil.copytree(tiny, folder)
    (path,) = folder.glob("unet/*.safetensors")
    save_file({key: 0.9 * value for key, value in load_file(path).items()}, path)
    return folder


def model_of(record: Path) -> str:
    found = re.search('^model = "(.*)"$', record.read_text(), re.M)
    assert found is not None
    return found[1]


def test_a_record_holds_name_and_commit_and_draws_the_same_again(
    ddim, hub: FakeHub, name, tiny, tmp_path
):
    commit = hub.refs[name]["main"]
    answer = ddim("sample", "--model", name, "-n", 2, "--steps", 2, "--output", "a.png", "--quiet")
    assert answer.status == 0, answer.err
    assert answer.err == ""
    record = tmp_path / "a.png.run.toml"
    assert model_of(record) == f"{name}@{commit}"
    assert f"# model: {name}@{commit[:12]}" in record.read_text()
    hub.add(name, other_weights(tiny, tmp_path / "other"))
    hub.asked.clear()
    assert ddim("sample", "--config", record, "--output", "b.png", "--quiet").status == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert hub.asked == []


def test_a_run_is_not_resumed_with_another_commit(ddim, fails, hub: FakeHub, name, tiny, tmp_path):
    before = hub.refs[name]["main"]
    command = ("sample", "--model", name, "--steps", 2, "--output", "set", "--quiet")
    assert ddim(*command, "-n", 2).status == 0
    assert ddim(*command, "-n", 3, "--resume").status == 0
    after = hub.add(name, other_weights(tiny, tmp_path / "other"))
    pattern = f"was begun with model = {name}@{before}, not {name}@{after}"
    fails(2, pattern, *command, "-n", 4, "--resume")


def test_latents_find_their_model_again(ddim, name, tmp_path, noise_data):
    data = ("--data", noise_data, "-n", 2)
    made = ddim("encode", "--model", name, *data, "--steps", 3, "--output", "latents.safetensors")
    assert made.status == 0, made.err
    back = ddim(
        "decode", "--latents", "latents.safetensors", "--model", name, "--output", "back.png"
    )
    assert back.status == 0, back.err


def test_a_calibration_is_kept_in_the_users_cache(ddim, hub: FakeHub, name, tmp_path):
    options = ("--calls", 2, "--latents", 8, "--quiet")
    made = ddim("calibrate", "--model", name, *options)
    assert made.status == 0, made.err
    file = user_file(load(name).identity)
    assert file.is_file() and tmp_path in file.parents
    assert not list((tmp_path / "hub-cache").rglob("calibrated.json"))
    drawn = ddim("sample", "--model", name, "--method", "calibrated", "--steps", 2, "-n", 1)
    assert drawn.status == 0, drawn.err


def test_one_that_comes_with_the_model_is_used(ddim, hub: FakeHub, name, tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "calibrated")
    assert ddim("calibrate", "--model", "calibrated", "--calls", 2, "--latents", 8).status == 0
    hub.add("someone/calibrated", tmp_path / "calibrated")
    arguments = ("--method", "calibrated", "--steps", 2, "-n", 1)
    assert ddim("sample", "--model", "someone/calibrated", *arguments).status == 0


def test_every_other_door(ddim, name, tmp_path):
    assert "T=20" in ddim("inspect", "--model", name).out
    assert ddim("convert", name, "folder").status == 0
    assert load(tmp_path / "folder").facts.more["hub"]["name"] == name
    assert f"{name}@" in ddim("checks", name).out


def test_refusals_are_one_line(fails, hub: FakeHub, name, monkeypatch):
    sample = ("sample", "-n", 1, "--model")
    fails(2, "there is no model someone/typo at http", *sample, "someone/typo")
    fails(2, "has no revision v9", *sample, f"{name}@v9")
    fails(2, "did you mean 'mnist'", *sample, "mnits")
    hub.private.add(name)
    fails(2, "a private one needs a token", *sample, name)
    hub.failing = 500
    fails(1, "the Hub at http.* fails with status 500", *sample, "someone/unseen")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fails(
        2,
        "HF_HUB_OFFLINE is set, and someone/unseen is not in the cache",
        *sample,
        "someone/unseen",
    )
