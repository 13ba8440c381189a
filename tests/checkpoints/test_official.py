"""Official DDIM and DDPM checkpoints against a plain forward pass, and against diffusers."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
import torch

from ddim.checkpoints.foreign import read_foreign
from ddim.checkpoints.official import official_config, official_picks
from ddim.checkpoints.record import Hints
from ddim.checkpoints.weights import Shapes, unfilled
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.target import Target
from ddim.model.drawing import sample
from ddim.model.opening import load
from ddim.nets.unet import UNet, UNetConfig
from ddim.noise.schedule import Schedule

T = torch.tensor([3, 700])


@pytest.fixture(scope="module")
def made(plain):
    """Parameters of a small network, an input and its output."""
    p, x = plain.Plain(), plain.randn(2, 3, 32, 32)
    return p, x, plain.official(p, x, T)


def save(path, weights):
    torch.save(weights, path)
    return path


def test_a_flat_file_computes_what_the_layout_says(made, tmp_path):
    p, x, expected = made
    loaded = read_foreign(save(tmp_path / "model.ckpt", p.w))
    assert 0.1 < float(expected.std()) < 10
    torch.testing.assert_close(loaded.net(x, T), expected, rtol=1e-5, atol=2e-5)
    assert (loaded.shape, loaded.target, loaded.classes) == ((3, 32, 32), Target.EPS, None)
    assert loaded.clipping == Clipping()
    assert np.array_equal(loaded.schedule.alpha, Schedule.linear(1000).alpha)
    assert loaded.facts.assumed == (
        "schedule linear, β from 0.0001 to 0.02, T=1000",
        "image_size 32, so that it attends at 16 × 16",
    )


@pytest.mark.parametrize(
    "detail",
    [{"sine_first": False}, {"divisor_less": 0}, {"pad": (1, 0, 1, 0)}],
    ids=lambda detail: next(iter(detail)),
)
def test_details_that_change_the_numbers(made, plain, tmp_path, detail):
    p, x, expected = made
    net = read_foreign(save(tmp_path / "model.ckpt", p.w)).net
    other = plain.official(p, x, T, **detail)
    assert float((other - expected).abs().max()) > 1e-2
    assert float((net(x, T) - expected).abs().max()) < 2e-5


def test_the_epsilon_of_normalisation(plain, tmp_path):
    """Seen where the first normalisation meets a small variance."""
    p, x = plain.Plain(), plain.randn(1, 3, 32, 32)
    plain.official(p, x, T[:1])
    p.w["conv_in.weight"] *= 1e-3
    p.w["conv_in.bias"] *= 1e-3
    right, wrong = (plain.official(p, x, T[:1], eps=eps) for eps in (1e-6, 1e-5))
    net = read_foreign(save(tmp_path / "model.ckpt", p.w)).net
    torch.testing.assert_close(net(x, T[:1]), right, rtol=1e-4, atol=1e-4)
    assert float((right - wrong).abs().max()) > 1e-2


def test_levels_and_blocks_of_any_number(plain, tmp_path):
    p, x = plain.Plain(), plain.randn(1, 1, 16, 16)
    options = {"mult": (1, 1, 2), "blocks": 1, "attends": (0,)}
    expected = plain.official(p, x, T[:1], **options)
    loaded = read_foreign(save(tmp_path / "model.ckpt", p.w))
    torch.testing.assert_close(loaded.net(x, T[:1]), expected, rtol=1e-5, atol=2e-5)
    assert loaded.shape == (1, 16, 16)


def test_the_training_list_has_an_average_and_raw_weights(made, tmp_path):
    p, x, expected = made
    raw = {f"module.{key}": value * 0 for key, value in p.w.items()}
    optimizer = {"state": {0: {"step": 1}}, "param_groups": [{"lr": 2e-4}]}
    states = [raw, optimizer, 3, 1000, p.w]
    path = save(tmp_path / "ckpt.pth", states)
    average = read_foreign(path)
    assert average.facts.weights == "ema"
    torch.testing.assert_close(average.net(x, T), expected, rtol=1e-5, atol=2e-5)
    other = read_foreign(path, "net")
    assert other.facts.weights == "net"
    assert not other.net(x, T).any()
    none_kept = read_foreign(save(tmp_path / "raw.pth", states[:4]))
    assert none_kept.facts.weights == "net"
    assert none_kept.facts.assumed[-1] == "raw weights, for it holds no average"


def test_files_of_torch_before_zip_archives_and_safetensors(made, tmp_path):
    import safetensors.torch

    p, x, expected = made
    old = tmp_path / "old.ckpt"
    torch.save(p.w, old, _use_new_zipfile_serialization=False)
    new = tmp_path / "new.safetensors"
    safetensors.torch.save_file(p.w, new)
    half = save(tmp_path / "half.ckpt", {k: v.half() for k, v in p.w.items()})
    for path, atol in ((old, 2e-5), (new, 2e-5), (half, 5e-2)):
        net = read_foreign(path).net
        assert {v.dtype for v in net.state_dict().values()} == {torch.float32}
        torch.testing.assert_close(net(x, T), expected, rtol=1e-5, atol=atol)


PUBLISHED = {
    "cifar10": (32, (1, 2, 2, 2), 1, 35_746_307),
    "celeba": (64, (1, 2, 2, 2, 4), 2, 78_700_803),
    "bedroom, church, cat": (256, (1, 1, 2, 2, 4, 4), 4, 113_673_219),
}


@pytest.mark.parametrize(("size", "mult", "attends", "count"), PUBLISHED.values(), ids=PUBLISHED)
def test_the_published_shapes_are_told_from_the_tensors(size, mult, attends, count):
    kinds = ["AttnDownBlock2D" if i == attends else "DownBlock2D" for i in range(len(mult))]
    config = UNetConfig(
        sample_size=size,
        block_out_channels=tuple(128 * m for m in mult),
        down_block_types=tuple(kinds),
        up_block_types=tuple(k.replace("Down", "Up") for k in kinds[::-1]),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )
    net = unfilled(lambda: UNet(config))
    own = net.state_dict()
    picks = official_picks(net)
    file = {p.key: torch.empty(p.shape(own[k].shape), device="meta") for k, p in picks.items()}
    assert sum(v.numel() for v in file.values()) == count
    assert {f"up.{attends}.attn.2.proj_out.weight", "mid.block_2.temb_proj.bias"} <= file.keys()
    shuffled = dict(random.Random(0).sample([*file.items()], len(file)))
    assert official_config(Shapes(shuffled, "x.ckpt", "layout"), None) == config


def test_diffusers_computes_the_same_from_the_converted_folder(made, diffusers, tmp_path):
    p, x, expected = made
    load(save(tmp_path / "model.ckpt", p.w)).save(tmp_path / "folder")
    options = {"local_files_only": True, "low_cpu_mem_usage": False}
    oracle = diffusers.UNet2DModel.from_pretrained(tmp_path / "folder", subfolder="unet", **options)
    scheduler = diffusers.DDIMScheduler.from_pretrained(tmp_path / "folder", subfolder="scheduler")
    with torch.no_grad():
        torch.testing.assert_close(oracle(x, T).sample, expected, rtol=1e-5, atol=2e-5)
    assert scheduler.config.clip_sample is False
    again = load(tmp_path / "folder")
    assert again.facts.source == "official DDIM"
    torch.testing.assert_close(again.net(x, T), expected, rtol=1e-5, atol=2e-5)


def test_a_pipeline_samples_and_says_what_was_assumed(made, tmp_path, caplog):
    path = save(tmp_path / "model-790000.ckpt", made[0].w)
    with caplog.at_level(logging.WARNING, "ddim"):
        model = load(path)
    assert "model-790000.ckpt: assumed schedule linear" in caplog.text
    assert model.name == "model-790000"
    assert sample(model, n=1, steps=2).shape == (1, 3, 32, 32)
    caplog.clear()
    told = load(path, schedule=Schedule.cosine(100), hints=Hints(image_size=16, target="v"))
    assert (told.shape, told.schedule.T, told.target) == ((3, 16, 16), 100, Target.V)
    assert told.facts.assumed == ()
    assert not caplog.text


def test_a_file_that_leaves_its_size_open(plain, tmp_path, refuses):
    p, x = plain.Plain(), plain.randn(1, 3, 8, 8)
    plain.official(p, x, T[:1], mult=(1,), attends=())
    path = save(tmp_path / "model.ckpt", p.w)
    with refuses("model.ckpt attends at no level, so its image size cannot be told: give image_s"):
        read_foreign(path)
    assert read_foreign(path, hints=Hints(image_size=8)).shape == (3, 8, 8)
    with refuses("heads was given, but the official DDIM layout leaves only image_size, target op"):
        read_foreign(path, hints=Hints(image_size=8, heads=2))


def test_hints_that_make_no_sense(refuses, tmp_path):
    for values, match in (
        ({"image_size": 0}, "image_size must be a whole number of at least 1, not 0"),
        ({"heads": 4, "head_channels": 64}, "say heads or head_channels, not both"),
        ({"qkv_order": "mixed"}, "qkv_order is 'head' or 'whole', not 'mixed'"),
        ({"target": "epsilon"}, "unknown target 'epsilon'"),
    ):
        with refuses(match):
            Hints(**values)
    with refuses("mnist records its own schedule and network: give no other"):
        load("mnist", schedule=Schedule.linear(10))
