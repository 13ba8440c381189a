"""``ddim push``, to a server on this machine that speaks the Hub's protocol."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from ddim.model.opening import load
from fake_hub import FakeHub

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
MODEL = {
    "README.md",
    "ddim.json",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    WEIGHTS,
}


@pytest.fixture
def token(monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "writes")


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    shutil.copytree(tiny, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="session")
def run(tmp_path_factory, noise_data) -> Path:
    """A finished training run."""
    from ddim.cli.main import main

    output = tmp_path_factory.mktemp("runs") / "noise"
    sizes = ["--channels", "8", "16", "--groups", "4", "--blocks", "1", "--T", "20"]
    numbers = ["--images", "64", "--batch-size", "16", "--sample-every", "32", "--beta-end", "0.4"]
    arguments = ["--data", str(noise_data), "--classes", *sizes, *numbers]
    assert main(["train", *arguments, "--output", str(output), "--quiet"]) == 0
    return output


def head_of(hub: FakeHub, repo: str) -> dict[str, bytes]:
    """The files at the end of the branch main, without the Hub's own."""
    files = hub.repos[repo][hub.refs[repo]["main"]]
    return {name: data for name, data in files.items() if name != ".gitattributes"}


def front_of(card: str):
    return yaml.safe_load(card.split("---\n")[1])


def test_what_is_pushed_opens_by_its_name(ddim, hub: FakeHub, folder, token):
    answer = ddim("push", folder, "someone/new")
    assert answer.status == 0, answer.err
    assert answer.err == ""
    assert answer.out.startswith(f"{hub.url}/someone/new: 6 files, ")
    assert set(head_of(hub, "someone/new")) == MODEL
    assert load("someone/new").identity == load(folder).identity
    assert hub.visibility == {"someone/new": None}
    assert not (folder / "README.md").exists()
    # The weights went by HTTP, whatever else huggingface_hub could have sent them by.
    assert any(method == "PUT" for method, _ in hub.asked)
    assert not any("xet" in path for _, path in hub.asked)


def test_the_card(ddim, hub: FakeHub, folder, token):
    assert ddim("push", folder, "someone/new", "--json").status == 0
    card = head_of(hub, "someone/new")["README.md"].decode()
    assert front_of(card) == {
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["ddim", "ddpm", "diffusion"],
    }
    assert "An unconditional DDPM of 8×8 grey images: T = 20, β linear from 0.01 to 0.4" in card
    assert f"| identity | `{load(folder).identity}` |" in card
    assert 'ddim.load("someone/new")' in card
    assert 'DDIMPipeline.from_pretrained("someone/new")' in card
    assert "## Training" not in card and "license" not in card
    assert "\n\n\n" not in card


def test_a_training_run_says_how_it_was_made(ddim, hub: FakeHub, run, token):
    for folder in (run, run / "model"):
        assert ddim("push", folder, "someone/run", "--force").status == 0
        files = head_of(hub, "someone/run")
        assert set(files) == {*MODEL, "samples.png"}
        assert files["samples.png"] == (run / "samples/000000064.png").read_bytes()
        card = files["README.md"].decode()
        command = next(line for line in card.splitlines() if line.startswith("$ ddim train"))
        assert command.startswith("$ ddim train --data noise.npz --")
        assert "--classes" in command and command.endswith("--output noise")
        assert "| images seen | 64 |" in card
        assert "| `noise.npz` | `" in card
        assert "![samples](samples.png)" in card
        assert front_of(card)["tags"][-1] == "class-conditional"
        assert "pipeline_tag" not in front_of(card)
        assert 'UNet2DModel.from_pretrained("someone/run", subfolder="unet")' in card


def test_the_command_of_a_card_says_the_same_configuration(run):
    from ddim.checkpoints.training import read_training
    from ddim.cli.options import replaced
    from ddim.cli.train import TrainOptions, _parsed
    from ddim.interop.card import command_of
    from ddim.train.checkpoint import saved_config

    config = saved_config(read_training(run / "checkpoint.safetensors"))
    said = _parsed(command_of(config).split()[2:])
    before = TrainOptions.of(config)
    kept = ("data", "sample_every")
    assert replaced(said, **{key: getattr(config, key) for key in kept}) == before


def test_a_calibration_goes_along_with_its_figures(ddim, hub: FakeHub, folder, token):
    assert ddim("calibrate", "--model", folder, "--calls", 2, "--latents", 8).status == 0
    assert ddim("push", folder, "someone/new").status == 0
    files = head_of(hub, "someone/new")
    assert files["calibrated.json"] == (folder / "calibrated.json").read_bytes()
    assert "| network calls | calibrated | DDIM, uniform nodes |" in files["README.md"].decode()
    drawn = ("sample", "--model", "someone/new", "--method", "calibrated", "--steps", 2)
    assert ddim(*drawn, "-n", 1).status == 0


def test_a_card_of_ones_own_is_taken(ddim, hub: FakeHub, folder, token):
    own = "---\nlicense: mit\n---\n\n# mine\n"
    (folder / "README.md").write_text(own)
    assert ddim("push", folder, "someone/new").status == 0
    assert head_of(hub, "someone/new")["README.md"].decode() == own
    (folder / "README.md").write_text("# bare\n")
    assert ddim("push", folder, "someone/new", "--force").status == 0
    card = head_of(hub, "someone/new")["README.md"].decode()
    assert front_of(card)["library_name"] == "diffusers" and card.endswith("---\n\n# bare\n")
    assert (folder / "README.md").read_text() == "# bare\n"


def test_a_dry_run_takes_no_network_and_writes_the_card(ddim, folder, monkeypatch):
    def closed(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", closed)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    answer = ddim("push", folder, "someone/new", "--dry-run")
    assert answer.status == 0, answer.err
    assert "written. Nothing was sent." in answer.out
    lines = [line.split() for line in answer.out.splitlines()[:-1]]
    sizes = {name: int(size.replace(",", "")) for size, name in lines}
    assert sizes == {name: (folder / name).stat().st_size for name in MODEL}
    (folder / "README.md").write_text("# mine\n")
    assert "taken as it is" in ddim("push", folder, "someone/new", "--dry-run").out
    assert (folder / "README.md").read_text() == "# mine\n"
    answer = ddim("push", folder, "someone/new", "--dry-run", "--force", "--json")
    assert json.loads(answer.out)["card"] == str(folder / "README.md")
    assert (folder / "README.md").read_text().startswith("---\nlibrary_name")


def test_what_is_there_is_written_over_by_force_only(
    ddim, fails, hub: FakeHub, folder, conditional, token
):
    old = {"unet_ema/config.json": b"{}", "unet_ema/model.fp16.safetensors": b"average"}
    first = hub.commit("someone/old", {"LICENSE": b"text", "unet/model.bin": b"pickle", **old})
    fails(2, "someone/old has 4 files already, such as LICENSE", "push", folder, "someone/old")
    assert hub.refs["someone/old"]["main"] == first
    assert ddim("push", folder, "someone/old", "--force").status == 0
    assert set(head_of(hub, "someone/old")) == {*MODEL, "LICENSE"}
    assert load("someone/old").identity == load(folder).identity
    assert first in hub.repos["someone/old"]


def test_private(ddim, fails, hub: FakeHub, folder, token, monkeypatch):
    assert ddim("push", folder, "someone/mine", "--private").status == 0
    assert hub.visibility["someone/mine"] == "private"
    hub.private.add("someone/mine")
    assert ddim("push", folder, "someone/mine", "--private", "--force").status == 0
    hub.private.clear()
    fails(2, "is public", "push", folder, "someone/mine", "--private", "--force")
    hub.private.add("someone/mine")
    assert load("someone/mine").identity == load(folder).identity


def test_refusals(fails, hub: FakeHub, folder, tmp_path, monkeypatch):
    push = ("push", folder, "someone/new")
    fails(2, "a push takes a token that may write: HF_TOKEN", *push)
    monkeypatch.setenv("HF_TOKEN", "reads")
    fails(2, "has no right to this at someone/new: .*You don't have the rights", *push)
    monkeypatch.setenv("HF_TOKEN", "nobody")
    fails(2, "has no right to this at someone/new", *push)
    monkeypatch.setenv("HF_TOKEN", "writes")
    fails(2, "no name of a model on the Hub, which is owner/name", "push", folder, "new")
    fails(2, "no name of a model", "push", folder, "someone/new@main")
    fails(2, "is not a model folder, which has a model_index.json", "push", tmp_path, "someone/new")
    hub.failing = 500
    fails(1, "the Hub at http.* fails with status 500", *push)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    fails(1, "the Hub at http://127.0.0.1:9 cannot be reached", *push)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fails(2, "HF_HUB_OFFLINE is set, and a push takes the network", *push)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    fails(2, r"takes huggingface_hub: pip install 'ddim\[hub\]'", *push)
    assert not hub.repos


OPEN = """
import sys, torch
from diffusers import DDIMPipeline
pipeline = DDIMPipeline.from_pretrained(sys.argv[1])
torch.save(dict(pipeline.unet.state_dict()), sys.argv[2])
"""


@pytest.mark.slow
def test_diffusers_opens_it_by_its_name(ddim, hub: FakeHub, folder, token, tmp_path):
    pytest.importorskip("diffusers")
    assert ddim("push", folder, "someone/new").status == 0
    variables = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    subprocess.run(
        [sys.executable, "-c", OPEN, "someone/new", tmp_path / "weights.pt"],
        check=True,
        timeout=120,
        env={**os.environ, **variables},
    )
    theirs, ours = torch.load(tmp_path / "weights.pt"), load(folder).net.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)
