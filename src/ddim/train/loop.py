"""The training loop: a generator of steps that knows no files.

Step n is a pure function of (state before it, configuration, n): the order of the data, the noise,
the noise levels, the flips and the dropped labels are all derived from the seed and n. So a run
that is resumed from any checkpoint goes on to the same bits.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddim.base.device import out_of_memory
from ddim.base.display import shown
from ddim.base.errors import InputError, quoted
from ddim.base.ranks import here
from ddim.denoisers.network import tensor_of
from ddim.denoisers.target import Target
from ddim.noise.schedule import Schedule
from ddim.train.batches import Batch, Stream, Trainable, check_labels, draw
from ddim.train.config import TrainConfig, check_signal
from ddim.train.faults import MOST_SKIPPED, bad_images, check_pixels, not_finite
from ddim.train.loss import diffusion_loss, loss_weights
from ddim.train.memory import enough_memory
from ddim.train.muon import Muon
from ddim.train.replica import Replica, check_batch, gone

__all__ = ["TrainState", "TrainStep", "fit"]

Network = Callable[[Tensor, Tensor], Tensor]
Loss = Callable[[Network, Tensor, Tensor, Tensor, Schedule], Tensor]


@shown
@dataclasses.dataclass
class TrainState:
    """What a step changes.

    Attributes:
        net: the network.
        ema: the moving average of its weights.
        optimizer: with its moments.
        step: how many steps are done.
        skipped: of these, how many were skipped, since they were not finite.
        in_a_row: how many of the skipped ones are the last.
    """

    net: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    skipped: int = 0
    in_a_row: int = 0

    def _facts(self) -> dict[str, object]:
        count = sum(p.numel() for p in self.net.parameters())
        return {
            "net": type(self.net).__name__,
            "parameters": f"{count:,}",
            "optimizer": type(self.optimizer).__name__,
            "step": self.step,
            "skipped": self.skipped,
        }

    @classmethod
    def start(cls, net: nn.Module, config: TrainConfig) -> TrainState:
        """The state before the first step, for any network; it is trained in place.

        Raises:
            InputError: there is nothing to train in it, or nothing that the optimizer is for.
        """
        device = _trained(net)[0].device
        average = copy.deepcopy(net).requires_grad_(False).eval()
        settings: dict[str, Any] = {
            "lr": config.lr,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": config.weight_decay,
            "fused": device.type in ("cpu", "cuda"),
        }
        if config.optimizer == "muon":
            return cls(net, average, Muon(net, **settings))
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        return cls(net, average, kind(net.parameters(), **settings))


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """One step done.

    Attributes:
        step: its number, from 1.
        loss: the mean over the batch.
        grad_norm: of the gradient, before it was clipped.
        lr: the learning rate.
        skipped: whether loss or gradient were not finite, and nothing was learned.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    skipped: bool = False


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
    null_label: int | None = None,
    loss: Loss | None = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[TrainStep]:
    """Train from ``state.step`` to ``config.steps``, yielding after each step.

    The caller decides what to log, when to save and when to stop; between two steps the state is
    whole. ``state`` is changed in place. Step n takes the images from n·batch_size on, so that a
    state goes on with the batch size that it came with.

    Args:
        state: networks and optimizer, on the device to train on; ``net`` is called as
            ``net(x, t)`` or, class-conditional, ``net(x, t, labels)``, with t = k - 1 and labels
            int64. It is given a copy of the state; the first of a tuple and the ``.sample`` of an
            object are taken for its answer.
        data: the images.
        schedule: the noise schedule, as long as ``config.T`` and, where the configuration says
            more about it, that one.
        config: batch size, learning rate, target, seed and so on. The optimizer and what it is
            made with are those of ``state``; devices, threads, files and the network are not
            looked at. ``accumulate`` parts of the batch go through the network one after the
            other, and their gradients are averaged. All that is drawn is the same for any number
            of them but for the network's own randomness, and what a network makes of the others
            in its batch (batch normalisation) is made of a part.
        null_label: the label that stands for 'no class', where ``config.classes`` and labels are
            dropped; none of the data's.
        loss: called as ``loss(network, x0, k, noise, schedule)`` with what
            :func:`~ddim.train.loss.diffusion_loss` takes; returns each image's loss, shape (B,).
            None for that loss itself, with the target and the weighting of ``config``, which no
            other loss looks at.
        stop: asked once a step; if it says yes, the training ends after the step in hand. Of
            several processes one that says so ends all, after the same step.

    Raises:
        InputError: data, labels, a schedule or a network that cannot be trained with as given.
        NotFinite: a RunError; a loss or the gradient is no longer finite, and such steps are not
            skipped, or were too often. The weights are those before the step.
        RunError: another process of the job is gone.
        OutOfMemory: a RunError too; the weights are those before the step.
    """
    ranks = here()
    _check(data, schedule, config)
    check_batch(config, ranks)
    check_labels(data, config, null_label)
    if loss is None:
        check_signal(schedule, config.target)
        target = Target.named(config.target)
        weights = loss_weights(schedule, target, config.weighting, config.gamma)
        loss = functools.partial(diffusion_loss, target=target, weights=weights)
    parameters = _trained(state.net)
    device = parameters[0].device
    pairs = zip(state.ema.state_dict().values(), state.net.state_dict().values(), strict=True)
    # A weight that has several names is averaged once.
    averaged = list({average.data_ptr(): (average, new) for average, new in pairs}.values())
    stream = Stream(config.seed, len(data))
    state.optimizer.zero_grad(set_to_none=True)  # a step that failed may have left some
    replica = Replica(state.net, ranks)
    part, stopping = replica.part(config.batch_size), False

    while state.step < config.steps and not stopping:
        if not state.net.training:  # at first, and where the caller has drawn from it
            state.net.train()
        n = state.step
        indices = stream.take(n * config.batch_size, config.batch_size)
        batch = draw(data, indices, n, schedule, config, null_label, device, part)
        lr = learning_rate(config, n)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        with replica.answering(), enough_memory(config, n, ranks.count):
            mean, losses = _backward(replica, batch, n, schedule, config, loss)
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip or float("inf"))
            value, stopping = replica.mean(mean, stop)
            norm = norm.item()
        finite = math.isfinite(value) and math.isfinite(norm)
        if finite:
            state.optimizer.step()
        else:
            _skip(state, config, replica, batch, losses, indices[part])
        state.optimizer.zero_grad(set_to_none=True)
        if finite:
            _average(averaged, ema_decay(config.ema, n))
            state.in_a_row = 0
        state.step = n + 1
        yield TrainStep(n + 1, value, norm, lr, skipped=not finite)
        if stop is not None and ranks.count == 1:
            stopping = stop()


def _skip(
    state: TrainState,
    config: TrainConfig,
    replica: Replica,
    batch: Batch,
    losses: Tensor,
    indices: Tensor,
) -> None:
    """Count a step that is not finite, or end the training by it.

    Raises:
        InputError: the data are not finite.
        NotFinite: such steps are not skipped, or too many were in a row.
    """
    if not config.skip_bad_batches or state.in_a_row == MOST_SKIPPED:
        images = replica.gather(bad_images(losses, indices))
        check_pixels(batch, indices)
        raise not_finite(images, state.step, state.in_a_row)
    state.skipped += 1
    state.in_a_row += 1


def _backward(
    replica: Replica, batch: Batch, n: int, schedule: Schedule, config: TrainConfig, loss: Loss
) -> tuple[Tensor, Tensor]:
    """The mean loss of this process's part of step n (from 0), and the loss of each of its images.

    The parameters get the gradient of the mean over all processes.
    """
    device, shares, losses = batch.images.device, list[Tensor](), list[Tensor]()
    # The network's own randomness, such as dropout, comes from torch's global generators.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(replica.seed(config.seed, n))
        for number, part in enumerate(batch.parts(config.accumulate), 1):
            network = functools.partial(_ask, replica.net, part.labels, config.precision)
            last = number == config.accumulate
            with contextlib.nullcontext() if last else replica.apart():
                each = loss(network, part.images, part.k, part.noise, schedule)
                mean = each.mean()
                if not mean.requires_grad:
                    raise InputError(
                        "the network's output does not depend on what is trained of it"
                    )
                share = mean / config.accumulate
                share.backward()
            shares.append(share.detach())
            losses.append(each.detach().flatten())
    return torch.stack(shares).sum(), torch.cat(losses)


def _check(data: Trainable, schedule: Schedule, config: TrainConfig) -> None:
    """Refuse data that is none, and a schedule that is not the configuration's."""
    if isinstance(data, Tensor | np.ndarray):
        raise InputError("images are given as ddim.TensorData(images), with their labels if any")
    if len(data) == 0:
        raise InputError("there are no images to train on")
    if schedule.T != config.T:
        raise InputError(
            f"the configuration has T = {config.T} and the schedule {schedule.T}: give both one T"
        )
    said, own = config.said_of_schedule(), Schedule.from_spec(config.schedule_spec())
    levels = np.stack([own.alpha, own.sigma]), np.stack([schedule.alpha, schedule.sigma])
    if said and not np.allclose(*levels, rtol=1e-6, atol=0):
        values = ", ".join(f"{name} = {value}" for name, value in said.items())
        raise InputError(
            f"the configuration has {values}, and the schedule is another: make it by "
            "Schedule.from_spec(config.schedule_spec()), or leave these at their defaults"
        )


def _trained(net: nn.Module) -> list[nn.Parameter]:
    """The parameters that gradients are asked for.

    Raises:
        InputError: there are none.
    """
    if not isinstance(net, nn.Module):
        raise InputError(f"what is trained is a torch.nn.Module, not a {type(net).__name__}")
    found = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if not found:
        raise InputError("there is nothing to train: the network has no parameter with a gradient")
    return found


def _ask(
    net: nn.Module, labels: tuple[Tensor, ...], precision: str, x: Tensor, t: Tensor
) -> Tensor:
    """What a network of anybody's says to a state, which it may change: it is given a copy."""
    if x.is_floating_point():
        dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), x.dtype)
        x = x.to(dtype)
    half = torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
    try:
        with half:
            output = net(x.clone(), t, *labels)
    except InputError:
        raise
    except (RuntimeError, TypeError, IndexError) as error:
        if out_of_memory(error) or gone(error):
            raise
        also = f" and labels {int(labels[0].min())}..{int(labels[0].max())}" if labels else ""
        raise InputError(
            f"the network fails on a state of {tuple(x.shape)} and {x.dtype}, with times of "
            f"{t.dtype}{also}: {quoted(str(error))}"
        ) from error
    return tensor_of(output)


@torch.no_grad()
def _average(pairs: list[tuple[Tensor, Tensor]], decay: float) -> None:
    floats = [(a, b) for a, b in pairs if a.is_floating_point()]
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
        [a for a, _ in floats], [b for _, b in floats], 1 - decay
    )
    for a, b in pairs:
        if not a.is_floating_point():
            a.copy_(b)
