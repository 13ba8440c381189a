"""How fast a training step is, beside the loop that one writes by hand over diffusers' network."""

from __future__ import annotations

import copy
import functools
import importlib.util
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddim.base.device import out_of_memory
from ddim.base.errors import InputError, RunError
from ddim.base.progress import meter
from ddim.denoisers.network import tensor_of
from ddim.evaluate.speed.plan import Plan
from ddim.evaluate.speed.tables import Cell, Table
from ddim.evaluate.speed.timing import Action, Timing, interleave, median, once, speedup
from ddim.model.model import Model
from ddim.nets.unet import UNet
from ddim.noise.schedule import Schedule
from ddim.train.batches import TensorData
from ddim.train.config import TrainConfig
from ddim.train.loop import TrainState, fit

__all__ = ["advance", "our_loop", "plain_loop", "training_table", "twin"]

STEPS = 2
"""In a round: with ``mnist`` on two slow cores all rounds take half a minute."""
BATCHES = 4
"""How many batches of images there are."""
OURS, HALF, THEIRS = "ddim", "ddim, autocast", "plain loop"


def training_table(
    model: Model, plan: Plan, *, half: bool, quiet: bool = True
) -> tuple[Table | None, list[str]]:
    """Time training steps of a model's network; what is trained is a copy of it.

    By :func:`~ddim.train.loop.fit` with AdamW, and by :func:`plain_loop` where diffusers is
    installed and has such a network; for ε, whatever the model predicts, on random images.

    Args:
        model: its network is a :class:`~ddim.nets.unet.UNet` in float32.
        plan: rounds, and images in a batch.
        half: whether bfloat16 autocast is timed too.
        quiet: show no progress bar.

    Returns:
        the table, None where a step failed, and what is left out, and why.
    """
    assert isinstance(model.net, UNet)  # by measure
    device, notes = model.device, list[str]()
    random = torch.Generator().manual_seed(0)
    images = torch.rand((BATCHES * plan.n, *model.shape), generator=random).mul_(2).sub_(1)
    targets = None
    if model.classes is not None:
        targets = torch.randint(model.classes, (len(images),), generator=random)
    data = TensorData(images, targets)
    configs = {OURS: _config(model, plan, "float32")}
    if half:
        configs[HALF] = _config(model, plan, "bfloat16")
    try:
        loops: dict[str, Iterator[object]] = {
            name: our_loop(model.net, data, config) for name, config in configs.items()
        }
        try:
            net = twin(model.net).to(device)
            loops[THEIRS] = plain_loop(net, data, configs[OURS])
        except InputError as error:
            notes.append(f"training without a {THEIRS}: {error}")
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            table = _table(_timed(loops, plan, device, quiet), plan)
    except (InputError, RuntimeError, MemoryError) as error:
        if not isinstance(error, InputError | RunError) and not out_of_memory(error):
            raise
        return None, [*notes, f"without training: {error}"]
    return table, notes


def _config(model: Model, plan: Plan, precision: str) -> TrainConfig:
    values = {"classes": True, "label_dropout": 0.0} if model.classes is not None else {}
    fixed = {"optimizer": "adamw", "precision": precision, "batch_size": plan.n, "lr": 1e-4}
    return TrainConfig.from_json(fixed | values)


def our_loop(net: UNet, data: TensorData, config: TrainConfig) -> Iterator[object]:
    """:func:`~ddim.train.loop.fit` of a copy of a network, by the schedule of a configuration."""
    schedule = Schedule.from_spec(config.schedule_spec())
    own = copy.deepcopy(net).requires_grad_()  # that of an opened model has no gradients
    return fit(TrainState.start(own, config), data, schedule, config)


def _timed(
    loops: dict[str, Iterator[object]], plan: Plan, device: torch.device, quiet: bool
) -> dict[str, list[Timing]]:
    actions = {name: advance(loop, STEPS, device) for name, loop in loops.items()}
    total = len(actions) * (plan.warm_ups + plan.rounds)
    with meter(quiet=quiet, total=total, desc="training", unit="run") as shown:

        def timed(action: Action) -> Timing:
            taken = once(action)
            shown.update()
            return taken

        return interleave(actions, plan.rounds, timed, warm_ups=plan.warm_ups)


def _table(timings: dict[str, list[Timing]], plan: Plan) -> Table:
    rows: list[dict[str, Cell]] = []
    for name, taken in timings.items():
        row: dict[str, Cell] = {"contestant": name, "batch": plan.n}
        row["images/s"] = STEPS * plan.n / median(taken)
        for other in (THEIRS, OURS):
            if other in timings:
                row[f"× {other}"] = speedup(timings[other], taken)
        rows.append(row)
    count = torch.get_num_threads()
    half = ", autocast in bfloat16" if HALF in timings else ""
    by_hand = "; plain loop: by hand over diffusers' network" if THEIRS in timings else ""
    note = (
        f"steps of {plan.n} images, AdamW, {count} {'threads' if count > 1 else 'thread'}, "
        f"float32{half}{by_hand}; ratios are medians over rounds of the time that the other took "
        "over this one's, with quartiles"
    )
    return Table("training", "Training", note, rows)


def advance(loop: Iterator[object], steps: int, device: torch.device | None = None) -> Action:
    """What takes so many steps of a loop, and waits until a CUDA device has done them."""

    def action() -> None:
        for _ in range(steps):
            next(loop)
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)

    return action


def twin(net: UNet) -> nn.Module:
    """The network of diffusers with the same shape and the same weights.

    Raises:
        InputError: diffusers is not installed, or has no such network.
    """
    if importlib.util.find_spec("diffusers") is None:
        raise InputError("diffusers is not installed (pip install diffusers)")
    if net.config.beyond_diffusers:
        raise InputError(f"diffusers has no {', '.join(net.config.beyond_diffusers)}")
    from diffusers.models.unets.unet_2d import UNet2DModel

    made = UNet2DModel.from_config(net.config.to_json())
    assert isinstance(made, nn.Module)
    made.load_state_dict(net.state_dict())
    return made


def plain_loop(
    net: nn.Module, data: TensorData, config: TrainConfig, *, fused: bool = False
) -> Iterator[float]:
    """The loop that tutorials write, over diffusers' network.

    ``DDPMScheduler.add_noise``, mean squared error, clipped gradients, AdamW and a moving average
    of the weights.

    Args:
        net: a ``UNet2DModel``, trained in place.
        data: images, and labels for a network that takes them.
        config: of the linear schedule, batch size, precision, weight decay, clipping and average.
        fused: whether optimizer and average are what one line each can gain; they are as they come
            by default, and the average a loop over the parameters.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    device = next(net.parameters()).device
    average = copy.deepcopy(net).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=1e-4, weight_decay=config.weight_decay, fused=fused
    )
    scheduler = DDPMScheduler(config.T, config.beta_start, config.beta_end)
    half = functools.partial(
        torch.autocast, device.type, torch.bfloat16, enabled=config.precision == "bfloat16"
    )
    net.train()
    while True:
        indices = torch.randint(len(data), (config.batch_size,))
        clean, targets = data.batch(indices).to(device), data.labels(indices)
        labels = () if targets is None else (targets.to(device),)
        noise = torch.randn_like(clean)
        times = torch.randint(config.T, (len(clean),), device=device)
        # Typed for its own kinds of tensors.
        noisy = scheduler.add_noise(clean, noise, times)  # pyright: ignore[reportArgumentType]
        with half():
            loss = F.mse_loss(tensor_of(net(noisy, times, *labels)).float(), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), config.clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        _average(average, net, config.ema, fused)
        yield loss.item()


@torch.no_grad()
def _average(average: nn.Module, net: nn.Module, decay: float, fused: bool) -> None:
    kept: list[Tensor] = list(average.parameters())
    new: list[Tensor] = list(net.parameters())
    if fused:
        torch._foreach_lerp_(kept, new, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        return
    for a, b in zip(kept, new, strict=True):
        a.lerp_(b, 1 - decay)
