"""The network of most tests: two widths on 8 x 8 pixels, untrained."""

from __future__ import annotations

from typing import Any

import torch

from ddim.nets.unet import UNet, UNetConfig


def tiny_config(
    classes: int | None = None, *, attention: bool = False, **changes: Any
) -> UNetConfig:
    """Its configuration; with classes the label after the last stands for none.

    Args:
        classes: how many.
        attention: at the lower resolution too, in heads of 8 channels.
        changes: other fields, by name.
    """
    kind = "Attn" if attention else ""
    values: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", f"{kind}DownBlock2D"),
        "up_block_types": (f"{kind}UpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 8 if attention else None,
        "num_class_embeds": None if classes is None else classes + 1,
    }
    return UNetConfig(**(values | changes))


def tiny_unet(
    classes: int | None = None, *, attention: bool = False, seed: int = 0, **changes: Any
) -> UNet:
    """The network in evaluation mode, its weights drawn from the seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return UNet(tiny_config(classes, attention=attention, **changes)).eval()
