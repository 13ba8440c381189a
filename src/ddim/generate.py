"""Drawing images: tiles of a fixed size through the loop, so that image i is always image i."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ddim.denoiser import NetworkDenoiser
from ddim.errors import InputError
from ddim.integrate import Step, integrate
from ddim.methods import make_tableau
from ddim.nodes import make_nodes
from ddim.noise import Noise
from ddim.pipeline import Pipeline
from ddim.tableau import Tableau

__all__ = ["Drawn", "default_tile", "generate", "sample"]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One step of one tile.

    Attributes:
        indices: the images of the tile that were asked for; the rest of it is padding.
        step: the step; its states have ``tile`` images.
        images: the tile's images, shape (len(indices), C, H, W) in [-1, 1], after its last step.
    """

    indices: tuple[int, ...]
    step: Step
    images: Tensor | None


def default_tile(shape: Sequence[int], device: torch.device) -> int:
    """How many images pass through the network together.

    On a CPU 8 up to 64 × 64 pixels, else 1; on a GPU what fills it. Recorded with every output,
    because it decides the last bits of a convolution.
    """
    pixels = math.prod(shape[1:])
    if device.type == "cpu":
        return 8 if pixels <= 64 * 64 else 1
    return max(1, min(512, 512 * 32 * 32 // pixels))


def generate(
    pipeline: Pipeline,
    tableau: Tableau,
    indices: Sequence[int],
    *,
    seed: int = 0,
    labels: Sequence[int] | None = None,
    guidance: float = 1.0,
    clip: bool | None = None,
    tile: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Drawn]:
    """Draw images, yielding after every step of every tile.

    Image i depends on the seed, i and its label alone, given equal ``tile``, device and threads:
    the network always sees ``tile`` images, the last time filled up with padding.

    Args:
        pipeline: the model.
        tableau: the sampler.
        indices: which images of the seed, such as ``range(64)``.
        seed: of the noise.
        labels: one for each image, or None for a model without classes.
        guidance: classifier-free guidance scale; 1 is none.
        clip: clip x0 to [-1, 1]; None for the model's own habit.
        tile: images in one network call; None for :func:`default_tile`.
        dtype: of the states.

    Raises:
        InputError: numbers out of range, labels that do not fit; at once, before the first step.
    """
    n = len(indices)
    if n < 1:
        raise InputError(f"the number of images must be at least 1, not {n}")
    size = default_tile(pipeline.shape, pipeline.device) if tile is None else tile
    if size < 1:
        raise InputError(f"tile must be at least 1, not {size}")
    label_tensor = _labels(pipeline, labels, n)
    pipeline.denoiser(label_tensor, guidance, clip)
    Noise(seed, indices, pipeline.shape)

    def drawn() -> Iterator[Drawn]:
        device = pipeline.device
        network = NetworkDenoiser(pipeline.net, pipeline.target)
        start = tableau.initial[0].level
        spread = (start.alpha**2 + start.sigma**2) ** 0.5
        for offset in range(0, n, size):
            count = min(size, n - offset)
            wanted = [*indices[offset : offset + count]]
            padded = wanted + wanted[-1:] * (size - count)
            noise = Noise(seed, padded, pipeline.shape, device, dtype)
            tile_labels = None
            if label_tensor is not None:
                tile_labels = label_tensor[offset : offset + count]
                padding = tile_labels[-1:].expand(size - count)
                tile_labels = torch.cat([tile_labels, padding]).to(device)
            denoiser = pipeline.denoiser(tile_labels, guidance, clip, network=network)
            x = noise(0).mul_(spread)
            for step in integrate(denoiser, tableau, x, noise):
                images = step.outputs[0][:count] if step.outputs else None
                yield Drawn(tuple(wanted), step, images)

    return drawn()


def _labels(pipeline: Pipeline, labels: Sequence[int] | None, n: int) -> Tensor | None:
    if labels is None:
        return None
    if pipeline.classes is None:
        raise InputError(f"{pipeline.name} has no classes, so labels mean nothing to it")
    if len(labels) != n:
        raise InputError(f"{len(labels)} labels were given for {n} images")
    allowed = range(pipeline.classes)
    for label in labels:
        if label not in allowed and label != pipeline.null_label:
            raise InputError(f"labels are from 0 to {pipeline.classes - 1}, not {label}")
    return torch.tensor(list(labels))


def sample(
    pipeline: Pipeline,
    n: int = 64,
    *,
    steps: int | None = 50,
    method: str = "ddim",
    nodes: str | Sequence[int] = "uniform",
    eta: float | None = None,
    seed: int = 0,
    labels: int | Sequence[int] | None = None,
    guidance: float = 1.0,
    clip: bool | None = None,
    tile: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Draw images.

    Args:
        pipeline: as :func:`ddim.load` returns it.
        n: how many.
        steps: S, from 1 to T; None for T, or for the length of an explicit node list.
        method: see :data:`ddim.METHODS`.
        nodes: a family's name (see :data:`ddim.NODES`) or the nodes themselves.
        eta: DDIM's η.
        seed: image i of a seed is always the same image.
        labels: one class for all, or one for each image; None lets a class-conditional model
            take the classes in turn.
        guidance: classifier-free guidance scale; 1 is none.
        clip: clip the predicted x0 to [-1, 1]; None for the model's own habit.
        tile: images in one network call.
        progress: show a bar on stderr.

    Returns:
        float32 on the CPU, shape (n, C, H, W), nominally in [-1, 1].

    Raises:
        InputError: anything out of range or unknown; the message says what would be right.

    Example:
        >>> import ddim
        >>> ddim.sample(ddim.load("mnist"), n=2, steps=2).shape
        torch.Size([2, 1, 28, 28])
    """
    if isinstance(labels, int):
        labels = [labels] * n
    if labels is None and pipeline.classes is not None:
        labels = [i % pipeline.classes for i in range(n)]
    explicit = not isinstance(nodes, str)
    listed = make_nodes(pipeline.schedule, nodes, None if explicit else steps)
    options = {} if eta is None else {"eta": eta}
    tableau = make_tableau(pipeline.schedule, listed, method, **options)
    drawn = generate(
        pipeline,
        tableau,
        range(n),
        seed=seed,
        labels=labels,
        guidance=guidance,
        clip=clip,
        tile=tile,
    )
    if progress:
        from tqdm import tqdm

        size = default_tile(pipeline.shape, pipeline.device) if tile is None else tile
        drawn = tqdm(drawn, total=-(-n // size) * len(tableau.rows), unit="step")
    parts = [event.images.to("cpu", torch.float32) for event in drawn if event.images is not None]
    return torch.cat(parts)
