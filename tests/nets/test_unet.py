from __future__ import annotations

import copy
import dataclasses
import json
import math

import pytest
import torch
from torch import Tensor

from ddim.nets.unet import UNet, UNetConfig, _Attention, count_flops, timestep_embedding
from ddim.train.config import TrainConfig
from ddim.train.run import unet_config

DDPM_CIFAR10 = UNetConfig(
    sample_size=32,
    block_out_channels=(128, 256, 256, 256),
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=None,
    downsample_padding=0,
    flip_sin_to_cos=False,
    freq_shift=1,
    norm_eps=1e-6,
)
MNIST = unet_config(TrainConfig.preset("mnist"), (1, 28, 28), None)
MNIST_CLASSES = unet_config(TrainConfig.preset("mnist-cond"), (1, 28, 28), 10)
RESIDUAL = UNetConfig(
    sample_size=16,
    in_channels=3,
    out_channels=6,  # with a learned variance
    block_out_channels=(16, 32, 32),
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    layers_per_block=1,
    norm_num_groups=8,
    attention_head_dim=8,
    resnet_time_scale_shift="scale_shift",
    downsample_type="resnet",
    upsample_type="resnet",
    class_embed_type="timestep",
)
SMALL = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": 4,
}
VARIANTS = {
    "scaled, centred": {"mid_block_scale_factor": 2.0, "center_input_sample": True},
    "no attention in the middle": {"add_attention": False},
    "no middle": {"mid_block_type": None},
    "own norm in the middle": {"attn_norm_num_groups": 2, "resnet_time_scale_shift": "scale_shift"},
    "time width": {"time_embedding_dim": 24, "norm_eps": 1e-3, "act_fn": "swish"},
    "cos first": {"flip_sin_to_cos": True, "freq_shift": 0},
    "identity classes": {"class_embed_type": "identity"},
}
CONFIGS = {
    "DDPM CIFAR-10": DDPM_CIFAR10,
    "MNIST preset": MNIST,
    "MNIST preset with classes": MNIST_CLASSES,
    "residual resampling, scale and shift": RESIDUAL,
} | {name: UNetConfig(**(SMALL | values)) for name, values in VARIANTS.items()}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels_for(config: UNetConfig, count: int) -> Tensor | None:
    if config.class_embed_type == "timestep":
        return torch.linspace(0, 500, count)
    if config.class_embed_type == "identity":
        return randn(count, config.time_embedding_dim or 4 * config.block_out_channels[0], seed=9)
    if config.num_class_embeds:
        return torch.arange(count) % config.num_class_embeds
    return None


def build(config: UNetConfig) -> UNet:
    torch.manual_seed(0)
    return UNet(config).eval()


# -- the oracle -----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_computes_what_diffusers_computes(diffusers, config):
    """Same names, same shapes, same numbers; and each reads the other's config."""
    net = build(config)
    oracle = diffusers.UNet2DModel.from_config(json.loads(json.dumps(config.to_json()))).eval()
    # strict=True: no name is missing on either side.
    oracle.load_state_dict(net.state_dict(), strict=True)
    net.load_state_dict(oracle.state_dict(), strict=True)
    assert list(net.state_dict()) and set(net.state_dict()) == set(oracle.state_dict())
    assert UNetConfig.from_json(dict(oracle.config)) == config

    count = 1 if config is DDPM_CIFAR10 else 3
    x = randn(count, config.in_channels, config.sample_size, config.sample_size)
    t = torch.tensor([731, 0, 12])[:count]
    labels = labels_for(config, count)
    expected = oracle(x, t, class_labels=labels).sample
    # A norm of 1 keeps the tolerance meaningful: freshly made networks have outputs of order 1.
    assert 0.05 < float(expected.std()) < 20
    torch.testing.assert_close(net(x, t, labels), expected, rtol=1e-5, atol=1e-5)


def test_the_official_parameter_counts():
    """35,746,307 for CIFAR-10 (REFERENCE, section 3)."""
    net = UNet(DDPM_CIFAR10)
    assert sum(p.numel() for p in net.parameters()) == 35_746_307


def test_the_mnist_network_is_small():
    net = UNet(MNIST)
    assert count_flops(net) < 0.3e9
    assert 4 * sum(p.numel() for p in net.parameters()) < 8e6


def test_flops_of_one_convolution():
    """By hand: the first and last convolutions and one residual block, no resampling."""
    config = UNetConfig(
        sample_size=4,
        in_channels=1,
        out_channels=1,
        block_out_channels=(4,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        layers_per_block=1,
        norm_num_groups=2,
    )
    conv = lambda a, b, kernel=9: 2 * a * b * kernel * 16  # noqa: E731
    linear = lambda a, b: 2 * a * b  # noqa: E731
    resnets = 3 * conv(4, 4) + 2 * conv(8, 4) + conv(4, 4) + 2 * conv(8, 4, 1)
    time = linear(4, 16) + linear(16, 16) + linear(16, 3 * 4)
    assert count_flops(UNet(config)) == conv(1, 4) + resnets + conv(4, 1) + time


# -- the pieces -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("dim", [8, 9])
def test_timestep_embedding_is_its_formula(dim, shift):
    t = torch.tensor([0.0, 1.0, 2.5, 999.0])
    half = dim // 2
    for flip in (False, True):
        got = timestep_embedding(t, dim, flip_sin_to_cos=flip, freq_shift=shift)
        assert got.dtype == torch.float32
        for n, time in enumerate(t.tolist()):
            angles = [time * 10000 ** (-i / (half - shift)) for i in range(half)]
            sines, cosines = [math.sin(a) for a in angles], [math.cos(a) for a in angles]
            expected = [*cosines, *sines] if flip else [*sines, *cosines]
            expected += [0.0] * (dim % 2)
            torch.testing.assert_close(got[n], torch.tensor(expected), rtol=0, atol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    "config", [MNIST, MNIST_CLASSES, RESIDUAL], ids=["plain", "classes", "residual"]
)
def test_the_condition_alone_carries_time_and_class(config):
    net = build(config)
    x = randn(2, config.in_channels, config.sample_size, config.sample_size)
    t = torch.tensor([40, 40])
    labels = labels_for(config, 2)
    whole = net(x, t, labels)
    one_row = net.embed(t[:1])
    torch.testing.assert_close(
        net.conditioned(x, net.condition(one_row, labels)), whole, rtol=1e-5, atol=1e-5
    )
    assert not torch.allclose(net(x, t + 100, labels), whole, atol=1e-4)
    if labels is not None:
        assert not torch.allclose(net(x, t, labels.flip(0)), whole, atol=1e-4)


@torch.no_grad()
def test_one_time_for_all_images():
    net = build(UNetConfig(**SMALL))
    x = randn(3, 1, 8, 8)
    each = net(x, torch.full((3,), 7))
    torch.testing.assert_close(net(x, torch.tensor([7])), each, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net(x, torch.tensor(7)), each, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("config", [MNIST, RESIDUAL], ids=["mnist", "residual"])
def test_channels_last_computes_the_same(config):
    net = build(config)
    x = randn(2, config.in_channels, config.sample_size, config.sample_size)
    t, labels = torch.tensor([3, 400]), labels_for(config, 2)
    plain = net(x, t, labels)
    net = net.to(memory_format=torch.channels_last)
    other = net(x.to(memory_format=torch.channels_last), t, labels)
    torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_double_precision():
    net = build(UNetConfig(**SMALL))
    x, t = randn(2, 1, 8, 8), torch.tensor([5, 6])
    single = net(x, t)
    double = net.double()(x.double(), t)
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("config", [MNIST_CLASSES, RESIDUAL], ids=["mnist", "residual"])
def test_neither_place_nor_neighbours_change_the_bits(config):
    """In a batch of fixed size an image is the same to the last bit wherever it lies."""
    net = build(config)
    shape = (config.in_channels, config.sample_size, config.sample_size)
    batch_size = 4
    mine = randn(1, *shape, seed=1)
    label = labels_for(config, 3)[1:2]
    outputs = []
    for place, seed in ((0, 2), (3, 2), (1, 3)):
        others, other_labels = (
            randn(batch_size, *shape, seed=seed),
            labels_for(config, batch_size).flip(0),
        )
        x, labels = others.clone(), other_labels.clone()
        x[place], labels[place] = mine[0], label[0]
        outputs.append(net(x, torch.full((batch_size,), 77), labels)[place])
    padded = net(
        mine.expand(batch_size, *shape), torch.full((batch_size,), 77), label.expand(batch_size)
    )
    outputs.append(padded[batch_size - 1])
    for other in outputs[1:]:
        assert other.numpy().tobytes() == outputs[0].numpy().tobytes()


def test_every_parameter_is_trained():
    net = build(RESIDUAL).train()
    x = randn(2, 3, 16, 16)
    net(x, torch.tensor([3, 400]), labels_for(RESIDUAL, 2)).square().mean().backward()
    for name, parameter in net.named_parameters():
        # A bias added to all keys cancels in the softmax.
        if not name.endswith("to_k.bias"):
            assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name


def test_dropout_acts_in_training_alone():
    net = build(UNetConfig(**(SMALL | {"dropout": 0.5})))
    x, t = randn(1, 1, 8, 8), torch.tensor([5])
    assert torch.equal(net(x, t), net(x, t))
    net.train()
    assert not torch.equal(net(x, t), net(x, t))


# -- configurations -------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_config_round_trip(config):
    assert UNetConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_bookkeeping_keys_and_a_size_in_two_numbers_are_read():
    values = {"_class_name": "UNet2DModel", "_diffusers_version": "0.1", "sample_size": [8, 8]}
    assert UNetConfig.from_json(SMALL | values) == UNetConfig(**SMALL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"down_block_types": ("DownBlock2D",)}, r"as many down_block_types \(1\).*channels \(2\)"),
        (
            {"down_block_types": ("DownBlock2D", "SkipDownBlock2D")},
            "'SkipDownBlock2D' is not supported",
        ),
        ({"up_block_types": ("UpBlock2D", "DownBlock2D")}, "up_block_types 'DownBlock2D'"),
        ({"block_out_channels": (8, 18)}, "18 is not a multiple of norm_num_groups 4"),
        ({"attention_head_dim": 5}, "16 is not a multiple of attention_head_dim 5"),
        ({"act_fn": "gelu"}, "act_fn 'gelu' is not supported"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type 'fourier'"),
        ({"class_embed_type": "projection"}, "class_embed_type 'projection'"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift 'spatial'"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type"),
        ({"downsample_type": "pool"}, "downsample_type 'pool'"),
        ({"sample_size": [8, 16]}, "not square"),
        ({"sample_size": None}, "sample_size is null"),
        ({"channels": 3}, "unknown key 'channels'"),
    ],
)
def test_config_refusals(changes, message, refuses):
    with refuses(message):
        UNetConfig.from_json(SMALL | changes)


def test_label_refusals(refuses):
    x, t = randn(1, 1, 28, 28), torch.tensor([5])
    with refuses("it needs labels"):
        build(MNIST_CLASSES)(x, t)
    with refuses("labels were given to a network without classes"):
        build(MNIST)(x, t, torch.tensor([1]))


def test_the_unet_of_a_training_configuration(refuses):
    config = TrainConfig(channels=(32, 64, 64), attention=(16,), dropout=0.1)
    made = unet_config(config, (3, 32, 32), None)
    assert made.down_block_types == ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D")
    assert made.up_block_types == ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    assert (made.flip_sin_to_cos, made.freq_shift, made.downsample_padding, made.norm_eps) == (
        False,
        1,
        0,
        1e-6,
    )
    assert made.num_class_embeds is None
    assert MNIST_CLASSES.num_class_embeds == 11  # ten digits and 'none'
    official = unet_config(TrainConfig.preset("cifar10"), (3, 32, 32), None)
    assert official.to_json() == {**DDPM_CIFAR10.to_json(), "dropout": 0.1}
    for shape in ((1, 28, 30), (1, 30, 30)):
        with refuses("must be square and divisible by 4"):
            unet_config(TrainConfig.preset("mnist"), shape, None)


@pytest.mark.parametrize("size", [7, 9], ids=["few pixels", "many pixels"])
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bfloat16 network"])
def test_attention_trains_in_bfloat16_as_in_float32(size, autocast):
    """Few pixels are multiplied by hand there: the same values and gradients, to rounding."""
    torch.manual_seed(0)
    exact = _Attention(24, dataclasses.replace(MNIST, attention_head_dim=8), groups=4).double()
    x, slope = randn(3, 24, size, size).double(), randn(3, 24, size, size).double()
    rounded = copy.deepcopy(exact).to(torch.float32 if autocast else torch.bfloat16)
    wanted = torch.autograd.grad((exact(x) * slope).sum(), exact.parameters())
    given = x.to(next(rounded.parameters()).dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = rounded(given)
    assert torch.allclose(out.double(), exact(x), atol=0.06)
    got = torch.autograd.grad((out.double() * slope).sum(), rounded.parameters())
    for a, b in zip(got, wanted, strict=True):
        assert (a.double() - b).norm() < 0.05 * max(b.norm(), 0.1 * x.numel() ** 0.5)


# -- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_parameters_are_counted_without_a_network(config):
    with torch.device("meta"):
        net = UNet(config)
    assert config.parameters == sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": (8, 2**20)}, "parameters, and none has more than 10,000,000,000"),
        ({"block_out_channels": (4,) * 300}, "as many down_block_types"),
        ({"layers_per_block": 10**8}, "layers_per_block 100000000 makes .* blocks"),
        ({"layers_per_block": 400}, "layers_per_block 400 makes 1,602 blocks"),
        ({"time_embedding_dim": 10**12}, "parameters, and none has more than"),
        ({"num_class_embeds": 10**12}, "parameters, and none has more than"),
        ({"in_channels": 10**12}, "parameters, and none has more than"),
        ({"sample_size": 2**20}, "sample_size 1048576 makes images of 1,099,511,627,776 numbers"),
        ({"sample_size": True}, "sample_size must be a whole number, not True"),
        ({"layers_per_block": 0}, "layers_per_block must be a whole number of at least 1, not 0"),
        ({"num_class_embeds": -1}, "num_class_embeds must be a whole number of at least 1"),
        ({"attention_head_dim": 0}, "attention_head_dim must be a whole number of at least 1"),
        ({"norm_eps": math.nan}, "norm_eps must be a finite number, not nan"),
        ({"norm_eps": 0}, "norm_eps must be positive, not 0"),
        ({"dropout": 1}, r"dropout must be in \[0, 1\), not 1"),
        ({"downsample_padding": 7}, "downsample_padding 7 is not supported"),
        ({"attn_norm_num_groups": 5}, "16 is not a multiple of attn_norm_num_groups 5"),
        ({"act_fn": ["silu"]}, "act_fn must be text, not"),
        ({"down_block_types": "Down"}, "down_block_types must be a list"),
        ({"flip_sin_to_cos": "yes"}, "flip_sin_to_cos must be true or false, not 'yes'"),
    ],
)
def test_sizes_and_types_are_refused_before_anything_is_built(changes, message, refuses):
    with refuses(message):
        UNetConfig.from_json(SMALL | changes)
