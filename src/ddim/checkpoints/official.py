"""Checkpoints of the official DDIM and DDPM code in PyTorch (``docs/formats.md``, section 2).

The network is a ``UNet2DModel``, so the weights are renamed and no new network is needed.

References:
    Song, Meng, Ermon, *Denoising Diffusion Implicit Models*, 2020,
    https://github.com/ermongroup/ddim.
    Esser, *PyTorch pretrained Diffusion Models*, 2020, https://github.com/pesser/pytorch_diffusion.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ddim.base.errors import InputError
from ddim.checkpoints.record import Facts, Hints, Loaded
from ddim.checkpoints.weights import Pick, Shapes, fill, unfilled
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.target import Target
from ddim.nets.unet import UNet, UNetConfig
from ddim.noise.schedule import Schedule

__all__ = ["official_config", "official_picks", "read_official"]

LAYOUT = "the official DDIM layout"
_ATTENDED = 16
"""The resolution that all official networks attend at."""

_NAMES = {
    "time_embedding.linear_1": "temb.dense.0",
    "time_embedding.linear_2": "temb.dense.1",
    "conv_in": "conv_in",
    "conv_norm_out": "norm_out",
    "conv_out": "conv_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.1": "mid.block_2",
}
_PARTS = {
    "time_emb_proj": "temb_proj",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def read_official(
    tensors: Mapping[str, Tensor], path: Path, hints: Hints, schedule: Schedule | None
) -> Loaded:
    """Read a flat state dict.

    Raises:
        InputError: keys or shapes that do not fit, values that are not finite, or an image size
            that the tensors leave open.
    """
    hints.only(path, LAYOUT, "image_size", "target")
    assumed = []
    if schedule is None:
        schedule = Schedule.linear(1000)
        assumed.append("schedule linear, β from 0.0001 to 0.02, T=1000")
    config = official_config(Shapes(tensors, path, LAYOUT), hints.image_size)
    if hints.image_size is None:
        assumed.append(f"image_size {config.sample_size}, so that it attends at 16 × 16")
    net = unfilled(lambda: UNet(config))
    fill(net, tensors, path, LAYOUT, official_picks(net))
    return Loaded(
        net,
        schedule,
        Target.named(hints.target or "eps"),
        (config.in_channels, config.sample_size, config.sample_size),
        None,
        Clipping(),
        Facts(source="official DDIM", assumed=tuple(assumed)),
    )


def official_config(shapes: Shapes, image_size: int | None) -> UNetConfig:
    """The architecture, from the shapes of the tensors.

    Raises:
        InputError: a key that is missing, or an image size that the tensors leave open.
    """
    levels = shapes.count(r"down\.(\d+)\.")
    blocks = shapes.count(r"down\.0\.block\.(\d+)\.")
    widths = tuple(shapes(f"down.{i}.block.0.conv1.weight")[0] for i in range(levels))
    attends = [f"down.{i}.attn.0.q.weight" in shapes for i in range(levels)]
    if image_size is None:
        if not any(attends):
            raise InputError(
                f"{shapes.path} attends at no level, so its image size cannot be told: give "
                "image_size"
            )
        image_size = _ATTENDED * 2 ** max(i for i, attended in enumerate(attends) if attended)
    channels = shapes.channels("conv_in.weight", "conv_out.weight", learned=False)[0]
    return shapes.config(
        sample_size=image_size,
        in_channels=channels,
        out_channels=channels,
        freq_shift=1,
        flip_sin_to_cos=False,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        block_out_channels=widths,
        layers_per_block=blocks,
        downsample_padding=0,
        attention_head_dim=None,
        norm_eps=1e-6,
    )


def official_picks(net: UNet) -> dict[str, Pick]:
    """Where each parameter of the network is in an official file."""
    levels = len(net.config.block_out_channels)
    picks = {}
    for key in net.state_dict():
        name, _, kind = key.rpartition(".")
        attention = "attentions" in key and "group_norm" not in key and kind == "weight"
        picks[key] = Pick(f"{_name(name, levels)}.{kind}", tail=2 if attention else 0)
    return picks


def _name(name: str, levels: int) -> str:
    """The official name of a module: levels are counted by resolution on both ways."""
    for own, theirs in _NAMES.items():
        if name == own:
            return theirs
        if name.startswith(f"{own}."):
            return f"{theirs}.{_part(name[len(own) + 1 :])}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    assert match is not None, name
    way, level, kind, i, rest = match.groups()
    place = f"{way}.{level if way == 'down' else levels - 1 - int(level)}"
    if kind.endswith("samplers"):
        return f"{place}.{kind.removesuffix('rs')}.{rest}"
    return f"{place}.{'block' if kind == 'resnets' else 'attn'}.{i}.{_part(rest)}"


def _part(part: str) -> str:
    return _PARTS.get(part, part)
