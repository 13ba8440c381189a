"""Checkpoints of improved-diffusion, guided-diffusion and the MNIST notebook (``docs/formats.md``).

The network is a ``UNet2DModel``, or nearly one: a number of heads that is the same at every width,
and times scaled to 0..1000, are fields of our own. What the files do not say is assumed from the
published models of the same shape.

References:
    Nichol, Dhariwal, *Improved Denoising Diffusion Probabilistic Models*, 2021,
    https://github.com/openai/improved-diffusion.
    Dhariwal, Nichol, *Diffusion Models Beat GANs on Image Synthesis*, 2021,
    https://github.com/openai/guided-diffusion.
    The notebook: https://github.com/xiaohu2015/nngen, models/diffusion_models/ddim_mnist.ipynb.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ddim.base.errors import InputError
from ddim.checkpoints.openai_layout import NOTEBOOK, OPENAI, Names, openai_config, openai_picks
from ddim.checkpoints.record import Facts, Hints, Loaded
from ddim.checkpoints.weights import Shapes, fill, unfilled
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.target import Target
from ddim.nets.unet import UNet, UNetConfig
from ddim.noise.schedule import Schedule

__all__ = ["read_openai"]


def read_openai(
    tensors: Mapping[str, Tensor],
    path: Path,
    hints: Hints,
    schedule: Schedule | None,
    names: Names,
) -> Loaded:
    """Read a flat state dict.

    Raises:
        InputError: keys or shapes that do not fit, values that are not finite, a classifier or an
            upsampler, or an image size that the tensors leave open.
    """
    if names is NOTEBOOK:
        hints.only(path, names.layout, "image_size", "heads", "head_channels", "target")
    shapes = Shapes(tensors, path, names.layout)
    config = openai_config(shapes, names, hints.image_size or 1)
    assumed = []
    if hints.image_size is None:
        config = dataclasses.replace(config, sample_size=_image_size(config, shapes, names))
        assumed.append(f"image_size {config.sample_size}")
    published = _Published.like(config, names)
    if schedule is None:
        schedule = published.schedule
        shown = {k: v for k, v in schedule.spec.items() if k in ("kind", "T")}
        assumed.append(f"schedule {shown['kind']}, T={shown['T']}")
    attention, said = _attention(config, hints, published)
    scale, told = _time_scale(config, hints, schedule, names)
    config = shapes.config(**{**_fields(config), **attention, "time_scale": scale})
    order = hints.qkv_order or published.qkv_order
    if hints.qkv_order is None and names is OPENAI:
        said += f", qkv_order {order}"
    assumed += [text for text in (said.strip(", "), told) if text]

    net = unfilled(lambda: UNet(config))
    fill(net, tensors, path, names.layout, openai_picks(net, names, whole=order == "whole"))
    return Loaded(
        net,
        schedule,
        Target.named(hints.target or "eps"),
        (config.in_channels, config.sample_size, config.sample_size),
        config.num_class_embeds,
        Clipping("clip"),
        Facts(
            source=published.name,
            learned_variance=config.out_channels != config.in_channels,
            assumed=tuple(assumed),
        ),
    )


def _image_size(config: UNetConfig, shapes: Shapes, names: Names) -> int:
    """One attending level attends at 16 pixels; of several, the deepest attends at 8."""
    levels = [i for i, kind in enumerate(config.down_block_types) if kind.startswith("Attn")]
    if levels:
        return (16 if len(levels) == 1 else 8) * 2 ** levels[-1]
    if names is NOTEBOOK and config.in_channels == 1:
        return 28
    raise InputError(
        f"{shapes.path} attends at no level, so its image size cannot be told: give image_size"
    )


@dataclasses.dataclass(frozen=True)
class _Published:
    """What the published models of a kind have that their files do not say."""

    name: str
    schedule: Schedule
    heads: int | None = None
    head_channels: int | None = None
    qkv_order: str = "head"

    @classmethod
    def like(cls, config: UNetConfig, names: Names) -> _Published:
        """Those that are nearest to a network; see the table in ``docs/formats.md``."""
        size = config.sample_size
        if names is NOTEBOOK:
            return cls("MNIST notebook", Schedule.linear(500, scaled=True), heads=4)
        if config.downsample_type == "conv":
            if size > 64:
                return cls("improved-diffusion", Schedule.linear(1000), heads=1)
            return cls("improved-diffusion", Schedule.cosine(4000), heads=4)
        name = "guided-diffusion"
        if size <= 64:
            return cls(name, Schedule.cosine(1000), head_channels=64, qkv_order="whole")
        if size == 128:
            return cls(name, Schedule.linear(1000), heads=4)
        return cls(name, Schedule.linear(1000), head_channels=64)


def _attention(
    config: UNetConfig, hints: Hints, published: _Published
) -> tuple[dict[str, Any], str]:
    """The fields that say how attention is split, and what was assumed for them."""
    heads, channels, said = hints.heads, hints.head_channels, ""
    if heads is None and channels is None:
        heads, channels = published.heads, published.head_channels
        said = f"heads {heads}" if heads is not None else f"head_channels {channels}"
    if heads is None:
        return {"attention_head_dim": channels}, said
    widths = {
        config.block_out_channels[-1],
        *(
            width
            for width, kind in zip(config.block_out_channels, config.down_block_types, strict=True)
            if kind.startswith("Attn")
        ),
    }
    if len(widths) > 1 or widths.pop() % heads:
        return {"attention_heads": heads}, said
    return {"attention_head_dim": config.block_out_channels[-1] // heads}, said


def _time_scale(
    config: UNetConfig, hints: Hints, schedule: Schedule, names: Names
) -> tuple[float, str]:
    """improved-diffusion scales times to 0..1000, but its class-conditional model does not."""
    if schedule.T == 1000:
        return 1.0, ""
    rescale, said = hints.rescale_times, ""
    if rescale is None:
        improved = names is OPENAI and config.downsample_type == "conv"
        rescale = improved and not config.has_classes
        said = f"rescale_times {rescale}" if names is OPENAI else ""
    return (1000 / schedule.T if rescale else 1.0), said


def _fields(config: UNetConfig) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
