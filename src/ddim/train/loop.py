"""The training loop: a generator of steps that knows no files.

Step n is a pure function of (state before it, configuration, n): the order of the data, the noise,
the noise levels, the flips and the dropped labels are all derived from the seed and n. So a run
that is resumed from any checkpoint goes on to the same bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from ddim.errors import InputError, RunError
from ddim.loss import diffusion_loss, draw_nodes, loss_weights
from ddim.noise import derive
from ddim.schedule import Schedule
from ddim.target import Target
from ddim.train.config import TrainConfig

__all__ = ["TrainState", "TrainStep", "Trainable", "order", "train"]


class Trainable(Protocol):
    """The images that training reads: as :class:`ddim.data.ImageData`, already in [-1, 1]."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Tensor:
        """Images at the indices, float32 in [-1, 1], shape (B, C, H, W)."""
        ...

    def labels(self, indices: Tensor) -> Tensor | None:
        """Class indices, int64 of shape (B,), or None."""
        ...


@dataclasses.dataclass
class TrainState:
    """What a step changes: the network, its moving average, the optimizer, how many steps."""

    net: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0


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
    """The rate of that step (from 0): a linear rise, a plateau, a linear fall to zero at the end."""
    seen = step * config.batch_size
    rise = min(1.0, (seen + config.batch_size) / max(config.warmup_images, config.batch_size))
    total = config.steps * config.batch_size
    fall = min(1.0, (total - seen) / max(config.decay_images, config.batch_size))
    return config.lr * min(rise, fall)


def ema_decay(limit: float, step: int) -> float:
    """The moving average's decay at that step (from 0): it forgets the first weights quickly."""
    return min(limit, (1 + step) / (10 + step))


def train(
    state: TrainState, data: Trainable, schedule: Schedule, config: TrainConfig, null_label: int = 0
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

    Raises:
        RunError: the loss is no longer finite.
    """
    target = Target.named(config.target)
    weights = loss_weights(schedule, target, config.weighting, config.gamma)
    device = next(state.net.parameters()).device
    parameters = [p for p in state.net.parameters() if p.requires_grad]
    averaged = list(zip(state.ema.state_dict().values(), state.net.state_dict().values(), strict=True))
    random_network = any(isinstance(m, nn.Dropout) and m.p > 0 for m in state.net.modules())
    state.net.train()
    cached_epoch: tuple[int, Tensor] | None = None

    while state.step < config.steps:
        n = state.step
        start = n * config.batch_size
        epoch, offset = divmod(start, len(data))
        if cached_epoch is None or cached_epoch[0] != epoch:
            cached_epoch = (epoch, order(config.seed, len(data), epoch * len(data), len(data)))
        indices = cached_epoch[1][offset : offset + config.batch_size]
        if len(indices) < config.batch_size:
            indices = order(config.seed, len(data), start, config.batch_size)

        # One generator a step and device. The CPU's decides all that is small.
        generator = torch.Generator().manual_seed(derive(config.seed, 1, n))
        x0 = data.batch(indices)
        k = draw_nodes(len(x0), schedule.T, generator, antithetic=config.antithetic).to(device)
        if config.flip:
            mirrored = torch.rand(len(x0), generator=generator) < 0.5
            x0 = torch.where(mirrored[:, None, None, None], x0.flip(-1), x0)
        arguments: tuple[Tensor, ...] = ()
        if config.classes:
            labels = data.labels(indices)
            if labels is None:
                raise InputError("training with classes needs data with labels")
            dropped = torch.rand(len(x0), generator=generator) < config.label_dropout
            arguments = (torch.where(dropped, null_label, labels).to(device),)
        if device.type != "cpu":
            generator = torch.Generator(device).manual_seed(derive(config.seed, 1, n))
        x0 = x0.to(device, non_blocking=True)
        noise = torch.randn(x0.shape, generator=generator, device=device)

        def network(x: Tensor, t: Tensor, extra: tuple[Tensor, ...] = arguments) -> Tensor:
            with torch.autocast(
                device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"
            ):
                return state.net(x, t, *extra)

        lr = learning_rate(config, n)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=random_network):
            if random_network:
                torch.manual_seed(derive(config.seed, 2, n))
            loss = diffusion_loss(network, x0, k, noise, schedule, target, weights).mean()
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip or float("inf"))
        value = loss.item()
        if not (value < float("inf") and norm.isfinite()):
            raise RunError(
                f"the loss is no longer finite at step {n + 1}: try a lower lr or a longer warm-up"
            )
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        _average(averaged, ema_decay(config.ema, n))
        state.step = n + 1
        yield TrainStep(n + 1, value, norm.item(), lr)


@torch.no_grad()
def _average(pairs: list[tuple[Tensor, Tensor]], decay: float) -> None:
    floats = [(a, b) for a, b in pairs if a.is_floating_point()]
    torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], 1 - decay)
    for a, b in pairs:
        if not a.is_floating_point():
            a.copy_(b)
