from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import ddim
from ddim.base.errors import InputError
from ddim.checkpoints.record import Facts
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.target import Target
from ddim.model.condition import Condition
from ddim.model.drawing import sample
from ddim.model.model import Model
from ddim.model.opening import load, shipped
from ddim.nets.unet import UNet
from ddim.noise.schedule import Schedule
from ddim.train.config import TrainConfig
from ddim.train.run import Run
from tiny import tiny_unet

BETAS = np.linspace(0.01, 0.3, 20)


def make_model(classes: int | None = None) -> Model:
    net = tiny_unet(classes, attention=True)
    return Model(
        net,
        Schedule.linear(20, 0.01, 0.4),
        Target.EPS,
        (1, 8, 8),
        classes=classes,
        null_label=classes,
        name="tiny",
        facts={"images_seen": 12, "data": {"name": "none"}},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of four steps on noise with classes."""
    folder = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(0)
    np.savez(
        folder / "noise.npz",
        images=rng.integers(0, 256, (32, 8, 8), dtype=np.uint8),
        labels=np.arange(32) % 3,
    )
    config = TrainConfig(
        data=str(folder / "noise.npz"),
        channels=(8, 16),
        blocks=1,
        groups=4,
        classes=True,
        T=20,
        beta_start=0.01,
        beta_end=0.4,
        target="v",
        batch_size=8,
        images=32,
        sample_every=0,
        device="cpu",
        threads=1,
    )
    run = Run(config, folder / "run")
    for _ in run.steps():
        pass
    return run


def same_weights(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("classes", [None, 3])
def test_what_is_saved_is_loaded(tmp_path, classes):
    saved = make_model(classes)
    saved.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert same_weights(saved.net, loaded.net)
    assert isinstance(loaded.net, UNet)
    assert isinstance(saved.net, UNet)
    assert loaded.net.config == saved.net.config
    for name in ("target", "shape", "classes", "null_label", "clipping", "name"):
        assert getattr(loaded, name) == getattr(saved, name), name
    assert loaded.facts.more["images_seen"] == 12
    assert loaded.facts.data == {"name": "none"}
    assert not loaded.net.training
    assert not any(p.requires_grad for p in loaded.net.parameters())


def test_a_loaded_model_saved_again_draws_the_same_bits(tmp_path):
    make_model(3).save(tmp_path / "one")
    one = load(tmp_path / "one")
    one.save(tmp_path / "two")
    two = load(str(tmp_path / "two"))
    options = {"steps": 4, "eta": 1.0, "guidance": 2.0}
    assert torch.equal(sample(one, 3, **options), sample(two, 3, **options))
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 5
    for file in files:
        first, second = (tmp_path / name / file for name in ("one", "two"))
        assert first.read_bytes() == second.read_bytes(), file


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule.linear(20),
        Schedule.linear(500, scaled=True),
        Schedule.scaled_linear(30),
        Schedule.cosine(20),
        Schedule.cosine(20, s=0.01),
        Schedule.sigmoid(20),
        Schedule.from_betas(BETAS),
        Schedule.from_alpha_bar(np.linspace(0.99, 0.01, 20)),
        Schedule.linear(20).rescaled_to_zero_snr(),
        Schedule.cosine(20).rescaled_to_zero_snr(),
        Schedule.sigmoid(20).rescaled_to_zero_snr(),
        Schedule.from_betas(BETAS).rescaled_to_zero_snr(),
    ],
    ids=lambda schedule: schedule.spec["kind"],
)
def test_the_schedule_is_loaded_to_the_bit(tmp_path, schedule):
    target = Target.V if schedule.alpha[-1] == 0 else Target.EPS
    make_model().replace(schedule=schedule, target=target).save(tmp_path)
    loaded = load(tmp_path).schedule
    assert np.array_equal(loaded.alpha, schedule.alpha)
    assert np.array_equal(loaded.sigma, schedule.sigma)


@pytest.mark.parametrize("target", [Target.EPS, Target.X0, Target.V])
def test_the_target_is_loaded(tmp_path, target):
    make_model().replace(target=target).save(tmp_path)
    assert load(tmp_path).target is target


@pytest.mark.parametrize(
    "clipping",
    [Clipping(), Clipping("clip"), Clipping("clip", 2.5), Clipping("threshold", 1.5, 0.9)],
)
def test_the_clipping_is_loaded(tmp_path, clipping):
    make_model().replace(clipping=clipping).save(tmp_path)
    assert load(tmp_path).clipping == clipping


def test_what_diffusers_has_no_scheduler_for_is_not_saved(tmp_path, refuses):
    for change in (
        {"schedule": Schedule.flow(20)},
        {"target": Target.FLOW},
        {"schedule": Schedule.from_alpha_sigma([1, 1, 1], [0, 1, 2])},
    ):
        with refuses("flow"):
            make_model().replace(**change).save(tmp_path)
    with refuses("UNet2DModel cannot express a Linear .another architecture"):
        make_model().replace(net=torch.nn.Linear(1, 1)).save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_shipped_models_open_by_name():
    assert {"mnist", "mnist-cond"} <= set(shipped())
    plain, conditional = load("mnist"), load("mnist-cond")
    assert plain.shape == conditional.shape == (1, 28, 28)
    assert (plain.classes, plain.name) == (None, "mnist")
    assert conditional.classes == conditional.null_label == 10
    assert plain.schedule.T == 500


def test_names_and_paths_that_lead_nowhere(tmp_path, refuses):
    with refuses("unknown model 'mnst': did you mean 'mnist'.*and there is no such path"):
        load("mnst")
    with refuses("unknown model"):
        load(tmp_path / "nothing")
    with refuses("no device 'gpu' here"):
        load("mnist", device="gpu")
    with refuses("unknown weights 'emma': did you mean 'ema'"):
        load("mnist", weights="emma")
    run = tmp_path / "begun"
    run.mkdir()
    (run / "metrics.jsonl").touch()
    with refuses("is a training run that has saved no checkpoint yet"):
        load(run)
    with refuses("is not a model folder"):
        load(tmp_path)


def test_a_model_without_facts_is_named_after_its_folder(tmp_path):
    make_model(3).save(tmp_path / "digits")
    (tmp_path / "digits" / "ddim.json").unlink()
    loaded = load(tmp_path / "digits")
    assert (loaded.name, loaded.facts) == ("digits", Facts())
    assert (loaded.classes, loaded.null_label) == (4, None)


def test_a_run_opens_as_its_averaged_weights_or_its_raw_ones(trained):
    folder = trained.output
    file = folder / "checkpoint.safetensors"
    for source in (folder, file, str(file)):
        assert same_weights(load(source).net, trained.state.ema)
    raw = load(file, weights="net")
    assert same_weights(raw.net, trained.state.net)
    assert not same_weights(raw.net, trained.state.ema)
    assert raw.name == load(folder).name == "run"


def test_a_checkpoint_and_its_model_folder_are_one_model(trained):
    checkpoint, folder = load(trained.output), load(trained.output / "model")
    for name in ("target", "shape", "classes", "null_label", "clipping", "name"):
        assert getattr(checkpoint, name) == getattr(folder, name), name
    assert (checkpoint.classes, checkpoint.null_label) == (3, 3)
    assert checkpoint.target is Target.V
    assert np.array_equal(checkpoint.schedule.alpha, folder.schedule.alpha)
    assert torch.equal(sample(checkpoint, 3, steps=4), sample(folder, 3, steps=4))


def test_files_that_are_no_checkpoint(tmp_path, trained, refuses):
    text = tmp_path / "notes.txt"
    text.write_text("no tensors in here")
    with refuses("notes.txt is not a safetensors file, or is truncated"):
        load(text)
    empty = tmp_path / "empty.safetensors"
    empty.touch()
    with refuses("empty.safetensors is not a safetensors file, or is truncated"):
        load(empty)
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, other)
    with refuses("other.safetensors is not a training checkpoint of ddim"):
        load(other)
    whole = (trained.output / "checkpoint.safetensors").read_bytes()
    for size in (4, 100, len(whole) // 2, len(whole) - 1):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(whole[:size])
        with refuses("cut.safetensors is not a safetensors file, or is truncated"):
            load(cut)


def test_moving_and_precision(tmp_path):
    make_model().save(tmp_path)
    loaded = load(tmp_path)
    assert loaded.device == torch.device("cpu")
    double = loaded.to(dtype=torch.float64)
    assert next(double.net.parameters()).dtype == torch.float64
    assert double.schedule is loaded.schedule


def test_the_identity_does_not_depend_on_the_processor():
    """NumPy's exp and log differ between processors in the last bits, and schedules with them."""
    model = make_model()
    alpha, sigma = model.schedule.alpha, model.schedule.sigma

    def other(alpha: np.ndarray, sigma: np.ndarray) -> str:
        return model.replace(schedule=Schedule.from_alpha_sigma(alpha, sigma)).identity

    for towards in (0.0, 1.0):
        moved = np.where((alpha > 0) & (alpha < 1), np.nextafter(alpha, towards), alpha)
        assert (moved != alpha).any()
        assert other(moved, sigma) == model.identity
    noisier = np.append(sigma[:-1], sigma[-1] * (1 + 1e-6))
    assert other(alpha, noisier) != model.identity


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_calibration_is_of_the_shipped_weights(name):
    model = load(name)
    assert name != "mnist" or model.calibration is not None
    if model.calibration is not None and model.calibration.exists():
        assert model.calibrated().identity == model.identity


def test_in_bfloat16_a_model_keeps_its_identity_and_its_calibration():
    model = load("mnist")
    identity = model.identity
    rounded = load("mnist").to(dtype=torch.bfloat16)
    weights = [p for p in rounded.net.parameters() if p.ndim == 4]
    assert weights[0].dtype is torch.bfloat16
    assert all(w.is_contiguous() for w in weights)
    assert rounded.identity == rounded.to("cpu").identity == identity
    assert rounded.tableau("calibrated:steps=5") == model.tableau("calibrated:steps=5")
    assert rounded.to(dtype=torch.float32).identity != identity  # its weights stay rounded


def test_trap_a_model_whose_weights_changed_is_another_one():
    model = make_model()
    images = torch.zeros(1, 1, 8, 8)
    latents, identity = ddim.encode(model, images, steps=4), model.identity
    with torch.no_grad():
        next(iter(model.net.parameters())).mul_(0.5)
    assert model.identity != identity
    with pytest.raises(InputError, match="these latents are of the model"):
        ddim.decode(model, latents)
    with torch.no_grad():
        next(iter(model.net.parameters())).mul_(2)
    assert model.identity == identity


@pytest.mark.slow
def test_a_compiled_network_is_the_same_model():
    class Halved(torch.nn.Module):  # a wrapper that does something
        def __init__(self, net):
            super().__init__()
            self.module = net

        def forward(self, *args):
            return 0.5 * self.module(*args)

    model = make_model()
    for wrap in (lambda net: torch.compile(net, backend="eager"), torch.nn.DataParallel):
        assert model.replace(net=wrap(model.net)).identity == model.identity
    assert model.replace(net=Halved(model.net)).identity != model.identity
    again = ddim.Model(
        torch.compile(model.net, backend="eager"), model.schedule, "eps", model.shape
    )
    assert again.identity == model.identity
    assert torch.allclose(sample(again, 2, steps=3), sample(model, 2, steps=3), atol=1e-4)


def test_any_module_makes_a_model_or_is_told_why_not(refuses):
    class Half(torch.nn.Module):
        def __init__(self, *layers):
            super().__init__()
            self.layers = torch.nn.Sequential(*layers)

        def forward(self, x, t):
            return self.layers(0.5 * x)

    made = Model(Half(), Schedule.linear(20), "v", (2, 3))  # without parameters, target by name
    assert made.target is Target.V and made.device.type == "cpu" and made.dtype is torch.float32
    latents = ddim.encode(made, torch.rand(2, 2, 3), steps=5)
    assert ddim.decode(made, latents).shape == sample(made, 2, steps=5).shape == (2, 2, 3)
    with refuses("did you mean 'eps'"):
        Model(Half(), Schedule.linear(20), "esp", (2, 3))
    for layer in (torch.nn.Dropout(0.1), torch.nn.BatchNorm1d(3)):
        made = Model(Half(layer), Schedule.linear(20), "eps", (2, 3))
        assert not made.net.training
        made.net.train()
        with refuses("in training mode, where layers.0 makes every call another one"):
            sample(made, 2, steps=2)
    made = Model(Half(torch.nn.Dropout(0.0)), Schedule.linear(20), "eps", (2, 3))
    made.net.train()
    assert sample(made, 2, steps=2).shape == (2, 2, 3)


def test_labels_and_guidance_that_do_not_fit_the_model(refuses):
    labels = torch.tensor([0, 1])
    with refuses("tiny has no classes, so labels mean nothing to it"):
        make_model().denoiser(Condition(labels))
    with refuses("tiny is class-conditional: give labels"):
        make_model(3).denoiser()
    with refuses("guidance compares with a condition left out, and tiny was given none"):
        make_model().denoiser(Condition(guidance=2.0))
    with refuses("tiny was not trained for guidance"):
        make_model(3).replace(null_label=None).denoiser(Condition(labels, guidance=2.0))
    with refuses("guidance must be a finite number, not inf"):
        make_model(3).denoiser(Condition(labels, guidance=float("inf")))


def test_the_public_names():
    assert ddim.load is load
    assert ddim.Model is Model
    assert Path(ddim.__file__ or "").parent.joinpath("shipped", "mnist").is_dir()
