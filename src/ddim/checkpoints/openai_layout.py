"""The names and shapes of improved-diffusion, guided-diffusion and the MNIST notebook.

The three share one structure under two sets of names: blocks counted through all levels, query, key
and value in one projection (``docs/formats.md``, sections 3 to 5).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from ddim.base.errors import InputError
from ddim.checkpoints.weights import Pick, Shapes
from ddim.nets.unet import UNet, UNetConfig

__all__ = ["NOTEBOOK", "OPENAI", "Names", "openai_config", "openai_picks"]


@dataclasses.dataclass(frozen=True)
class Names:
    """What a layout calls the parts that the three have in common."""

    layout: str
    down: str
    up: str
    resnet: Mapping[str, str]
    projection: str
    """The last map of an attention block."""
    tail: int
    """Trailing dimensions of the 1×1 convolutions of an attention block."""
    qkv_bias: bool


OPENAI = Names(
    "the improved-diffusion and guided-diffusion layout",
    "input_blocks",
    "output_blocks",
    {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    },
    "proj_out",
    tail=1,
    qkv_bias=True,
)
NOTEBOOK = Names(
    "the MNIST notebook's layout",
    "down_blocks",
    "up_blocks",
    {
        "norm1": "conv1.0",
        "conv1": "conv1.2",
        "time_emb_proj": "time_emb.1",
        "norm2": "conv2.0",
        "conv2": "conv2.3",
        "conv_shortcut": "shortcut",
    },
    "proj",
    tail=2,
    qkv_bias=False,
)
_NAMES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "label_emb",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_THIRDS = {"to_q": 0, "to_k": 1, "to_v": 2}


def openai_config(shapes: Shapes, names: Names, image_size: int) -> UNetConfig:
    """The architecture, from the names and shapes of the tensors; one attention head.

    Upsampling is the last layer of its block, so the first block that has it tells how many
    residual blocks a level has.

    Raises:
        InputError: a classifier or an upsampler, a key that is missing, shapes of no network.
    """
    if not any(key.startswith(f"{names.up}.") for key in shapes.tensors):
        raise InputError(
            f"{shapes.path} is a classifier, the encoder half of a network: it draws no images"
        )
    if names is OPENAI and shapes(f"{names.down}.0.0.weight")[1] == 6:
        raise InputError(
            f"{shapes.path} takes 6 channels: it is an upsampler, which needs a small image beside "
            "the noise and cannot be sampled alone"
        )
    entries = shapes.count(rf"{names.up}\.(\d+)\.")
    conv1 = names.resnet["conv1"]
    ends = [
        n
        for n in range(entries)
        if any(
            f"{names.up}.{n}.{i}.{part}.weight" in shapes
            for i in (1, 2)
            for part in ("conv", conv1)
        )
    ]
    blocks = ends[0] if ends else entries - 1
    levels, rest = divmod(entries, blocks + 1)
    if rest or blocks < 1:
        raise InputError(
            f"{shapes.path} does not fit {names.layout}: {entries} {names.up} cannot be levels of "
            f"{blocks + 1}"
        )
    starts = [1 + level * (blocks + 1) for level in range(levels)]
    widths = [shapes(f"{names.down}.{n}.0.{conv1}.weight")[0] for n in starts]
    attends = [f"{names.down}.{n}.1.qkv.weight" in shapes for n in starts]
    projected = shapes(f"{names.down}.1.0.{names.resnet['time_emb_proj']}.weight")[0]
    width, features = shapes("time_embed.0.weight")
    resample = "conv"
    if levels > 1 and f"{names.down}.{blocks + 1}.0.{conv1}.weight" in shapes:
        resample = "resnet"
    channels, out = shapes.channels(f"{names.down}.0.0.weight", "out.2.weight", learned=True)
    plain = "Resnet{}sampleBlock2D" if resample == "resnet" else "{}Block2D"
    return shapes.config(
        sample_size=image_size,
        in_channels=channels,
        out_channels=out,
        time_embedding_dim=None if width == 4 * widths[0] else width,
        time_features=None if features == widths[0] else features,
        down_block_types=tuple("AttnDownBlock2D" if a else plain.format("Down") for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else plain.format("Up") for a in attends[::-1]),
        block_out_channels=tuple(widths),
        layers_per_block=blocks,
        downsample_type=resample,
        upsample_type=resample,
        attention_head_dim=None,
        attn_norm_num_groups=32,
        resnet_time_scale_shift="scale_shift" if projected == 2 * widths[0] else "default",
        num_class_embeds=shapes("label_emb.weight")[0] if "label_emb.weight" in shapes else None,
    )


def openai_picks(net: UNet, names: Names, *, whole: bool = False) -> dict[str, Pick]:
    """Where each parameter of the network is in a file.

    Args:
        net: the network.
        names: the layout.
        whole: all queries come first in a joint projection, not head by head.
    """
    blocks = net.config.layers_per_block
    modules = dict(net.named_modules())
    picks = {}
    for key in net.state_dict():
        name, _, kind = key.rpartition(".")
        if name.rpartition(".")[2] in _THIRDS:
            name, _, part = name.rpartition(".")
            heads = 1 if whole else int(modules[name].heads)  # pyright: ignore[reportArgumentType]
            place = f"{_place(name, blocks, names, net)}.qkv.{kind}"
            tail = names.tail if kind == "weight" else 0
            absent = kind == "bias" and not names.qkv_bias
            picks[key] = Pick(None if absent else place, tail, _THIRDS[part], heads)
        else:
            tail = names.tail if name.endswith("to_out.0") and kind == "weight" else 0
            picks[key] = Pick(f"{_place(name, blocks, names, net)}.{kind}", tail)
    return picks


def _place(name: str, blocks: int, names: Names, net: UNet) -> str:
    """The file's name of a module."""
    if name == "conv_in":
        return f"{names.down}.0.0"
    for own, theirs in _NAMES.items():
        if name == own:
            return theirs
        if name.startswith(f"{own}."):
            return f"{theirs}.{_part(name[len(own) + 1 :], names)}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)(?:\.(.+))?", name)
    assert match is not None, name
    way, level, kind, i, part = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if kind == "downsamplers":
        last = {"conv": "op"}.get(part, _part(part, names))
        return f"{names.down}.{(level + 1) * (blocks + 1)}.0.{last}"
    if kind == "upsamplers":
        layer = 2 if net.config.up_block_types[level].startswith("Attn") else 1
        return f"{names.up}.{level * (blocks + 1) + blocks}.{layer}.{_part(part, names)}"
    n = level * (blocks + 1) + i + (way == "down")
    place = f"{names.down if way == 'down' else names.up}.{n}.{int(kind == 'attentions')}"
    return f"{place}.{_part(part, names)}" if part else place


def _part(part: str, names: Names) -> str:
    return {**names.resnet, "group_norm": "norm", "to_out.0": names.projection}.get(part, part)
