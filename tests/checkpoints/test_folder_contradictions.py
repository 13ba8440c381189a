"""Folders whose files disagree, and the kinds of weight files that diffusers writes."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from ddim.checkpoints.diffusers import read_folder
from ddim.denoisers.target import Target
from ddim.model.model import Model
from ddim.model.opening import load
from ddim.nets.unet import UNet, UNetConfig
from ddim.noise.schedule import Schedule

SMALL = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8,),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "norm_num_groups": 4,
    "attention_head_dim": None,
}


def write(folder, **changes):
    config = UNetConfig(**(SMALL | changes))
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = UNet(config)
    Model(net, Schedule.linear(20), Target.EPS, (1, 8, 8), name="tiny").save(folder)
    return net


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_learned_variance_is_saved_for_the_scheduler_that_can_use_it(tmp_path):
    write(tmp_path, out_channels=2)
    index = json.loads((tmp_path / "model_index.json").read_text())
    scheduler = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert index["_class_name"] == "DDPMPipeline"
    assert index["scheduler"] == ["diffusers", "DDPMScheduler"]
    assert scheduler["variance_type"] == "learned_range"
    assert "set_alpha_to_one" not in scheduler
    assert load(tmp_path).net(torch.zeros(1, 1, 8, 8), torch.tensor([3])).shape == (1, 2, 8, 8)


@pytest.mark.parametrize(
    ("out", "kind", "match"),
    [
        (
            1,
            "learned_range",
            "scheduler_config.json: variance_type 'learned_range' .*out_channels 1",
        ),
        (1, "learned", "variance_type 'learned' does not go with out_channels 1"),
        (2, "learned", "variance_type 'learned' does not go with out_channels 2"),
        (3, "fixed_small", "config.json: out_channels 3 is neither in_channels 1 nor twice that"),
    ],
)
def test_variances_that_contradict_the_network(tmp_path, refuses, out, kind, match):
    write(tmp_path, out_channels=out)
    edit(tmp_path / "scheduler" / "scheduler_config.json", variance_type=kind)
    with refuses(match):
        read_folder(tmp_path)


@pytest.mark.parametrize("variant", ["", ".fp16"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_every_weight_file_of_diffusers(tmp_path, variant, suffix):
    net = write(tmp_path)
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    path.unlink()
    path = path.with_suffix(f"{variant}.{suffix}")
    weights = {k: v.half() if variant else v for k, v in net.state_dict().items()}
    (safetensors.torch.save_file if suffix == "safetensors" else torch.save)(weights, path)
    for key, value in read_folder(tmp_path).net.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, weights[key].float())


def test_a_pickle_in_a_folder_is_read_as_carefully(tmp_path, refuses):
    write(tmp_path)
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    path.unlink()
    torch.save(torch.nn.Linear(2, 2), path.with_suffix(".bin"))
    with refuses("diffusion_pytorch_model.bin is refused: .* which is code"):
        load(tmp_path)
    torch.save([1], path.with_suffix(".bin"))
    with refuses("diffusion_pytorch_model.bin holds no state_dict"):
        load(tmp_path)


def test_fields_of_our_own_are_not_written_unless_used(tmp_path, refuses):
    own = {"attention_heads", "time_features", "time_scale"}
    assert not own & UNetConfig(**SMALL).to_json().keys()
    for change, match in (
        ({"attention_heads": 2}, "2 attention heads at every width"),
        ({"time_features": 16}, "16 time features, not the first width"),
        ({"time_scale": 0.25}, "times multiplied by 0.25"),
    ):
        config = UNetConfig(**SMALL, **change)
        assert UNetConfig.from_json(config.to_json()) == config
        with refuses(f"cannot express this network, so it has no model folder: {match}"):
            write(tmp_path / "x", **change)
    assert not (tmp_path / "x").exists()
    with refuses("block_out_channels 8 cannot be split into attention_heads 3"):
        UNetConfig(**SMALL, attention_heads=3)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"clip_sample": "false"}, "clip_sample must be true or false, not 'false'"),
        ({"rescale_betas_zero_snr": "False"}, "rescale_betas_zero_snr must be true or false"),
        ({"thresholding": 1}, "thresholding must be true or false, not 1"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "'FlowMatchEuler.*' has",
        ),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "has no β schedule of the DDPM kind"),
        ({"_class_name": ["DDIM"]}, "_class_name must be a name"),
        ({"prediction_type": ["epsilon"]}, "prediction_type .* is not one of"),
        ({"timestep_type": "continuous"}, "timestep_type: the network is called at times other"),
        ({"num_train_timesteps": 1e12}, "num_train_timesteps must be a whole number from 1 to"),
    ],
)
def test_schedulers_that_are_none_of_ours(tmp_path, refuses, changes, match):
    write(tmp_path)
    edit(tmp_path / "scheduler" / "scheduler_config.json", **changes)
    with refuses(f"scheduler_config.json: .*{match}"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"norm_num_groups": 0}, "norm_num_groups must be a whole number of at least 1, not 0"),
        ({"layers_per_block": 1.5}, "layers_per_block must be a whole number"),
        ({"sample_size": "8"}, "sample_size must be a whole number, not '8'"),
        ({"block_out_channels": [0]}, "block_out_channels must be a whole number of at least 1"),
    ],
)
def test_networks_that_cannot_be(tmp_path, refuses, changes, match):
    write(tmp_path)
    edit(tmp_path / "unet" / "config.json", **changes)
    with refuses(f"unet/config.json: {match}"):
        load(tmp_path)


def test_a_latent_diffusion_folder_is_no_model_of_images(tmp_path, refuses):
    write(tmp_path)
    edit(
        tmp_path / "model_index.json",
        _class_name="LDMPipeline",
        vqvae=["diffusers", "VQModel"],
        feature_extractor=[None, None],
    )
    with refuses("model_index.json: a LDMPipeline has vqvae too, .* ddim.diffusers_scheduler"):
        load(tmp_path)


def test_the_average_that_a_training_run_of_diffusers_left(tmp_path):
    import shutil

    write(tmp_path)
    shutil.copytree(tmp_path / "unet", tmp_path / "unet_ema")
    path = tmp_path / "unet_ema" / "diffusion_pytorch_model.safetensors"
    average = {k: v + 1 for k, v in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(average, path)
    assert torch.equal(load(tmp_path).net.conv_in.bias, average["conv_in.bias"])
    raw = load(tmp_path, weights="net")
    assert torch.allclose(raw.net.conv_in.bias, average["conv_in.bias"] - 1, atol=1e-6)


def test_a_schedule_of_the_wrong_type_in_our_own_record(tmp_path, refuses):
    write(tmp_path)
    edit(tmp_path / "ddim.json", schedule="linear")
    with refuses("ddim.json: schedule must be an object"):
        load(tmp_path)


def test_the_old_eps_is_remembered(tmp_path):
    from ddim.denoisers.clipping import Clipping

    config = UNetConfig(**SMALL)
    clipping = Clipping("clip", stale_eps=True)
    net = UNet(config)
    model = Model(net, Schedule.linear(20), Target.EPS, (1, 8, 8), clipping=clipping)
    model.save(tmp_path / "m")
    assert load(tmp_path / "m").clipping == clipping
