"""Batches that the network sees in parts: the same training within rounding, in less memory."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from ddim.base.device import out_of_memory
from ddim.base.errors import RunError
from ddim.nets.unet import UNet
from ddim.noise.schedule import Schedule
from ddim.train.batches import TensorData
from ddim.train.config import TrainConfig
from ddim.train.loop import TrainState, TrainStep, fit
from ddim.train.memory import OutOfMemory
from ddim.train.run import unet_config

CONFIG = TrainConfig(
    channels=(16, 32),
    blocks=1,
    groups=4,
    head_dim=8,
    classes=True,
    label_dropout=0.3,
    flip=True,
    T=20,
    beta_end=0.3,
    batch_size=8,
    images=8 * 50,
    lr=5e-4,
    ema=0.9,
    seed=3,
)
SCHEDULE = Schedule.from_spec(CONFIG.schedule_spec())
CLASSES = 3


def data(dtype: torch.dtype = torch.float32) -> TensorData:
    images = torch.rand(42, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return TensorData(images.to(dtype), torch.arange(42) % CLASSES)


def trained(
    config: TrainConfig, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses, and the weights and their average at the end, in float64."""
    torch.manual_seed(0)
    net = UNet(unet_config(config, (1, 8, 8), CLASSES)).to(dtype)
    state = TrainState.start(net, config)
    steps = [*fit(state, data(dtype), SCHEDULE, config, CLASSES)]
    weights = {f"net.{k}": v.double() for k, v in state.net.state_dict().items()}
    weights |= {f"ema.{k}": v.double() for k, v in state.ema.state_dict().items()}
    return torch.tensor([step.loss for step in steps], dtype=torch.float64), weights


@pytest.mark.parametrize("optimizer", ["adam", pytest.param("muon", marks=pytest.mark.slow)])
def test_parts_train_to_the_same_losses_and_weights(optimizer):
    """Fifty steps with mirrored images and dropped labels, over epochs that end within a batch."""
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    losses, weights = trained(config)
    for parts in (2, 8):
        others, moved = trained(dataclasses.replace(config, accumulate=parts))
        torch.testing.assert_close(others, losses, rtol=1e-6, atol=0)
        for name, weight in weights.items():
            if name.endswith("to_k.bias"):  # its gradient is 0 but for rounding, and Adam scales it
                continue
            assert float((moved[name] - weight).norm() / weight.norm()) < 1e-4, name


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_parts_train_to_the_same_weights_in_float64(optimizer):
    config = dataclasses.replace(CONFIG, optimizer=optimizer, images=8 * 20)
    _, weights = trained(config, torch.float64)
    _, moved = trained(dataclasses.replace(config, accumulate=4), torch.float64)
    for name, weight in weights.items():
        torch.testing.assert_close(moved[name], weight, rtol=1e-9, atol=1e-11)


def test_dropout_in_parts_is_seeded():
    config = dataclasses.replace(CONFIG, dropout=0.3, accumulate=4, images=8 * 6)
    losses, weights = trained(config)
    again, same = trained(config)
    assert torch.equal(again, losses)
    assert all(torch.equal(weights[name], same[name]) for name in weights)


class Camera(nn.Module):
    """A network that keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.shots: list[tuple[Tensor, ...]] = []

    def forward(self, *shown: Tensor) -> Tensor:
        self.shots.append(shown)
        return shown[0] * self.weight


@pytest.mark.parametrize("focus", [(), (4, 9)])
def test_parts_are_shown_what_the_batch_would_be_shown(focus):
    """The same images, nodes, noise and labels in the same order, so many at a time."""

    def shots(parts: int) -> list[tuple[Tensor, ...]]:
        config = dataclasses.replace(CONFIG, accumulate=parts, focus=focus, images=8 * 12, lr=1e-9)
        state = TrainState.start(Camera(), config)
        assert len([*fit(state, data(), SCHEDULE, config, CLASSES)]) == 12
        return state.net.shots

    whole = shots(1)
    for parts in (2, 8):
        found = shots(parts)
        assert {len(x) for x, _, _ in found} == {8 // parts}
        for one, two in zip(zip(*whole, strict=True), zip(*found, strict=True), strict=True):
            assert torch.equal(torch.cat(one), torch.cat(two))


def test_parts_keep_less_for_the_way_back():
    """What the forward passes of one part keep for its gradient, in bytes."""

    def most(parts: int) -> int:
        kept = [0]

        def pack(tensor: Tensor) -> Tensor:
            if tensor.grad_fn is not None:  # neither weights nor data
                kept[-1] += tensor.numel() * tensor.element_size()
            return tensor

        class Counted(UNet):
            def forward(self, *shown: Tensor) -> Tensor:
                kept.append(0)
                return super().forward(*shown)

        config = dataclasses.replace(CONFIG, accumulate=parts, images=8)
        net = Counted(unet_config(config, (1, 8, 8), CLASSES))
        steps = fit(TrainState.start(net, config), data(), SCHEDULE, config, CLASSES)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            next(steps)
        assert len(kept) == parts + 1
        return max(kept)

    assert most(4) < 0.3 * most(1)


def test_an_average_that_is_not_the_diffusion_loss():
    def loss(network, x0: Tensor, k: Tensor, noise: Tensor, schedule: Schedule) -> Tensor:
        return (network(x0, k) - noise).abs().flatten(1).mean(1)

    def steps(parts: int) -> list[TrainStep]:
        config = dataclasses.replace(CONFIG, accumulate=parts, classes=False, label_dropout=0.1)
        return [*fit(TrainState.start(Camera(), config), data(), SCHEDULE, config, loss=loss)]

    for one, two in zip(steps(1), steps(4), strict=True):
        assert one.loss == pytest.approx(two.loss, rel=1e-6)
        assert one.grad_norm == pytest.approx(two.grad_norm, rel=1e-4, abs=1e-6)


# -- memory that does not suffice -----------------------------------------------------------------


class Hungry(Camera):
    """A network that has memory for so many images at a time, on the way there or back."""

    def __init__(self, most: int, error: Exception, *, back: bool = False) -> None:
        super().__init__()
        self.most, self.error, self.back = most, error, back

    def forward(self, *shown: Tensor) -> Tensor:
        output = super().forward(*shown)
        if len(shown[0]) > self.most:
            if not self.back:
                raise self.error
            output.register_hook(self.fail)
        return output

    def fail(self, gradient: Tensor) -> None:
        raise self.error


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
PLAIN = dataclasses.replace(CONFIG, classes=False, label_dropout=0.1, images=8 * 3)


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("error", [CUDA, CPU, MemoryError()])
def test_out_of_memory_says_what_needs_less(error, back):
    state, parts = TrainState.start(Hungry(2, error, back=back), PLAIN), 1
    for expected in (2, 4):
        config = dataclasses.replace(PLAIN, accumulate=parts)
        with pytest.raises(RunError) as info:
            next(fit(state, data(), SCHEDULE, config))
        seen = f", of which the network sees {8 // parts} at a time" if parts > 1 else ""
        assert str(info.value) == (
            f"out of memory at step 1, with a batch_size of 8{seen}: accumulate = {expected} takes "
            "less, for the same weights within rounding"
        )
        assert isinstance(info.value, OutOfMemory)
        parts = info.value.accumulate or 0
    config = dataclasses.replace(PLAIN, accumulate=parts)
    after = [step.loss for step in fit(state, data(), SCHEDULE, config)]
    untroubled = TrainState.start(Camera(), config)
    assert after == [step.loss for step in fit(untroubled, data(), SCHEDULE, config)]


def test_out_of_memory_with_one_image_at_a_time():
    config = dataclasses.replace(PLAIN, accumulate=8)
    with pytest.raises(OutOfMemory, match="train a smaller network or smaller images") as info:
        next(fit(TrainState.start(Hungry(0, CUDA), config), data(), SCHEDULE, config))
    assert info.value.accumulate is None


def test_what_allocators_really_say():
    with pytest.raises(RuntimeError) as info:
        torch.empty(10**15)
    assert out_of_memory(info.value)
    assert not out_of_memory(ValueError("out of memory"))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_gradients_that_a_failed_step_has_left_are_no_part_of_the_next():
    """After a loss that was not finite, the same state can be trained with other data."""
    state = TrainState.start(Camera(), PLAIN)
    state.net.weight.grad = torch.full((1,), torch.nan)
    found = [step.grad_norm for step in fit(state, data(), SCHEDULE, PLAIN)]
    fresh = TrainState.start(Camera(), PLAIN)
    assert found == [step.grad_norm for step in fit(fresh, data(), SCHEDULE, PLAIN)]
