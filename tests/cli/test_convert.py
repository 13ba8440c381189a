from __future__ import annotations

import errno
import json
import os
import shutil

import pytest
import torch

from ddim.checkpoints.official import official_picks
from ddim.model.opening import load
from ddim.nets.unet import UNet


@pytest.fixture
def checkpoint(tmp_path):
    """A file in the official layout, of 16 × 16 pixels."""
    from ddim.nets.unet import UNetConfig

    config = UNetConfig(
        sample_size=16,
        block_out_channels=(32,),
        layers_per_block=1,
        down_block_types=("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = UNet(config)
    own = net.state_dict()
    picks = official_picks(net)
    path = tmp_path / "model-1000.ckpt"
    torch.save({p.key: own[k].reshape(p.shape(own[k].shape)) for k, p in picks.items()}, path)
    return path, own


def test_a_checkpoint_becomes_a_folder(ddim, checkpoint, tmp_path, caplog):
    path, own = checkpoint
    answer = ddim("convert", path, "folder")
    assert answer.status == 0
    count = sum(v.numel() for v in own.values())
    assert answer.out == (
        f"wrote folder: official DDIM, {count:,} parameters, 3 × 16 × 16, predicts eps, T=1000\n"
    )
    assert "model-1000.ckpt: assumed schedule linear" in caplog.text
    loaded = load(tmp_path / "folder")
    weights = loaded.net.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in own.items())
    assert loaded.facts.assumed[1].startswith("image_size 16")


def test_what_is_told_is_not_assumed(ddim, checkpoint, caplog):
    path, _ = checkpoint
    told = ("--schedule", "cosine", "--T", 50, "--image-size", 8, "--target", "v", "--json")
    answer = ddim("convert", path, "folder", *told)
    found = json.loads(answer.out)
    assert answer.status == 0
    assert found["schedule"]["kind"] == "cosine"
    assert (found["shape"], found["target"], found["weights"]) == ([3, 8, 8], "v", "only")
    assert found["assumed"] == []
    assert not caplog.text


def test_a_shipped_model_and_its_folder(ddim, tiny):
    assert ddim("convert", tiny, "copy").status == 0
    assert ddim("convert", "copy", "again").out.startswith("wrote again: ddim, ")


def test_nothing_is_overwritten(ddim, fails, checkpoint, tmp_path):
    path, _ = checkpoint
    ddim("convert", path, "folder")
    fails(2, "folder exists already: give --force", "convert", path, "folder")
    assert ddim("convert", path, "folder", "--force").status == 0
    (tmp_path / "file").touch()
    fails(2, "file is a file: the model is written as a folder", "convert", path, "file", "--force")


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--T", "10"], "--T, --beta-start, --beta-end and --scaled go with --schedule"),
        (["--heads", "4", "--head-channels", "8"], "say heads or head_channels, not both"),
        (["--heads", "4"], "heads was given, but the official DDIM layout leaves only"),
        (["--schedule", "cosine", "--beta-end", "0.1"], "schedule 'cosine': .*beta_end"),
        (["--schedule", "cosin"], "cosin"),
    ],
)
def test_refusals(fails, checkpoint, tmp_path, flags, match):
    fails(2, match, "convert", checkpoint[0], "folder", *flags)
    assert not (tmp_path / "folder").exists()


def test_sources_that_are_nothing(fails, tmp_path):
    fails(2, "unknown model 'nothing'", "convert", "nothing", "folder")
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04")
    fails(2, "x.pt is neither a torch checkpoint nor", "convert", "x.pt", "folder")
    fails(2, "DEST is missing", "convert", "x.pt")


def test_the_record_of_a_conversion_is_a_configuration(ddim, tiny, tmp_path):
    assert ddim("convert", tiny, "one").status == 0
    record = tmp_path / "one" / "run.toml"
    (tmp_path / "two.toml").write_text(record.read_text().replace('"one"', '"two"'))
    assert ddim("convert", "--config", "two.toml").status == 0
    assert load(tmp_path / "one").identity == load(tmp_path / "two").identity


def test_a_folder_with_both_weights_says_which_were_taken(ddim, tiny, tmp_path):
    both = shutil.copytree(tiny, tmp_path / "both")
    shutil.copytree(both / "unet", both / "unet_ema")
    for flags, weights in ([[], "ema"], [["--weights", "net"], "net"]):
        answer = ddim("convert", both, f"to-{weights}", "--json", *flags)
        assert json.loads(answer.out)["weights"] == weights


@pytest.mark.parametrize(
    ("flags", "kind", "warning"),
    [
        (["--steps", 4], "DDIMScheduler", ""),
        (["--method", "dpmpp:order=2", "--steps", 4], "DPMSolverMultistepScheduler", ""),
        (["--nodes", "20,9,0"], "DPMSolverMultistepScheduler", "timesteps=[19, 8])"),
        (["--nodes", "20-9-0", "--method", "ddpm"], "DDPMScheduler", "timesteps=[19, 8])"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, list) else "",
)
def test_the_scheduler_is_a_sampler(ddim, tiny, tmp_path, flags, kind, warning):
    answer = ddim("convert", tiny, "folder", "--json", *flags)
    assert (answer.status, warning in answer.err) == (0, True)
    assert answer.err == "" or answer.err.startswith("ddim convert: ")
    config = json.loads((tmp_path / "folder/scheduler/scheduler_config.json").read_text())
    assert config["_class_name"] == kind
    assert json.loads(answer.out)["scheduler"]["config"]["_class_name"] == kind


@pytest.mark.parametrize(
    ("match", "flags"),
    [
        ("diffusers has no scheduler that runs heun", ["--method", "heun"]),
        ("diffusers takes η at every call", ["--eta", 0.5]),
        ("steps must be from 1 to T = 20, not 21", ["--steps", 21]),
        ("tiny has no calibration", ["--method", "calibrated", "--steps", 4]),
        ("unknown method 'dpmp': did you mean 'dpmpp'", ["--method", "dpmp"]),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, list) else "",
)
def test_samplers_that_are_no_scheduler(fails, tiny, tmp_path, match, flags):
    fails(2, match, "convert", tiny, "folder", *flags)
    assert not (tmp_path / "folder").exists()


def test_force_leaves_no_averaged_weights_of_the_model_before(ddim, tiny, conditional, tmp_path):
    """Loading takes ``unet_ema/`` where there is one."""
    assert ddim("convert", conditional, "model").status == 0
    shutil.copytree(tmp_path / "model" / "unet", tmp_path / "model" / "unet_ema")
    assert ddim("convert", tiny, "model", "--force").status == 0
    assert load(tmp_path / "model").identity == load(tiny).identity


def test_a_failed_conversion_leaves_the_averaged_weights_that_were_there(
    fails, ddim, tiny, conditional, tmp_path, monkeypatch
):
    assert ddim("convert", conditional, "model").status == 0
    shutil.copytree(tmp_path / "model" / "unet", tmp_path / "model" / "unet_ema")
    before = load(tmp_path / "model").identity

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("ddim.checkpoints.diffusers.write_safetensors", fail)
        fails(1, "No space left", "convert", tiny, "model", "--force")
    assert load(tmp_path / "model").identity == before
