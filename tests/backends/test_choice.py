"""Which back end runs a network, and that outputs say so and are held to it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import ddim
from ddim.backends import choice
from ddim.backends.choice import checksum, choose
from ddim.model.drawing import pick_batch_size

CPU = torch.device("cpu")


class Off:
    """A back end whose answers are a little off."""

    name = "ncnn"

    def __init__(self, net, size):
        self.net = net

    def __call__(self, x, cond):
        return self.net.conditioned(x, cond) * 1.0001


@pytest.fixture
def installed(monkeypatch):
    """A machine where no back end is there but those that are named."""

    def only(*names):
        monkeypatch.setattr(
            choice, "_why_not", lambda name, *_: None if name in names else "is not installed"
        )

    return only


def test_auto_is_the_fastest_that_is_there(installed):
    pytest.importorskip("openvino")
    model = ddim.load("mnist")
    for names, expected in (((), "torch"), (("openvino",), "openvino")):
        installed(*names)
        assert model.with_backend("auto").runs_on == expected
    installed()
    with pytest.raises(ddim.InputError, match="the back end ncnn is not installed"):
        model.with_backend("ncnn")


def test_auto_does_not_depend_on_what_is_asked_of_it(monkeypatch):
    """Neither on how many images, nor on threads; on the network and what is installed alone."""
    model = ddim.load("mnist")
    found = model.runs_on
    before = torch.get_num_threads()
    try:
        for threads in (1, 5):
            torch.set_num_threads(threads)
            assert (model.runs_on, pick_batch_size(model, None)) == (
                found,
                1 if found == "ncnn" else 8,
            )
    finally:
        torch.set_num_threads(before)


def test_small_and_other_networks_stay_on_torch():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2**20))

        def forward(self, x, t):
            return x * self.weight[0]

    schedule = ddim.Schedule.linear(10)
    assert ddim.Model(Net(), schedule, "v", (1, 4, 4)).runs_on == "torch"
    model = ddim.load("mnist")
    assert model.to(dtype=torch.float64).runs_on == "torch"
    model.to(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.runs_on == "torch"


def test_an_answer_that_is_off_is_said_and_not_used(monkeypatch, caplog, installed):
    installed("ncnn")
    monkeypatch.setattr(choice.ncnn, "NcnnUNet", Off)
    model = ddim.load("mnist")
    assert model.runs_on == "torch"
    assert [r.getMessage() for r in caplog.records] == [
        "ncnn's answer is 1.0e-04 away from torch's, and is not used"
    ]
    with pytest.raises(ddim.RunError, match=r"answer is 1\.0e-04 away"):
        model.with_backend("ncnn")


def test_names_of_other_devices_are_refused():
    model = ddim.load("mnist")
    for name in ("cuda-graph", "compile"):
        with pytest.raises(ddim.InputError, match=f"the back end {name} is for CUDA, not for cpu"):
            model.with_backend(name)
    with pytest.raises(ddim.InputError, match="unknown backend 'onnx'"):
        model.replace(backend="onnx")
    with pytest.raises(ddim.InputError, match="unknown backend"):
        choose("fast", model.network, model.shape, CPU)


def test_a_checksum_sees_every_way_of_changing_weights():
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    seen = {checksum(net)}
    assert {checksum(net)} == seen
    net[0].weight.data[0, 0] += 1e-6
    seen.add(checksum(net))
    net[0].weight.data = net[0].weight.data.flip(0)
    seen.add(checksum(net))
    net[0].bias.data.neg_()
    seen.add(checksum(net))
    net[1].num_batches_tracked += 1
    seen.add(checksum(net))
    net[0].weight.data.copy_(net[0].weight.data.flip(1).clone())  # the same numbers elsewhere
    seen.add(checksum(net))
    hook = net[0].register_forward_hook(lambda *_: None)
    seen.add(checksum(net))
    hook.remove()
    net.register_buffer("beside", torch.zeros(1), persistent=False)
    seen.add(checksum(net))
    net.to(torch.bfloat16)
    seen.add(checksum(net))
    assert len(seen) == 9


def test_a_denoiser_that_is_held_does_not_mix_old_weights_with_new():
    model = ddim.load("mnist").with_backend("openvino")
    denoiser, level = model.denoiser(), model.schedule.level(100)
    x = ddim.Noise(0, [0], model.shape)(0)
    denoiser(x, level)
    with torch.no_grad():
        model.net.conv_out.weight.mul_(2)
    with pytest.raises(ddim.RunError, match="weights have changed since this denoiser was made"):
        denoiser(x, level)
    model.denoiser()(x, level)


def test_hooks_on_the_whole_network_are_heeded():
    model = ddim.load("mnist").with_backend("torch")
    x, level = ddim.Noise(0, [0], model.shape)(0), model.schedule.level(100)
    plain = model.denoiser()(x, level).eps
    hook = model.net.register_forward_hook(lambda module, given, output: 2 * output)
    try:
        assert torch.allclose(model.denoiser()(x, level).eps, 2 * plain, atol=1e-4)
        auto = model.with_backend("auto")
        assert torch.allclose(auto.denoiser()(x, level).eps, 2 * plain, atol=1e-3)
    finally:
        hook.remove()
    assert torch.equal(model.denoiser()(x, level).eps, plain)


def test_latents_are_decoded_by_what_encoded_them(tmp_path):
    pytest.importorskip("openvino")
    model = ddim.load("mnist")
    images = ddim.sample(model.with_backend("torch"), 2, steps=2).clamp(-1, 1)
    latents = ddim.encode(model.with_backend("openvino"), images, steps=3)
    latents.save(tmp_path / "l.safetensors")
    latents = ddim.Latents.load(tmp_path / "l.safetensors")
    assert latents.backend == "openvino"
    exact = ddim.decode(model.with_backend("openvino"), latents)
    assert torch.equal(ddim.decode(model.with_backend("auto"), latents), exact)
    with pytest.raises(ddim.InputError, match=r"encoded by openvino.*not by torch"):
        ddim.decode(model.with_backend("torch"), latents)


def run(*words):
    return subprocess.run(
        [sys.executable, "-m", "ddim", *map(str, words)], capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_command_says_what_ran_and_resumes_with_that(tmp_path):
    words = ["sample", "--model", "mnist", "--steps", 1, "--output", tmp_path / "out"]
    done = run(*words, "-n", 1, "--backend", "torch", "--json")
    assert json.loads(done.stdout)["backend"] == "torch", done.stderr
    assert 'backend = "torch"' in (tmp_path / "out" / "run.toml").read_text()
    done = run(*words, "-n", 2, "--backend", "openvino", "--resume")
    assert done.returncode == 2
    assert "begun with backend = torch, not openvino" in done.stderr
    done = run(*words, "-n", 2, "--backend", "torch", "--resume")
    assert (done.returncode, len(list((tmp_path / "out").glob("*.png")))) == (0, 2)
    done = run("sample", "--backend", "tensorrt", "--output", tmp_path / "x.png")
    assert done.returncode == 2 and "unknown backend 'tensorrt'" in done.stderr
