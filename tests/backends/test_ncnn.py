from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor, nn

import ddim
from ddim.backends.ncnn import NcnnUNet, unsupported
from ddim.base.errors import InputError
from ddim.nets.unet import UNet, UNetConfig

pytest.importorskip("ncnn")

SMALL = UNetConfig(
    sample_size=8,
    in_channels=2,
    out_channels=2,
    block_out_channels=(8, 16),
    norm_num_groups=4,
    layers_per_block=1,
    attention_head_dim=4,
)
RESIDUAL: dict[str, Any] = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "centred": {"center_input_sample": True},
    "scaled in the middle": {"mid_block_scale_factor": 2.5},
    "no attention in the middle": {"add_attention": False},
    "no middle": {"mid_block_type": None},
    "own norm in the middle": {"attn_norm_num_groups": 2},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "padded after": {"downsample_padding": 0},
    "residual resampling": RESIDUAL,
    "attention resampled by blocks": {
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "learned variance": {"out_channels": 4},
    "one channel": {"in_channels": 1, "out_channels": 1},
    "many channels": {"in_channels": 12, "out_channels": 12},
    "as many heads everywhere": {"attention_heads": 2},
    "one head": {"attention_head_dim": None},
    "classes": {"num_class_embeds": 3},
    "deeper": {"layers_per_block": 2, "norm_eps": 1e-3},
    "one level": {
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "block_out_channels": (8,),
    },
    # Widths by which ncnn cannot gather channels in fours.
    "odd widths": {"block_out_channels": (6, 15), "norm_num_groups": 3, "attention_head_dim": 3},
}


def make(config: UNetConfig, seed: int = 0) -> UNet:
    """A network of which no parameter is 0 or 1, so that each of them matters."""
    torch.manual_seed(seed)
    net = UNet(config).eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter += 0.2 * torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5
    return net


def inputs(net: UNet, count: int, size: tuple[int, int], rows: int = 1) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, net.config.in_channels, *size)
    labels = torch.arange(rows) % 3 if net.config.has_classes else None
    return x, net.condition(net.embed(torch.linspace(400, 20, rows)), labels)


def exact(net: UNet, x: Tensor, cond: Tensor) -> Tensor:
    return copy.deepcopy(net).double().conditioned(x.double(), cond.double())


def error(given: Tensor, right: Tensor) -> float:
    return float((given - right).abs().max() / right.abs().max())


@pytest.fixture(scope="module")
def net() -> UNet:
    return make(dataclasses.replace(SMALL, **RESIDUAL, center_input_sample=True))


@pytest.fixture(scope="module")
def run(net: UNet) -> NcnnUNet:
    return NcnnUNet(net, (8, 12))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_the_network(name):
    net = make(dataclasses.replace(SMALL, **VARIANTS[name]))
    assert unsupported(net) is None
    x, cond = inputs(net, 2, (8, 16), rows=2)
    assert error(NcnnUNet(net, (8, 16))(x, cond), exact(net, x, cond)) < 1e-5


@st.composite
def configs(draw: st.DrawFn) -> UNetConfig:
    levels = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 5))
    channels = draw(st.integers(1, 5))
    kinds = {
        side: tuple(
            draw(st.sampled_from([f"{side}Block2D", f"Attn{side}Block2D", f"Resnet{long}Block2D"]))
            for _ in range(levels)
        )
        for side, long in (("Down", "Downsample"), ("Up", "Upsample"))
    }
    fields = {
        "block_out_channels": tuple(groups * draw(st.integers(1, 6)) for _ in range(levels)),
        "down_block_types": kinds["Down"],
        "up_block_types": kinds["Up"],
        "norm_num_groups": groups,
        "in_channels": channels,
        "out_channels": channels * draw(st.integers(1, 2)),
        "layers_per_block": draw(st.integers(1, 2)),
        "attention_head_dim": draw(st.sampled_from([None, 1, 2, 4])),
        "attention_heads": draw(st.sampled_from([None, 1, 2])),
        "attn_norm_num_groups": draw(st.sampled_from([None, 1, 2])),
        "resnet_time_scale_shift": draw(st.sampled_from(["default", "scale_shift"])),
        "downsample_padding": draw(st.integers(0, 1)),
        "downsample_type": draw(st.sampled_from(["conv", "resnet"])),
        "upsample_type": draw(st.sampled_from(["conv", "resnet"])),
        "mid_block_scale_factor": draw(st.sampled_from([1, 0.7])),
        "mid_block_type": draw(st.sampled_from([None, "UNetMidBlock2D"])),
        "center_input_sample": draw(st.booleans()),
        "add_attention": draw(st.booleans()),
        "num_class_embeds": draw(st.sampled_from([None, 3])),
    }
    try:
        return UNetConfig(**fields)
    except InputError:
        assume(False)
        raise


@settings(max_examples=50)
@given(configs(), st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(0, 99))
def test_whatever_is_configured_is_the_network(config, size, seed):
    channels_a_group = min(config.block_out_channels) // config.norm_num_groups
    assume(size != (1, 1) or channels_a_group > 1)  # torch normalises no single number
    divisor = 2 ** (len(config.block_out_channels) - 1)
    size = (size[0] * divisor, size[1] * divisor)
    net = make(config, seed)
    x, cond = inputs(net, 1, size)
    right = exact(net, x, cond)
    # Groups of one number are normalised to nothing, and amplify the last bits.
    assert error(NcnnUNet(net, size)(x, cond), right) < max(
        1e-5, 20 * error(net.conditioned(x, cond), right)
    )


@pytest.mark.parametrize("t", [1, 20, 100, 300, 499])
def test_trained_weights_give_what_they_give_in_float64(t):
    net = ddim.load("mnist").net
    assert isinstance(net, UNet)
    torch.manual_seed(t)
    x, cond = torch.randn(1, 1, 28, 28), net.condition(net.embed(torch.tensor([float(t)])))
    assert error(NcnnUNet(net, (28, 28))(x, cond), exact(net, x, cond)) < 1.5e-6


def test_an_image_does_not_depend_on_its_batch(net, run):
    x, cond = inputs(net, 5, (8, 12), rows=5)
    together = run(x, cond)
    assert together.shape == (5, 2, 8, 12)
    assert together.dtype == torch.float32
    for i in range(5):
        assert torch.equal(run(x[i : i + 1], cond[i : i + 1])[0], together[i])
    assert len(run(x[:0], cond[:0])) == len(run(x[:0], cond[:1])) == 0


def test_one_row_of_the_condition_is_for_every_image(net, run):
    x, cond = inputs(net, 3, (8, 12))
    assert torch.equal(run(x, cond), run(x, cond.repeat(3, 1)))
    x, cond = inputs(net, 2, (8, 12), rows=2)
    assert not torch.equal(run(x, cond), run(x, cond[:1]))


def test_strided_inputs_are_read_as_they_are_and_kept(net, run):
    x, cond = inputs(net, 2, (12, 8), rows=2)
    x, cond = x.mT, cond.T.contiguous().T
    before = x.clone(), cond.clone()
    assert torch.equal(run(x, cond), run(x.contiguous(), cond.contiguous()))
    assert torch.equal(x, before[0])
    assert torch.equal(cond, before[1])
    assert not run(x.clone().requires_grad_(), cond).requires_grad


def test_threads_at_once_give_the_same_bits(net, run):
    x, cond = inputs(net, 16, (8, 12), rows=16)
    alone = run(x, cond)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: run(x, cond), range(40)):
            assert torch.equal(result, alone)


def test_the_weights_are_those_of_the_time_it_was_made(net):
    net = copy.deepcopy(net)
    run, (x, cond) = NcnnUNet(net, (8, 12)), inputs(net, 1, (8, 12))
    before = run(x, cond)
    for parameter in net.parameters():
        parameter.zero_()
    assert torch.equal(run(x, cond), before)
    assert not torch.equal(NcnnUNet(net, (8, 12))(x, cond), before)
    del net
    assert torch.equal(run(x, cond), before)


QUIETLY = """
import os, sys, torch
from ddim.backends.ncnn import NcnnUNet
from ddim.nets.unet import UNet, UNetConfig

torch.manual_seed(0)
net = UNet(UNetConfig(block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1))

def watch(event, arguments):
    assert not event.startswith(("socket.", "subprocess.", "os.system")), event
    assert event != "open" or isinstance(arguments[1], str) and "r" in arguments[1], arguments

sys.addaudithook(watch)
run = NcnnUNet(net, (8, 8))
with torch.no_grad():
    x, cond = torch.randn(2, 3, 8, 8), net.condition(net.embed(torch.tensor([7.0])))
before = run(x, cond)
child = os.fork()
if not child:
    os._exit(11 + torch.equal(run(x, cond), before))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 12
assert torch.equal(run(x, cond), before)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_it_says_and_writes_nothing_and_goes_on_after_a_fork():
    done = subprocess.run([sys.executable, "-c", QUIETLY], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_other_sizes_are_refused(net, run, refuses):
    for size in ((8, 9), (7, 8), (0, 8)):
        with refuses("must be multiples of 2"):
            NcnnUNet(net, size)
    x, cond = inputs(net, 2, (8, 12), rows=2)
    for wrong in (x.mT, x[:, :1], x[0], x.double(), x.to("meta")):
        with refuses("x must be float32 on the CPU, of shape"):
            run(wrong, cond[:1])
    for wrong in (cond[:, 1:], cond.repeat(2, 1), cond[:0], cond.double(), cond[..., None]):
        with refuses("cond must be float32 on the CPU, of shape"):
            run(x, wrong)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda net: net.double(), "conv_in.weight is float64, not float32"),
        (lambda net: net.to("meta"), "conv_in.weight is on meta, not on the CPU"),
        (lambda net: setattr(net.conv_out, "padding_mode", "circular"), "conv_out is .*circular"),
        (lambda net: setattr(net, "conv_in", nn.Conv2d(2, 8, 5, padding=2)), "conv_in is .*5, 5"),
        (lambda net: setattr(net, "mid_block", None), "mid_block.* is absent, and was made as"),
        (
            lambda net: net.add_module("more", nn.ReLU()),
            r"more is ReLU\(\), and was made as absent",
        ),
        (lambda net: net.register_forward_hook(print), "it has a forward hook"),
        (lambda net: net.conv_in.register_forward_pre_hook(print), "conv_in has a forward hook"),
    ],
)
def test_what_cannot_be_run_is_named(net, refuses, change, reason):
    net = copy.deepcopy(net)
    change(net)
    with refuses(reason):
        NcnnUNet(net, (8, 8))


def test_another_network_is_named_and_nothing_is_drawn(net):
    assert unsupported(nn.Conv2d(1, 1, 1)) == "it is a Conv2d, not a UNet of this library"
    before = torch.get_rng_state()
    assert unsupported(net) is None
    assert torch.equal(torch.get_rng_state(), before)


def test_without_ncnn_it_says_what_to_install(net, refuses, monkeypatch):
    monkeypatch.setitem(sys.modules, "ncnn", None)
    assert unsupported(net) is None
    with refuses("pip install 'ddim"):
        NcnnUNet(net, (8, 8))
