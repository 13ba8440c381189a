"""improved-diffusion, guided-diffusion and the MNIST notebook against a plain forward pass."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from ddim.checkpoints.foreign import read_foreign
from ddim.checkpoints.openai import read_openai
from ddim.checkpoints.openai_layout import NOTEBOOK, OPENAI, openai_picks
from ddim.checkpoints.record import Hints
from ddim.checkpoints.weights import unfilled
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.network import NetworkDenoiser
from ddim.model.opening import load
from ddim.nets.unet import UNet, UNetConfig, count_flops
from ddim.noise.schedule import Schedule

T = torch.tensor([3, 700])
QUARTER = {"time_scale": 0.25}

# What the network has, what is told, what is assumed, what diffusers lacks.
CASES = {
    "improved": ({}, None, ["heads 4, qkv_order head", "rescale_times True"], 1),
    "improved, heads of several widths": (
        {"mult": (1, 2, 4), "attends": (1, 2)},
        None,
        ["image_size 32", "heads 4, qkv_order head"],
        2,
    ),
    "improved, plain normalisation, learned variance": (
        {"scale_shift": False, "out": 6, "blocks": 2, "heads": 2},
        Hints(heads=2),
        ["schedule cosine, T=4000", "qkv_order head"],
        1,
    ),
    "improved, classes": ({"classes": 7}, None, ["rescale_times False"], 0),
    "guided": (
        {"heads": None, "residual": True, "whole": True, "out": 6, "classes": 5},
        Hints(head_channels=32),
        ["image_size 32", "schedule cosine, T=1000", "qkv_order whole"],
        0,
    ),
    "guided, the older order": (
        {"heads": 2, "residual": True, "mult": (1, 1, 2), "attends": (1, 2), "blocks": 2},
        Hints(heads=2, qkv_order="head"),
        ["image_size 32", "schedule cosine, T=1000"],
        1,
    ),
    "guided, half the width first": (
        {"heads": 1, "residual": True, "mult": (0.5, 1), "ch": 64, "whole": True},
        Hints(heads=1, image_size=16),
        ["schedule cosine, T=1000", "qkv_order whole"],
        1,
    ),
}


def labels(options):
    return torch.tensor([0, 4]) if "classes" in options else None


def save(path, weights):
    items = random.Random(1).sample([*weights.items()], len(weights))
    torch.save(dict(items), path)
    return path


@pytest.mark.parametrize(("options", "hints", "assumed", "beyond"), CASES.values(), ids=CASES)
def test_it_computes_what_the_layout_says(plain, tmp_path, options, hints, assumed, beyond):
    p, x, y = plain.Plain(), plain.randn(2, 3, 16, 16), labels(options)
    scaled = {} if options.get("residual") or "classes" in options else QUARTER
    expected = plain.openai(p, x, T, y, **options, **scaled)
    assert 0.1 < float(expected.std()) < 10
    loaded = read_foreign(save(tmp_path / "ema_0.9999_500000.pt", p.w), hints=hints)
    found = loaded.net(x, T) if y is None else loaded.net(x, T, y)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    assert [text for text in assumed if text not in loaded.facts.assumed] == []
    assert loaded.classes == options.get("classes")
    assert loaded.facts.learned_variance is ("out" in options)
    assert loaded.facts.weights == "only"
    assert loaded.clipping == Clipping("clip")
    assert len(loaded.net.config.beyond_diffusers) == beyond


@pytest.mark.parametrize(
    "detail",
    [
        {"sine_first": True},
        {"divisor_less": 1},
        {"whole": True},
        {"heads": 2},
        {"time_scale": 1.0},
    ],
    ids=lambda detail: next(iter(detail)),
)
def test_details_that_change_the_numbers(plain, tmp_path, detail):
    p, x = plain.Plain(), plain.randn(2, 3, 16, 16)
    expected = plain.openai(p, x, T, **QUARTER)
    net = read_foreign(save(tmp_path / "model.pt", p.w)).net
    other = plain.openai(p, x, T, **{**QUARTER, **detail})
    assert float((other - expected).abs().max()) > 1e-2
    assert float((net(x, T) - expected).abs().max()) < 2e-5


def test_the_epsilon_of_normalisation(plain, tmp_path):
    p, x = plain.Plain(), plain.randn(1, 3, 16, 16)
    plain.openai(p, x, T[:1])
    p.w["input_blocks.0.0.weight"] *= 1e-3
    p.w["input_blocks.0.0.bias"] *= 1e-3
    right, wrong = (plain.openai(p, x, T[:1], eps=eps, **QUARTER) for eps in (1e-5, 1e-6))
    net = read_foreign(save(tmp_path / "model.pt", p.w)).net
    torch.testing.assert_close(net(x, T[:1]), right, rtol=1e-4, atol=1e-4)
    assert float((right - wrong).abs().max()) > 1e-2


def test_the_variance_is_the_second_half(plain, tmp_path):
    p, x = plain.Plain(), plain.randn(1, 3, 16, 16)
    expected = plain.openai(p, x, T[1:], out=6, **QUARTER)
    loaded = read_foreign(save(tmp_path / "model.pt", p.w))
    prediction = NetworkDenoiser(loaded.net)(x, loaded.schedule.level(701))
    torch.testing.assert_close(prediction.eps, expected[:, :3], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(prediction.var, (expected[:, 3:] + 1) / 2, rtol=1e-5, atol=2e-5)


def test_half_precision_is_widened(plain, tmp_path):
    p, x = plain.Plain(), plain.randn(1, 3, 16, 16)
    expected = plain.openai(p, x, T[:1], **QUARTER)
    half = {
        k: v.half() if k.startswith(("input", "middle", "output")) else v for k, v in p.w.items()
    }
    net = read_foreign(save(tmp_path / "model.pt", half)).net
    assert {v.dtype for v in net.state_dict().values()} == {torch.float32}
    torch.testing.assert_close(net(x, T[:1]), expected, rtol=1e-5, atol=5e-2)


def test_the_notebook(plain, tmp_path):
    p, x = plain.Plain(), plain.randn(2, 1, 28, 28)
    options = {"names": plain.NOTEBOOK, "mult": (1, 2, 2), "blocks": 2, "attends": ()}
    expected = plain.openai(p, x, T % 500, ch=32, scale_shift=False, **options)
    assert "middle_block.1.qkv.bias" not in p.w
    path = save(tmp_path / "unet.pth", p.w)
    loaded = read_foreign(path)
    torch.testing.assert_close(loaded.net(x, T % 500), expected, rtol=1e-5, atol=2e-5)
    assert loaded.shape == (1, 28, 28)
    assert loaded.facts.assumed == (
        "image_size 28",
        "schedule linear, T=500",
        "heads 4",
    )
    betas = loaded.schedule.betas[[0, -1]]
    assert betas.round(9).tolist() == [2e-4, 0.04]
    one_head = read_foreign(path, hints=Hints(heads=1)).net
    assert float((one_head(x, T % 500) - expected).abs().max()) > 1e-3
    assert loaded.net.config.beyond_diffusers == []


def test_the_notebooks_own_size():
    """REFERENCE, section 3: 96 channels × (1, 2, 2), 13.8 million parameters."""
    config = UNetConfig(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(96, 192, 192),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        attention_head_dim=48,
    )
    net = unfilled(lambda: UNet(config))
    own = net.state_dict()
    picks = openai_picks(net, NOTEBOOK)
    file = {p.key: p.shape(own[k].shape) for k, p in picks.items() if p.key is not None}
    assert round(sum(int(np.prod(shape)) for shape in file.values()) / 1e6, 1) == 13.8


def published(size, ch, mult, blocks, attends, residual, scale_shift=True, classes=None):
    """A published network's tensors, without values."""
    widths = tuple(int(ch * m) for m in mult)
    plain_kind = "ResnetDownsampleBlock2D" if residual else "DownBlock2D"
    kinds = ["AttnDownBlock2D" if i in attends else plain_kind for i in range(len(mult))]
    config = UNetConfig(
        sample_size=size,
        out_channels=6,
        block_out_channels=widths,
        layers_per_block=blocks,
        down_block_types=tuple(kinds),
        up_block_types=tuple(
            k.replace("Downsample", "Upsample").replace("Down", "Up") for k in kinds[::-1]
        ),
        downsample_type="resnet" if residual else "conv",
        upsample_type="resnet" if residual else "conv",
        time_embedding_dim=4 * ch,
        time_features=ch if ch != widths[0] else None,
        attention_head_dim=None,
        attn_norm_num_groups=32,
        resnet_time_scale_shift="scale_shift" if scale_shift else "default",
        num_class_embeds=classes,
    )
    net = unfilled(lambda: UNet(config))
    own = net.state_dict()
    picks = openai_picks(net, OPENAI)
    return {p.key: torch.empty(p.shape(own[k].shape), device="meta") for k, p in picks.items()}


G = (1, 1, 2, 2, 4, 4)
PUBLISHED = {
    "improved cifar10": ((32, 128, (1, 2, 2, 2), 3, (1, 2), False), "cosine 4000 64 head 0.25"),
    "improved imagenet64": (
        (64, 128, (1, 2, 3, 4), 3, (2, 3), False),
        "cosine 4000 4-heads head 0.25",
    ),
    "improved imagenet64, classes": (
        (64, 192, (1, 2, 3, 4), 3, (2, 3), False, True, 1000),
        "cosine 4000 4-heads head 1",
    ),
    "improved bedroom": ((256, 128, G, 2, (4,), False, False), "linear 1000 512 head 1"),
    "guided 64": (
        (64, 192, (1, 2, 3, 4), 3, (1, 2, 3), True, True, 1000),
        "cosine 1000 64 whole 1",
    ),
    "guided 128": (
        (128, 256, (1, 1, 2, 3, 4), 2, (2, 3, 4), True, True, 1000),
        "linear 1000 4-heads head 1",
    ),
    "guided 256, bedroom, cat, horse": ((256, 256, G, 2, (3, 4, 5), True), "linear 1000 64 head 1"),
    "guided 512": (
        (512, 256, (0.5, 1, 1, 2, 2, 4, 4), 2, (4, 5, 6), True, True, 1000),
        "linear 1000 64 head 1",
    ),
}


@pytest.mark.parametrize(("shape", "expected"), PUBLISHED.values(), ids=PUBLISHED)
def test_the_published_models_are_told_from_the_tensors(shape, expected, monkeypatch, tmp_path):
    monkeypatch.setattr("ddim.checkpoints.openai.fill", lambda *_: None)
    loaded = read_openai(published(*shape), tmp_path / "x.pt", Hints(), None, OPENAI)
    config = loaded.net.config
    heads = config.attention_heads
    split = f"{heads}-heads" if heads else config.attention_head_dim
    order = next(text.split()[-1] for text in loaded.facts.assumed if "qkv_order" in text)
    spec = loaded.schedule.spec
    assert f"{spec['kind']} {spec['T']} {split} {order} {config.time_scale:g}" == expected
    assert loaded.shape == (3, shape[0], shape[0])


def test_times_are_scaled_by_the_schedule_that_is_given(plain, tmp_path):
    p, x = plain.Plain(), plain.randn(1, 3, 16, 16)
    expected = plain.openai(p, x, T[:1], time_scale=0.5)
    path = save(tmp_path / "model.pt", p.w)
    net = read_foreign(path, schedule=Schedule.linear(2000, scaled=True)).net
    torch.testing.assert_close(net(x, T[:1]), expected, rtol=1e-5, atol=2e-5)
    unscaled = read_foreign(path, hints=Hints(rescale_times=False)).net
    assert unscaled.config.time_scale == 1


def test_diffusers_computes_the_same_from_the_converted_folder(plain, diffusers, tmp_path):
    p, x = plain.Plain(), plain.randn(2, 3, 16, 16)
    options = {"heads": None, "residual": True, "out": 6, "whole": True}
    expected = plain.openai(p, x, T, **options)
    path = save(tmp_path / "model.pt", p.w)
    load(path, hints=Hints(head_channels=32, image_size=16)).save(tmp_path / "folder")
    from diffusers import DDPMPipeline

    pipe = DDPMPipeline.from_pretrained(
        tmp_path / "folder", local_files_only=True, low_cpu_mem_usage=False
    )
    assert pipe.scheduler.config.variance_type == "learned_range"
    with torch.no_grad():
        torch.testing.assert_close(pipe.unet(x, T).sample, expected, rtol=1e-5, atol=2e-5)
        drawn = pipe.scheduler.step(expected[:1], 700, x[:1]).prev_sample
    assert drawn.shape == (1, 3, 16, 16)
    again = load(tmp_path / "folder")
    assert count_flops(again.net) > 0
    torch.testing.assert_close(again.net(x, T), expected, rtol=1e-5, atol=2e-5)


def test_what_diffusers_cannot_express_is_not_saved(plain, tmp_path, refuses):
    p, x = plain.Plain(), plain.randn(1, 3, 16, 16)
    plain.openai(p, x, T[:1], mult=(1, 2, 4), attends=(1, 2))
    model = load(save(tmp_path / "model.pt", p.w))
    with refuses("cannot express this network.*: 4 attention heads at every width, times multi"):
        model.save(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_classifiers_and_upsamplers_are_named(plain, tmp_path, refuses):
    p, x = plain.Plain(), plain.randn(1, 6, 16, 16)
    plain.openai(p, x, T[:1])
    with refuses("model.pt takes 6 channels: it is an upsampler"):
        read_foreign(save(tmp_path / "model.pt", p.w))
    half = {k: v for k, v in p.w.items() if not k.startswith("output_blocks")}
    with refuses("half.pt is a classifier, the encoder half"):
        read_foreign(save(tmp_path / "half.pt", half))


def test_heads_that_do_not_divide(plain, tmp_path, refuses):
    p, x = plain.Plain(), plain.randn(1, 3, 16, 16)
    plain.openai(p, x, T[:1])
    path = save(tmp_path / "model.pt", p.w)
    with refuses("model.pt does not fit .*: block_out_channels 64 .* attention_heads 5"):
        read_foreign(path, hints=Hints(heads=5))
    with refuses("64 is not a multiple of attention_head_dim 48"):
        read_foreign(path, hints=Hints(head_channels=48))
