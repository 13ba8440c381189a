from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from ddim.checkpoints.diffusers import read_folder, write_folder
from ddim.checkpoints.scheduler import read_scheduler
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.target import Target
from ddim.model.drawing import generate
from ddim.model.opening import load
from ddim.nets.unet import UNet
from ddim.noise.draws import Noise
from ddim.noise.nodes import uniform
from ddim.noise.schedule import Schedule
from ddim.samplers.sampler import make_tableau
from tiny import tiny_config

T = 20
SHAPE = (1, 8, 8)
WEIGHTS = "diffusion_pytorch_model.safetensors"
UNET = tiny_config(attention=True, freq_shift=1, flip_sin_to_cos=False, downsample_padding=0)


def write(
    folder: Path,
    schedule: Schedule | None = None,
    target: Target = Target.EPS,
    clipping: Clipping | None = None,
) -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = UNet(UNET)
    schedule = schedule or Schedule.linear(T, 0.01, 0.4)
    facts = {"name": "tiny"}
    write_folder(folder, UNET, net.state_dict(), schedule, target, clipping or Clipping(), facts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "model")
    return tmp_path / "model"


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None takes a key out."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def edit_weights(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)


def flatten(folder: Path) -> None:
    """Everything in one folder."""
    for path in [*folder.glob("*/*")]:
        path.rename(folder / path.name)
    for name in ("unet", "scheduler"):
        (folder / name).rmdir()
    (folder / "model_index.json").unlink()


# -- what is written ------------------------------------------------------------------------------


def test_the_files_of_a_model_folder(folder):
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [
        "ddim.json",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        f"unet/{WEIGHTS}",
    ]


def test_every_field_of_the_scheduler_is_explicit(folder, diffusers):
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    expected = diffusers.DDIMScheduler().config
    assert {k for k in config if k[0] != "_"} == {k for k in expected if k[0] != "_"}
    assert config["timestep_spacing"] == "trailing"
    assert config["set_alpha_to_one"] is True


def test_a_failure_leaves_the_old_weights_and_no_temporary(folder, monkeypatch):
    before = (folder / "unet" / WEIGHTS).read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="No space left"):
        write(folder)
    assert (folder / "unet" / WEIGHTS).read_bytes() == before
    assert len([*(folder / "unet").iterdir()]) == 2


# -- what is read ---------------------------------------------------------------------------------


def test_nested_and_flat_folders_are_one_model(folder):
    nested = read_folder(folder)
    flatten(folder)
    flat = read_folder(folder)
    weights = flat.net.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in nested.net.state_dict().items())
    assert np.array_equal(nested.schedule.alpha, flat.schedule.alpha)
    assert (nested.target, nested.clipping) == (flat.target, flat.clipping)
    assert nested.facts == flat.facts


def test_old_names_of_attention_layers(folder):
    new = read_folder(folder).net.state_dict()
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors: dict[str, Tensor]) -> None:
        for key in [*tensors]:
            for name, old in old_names.items():
                if f".{name}." in key:
                    tensors[key.replace(name, old)] = tensors.pop(key)

    edit_weights(folder / "unet" / WEIGHTS, rename)
    keys = safetensors.torch.load_file(folder / "unet" / WEIGHTS).keys()
    assert "mid_block.attentions.0.proj_attn.weight" in keys
    assert not any("to_q" in key for key in keys)
    old = read_folder(folder).net.state_dict()
    assert all(torch.equal(v, new[k]) for k, v in old.items())


def test_half_precision_weights_are_widened(folder):
    full = read_folder(folder).net.state_dict()

    def halve(tensors: dict[str, Tensor]) -> None:
        tensors.update({k: v.half() for k, v in tensors.items()})

    edit_weights(folder / "unet" / WEIGHTS, halve)
    for key, value in read_folder(folder).net.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, full[key].half().float())


BETAS = [0.01, 0.03, 0.02, *np.linspace(0.05, 0.3, 17).tolist()]


@pytest.mark.parametrize(
    ("changes", "oracle"),
    [
        ({}, "DDIMScheduler"),
        ({"beta_start": 0.001, "beta_end": 0.3}, "DDIMScheduler"),
        ({"beta_schedule": "scaled_linear", "beta_start": 0.01}, "DDIMScheduler"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "DDIMScheduler"),
        ({"beta_schedule": "sigmoid"}, "DDPMScheduler"),
        ({"trained_betas": BETAS}, "DDIMScheduler"),
        ({"rescale_betas_zero_snr": True}, "DDIMScheduler"),
        (
            {"rescale_betas_zero_snr": True, "beta_schedule": "squaredcos_cap_v2"},
            "DDIMScheduler",
        ),
        ({"rescale_betas_zero_snr": True, "trained_betas": BETAS}, "DDIMScheduler"),
        ({"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}, "DDIMScheduler"),
        ({"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}, "DDPMScheduler"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value[:4],
)
def test_schedules_have_the_alphas_of_diffusers(tmp_path, diffusers, changes, oracle):
    config = {
        "num_train_timesteps": T,
        "beta_start": 1e-3,
        "beta_end": 0.2,
        "beta_schedule": "linear",
        **changes,
    }
    expected = getattr(diffusers, oracle)(**config).alphas_cumprod.double().numpy()
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": oracle, **config}))
    schedule, target, _ = read_scheduler(path)
    assert config["num_train_timesteps"] == schedule.T
    assert schedule.alpha_bar[0] == 1
    # diffusers multiplies them up in float32.
    assert np.abs(schedule.alpha_bar[1:] - expected).max() < 2e-6
    assert target is Target.EPS


def test_an_empty_scheduler_has_diffusers_defaults(tmp_path, diffusers):
    path = tmp_path / "scheduler_config.json"
    for name in ("DDIMScheduler", "DDPMScheduler"):
        path.write_text(json.dumps({"_class_name": name}))
        schedule, target, clipping = read_scheduler(path)
        default = getattr(diffusers, name)()
        assert default.config.num_train_timesteps == schedule.T
        expected = default.alphas_cumprod.double().numpy()
        assert np.abs(schedule.alpha_bar[1:] - expected).max() < 2e-6
        assert target is Target.EPS
        assert clipping == Clipping("clip", 1.0)
        assert default.config.clip_sample is True


@pytest.mark.parametrize(
    ("changes", "clipping"),
    [
        ({"clip_sample": False}, Clipping()),
        ({"clip_sample": True, "clip_sample_range": 3.0}, Clipping("clip", 3.0)),
        (
            {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 2.0},
            Clipping("threshold", 2.0, 0.9),
        ),
    ],
)
def test_clipping_of_the_scheduler(folder, changes, clipping):
    edit(folder / "scheduler" / "scheduler_config.json", **changes)
    assert read_folder(folder).clipping == clipping


def test_a_changed_scheduler_prevails_over_our_own_record(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    edit(path, beta_end=0.3)
    assert np.array_equal(read_folder(folder).schedule.alpha, Schedule.linear(T, 0.01, 0.3).alpha)
    edit(path, num_train_timesteps=7)
    assert read_folder(folder).schedule.T == 7


# -- the same images as diffusers -----------------------------------------------------------------


def ours(folder: Path, steps: int, indices: range, eta: float = 0.0) -> Tensor:
    model = load(folder)
    rows = make_tableau(model.schedule, uniform(model.schedule, steps), "ddim", eta=eta)
    events = generate(model, rows, indices, seed=3)
    return torch.cat([event.images for event in events if event.images is not None])


CASES = pytest.mark.parametrize(
    ("schedule", "target", "clipping"),
    [
        (Schedule.linear(T, 0.01, 0.4), Target.EPS, Clipping()),
        (Schedule.linear(T, 0.01, 0.4), Target.EPS, Clipping("clip")),
        (Schedule.cosine(T), Target.X0, Clipping()),
        (Schedule.scaled_linear(T, 0.01, 0.4).rescaled_to_zero_snr(), Target.V, Clipping()),
        (Schedule.sigmoid(T), Target.V, Clipping("threshold", 1.5, 0.9)),
    ],
    ids=["eps", "clipped", "cosine-x0", "zero-snr-v", "sigmoid-threshold"],
)


@CASES
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_a_model_saved_here_draws_the_same_images_in_diffusers(
    tmp_path, diffusers, schedule, target, clipping, steps
):
    write(tmp_path, schedule, target, clipping)
    scheduler = diffusers.DDIMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    net = diffusers.UNet2DModel.from_pretrained(
        tmp_path, subfolder="unet", local_files_only=True, low_cpu_mem_usage=False
    ).eval()
    eta = 0.6 if steps == 5 else 0.0
    noise = Noise(3, range(4), SHAPE)
    scheduler.set_timesteps(steps)
    x = noise(0)
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            fresh = {"variance_noise": noise(i + 1)} if eta else {}
            # Thus diffusers, too, recomputes eps from what was clipped.
            options = {"use_clipped_model_output": clipping.kind != "none"}
            x = scheduler.step(net(x, t).sample, t, x, eta=eta, **options, **fresh).prev_sample
    found = ours(tmp_path, steps, range(4), eta)
    assert (found - x).abs().max() <= 1e-4 * max(1, float(x.abs().max()))


def test_the_pipeline_of_diffusers_opens_a_model_saved_here(folder, diffusers, monkeypatch):
    from diffusers import DDIMPipeline
    from diffusers.pipelines.ddim import pipeline_ddim

    pipe = DDIMPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe.unet) is diffusers.UNet2DModel
    noise = Noise(3, range(5), SHAPE)
    monkeypatch.setattr(pipeline_ddim, "randn_tensor", lambda *_, **__: noise(0))
    drawn = pipe(batch_size=5, num_inference_steps=10, output_type="np").images
    found = ours(folder, 10, range(5)).clamp(-1, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(found - (2 * drawn - 1)).max() <= 1e-4


def test_a_folder_saved_by_diffusers_opens_here(tmp_path, diffusers):
    from diffusers import DDIMPipeline

    net = diffusers.UNet2DModel(**UNET.to_json())
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=T, beta_end=0.3, clip_sample=False)
    DDIMPipeline(net, scheduler).save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    assert (loaded.name, loaded.shape, loaded.schedule.T) == ("theirs", SHAPE, T)
    weights = loaded.net.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in net.state_dict().items())
    x, t = Noise(0, range(2), SHAPE)(0), torch.tensor([3, 3])
    with torch.no_grad():
        assert torch.allclose(loaded.net(x, t), net.eval()(x, t).sample, atol=1e-5)


# -- what is refused ------------------------------------------------------------------------------


def test_what_is_not_a_model_folder(tmp_path, folder, refuses):
    with refuses("is not a model folder: it has no config.json"):
        read_folder(tmp_path)
    (folder / "unet" / "config.json").unlink()
    with refuses("is not a model folder: it has no unet/config.json"):
        read_folder(folder)


def test_missing_files_are_named(folder, refuses):
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.rename(folder / "kept")
    with refuses(f"there is no file {scheduler}"):
        read_folder(folder)
    (folder / "kept").rename(scheduler)
    (folder / "unet" / WEIGHTS).unlink()
    with refuses(f"there are no weights {folder / 'unet' / WEIGHTS}"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("unet/config.json", "{", "unet/config.json is not valid JSON"),
        ("unet/config.json", "[]", "unet/config.json is not a JSON object"),
        ("scheduler/scheduler_config.json", "beta", "scheduler_config.json is not valid JSON"),
        ("ddim.json", '{"schedule": {"kind": "liner"}}', "ddim.json: .*did you mean 'linear'"),
    ],
)
def test_damaged_files_are_named(folder, refuses, file, content, match):
    (folder / file).write_text(content)
    with refuses(match):
        read_folder(folder)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"blok_out_channels": [8]}, "config.json: unknown key 'blok_out_channels'"),
        ({"_class_name": "UNet2DConditionModel"}, "config.json: a UNet2DConditionModel cannot be"),
        ({"block_out_channels": [8, 18]}, "config.json: block_out_channels 18 is not a multiple"),
        ({"block_out_channels": 8}, "config.json: "),
        ({"down_block_types": ["DownBlock2D", "Down"]}, "config.json: down_block_types 'Down'"),
        ({"sample_size": [8, 9]}, r"config.json: sample_size \(8, 9\) is not square"),
    ],
)
def test_configurations_of_other_networks(folder, refuses, changes, match):
    edit(folder / "unet" / "config.json", **changes)
    with refuses(match):
        read_folder(folder)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"prediction_type": "x1"}, "prediction_type 'x1' is not one of"),
        ({"beta_schedule": "laplace"}, "beta_schedule 'laplace' is not known"),
        ({"trained_betas": [0.1, 2.0]}, r"every β must be in \(0, 1\]"),
        (
            {"num_train_timesteps": 0},
            "num_train_timesteps must be a whole number from 1 to 1000000, not 0",
        ),
    ],
)
def test_schedulers_that_make_no_sense(folder, refuses, changes, match):
    edit(folder / "scheduler" / "scheduler_config.json", **changes)
    with refuses(f"scheduler_config.json: {match}"):
        read_folder(folder)


def test_truncated_weights(folder, refuses):
    path = folder / "unet" / WEIGHTS
    whole = path.read_bytes()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with refuses(f"{WEIGHTS} is not a safetensors file, or is truncated"):
            read_folder(folder)
    path.write_text("not tensors at all, but long enough for a header")
    with refuses("is not a safetensors file, or is truncated"):
        read_folder(folder)


def test_keys_that_are_missing_or_too_many_are_named(folder, refuses):
    path = folder / "unet" / WEIGHTS
    shutil.copy(path, folder / "kept")
    edit_weights(path, lambda tensors: tensors.pop("conv_in.bias"))
    with refuses(r"does not fit its config.json: 1 missing \(conv_in.bias"):
        read_folder(folder)
    edit_weights(path, lambda tensors: tensors.update({"conv_up.bias": torch.zeros(3)}))
    with refuses(r"1 missing \(conv_in.bias.*and 1 unexpected \(conv_up.bias"):
        read_folder(folder)
    shutil.copy(folder / "kept", path)
    edit(folder / "unet" / "config.json", layers_per_block=2)
    with refuses(r"\d\d missing \(down_blocks"):
        read_folder(folder)


def test_weights_of_another_shape_are_named(folder, refuses):
    edit_weights(
        folder / "unet" / WEIGHTS, lambda t: t.update({"conv_in.weight": torch.zeros(8, 3, 3, 3)})
    )
    with refuses(r"conv_in.weight has shape \(8, 3, 3, 3\), its config.json asks for \(8, 1, 3, 3"):
        read_folder(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(folder, refuses, value):
    edit_weights(folder / "unet" / WEIGHTS, lambda t: t["conv_out.bias"].fill_(value))
    with refuses("conv_out.bias holds values that are not finite"):
        read_folder(folder)


def test_trap_zero_terminal_snr_with_eps_is_refused_with_the_reason(tmp_path, refuses):
    schedule = Schedule.linear(T, 0.01, 0.4).rescaled_to_zero_snr()
    write(tmp_path, schedule, Target.EPS)
    for eta in (0.0, 1.0):
        with refuses("zero terminal SNR"):
            ours(tmp_path, 5, range(1), eta)
    write(tmp_path, schedule, Target.V)
    for eta in (0.0, 1.0):
        assert bool(ours(tmp_path, 5, range(1), eta).isfinite().all())
