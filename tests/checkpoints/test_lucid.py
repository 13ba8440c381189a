"""denoising-diffusion-pytorch's trainer checkpoints against a plain forward pass."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ddim.checkpoints.foreign import read_foreign
from ddim.checkpoints.record import Hints
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.network import NetworkDenoiser
from ddim.denoisers.target import Target
from ddim.model.drawing import sample
from ddim.model.opening import load
from ddim.noise.schedule import Schedule

T = torch.tensor([3, 70])
SIZE = Hints(image_size=16)


def buffers(schedule, objective="v", clip=None):
    """What a GaussianDiffusion keeps beside its network: section 6."""
    alpha_bar = schedule.alpha_bar[1:]
    snr = alpha_bar / (1 - alpha_bar)
    clipped = snr if clip is None else np.minimum(snr, clip)
    weight = {"eps": clipped / snr, "x0": clipped, "v": clipped / (snr + 1)}[objective]
    values = {"betas": schedule.betas, "alphas_cumprod": alpha_bar, "loss_weight": weight}
    return {key: torch.tensor(value, dtype=torch.float32) for key, value in values.items()}


def trainer(weights, state, raw=0.0):
    """The dict that the trainer saves; the raw weights are a multiple of the averaged ones."""
    inner = {f"model.{key}": value for key, value in weights.items()}
    online = {f"online_model.{key}": value * 0 for key, value in (state | inner).items()}
    average = {f"ema_model.{key}": value for key, value in (state | inner).items()}
    counters = {"initted": torch.tensor(True), "step": torch.tensor(10)}
    return {
        "step": 1000,
        "model": state | {key: value * raw for key, value in inner.items()},
        "opt": {"state": {}, "param_groups": [{"lr": 8e-5, "betas": (0.9, 0.99)}]},
        "ema": counters | online | average,
        "scaler": None,
        "version": "2.3.4",
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mult": (1, 2, 4), "full": (False, True, False), "memory": 2, "heads": 3},
        {"rms": False},
        {"out": 6, "mult": (2,), "full": (True,)},
    ],
    ids=["default", "other attention", "versions before 2.0", "learned variance"],
)
def test_it_computes_what_the_layout_says(plain, tmp_path, options):
    p, x = plain.Plain(), plain.randn(2, 3, 16, 16)
    expected = plain.lucid(p, x, T, **options)
    assert 0.1 < float(expected.std()) < 10
    schedule = Schedule.sigmoid(100)
    torch.save(trainer(p.w, buffers(schedule)), tmp_path / "model-1.pt")
    loaded = read_foreign(tmp_path / "model-1.pt", hints=SIZE)
    torch.testing.assert_close(loaded.net(x, T), expected, rtol=1e-5, atol=2e-5)
    assert np.abs(loaded.schedule.alpha_bar - schedule.alpha_bar).max() < 1e-6
    assert (loaded.shape, loaded.target) == ((3, 16, 16), Target.V)
    assert loaded.clipping == Clipping("clip")
    assert loaded.facts.weights == "ema"
    groups = ["8 groups a normalisation"] if "rms" in options else []
    assert loaded.facts.assumed == tuple(groups)
    if "out" in options:
        prediction = NetworkDenoiser(loaded.net)(x[:1], loaded.schedule.level(4))
        torch.testing.assert_close(prediction.var, (expected[:1, 3:] + 1) / 2, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    "detail",
    [{"sine_first": False}, {"divisor_less": 0}, {"exact_gelu": False}, {"linear_scale": False}],
    ids=lambda detail: next(iter(detail)),
)
def test_details_that_change_the_numbers(plain, tmp_path, detail):
    p, x = plain.Plain(), plain.randn(2, 3, 16, 16)
    expected = plain.lucid(p, x, T)
    for key in ("time_mlp.1.bias", "downs.0.2.to_out.0.bias"):
        p.w[key] *= 0.1
    expected = plain.lucid(p, x, T)
    torch.save(p.w, tmp_path / "unet.pt")
    net = read_foreign(tmp_path / "unet.pt", hints=SIZE).net
    right = float((net(x, T) - expected).abs().max())
    assert right < 2e-5
    assert float((plain.lucid(p, x, T, **detail) - expected).abs().max()) > 20 * right


def test_raw_weights_by_choice(plain, tmp_path):
    p, x = plain.Plain(), plain.randn(1, 3, 16, 16)
    plain.lucid(p, x, T[:1])
    torch.save(trainer(p.w, buffers(Schedule.cosine(100))), tmp_path / "model-1.pt")
    loaded = read_foreign(tmp_path / "model-1.pt", "net", hints=SIZE)
    assert loaded.facts.weights == "net"
    assert not loaded.net(x, T[:1]).any()


@pytest.mark.parametrize("clip", [None, 5.0])
@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
def test_the_target_is_told_from_the_loss_weights(plain, tmp_path, objective, clip):
    p, x = plain.Plain(), plain.randn(1, 3, 8, 8)
    plain.lucid(p, x, T[:1], mult=(1,), full=(True,), dim=8)
    for schedule in (Schedule.sigmoid(50), Schedule.linear(50, scaled=True), Schedule.cosine(50)):
        state = buffers(schedule, objective, clip)
        torch.save(trainer(p.w, state), tmp_path / "model-1.pt")
        assert read_foreign(tmp_path / "model-1.pt", hints=SIZE).target is Target(objective)


def test_a_bare_unet_leaves_more_open(plain, tmp_path):
    p, x = plain.Plain(), plain.randn(1, 1, 8, 8)
    plain.lucid(p, x, T[:1])
    torch.save(p.w, tmp_path / "unet.pt")
    model = load(tmp_path / "unet.pt")
    assert model.facts.assumed == (
        "schedule sigmoid, T=1000",
        "target v",
        "image_size 28",
    )
    told = load(tmp_path / "unet.pt", schedule=Schedule.linear(20), hints=Hints(8, target="eps"))
    assert told.facts.assumed == ()
    assert sample(told, n=2, steps=2).shape == (2, 1, 8, 8)


def test_what_is_not_supported_is_named(plain, tmp_path, refuses):
    def save(weights):
        torch.save(weights, tmp_path / "x.pt")
        return tmp_path / "x.pt"

    p = plain.Plain()
    plain.lucid(p, plain.randn(1, 3, 8, 8), T[:1])
    fourier = p.w | {"time_mlp.0.weights": torch.zeros(8)}
    with refuses("x.pt: time_mlp.0.weights: random or learned time features are not supported"):
        read_foreign(save(fourier))
    own = p.w | {"init_conv.weight": torch.zeros(16, 6, 7, 7)}
    with refuses("x.pt: init_conv.weight takes 6 channels for 3: .* self-conditioning"):
        read_foreign(save(own))
    older = {key: value for key, value in p.w.items() if "mem_kv" not in key}
    with refuses("x.pt is of denoising-diffusion-pytorch before 1.9, .*downs.0.2.mem_kv is missin"):
        read_foreign(save(older))
    with refuses("UNet2DModel cannot express a LucidUnet .linear attention, learned keys"):
        load(save(p.w)).save(tmp_path / "folder")


def test_what_is_written_down_beside_the_file(plain, tmp_path, refuses):
    p = plain.Plain()
    plain.lucid(p, plain.randn(1, 3, 8, 8), T[:1])
    path, notes = tmp_path / "unet.pt", tmp_path / "unet.pt.json"
    torch.save(p.w, path)
    spec = dict(Schedule.cosine(30).spec)
    notes.write_text(json.dumps({"image_size": 8, "target": "eps", "schedule": spec}))
    loaded = load(path)
    assert (loaded.shape, loaded.target, loaded.schedule.T) == ((3, 8, 8), Target.EPS, 30)
    assert loaded.facts.assumed == ()
    assert load(path, hints=Hints(image_size=16)).schedule.T == 1000  # what is said here prevails
    for text, match in (
        ('{"imagesize": 8}', "unknown key 'imagesize': did you mean 'image_size'"),
        ('{"schedule": {"kind": "cosin"}}', "unknown schedule 'cosin'"),
        ('{"image_size": "8"}', "image_size must be a whole number of at least 1, not '8'"),
        ('{"image_size": 0}', "image_size must be a whole number of at least 1"),
        ("{", "is not valid JSON"),
    ):
        notes.write_text(text)
        with refuses(f"unet.pt.json.*{match}"):
            load(path)
