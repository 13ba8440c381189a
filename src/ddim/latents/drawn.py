"""The noise that images of a seed are drawn from, as their latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ddim.latents.coding import codec_nodes
from ddim.latents.record import Latents
from ddim.model.condition import Condition
from ddim.model.drawing import pick_batch_size
from ddim.model.model import Model
from ddim.noise.draws import Noise

__all__ = ["drawn_latents"]


def drawn_latents(
    model: Model,
    images: Sequence[int],
    *,
    seed: int = 0,
    codec: str = "ddim",
    steps: int | None = None,
    nodes: str | Sequence[int] | None = None,
    condition: Condition | None = None,
    batch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Latents:
    """What :func:`ddim.sample` starts from, at the size of its noise: latents without an encoding.

    Args:
        model: the model.
        images: which of the seed's.
        seed: of the noise.
        codec: one whose latents are a single state.
        steps: of the codec.
        nodes: a family's name, or the nodes themselves.
        condition: of these images, one row for each.
        batch_size: with which they are to be decoded; None for the default.
        dtype: of the tensors.

    Returns:
        latents whose one tensor is on the CPU, of shape (len(images), C, H, W).

    Raises:
        InputError: numbers out of range, or a condition that does not fit.

    Example:
        >>> import ddim
        >>> latents = drawn_latents(ddim.load("mnist"), [0, 3], steps=10)
        >>> latents.tensors[0].shape
        torch.Size([2, 1, 28, 28])
    """
    listed = codec_nodes(model, codec, steps, nodes)
    spread = model.schedule.level(listed[0]).spread
    noise = Noise(seed, images, model.shape, model.device, dtype)(0)
    return Latents(
        ((spread * noise).cpu(),),
        codec,
        listed,
        model.name,
        model.identity,
        pick_batch_size(model, batch_size),
        Condition.of(condition).check(model, len(images)),
        backend=model.runs_on,
        schedule=model.schedule.spec,
    )
