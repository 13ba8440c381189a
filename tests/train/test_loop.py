from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ddim.base.errors import RunError
from ddim.checkpoints.training import read_training
from ddim.nets.unet import UNet
from ddim.noise.schedule import Schedule
from ddim.train.checkpoint import load_checkpoint, save_checkpoint, saved_config
from ddim.train.config import PRESETS, TrainConfig
from ddim.train.loop import TensorData, TrainState, ema_decay, fit, learning_rate, order
from ddim.train.run import unet_config

CONFIG = TrainConfig(
    channels=(8, 16),
    blocks=1,
    groups=4,
    head_dim=8,
    dropout=0.2,
    classes=True,
    label_dropout=0.3,
    flip=True,
    T=20,
    beta_end=0.3,
    batch_size=4,
    images=24,
    lr=1e-2,
    warmup_images=8,
    decay_images=8,
    ema=0.9,
    seed=3,
)
SCHEDULE = Schedule.from_spec(CONFIG.schedule_spec())
CLASSES = 3


def data(count: int = 10) -> TensorData:
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return TensorData(images, torch.arange(count) % CLASSES)


def fresh(config: TrainConfig = CONFIG, seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    classes = CLASSES if config.classes else None
    return TrainState.start(UNet(unet_config(config, (1, 8, 8), classes)), config)


def bits(state: TrainState) -> dict[str, bytes]:
    """Everything that a training run carries from step to step."""
    out = {"step": str(state.step).encode()}
    for kind, module in (("net", state.net), ("ema", state.ema)):
        out |= {f"{kind}.{k}": v.numpy().tobytes() for k, v in module.state_dict().items()}
    for index, slots in state.optimizer.state_dict()["state"].items():
        out |= {f"optimizer.{index}.{k}": v.numpy().tobytes() for k, v in slots.items()}
    return out


# -- the order of the data ------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(0, 5), st.integers(0, 2**40))
def test_every_epoch_shows_every_image_once(length, epoch, seed):
    indices = order(seed, length, epoch * length, length)
    assert sorted(indices.tolist()) == list(range(length))


@given(
    st.integers(1, 30), st.integers(0, 100), st.lists(st.integers(1, 40), min_size=1, max_size=6)
)
def test_batches_are_cut_from_one_stream(length, start, sizes):
    """However it is cut, across epochs too; so nothing is left out and nothing comes twice."""
    whole = order(7, length, start, sum(sizes))
    parts, at = [], start
    for size in sizes:
        parts.append(order(7, length, at, size))
        at += size
    assert torch.equal(torch.cat(parts), whole)


def test_epochs_and_seeds_differ():
    epochs = [order(0, 50, 50 * epoch, 50).tolist() for epoch in range(4)]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert order(1, 50, 0, 50).tolist() != epochs[0]


class Camera(nn.Module):
    """A network that keeps what it is shown; at next to no noise, the images themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.shots: list[tuple[Tensor, Tensor, tuple[Tensor, ...]]] = []

    def forward(self, x: Tensor, t: Tensor, *labels: Tensor) -> Tensor:
        self.shots.append((x.detach().clone(), t, labels))
        return x * self.weight


def photographed(config: TrainConfig, images: TensorData, steps: int, null: int = 0):
    config = dataclasses.replace(config, images=steps * config.batch_size)
    state = TrainState.start(Camera(), config)
    camera = state.net
    for _ in fit(state, images, Schedule.from_betas([1e-12]), config, null):
        pass
    return camera.shots


def test_the_network_sees_each_image_once_an_epoch_some_mirrored():
    images = data(9)
    seen, mirrored = [], []
    for x, t, _ in photographed(CONFIG, images, 27):
        assert t.tolist() == [0] * 4
        for image in x:
            straight = (images.images - image).abs().flatten(1).amax(1)
            flipped = (images.images.flip(-1) - image).abs().flatten(1).amax(1)
            distance, which = torch.minimum(straight, flipped).min(0)
            assert float(distance) < 1e-4  # noise of σ = 1e-6
            seen.append(int(which))
            mirrored.append(bool(flipped[which] < straight[which]))
    assert len(seen) == 108
    for epoch in range(12):
        assert sorted(seen[9 * epoch : 9 * (epoch + 1)]) == list(range(9))
    assert 30 < sum(mirrored) < 78


def test_nothing_is_mirrored_unless_asked_for():
    images = data(8)
    config = dataclasses.replace(CONFIG, flip=False)
    for x, _, _ in photographed(config, images, 4):
        for image in x:
            assert float((images.images - image).abs().flatten(1).amax(1).min()) < 1e-4


def test_labels_go_with_their_images_and_some_are_dropped():
    images = data(9)
    config = dataclasses.replace(CONFIG, flip=False, label_dropout=0.3)
    dropped = total = 0
    for x, _, (labels,) in photographed(config, images, 60, null=99):
        for image, label in zip(x, labels.tolist(), strict=True):
            which = int((images.images - image).abs().flatten(1).amax(1).argmin())
            assert label in (which % CLASSES, 99)
            dropped += label == 99
            total += 1
    assert dropped / total == pytest.approx(0.3, abs=0.1)
    unconditional = dataclasses.replace(config, classes=False)
    assert all(labels == () for _, _, labels in photographed(unconditional, images, 2))


def test_half_of_each_batch_is_noised_within_the_focus():
    config = dataclasses.replace(
        CONFIG, classes=False, focus=(5, 7), images=100 * CONFIG.batch_size
    )
    state = TrainState.start(Camera(), config)
    for _ in fit(state, data(), SCHEDULE, config):
        pass
    times = torch.stack([t for _, t, _ in state.net.shots])
    assert set(times[:, 2:].flatten().tolist()) == {4, 5, 6}  # t = k - 1
    assert len(set(times[:, :2].flatten().tolist())) == SCHEDULE.T


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["eps", "v", "x0"])
def test_a_few_steps_lower_the_loss(target):
    """On a single image, which there is nothing to but to remember."""
    config = dataclasses.replace(
        CONFIG, classes=False, dropout=0.0, target=target, weighting="min-snr", batch_size=16,
        images=16 * 50, ema=0.99,
    )  # fmt: skip
    losses = [step.loss for step in fit(fresh(config), data(1), SCHEDULE, config)]
    assert len(losses) == 50
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])


def test_the_steps_tell_what_happened():
    steps = list(fit(fresh(), data(), SCHEDULE, CONFIG, CLASSES))
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step.lr for step in steps] == [learning_rate(CONFIG, n) for n in range(6)]
    assert all(math.isfinite(step.loss) and step.grad_norm > 0 for step in steps)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_optimizers_have_the_settings_of_the_papers(optimizer):
    """Kingma and Ba 2014, section 2, which DDPM and DDIM left as they are."""
    config = dataclasses.replace(CONFIG, optimizer=optimizer, lr=0.5, weight_decay=0.1)
    made = TrainState.start(torch.nn.Linear(1, 1), config).optimizer
    assert made.defaults["betas"] == (0.9, 0.999) and made.defaults["eps"] == 1e-8
    assert (made.defaults["lr"], made.defaults["weight_decay"]) == (0.5, 0.1)
    assert made.defaults["decoupled_weight_decay"] == (optimizer == "adamw")


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_a_resumed_run_goes_on_to_the_same_bits(tmp_path, optimizer):
    """Six steps, against three, a file, and three: weights, average, moments and losses.

    Ten images in batches of four, so that the third step runs across an epoch; dropout, flips and
    dropped labels on; the second half starts from other weights and another global seed.
    """
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    whole = fresh(config)
    losses = [step.loss for step in fit(whole, data(), SCHEDULE, config, CLASSES)]

    first = fresh(config)
    before = []
    for step in fit(first, data(), SCHEDULE, config, CLASSES):
        before.append(step.loss)
        if step.step == 3:
            break
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, first, config, {"interval": [1.5, 3]})

    saved = read_training(path)
    assert saved_config(saved) == config
    assert saved.step == 3
    assert saved.facts == {"interval": [1.5, 3]}
    second = fresh(config, seed=77)
    load_checkpoint(saved, second)
    assert bits(second) == bits(first)
    torch.manual_seed(1234)
    after = [step.loss for step in fit(second, data(), SCHEDULE, config, CLASSES)]
    assert before + after == losses
    assert bits(second) == bits(whole)


def test_a_checkpoint_of_a_run_not_begun(tmp_path):
    state = fresh()
    save_checkpoint(tmp_path / "a.safetensors", state, CONFIG, {})
    other = fresh(seed=5)
    load_checkpoint(read_training(tmp_path / "a.safetensors"), other)
    assert bits(other) == bits(state)


def test_training_neither_reads_nor_changes_the_global_generator():
    def run(seed: int) -> dict[str, bytes]:
        state = fresh()
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        for _ in fit(state, data(), SCHEDULE, CONFIG, CLASSES):
            pass
        assert torch.equal(torch.get_rng_state(), before)
        return bits(state)

    assert run(1) == run(2)


def test_dropout_of_every_kind_is_seeded_step_by_step():
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 1, 3, padding=1)
            self.dropout = torch.nn.Dropout2d(0.5)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.dropout(self.dropout(self.conv(x)), 0.3)

    def run(seed: int) -> dict[str, bytes]:
        config = dataclasses.replace(CONFIG, classes=False)
        torch.manual_seed(0)
        state = TrainState.start(Net(), config)
        torch.manual_seed(seed)
        for _ in fit(state, data(), SCHEDULE, config):
            pass
        return bits(state)

    assert run(1) == run(2)


def test_a_weight_with_two_names_is_averaged_once():
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = torch.nn.Conv2d(1, 1, 3, padding=1)
            self.two = self.one

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x))

    config = dataclasses.replace(CONFIG, classes=False, images=4, batch_size=4)
    state = TrainState.start(Net(), config)
    before = state.ema.one.weight.clone()
    assert len([*fit(state, data(), SCHEDULE, config)]) == 1
    expected = before.lerp(state.net.one.weight.detach(), 1 - ema_decay(config.ema, 0))
    torch.testing.assert_close(state.ema.one.weight, expected)
    assert not torch.equal(before, expected)


def test_the_seed_decides():
    def losses(seed: int) -> list[float]:
        config = dataclasses.replace(CONFIG, seed=seed)
        return [step.loss for step in fit(fresh(), data(), SCHEDULE, config, CLASSES)]

    assert losses(3) == losses(3) != losses(4)


def test_the_average_is_its_recursion():
    """ema ← d·ema + (1-d)·net, d = min(limit, (1+n)/(10+n)), from the first weights on."""
    state = fresh()
    name = "conv_in.weight"
    expected = state.net.state_dict()[name].double().clone()
    for n, _ in enumerate(fit(state, data(), SCHEDULE, CONFIG, CLASSES)):
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * state.net.state_dict()[name].double()
        torch.testing.assert_close(
            state.ema.state_dict()[name].double(), expected, rtol=1e-5, atol=1e-6
        )
    assert not torch.equal(state.ema.state_dict()[name], state.net.state_dict()[name])
    assert not any(p.requires_grad for p in state.ema.parameters())
    assert not state.ema.training


def test_gradients_are_clipped_to_their_norm():
    """With plain gradient descent the step is lr·clip long, whatever the gradient was."""
    config = dataclasses.replace(CONFIG, clip=0.01, warmup_images=0, decay_images=0, lr=0.5)
    state = fresh(config)
    state.optimizer = torch.optim.SGD(state.net.parameters(), lr=1.0)
    before = torch.cat([p.detach().flatten().clone() for p in state.net.parameters()])
    step = next(iter(fit(state, data(), SCHEDULE, config, CLASSES)))
    after = torch.cat([p.detach().flatten() for p in state.net.parameters()])
    assert step.grad_norm > 0.01  # told as it was before clipping
    assert float((after - before).norm()) == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_what_is_not_finite_stops_the_run_before_the_weights_change():
    class Broken(Camera):
        def forward(self, x: Tensor, t: Tensor, *labels: Tensor) -> Tensor:
            return x * self.weight * (math.nan if len(self.shots) == 2 else super().forward(x, t))

    state = TrainState.start(Broken(), CONFIG)
    with pytest.raises(RunError, match="no longer finite at step 3"):
        for _ in fit(state, data(), SCHEDULE, CONFIG, CLASSES):
            pass
    assert state.step == 2
    assert all(torch.isfinite(p).all() for p in [*state.net.parameters(), *state.ema.parameters()])


def test_data_refusals(refuses):
    with refuses("no images to train on"):
        next(iter(fit(fresh(), data(0), SCHEDULE, CONFIG, CLASSES)))
    with refuses("needs data with labels"):
        next(iter(fit(fresh(), TensorData(data().images), SCHEDULE, CONFIG, CLASSES)))


# -- rates ----------------------------------------------------------------------------------------


def test_the_learning_rate_rises_stays_and_falls():
    config = TrainConfig(batch_size=10, images=100, warmup_images=40, decay_images=30, lr=1.0)
    rates = [learning_rate(config, n) for n in range(config.steps)]
    np.testing.assert_allclose(rates, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 2 / 3, 1 / 3])


def test_a_short_run_still_reaches_its_learning_rate():
    config = TrainConfig(batch_size=10, images=60, warmup_images=40, decay_images=80, lr=1.0)
    rates = [learning_rate(config, n) for n in range(config.steps)]
    np.testing.assert_allclose(rates, [0.5, 1, 1, 0.75, 0.5, 0.25])


def test_the_learning_rate_is_constant_without_warm_up_or_decay():
    config = TrainConfig(batch_size=10, images=95, lr=0.5)
    assert config.steps == 10
    assert [learning_rate(config, n) for n in range(10)] == [0.5] * 10


def test_a_warm_up_that_meets_the_decay():
    config = TrainConfig(batch_size=1, images=10, warmup_images=10, decay_images=10, lr=1.0)
    rates = [learning_rate(config, n) for n in range(10)]
    np.testing.assert_allclose(rates, [0.2, 0.4, 0.6, 0.8, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_the_averages_decay_rises_to_its_limit():
    decays = [ema_decay(0.999, n) for n in range(20_000)]
    assert decays[:3] == [1 / 10, 2 / 11, 3 / 12]
    assert decays == sorted(decays)
    assert decays[-1] == 0.999
    assert ema_decay(0.0, 500) == 0.0


# -- configurations and checkpoints ---------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_presets_round_trip(name):
    config = TrainConfig.preset(name)
    assert TrainConfig.from_json(config.to_json()) == config
    assert Schedule.from_spec(config.schedule_spec()).T == config.T


def test_presets_mirror_only_what_looks_the_same_in_a_mirror():
    """Digits do not, and the shoes of Fashion-MNIST all point to the left."""
    assert {name for name, config in PRESETS.items() if config.flip} == {"cifar10", "celeba"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"T": 0}, "T must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"seed": -1}, "seed must not be negative"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\)"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"channels": []}, "at least one resolution"),
        ({"beta_start": 0.3, "beta_end": 0.1}, "β must rise"),
        ({"learning_rate": 1.0}, "unknown key 'learning_rate'"),
        ({"batchsize": 1}, "did you mean 'batch_size'"),
    ],
)
def test_configuration_refusals(changes, message, refuses):
    with refuses(message):
        TrainConfig.from_json(changes)


def test_preset_refusal(refuses):
    with refuses("unknown preset 'mnits': did you mean 'mnist'"):
        TrainConfig.preset("mnits")


def test_what_is_not_a_checkpoint_is_refused(tmp_path, refuses):
    path = tmp_path / "checkpoint.safetensors"
    with refuses("there is no checkpoint"):
        read_training(path)
    for content in (b"", b"hello", b"\x80\x02}q\x00." * 9):
        path.write_bytes(content)
        with refuses("is not a safetensors file, or is truncated"):
            read_training(path)
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    with refuses("is not a training checkpoint of ddim"):
        read_training(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(tmp_path, share, refuses):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, fresh(), CONFIG, {})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with refuses("is not a safetensors file, or is truncated"):
        read_training(path)


def test_a_checkpoint_of_another_network_is_refused(tmp_path, refuses):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, fresh(), CONFIG, {})
    saved = read_training(path)
    wider = dataclasses.replace(CONFIG, channels=(8, 24))
    with refuses(r"has shape \(.*\) in the checkpoint, not \("):
        load_checkpoint(saved, fresh(wider))
    with refuses("class_embedding.weight is unknown to this network but in the checkpoint's net"):
        load_checkpoint(saved, fresh(dataclasses.replace(CONFIG, classes=False)))
    with refuses("is missing from the checkpoint's net weights"):
        load_checkpoint(saved, fresh(dataclasses.replace(CONFIG, blocks=2)))


def test_a_refused_checkpoint_changes_nothing(tmp_path, refuses):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, fresh(), CONFIG, {})
    state = fresh(dataclasses.replace(CONFIG, channels=(8, 24)))
    before = bits(state)
    with refuses("has shape"):
        load_checkpoint(read_training(path), state)
    assert bits(state) == before


def test_a_killed_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, fresh(), CONFIG, {})
    content = path.read_bytes()

    def killed(where, data):
        with where.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, fresh(seed=1), CONFIG, {})
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]
