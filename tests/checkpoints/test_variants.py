"""Folders as diffusers and its training scripts write them: averages, shards, variants."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import safetensors.torch
import torch

from ddim.model.opening import load

SIZES = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D",) * 2,
    "up_block_types": ("UpBlock2D",) * 2,
}
WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def net(diffusers):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(**SIZES)


@pytest.fixture
def folder(net, diffusers, tmp_path):
    """A folder that a training script wrote, without weights."""
    diffusers.DDPMScheduler(num_train_timesteps=50).save_pretrained(tmp_path / "m" / "scheduler")
    net.save_config(tmp_path / "m" / "unet")
    return tmp_path / "m"


def save(net, folder, amount=0.0, **how):
    """Save a network whose weights have that much added, by diffusers' own writer."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for parameter in net.parameters():
            parameter += amount
        net.save_pretrained(folder, **how)
        for parameter in net.parameters():
            parameter -= amount


def taken(net, folder, weights="ema"):
    """How much the weights that are opened have added to them, and what they are said to be."""
    model = load(folder, weights=weights)
    added = (model.net.conv_in.bias - net.conv_in.bias).detach()
    return round(float(added.mean()), 2), model.facts.weights


def average(net, amount):
    from diffusers import UNet2DModel
    from diffusers.training_utils import EMAModel

    made = EMAModel(
        net.parameters(), decay=0.99, use_ema_warmup=True, model_cls=UNet2DModel,
        model_config=net.config,
    )  # fmt: skip
    made.shadow_params = [p + amount for p in made.shadow_params]
    return made


def test_an_average_by_diffusers_own_writer(net, folder):
    save(net, folder / "unet")
    average(net, 1).save_pretrained(folder / "unet_ema")
    assert taken(net, folder) == (1, "ema")
    assert taken(net, folder, "net") == (0, "net")
    assert taken(net, folder / "unet_ema") == (1, "only")  # the scheduler stands beside it
    assert taken(net, folder / "unet") == (0, "only")


def test_a_checkpoint_of_a_training_script(net, folder, refuses):
    checkpoint = folder / "checkpoint-500"
    save(net, checkpoint / "unet", 2)
    average(net, 3).save_pretrained(checkpoint / "unet_ema")
    torch.save({"state": {}, "param_groups": []}, checkpoint / "optimizer.bin")
    assert taken(net, checkpoint) == (3, "ema")
    with refuses("optimizer.bin holds no state_dict of .*: it is the state of an optimizer"):
        load(checkpoint / "optimizer.bin")
    shutil.rmtree(folder / "scheduler")
    with refuses("there is no file .*checkpoint-500/scheduler/scheduler_config.json"):
        load(checkpoint)


def test_an_average_alone_or_without_a_record(net, folder, refuses):
    average(net, 1).save_pretrained(folder / "unet_ema")
    save(net, folder / "unet")
    (folder / "unet_ema" / "config.json").unlink()
    assert taken(net, folder) == (1, "ema")
    (folder / "unet_ema" / f"{WEIGHTS}.safetensors").rename(folder / "unet_ema" / "x.safetensors")
    with refuses("there are no weights .*unet_ema.*: it has x.safetensors"):
        load(folder)
    assert taken(net, folder, "net") == (0, "net")
    shutil.rmtree(folder / "unet_ema")
    (folder / "unet_ema").mkdir()  # of a run that was killed before it saved one
    assert taken(net, folder) == (0, "only")
    shutil.rmtree(folder / "unet")
    shutil.rmtree(folder / "unet_ema")
    average(net, 1).save_pretrained(folder / "unet_ema")
    assert taken(net, folder) == (1, "only")
    with refuses(r"holds an average \(unet_ema\) and no raw weights"):
        load(folder, weights="net")


@pytest.mark.parametrize("variant", [None, "fp16", "bf16", "ema"])
@pytest.mark.parametrize("safe", [True, False])
def test_shards(net, folder, variant, safe):
    save(net, folder / "unet", 1, max_shard_size="10KB", variant=variant, safe_serialization=safe)
    assert len(list((folder / "unet").glob("*-of-*"))) > 1
    assert taken(net, folder) == (1, "ema" if variant == "ema" else "only")


def test_a_shard_that_is_missing(net, folder, refuses):
    save(net, folder / "unet", max_shard_size="10KB")
    shard = min((folder / "unet").glob("*-of-*"))
    shard.unlink()
    with refuses(f"names {shard.name}, and there is no such file: get all of them"):
        load(folder)
    next((folder / "unet").glob("*.index.json")).unlink()
    with refuses("there are no weights .*: it has .*-of-"):
        load(folder)


@pytest.mark.parametrize(
    ("saved", "ema", "raw"),
    [
        (["fp16"], (1, "only"), (1, "only")),
        (["bf16", "fp16"], (2, "only"), (2, "only")),
        ([None, "fp16"], (1, "only"), (1, "only")),
        (["ema", None], (1, "ema"), (2, "net")),
        (["non_ema", None], (2, "ema"), (1, "net")),
        (["ema", "non_ema"], (1, "ema"), (2, "net")),
        (["mine"], (1, "only"), (1, "only")),
        (["non_ema"], (1, "net"), (1, "net")),
    ],
)
@pytest.mark.parametrize("safe", [True, False])
def test_variants(net, folder, saved, ema, raw, safe):
    for amount, variant in enumerate(saved, start=1):
        save(net, folder / "unet", amount, variant=variant, safe_serialization=safe)
    assert taken(net, folder) == ema
    assert taken(net, folder, "net") == raw


def test_variants_that_nobody_can_choose_from(net, folder, refuses):
    for variant in ("mine", "yours"):
        save(net, folder / "unet", variant=variant)
    with refuses(f"there are no weights .*: it has {WEIGHTS}.mine.safetensors, .*yours"):
        load(folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_prefixes_of_wrappers(net, folder, prefix, suffix):
    weights = {f"{prefix}{key}": value for key, value in net.state_dict().items()}
    path = folder / "unet" / f"{WEIGHTS}.{suffix}"
    if suffix == "bin":
        torch.save({"state_dict": weights, "epoch": 2}, path)
    else:
        safetensors.torch.save_file(weights, path)
    assert taken(net, folder) == (0, "net" if suffix == "bin" else "only")


def test_a_folder_of_something_else_says_what_it_has(tmp_path, refuses):
    for name in ("model-1.pt", "model-2.pt", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    with refuses("is not a model folder: it has no config.json: it has model-1.pt, model-2.pt$"):
        load(tmp_path)


@pytest.mark.parametrize("what", [{"weights": "best"}, {"device": "nowhere"}, {"null_label": 3}])
def test_a_path_that_is_missing_is_said_first(tmp_path, refuses, what):
    for path in (tmp_path / "gone", tmp_path / "gone" / "model.ckpt"):
        with refuses("there is no such path"):
            load(path, **what)
    with refuses("gone.py cannot be read: No such file"):
        load(f"{tmp_path}/gone.py:model", **what)


def test_a_configuration_that_is_too_large_is_refused_before_it_is_built(net, folder, refuses):
    save(net, folder / "unet")
    path = folder / "unet" / "config.json"
    whole = json.loads(path.read_text())
    for changes, match in (
        ({"block_out_channels": [8, 4_000_000]}, "parameters, and none has more than"),
        ({"layers_per_block": 10**9}, "blocks, and no network has more than 500"),
        ({"num_class_embeds": 10**15}, "parameters, and none has more than"),
        ({"time_embedding_dim": 2**40}, "parameters, and none has more than"),
        ({"sample_size": 10**9}, "sample_size 1000000000 makes images of .* numbers"),
        ({"in_channels": 10**30}, "has a whole number of more than 64 bits"),
        ({"norm_eps": "small"}, "norm_eps must be a finite number, not 'small'"),
        ({"dropout": True}, "dropout must be a finite number, not True"),
        ({"block_out_channels": [8, "16"]}, r"block_out_channels\[1\] must be a whole number"),
        ({"freq_shift": 4}, "freq_shift 4 is half of 8 time features"),
    ):
        path.write_text(json.dumps({**whole, **changes}))
        with refuses(f"config.json.*{match}"):
            load(folder)
