from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from ddim.base.errors import RunError
from ddim.checkpoints.training import read_training
from ddim.nets.unet import UNet
from ddim.noise.schedule import Schedule
from ddim.train.batches import TensorData
from ddim.train.checkpoint import load_checkpoint, save_checkpoint, saved_config
from ddim.train.config import TrainConfig
from ddim.train.loop import Network, TrainState, ema_decay, fit, learning_rate
from ddim.train.run import unet_config

CONFIG = TrainConfig(
    channels=(8, 16),
    blocks=1,
    groups=4,
    head_dim=8,
    dropout=0.2,
    classes=True,
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


# -- what the network is shown ---------------------------------------------------------------------


class Camera(nn.Module):
    """A network that keeps what it is shown; at next to no noise, the images themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.shots: list[tuple[Tensor, Tensor, tuple[Tensor, ...]]] = []

    def forward(self, x: Tensor, t: Tensor, *labels: Tensor) -> Tensor:
        self.shots.append((x.detach().clone(), t, labels))
        return x * self.weight


def photographed(config: TrainConfig, images: TensorData, steps: int):
    config = dataclasses.replace(
        config, images=steps * config.batch_size, T=1, beta_start=1e-12, beta_end=1e-12
    )
    state = TrainState.start(Camera(), config)
    camera = state.net
    null = 99 if config.classes else None
    for _ in fit(state, images, Schedule.from_spec(config.schedule_spec()), config, null):
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
    for x, _, (labels,) in photographed(config, images, 60):
        for image, label in zip(x, labels.tolist(), strict=True):
            which = int((images.images - image).abs().flatten(1).amax(1).argmin())
            assert label in (which % CLASSES, 99)
            dropped += label == 99
            total += 1
    assert dropped / total == pytest.approx(0.3, abs=0.1)
    unconditional = dataclasses.replace(config, classes=False, label_dropout=0.1)
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


# -- checkpoints ------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("rename", "match"),
    [
        (("optimizer.0.exp_avg", "optimizer.x.exp_avg"), "fits no parameter"),
        (("optimizer.0.exp_avg", "optimizer.9999.exp_avg"), "fits no parameter"),
        (("optimizer.0.exp_avg", "optimizer"), "fits no parameter"),
        (("optimizer.1.exp_avg", "optimizer.0.exp_avg"), "'optimizer.0.exp_avg' of shape"),
        (("optimizer.0.exp_avg", "optimizer.0.exp_agv"), "the moments of parameter 0 are damaged"),
        (("optimizer.0.step", "optimizer"), "fits no parameter|moments of parameter 0 are damaged"),
    ],
)
def test_moments_that_are_damaged(tmp_path, rename, match, refuses):
    path, state = tmp_path / "checkpoint.safetensors", fresh()
    next(fit(state, data(), SCHEDULE, CONFIG, CLASSES))
    save_checkpoint(path, state, CONFIG, {})
    saved = read_training(path)
    before, after = rename
    others = {key: value for key, value in saved.tensors.items() if key != before}
    other = fresh(seed=5)
    unchanged = bits(other)
    with refuses(match):
        tensors = others | {after: saved.tensors[before]}
        load_checkpoint(dataclasses.replace(saved, tensors=tensors), other)
    assert bits(other) == unchanged


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

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, fresh(seed=1), CONFIG, {})
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


# -- networks of anybody's ------------------------------------------------------------------------

PLAIN = dataclasses.replace(CONFIG, classes=False, dropout=0.0, flip=False)


class Layer(nn.Module):
    """One layer over pixels, and what becomes of its output."""

    def __init__(self, pack: Callable[[Tensor], object] = lambda output: output) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.pack = nn.Conv2d(1, 1, 1), pack

    def forward(self, x: Tensor, t: Tensor) -> object:
        return self.pack(self.layer(x))


def losses(net: nn.Module, config: TrainConfig = PLAIN, images: TensorData | None = None):
    state = TrainState.start(net, config)
    steps = fit(state, data() if images is None else images, SCHEDULE, config)
    return [step.loss for step in steps]


def test_answers_that_are_packed_train_like_those_that_are_not():
    packed = (lambda y: (y, y + 1), lambda y: [y], lambda y: SimpleNamespace(sample=y))
    assert len(losses(Layer())) == 6
    for pack in packed:
        assert losses(Layer(pack)) == losses(Layer())


def test_a_network_that_changes_what_it_is_given_changes_a_copy():
    class Careless(Layer):
        def forward(self, x: Tensor, t: Tensor) -> object:
            x.mul_(2).sub_(x)  # 0
            return super().forward(x, t)

    shown: list[Tensor] = []

    def loss(network: Network, x0: Tensor, k: Tensor, noise: Tensor, schedule: Schedule) -> Tensor:
        x = x0 + noise
        before = x.clone()
        output = network(x, k - 1)
        shown.append(x - before)
        return (output - x).square().flatten(1).mean(1)

    state = TrainState.start(Careless(), PLAIN)
    assert len([*fit(state, data(), SCHEDULE, PLAIN, loss=loss)]) == 6
    assert not any(bool(difference.any()) for difference in shown)


@pytest.mark.parametrize(
    ("pack", "match"),
    [
        (lambda y: {"image": y}, "returned a dict, not a tensor"),
        (lambda y: None, "returned a NoneType, not a tensor"),
        (lambda y: y[:, :, :4], r"returned \(4, 1, 4, 8\) for \(4, 1, 8, 8\)"),
        (lambda y: torch.cat([y, y], 1), r"returned \(4, 2, 8, 8\) for"),
        (lambda y: y.detach(), "does not depend on what is trained"),
    ],
)
def test_answers_that_cannot_be_trained(pack, match, refuses):
    net = Layer(pack)
    before = net.layer.weight.detach().clone()
    with refuses(match):
        losses(net)
    assert torch.equal(net.layer.weight, before)


def test_networks_that_fail_on_what_they_are_given(refuses):
    class OfFloats(Layer):
        def __init__(self) -> None:
            super().__init__()
            self.time = nn.Linear(1, 1)

        def forward(self, x: Tensor, t: Tensor) -> object:
            return self.layer(x) + self.time(t[:, None])[:, :, None, None]

    with refuses(
        r"fails on a state of \(4, 1, 8, 8\) and torch.float32, with times of torch.int64"
    ):
        losses(OfFloats())
    with refuses(r"fails on a state of \(4, 1, 8, 8\)"):
        losses(nn.Linear(8, 8))  # takes no times
    few = fresh(dataclasses.replace(CONFIG, label_dropout=0.0))
    labels = TensorData(data().images, torch.full((10,), 17))
    with refuses("and labels 17..17"):
        next(fit(few, labels, SCHEDULE, dataclasses.replace(CONFIG, label_dropout=0.0)))


def test_networks_in_which_there_is_nothing_to_train(refuses):
    frozen = Layer().requires_grad_(False)
    for net in (nn.Identity(), nn.Flatten(), frozen):
        with refuses("there is nothing to train: the network has no parameter"):
            TrainState.start(net, PLAIN)
    with refuses("what is trained is a torch.nn.Module, not a function"):
        TrainState.start(lambda x, t: x, PLAIN)  # pyright: ignore[reportArgumentType]
    state = TrainState.start(Layer(), PLAIN)
    state.net.requires_grad_(False)
    with refuses("there is nothing to train"):
        next(fit(state, data(), SCHEDULE, PLAIN))


def test_a_part_of_a_network_may_be_frozen():
    net = Layer()
    net.layer.bias.requires_grad_(False)
    bias, weight = net.layer.bias.clone(), net.layer.weight.detach().clone()
    assert len(losses(net)) == 6
    assert torch.equal(net.layer.bias, bias)
    assert not torch.equal(net.layer.weight, weight)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_the_state_has_the_precision_of_the_weights(kind):
    """Whatever the data have: a network of float64 and data of float32, and the other way round."""
    for images in (data().images, data().images.double()):
        assert all(map(math.isfinite, losses(Layer().to(kind), images=TensorData(images))))
    assert losses(Layer(), images=TensorData(data().images.double())) == pytest.approx(
        losses(Layer()), rel=1e-5
    )


def test_trap_a_network_that_is_drawn_from_between_steps_goes_on_with_dropout():
    """To draw samples it is put into evaluation mode, in which dropout is off."""
    undisturbed = [s.loss for s in fit(fresh(), data(), SCHEDULE, CONFIG, CLASSES)]
    state, found = fresh(), []
    for step in fit(state, data(), SCHEDULE, CONFIG, CLASSES):
        found.append(step.loss)
        state.net.eval()
    assert found == undisturbed


# -- what contradicts itself ----------------------------------------------------------------------


def test_pixels_are_not_images(refuses):
    pixels = torch.randint(0, 256, (9, 1, 8, 8), dtype=torch.uint8)
    with refuses("images must be floating-point numbers in .*, not torch.uint8"):
        losses(Layer(), images=TensorData(pixels))
    with refuses(r"images are given as ddim.TensorData\(images\)"):
        losses(Layer(), images=data().images)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_data_that_are_not_finite_are_named(value, refuses):
    images = data().images.clone()
    images[6, 0, 3, 3] = value
    state = TrainState.start(Layer(), PLAIN)
    with refuses("image 6 of the data has values not finite"):
        for _ in fit(state, TensorData(images), SCHEDULE, PLAIN):
            pass
    assert bool(state.net.layer.weight.isfinite().all())


def test_weights_that_are_not_finite_are_not_the_learning_rates_fault():
    net = Layer()
    with torch.no_grad():
        net.layer.weight.fill_(math.nan)
    with pytest.raises(RunError, match="not finite at step 1, before anything was learned"):
        losses(net)


@pytest.mark.parametrize(
    ("changes", "schedule", "match"),
    [
        ({"T": 21}, None, "the configuration has T = 21 and the schedule 20"),
        ({}, Schedule.linear(19, beta_end=0.3), "has T = 20 and the schedule 19"),
        ({}, Schedule.cosine(20), "has beta_end = 0.3, and the schedule is another"),
        ({"schedule": "cosine", "beta_end": 0.02}, None, "has schedule = cosine, and"),
        (
            {"zero_snr": True, "target": "v"},
            None,
            "has beta_end = 0.3, zero_snr = True, and the schedule is another",
        ),
        ({"beta_end": 0.02}, Schedule.flow(20), "α = 0 at node 20 of 20"),
        ({"beta_end": 0.02}, Schedule.from_betas([0.1] * 19 + [1.0]), "α = 0 at node 20"),
    ],
)
def test_a_configuration_of_another_schedule(changes, schedule, match, refuses):
    config = dataclasses.replace(PLAIN, **changes)
    net = Camera()
    with refuses(match):
        next(fit(TrainState.start(net, config), data(), schedule or SCHEDULE, config))
    assert not net.shots


def test_a_configuration_that_says_nothing_of_the_schedule_takes_any():
    config = dataclasses.replace(PLAIN, beta_end=0.02)
    for schedule in (Schedule.cosine(20), Schedule.from_betas([0.2] * 20)):
        assert len([*fit(TrainState.start(Layer(), config), data(), schedule, config)]) == 6
    config = dataclasses.replace(config, target="x0")
    assert len([*fit(TrainState.start(Layer(), config), data(), Schedule.flow(20), config)]) == 6
