"""Checkpoints of denoising-diffusion-pytorch's trainer (``docs/formats.md``, section 6).

References:
    Wang, *Denoising Diffusion Probabilistic Model, in Pytorch*, 2020,
    https://github.com/lucidrains/denoising-diffusion-pytorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from ddim.base.errors import InputError
from ddim.checkpoints.record import Facts, Hints, Loaded
from ddim.checkpoints.weights import Shapes, fill, unfilled
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.target import Target
from ddim.nets.lucid import LucidConfig, LucidUnet
from ddim.noise.schedule import Schedule

__all__ = ["lucid_config", "read_lucid"]

LAYOUT = "the denoising-diffusion-pytorch layout"
_GROUPS = 8


def read_lucid(
    tensors: Mapping[str, Tensor], path: Path, hints: Hints, schedule: Schedule | None
) -> Loaded:
    """Read the state dict of a GaussianDiffusion, or of its Unet alone.

    The schedule is in the first, and what the network predicts can be told from its loss weights.

    Raises:
        InputError: keys or shapes that do not fit, values that are not finite, an older version, a
            network that is conditioned on its own prediction or on random features.
    """
    hints.only(path, LAYOUT, "image_size", "target")
    prefix = "model." if "model.init_conv.weight" in tensors else ""
    weights = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    buffers = {k: v for k, v in tensors.items() if prefix and not k.startswith(prefix)}
    config = lucid_config(Shapes(weights, path, LAYOUT))
    assumed = []
    if schedule is None and "betas" in buffers:
        try:
            schedule = Schedule.from_betas(buffers["betas"].double().numpy())
        except InputError as error:
            raise InputError(f"{path}: betas: {error}") from None
    elif schedule is None:
        schedule = Schedule.sigmoid(1000)
        assumed.append("schedule sigmoid, T=1000")
    target = hints.target or _target(buffers)
    if target is None:
        target = "v"
        assumed.append("target v")
    size = hints.image_size
    if size is None:
        size = 28 if config.channels == 1 and len(config.widths) <= 4 else 128
        assumed.append(f"image_size {size}")
    if config.group_norm is not None:
        assumed.append(f"{config.group_norm} groups a normalisation")
    net = unfilled(lambda: LucidUnet(config))
    fill(net, weights, path, LAYOUT)
    return Loaded(
        net,
        schedule,
        Target.named(target),
        (config.channels, size, size),
        None,
        Clipping("clip"),
        Facts(
            source="denoising-diffusion-pytorch",
            learned_variance=config.out_channels != config.channels,
            assumed=tuple(assumed),
        ),
    )


def lucid_config(shapes: Shapes) -> LucidConfig:
    """The architecture, from the shapes of the tensors.

    Raises:
        InputError: a key that is missing, or a variant that is not supported.
    """
    levels = shapes.count(r"downs\.(\d+)\.")
    if "downs.0.2.mem_kv" not in shapes:
        raise InputError(
            f"{shapes.path} is of denoising-diffusion-pytorch before 1.9, or of no version: "
            "downs.0.2.mem_kv is missing; 1.9 to 2.3 are understood"
        )
    if "time_mlp.0.weights" in shapes:
        raise InputError(
            f"{shapes.path}: time_mlp.0.weights: random or learned time features are not supported"
        )
    channels, out = shapes("init_conv.weight")[1], shapes("final_conv.weight")[0]
    if channels == 2 * out:
        raise InputError(
            f"{shapes.path}: init_conv.weight takes {channels} channels for {out}: it was trained "
            "with self-conditioning, on its own last prediction, which no sampler here gives it"
        )
    channels, out = shapes.channels("init_conv.weight", "final_conv.weight", learned=True)
    full = tuple(f"downs.{i}.2.to_out.weight" in shapes for i in range(levels))
    heads, widths = [], []
    for i in range(levels):
        heads.append(shapes(f"downs.{i}.2.mem_kv")[1])
        widths.append(shapes(f"downs.{i}.2.to_qkv.weight")[0] // (3 * heads[-1]))
    ends = [shapes(f"downs.{i}.3.{'1.' if i < levels - 1 else ''}weight")[0] for i in range(levels)]
    try:
        return LucidConfig(
            channels,
            out,
            shapes("time_mlp.1.weight")[1],
            (shapes("init_conv.weight")[0], *ends),
            full,
            tuple(heads),
            tuple(widths),
            shapes("downs.0.2.mem_kv")[2 if full[0] else 3],
            None if "downs.0.0.block1.norm.g" in shapes else _GROUPS,
        )
    except InputError as error:
        raise InputError(f"{shapes.path} does not fit {LAYOUT}: {error}") from None


def _target(buffers: Mapping[str, Tensor]) -> str | None:
    """What is predicted, from the weights of the loss, which are kept with the schedule.

    Where the signal is weaker than the noise, clipped or not, the weight of a squared error is 1
    for eps, the signal-to-noise ratio for x0 and snr/(snr + 1) for v.
    """
    if "loss_weight" not in buffers or "alphas_cumprod" not in buffers:
        return None
    weight = buffers["loss_weight"].double().numpy()
    alpha_bar = buffers["alphas_cumprod"].double().numpy()
    snr = alpha_bar / (1 - alpha_bar)
    low = (snr < 0.9) & (snr > 1e-4)
    for name, expected in (("eps", np.ones_like(snr)), ("x0", snr), ("v", snr / (snr + 1))):
        if low.any() and np.allclose(weight[low], expected[low], rtol=1e-2, atol=0):
            return name
    return None
