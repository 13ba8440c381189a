"""The training loop: a generator of steps that knows no files.

Step n is a pure function of (state before it, configuration, n): the order of the data, the noise,
the noise levels, the flips and the dropped labels are all derived from the seed and n. So a run
that is resumed from any checkpoint goes on to the same bits.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ddim.base.errors import InputError, RunError
from ddim.denoisers.target import Target
from ddim.noise.draws import derive
from ddim.noise.schedule import Schedule
from ddim.train.config import TrainConfig
from ddim.train.loss import diffusion_loss, draw_nodes, loss_weights
from ddim.train.muon import Muon

__all__ = ["TensorData", "TrainState", "TrainStep", "Trainable", "fit", "order"]

Network = Callable[[Tensor, Tensor], Tensor]
Loss = Callable[[Network, Tensor, Tensor, Tensor, Schedule], Tensor]


class Trainable(Protocol):
    """The images that training reads: as :class:`ddim.data.base.ImageData`, already in [-1, 1]."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Tensor:
        """Images at the indices, float32 in [-1, 1], shape (B, C, H, W)."""
        ...

    def labels(self, indices: Tensor) -> Tensor | None:
        """Class indices, int64 of shape (B,), or None."""
        ...


@dataclasses.dataclass(frozen=True)
class TensorData:
    """Images that are already tensors.

    Attributes:
        images: float32 in [-1, 1], shape (N, C, H, W).
        targets: class indices, int64 of shape (N,), or None.
    """

    images: Tensor
    targets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> Tensor:
        """Images at the indices."""
        return self.images[indices]

    def labels(self, indices: Tensor) -> Tensor | None:
        """Class indices at the indices, or None."""
        return None if self.targets is None else self.targets[indices]


@dataclasses.dataclass
class TrainState:
    """What a step changes: the network, its moving average, the optimizer, how many steps."""

    net: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0

    @classmethod
    def start(cls, net: nn.Module, config: TrainConfig) -> TrainState:
        """The state before the first step, for any network; it is trained in place."""
        average = copy.deepcopy(net).requires_grad_(False).eval()
        settings: dict[str, Any] = {
            "lr": config.lr,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": config.weight_decay,
            "fused": next(net.parameters()).device.type in ("cpu", "cuda"),
        }
        if config.optimizer == "muon":
            return cls(net, average, Muon(net, **settings))
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        return cls(net, average, kind(net.parameters(), **settings))


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """One step done: its number (from 1), its loss, the gradient's norm and the learning rate."""

    step: int
    loss: float
    grad_norm: float
    lr: float


def order(seed: int, length: int, start: int, count: int) -> Tensor:
    """Which images make up positions ``start .. start+count`` of an endless shuffled stream.

    Every epoch is its own permutation of all images; batches run on across epochs, so that no
    image is left out.

    Returns:
        int64 of shape (count,).
    """
    parts = []
    while count > 0:
        epoch, offset = divmod(start, length)
        generator = torch.Generator().manual_seed(derive(seed, 0, epoch))
        part = torch.randperm(length, generator=generator)[offset : offset + count]
        parts.append(part)
        start += len(part)
        count -= len(part)
    return torch.cat(parts)


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of that step (from 0): a linear rise, a plateau, a linear fall to zero.

    Both are shortened alike in a run that is too short for them, so that it reaches the rate.
    """
    seen, total = step * config.batch_size, config.steps * config.batch_size
    shrink = min(1.0, total / max(1, config.warmup_images + config.decay_images))
    rising, falling = (
        max(shrink * images, config.batch_size)
        for images in (config.warmup_images, config.decay_images)
    )
    rise = min(1.0, (seen + config.batch_size) / rising)
    fall = min(1.0, (total - seen) / falling)
    return config.lr * min(rise, fall)


def ema_decay(limit: float, step: int) -> float:
    """The moving average's decay at that step (from 0): it forgets the first weights quickly."""
    return min(limit, (1 + step) / (10 + step))


def fit(
    state: TrainState,
    data: Trainable,
    schedule: Schedule,
    config: TrainConfig,
    null_label: int = 0,
    loss: Loss | None = None,
) -> Iterator[TrainStep]:
    """Train from ``state.step`` to ``config.steps``, yielding after each step.

    The caller decides what to log, when to save and when to stop; between two steps the state is
    whole. ``state`` is changed in place.

    Args:
        state: networks and optimizer, on the device to train on; ``net`` is called as
            ``net(x, t)`` or, class-conditional, ``net(x, t, labels)``.
        data: the images.
        schedule: the noise schedule.
        config: batch size, learning rate, target, seed and so on.
        null_label: the label that stands for 'no class', where ``config.classes``.
        loss: called as ``loss(network, x0, k, noise, schedule)`` with what
            :func:`~ddim.train.loss.diffusion_loss` takes; returns each image's loss, shape (B,).
            None for that loss itself, with the target and the weighting of ``config``, which no
            other loss looks at.

    Raises:
        InputError: no images, or classes asked for and no labels.
        RunError: the loss is no longer finite.
    """
    if len(data) == 0:
        raise InputError("there are no images to train on")
    if loss is None:
        target = Target.named(config.target)
        weights = loss_weights(schedule, target, config.weighting, config.gamma)
        loss = functools.partial(diffusion_loss, target=target, weights=weights)
    device = next(state.net.parameters()).device
    parameters = [p for p in state.net.parameters() if p.requires_grad]
    pairs = zip(state.ema.state_dict().values(), state.net.state_dict().values(), strict=True)
    # A weight that has several names is averaged once.
    averaged = list({average.data_ptr(): (average, new) for average, new in pairs}.values())
    state.net.train()
    stream = _Stream(config.seed, len(data))

    while state.step < config.steps:
        n = state.step
        indices = stream.take(n * config.batch_size, config.batch_size)
        batch = _draw(data, indices, n, schedule, config, null_label, device)
        lr = learning_rate(config, n)
        for group in state.optimizer.param_groups:
            group["lr"] = lr

        def network(x: Tensor, t: Tensor, labels: tuple[Tensor, ...] = batch.labels) -> Tensor:
            with torch.autocast(
                device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"
            ):
                return state.net(x, t, *labels)

        # The network's own randomness, such as dropout, comes from torch's global generators.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(derive(config.seed, 2, n))
            mean = loss(network, batch.images, batch.k, batch.noise, schedule).mean()
            mean.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip or float("inf"))
        value = mean.item()
        if not (math.isfinite(value) and math.isfinite(norm.item())):
            raise RunError(
                f"the loss is no longer finite at step {n + 1}: try a lower lr or a longer warm-up"
            )
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        _average(averaged, ema_decay(config.ema, n))
        state.step = n + 1
        yield TrainStep(n + 1, value, norm.item(), lr)


class _Stream:
    """:func:`order` with the current epoch kept."""

    def __init__(self, seed: int, length: int) -> None:
        self.seed, self.length = seed, length
        self.epoch, self.shuffled = -1, torch.empty(0, dtype=torch.long)

    def take(self, start: int, count: int) -> Tensor:
        epoch, offset = divmod(start, self.length)
        if offset + count > self.length:
            return order(self.seed, self.length, start, count)
        if epoch != self.epoch:
            self.epoch = epoch
            self.shuffled = order(self.seed, self.length, epoch * self.length, self.length)
        return self.shuffled[offset : offset + count]


@dataclasses.dataclass(frozen=True)
class _Batch:
    images: Tensor
    k: Tensor
    noise: Tensor
    labels: tuple[Tensor, ...]


def _draw(
    data: Trainable,
    indices: Tensor,
    n: int,
    schedule: Schedule,
    config: TrainConfig,
    null_label: int,
    device: torch.device,
) -> _Batch:
    """Everything random about step n, but for the network's own dropout."""
    # What is small is drawn on the CPU, the noise where it is used.
    generator = torch.Generator().manual_seed(derive(config.seed, 1, n))
    images = data.batch(indices)
    k = draw_nodes(
        len(images), schedule.T, generator, antithetic=config.antithetic, focus=config.focus
    )
    if config.flip:
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    labels: tuple[Tensor, ...] = ()
    if config.classes:
        given = data.labels(indices)
        if given is None:
            raise InputError("training with classes needs data with labels")
        dropped = torch.rand(len(images), generator=generator) < config.label_dropout
        labels = (torch.where(dropped, null_label, given).to(device),)
    if device.type != "cpu":
        generator = torch.Generator(device).manual_seed(derive(config.seed, 1, n))
    images = images.to(device, non_blocking=True)
    noise = torch.randn(images.shape, generator=generator, device=device)
    return _Batch(images, k.to(device), noise, labels)


@torch.no_grad()
def _average(pairs: list[tuple[Tensor, Tensor]], decay: float) -> None:
    floats = [(a, b) for a, b in pairs if a.is_floating_point()]
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
        [a for a, _ in floats], [b for _, b in floats], 1 - decay
    )
    for a, b in pairs:
        if not a.is_floating_point():
            a.copy_(b)
