"""OpenVINO's answers are torch's, whatever the network takes; its cache and its silence."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import ddim
from ddim.backends.choice import choose
from ddim.backends.openvino import why_not

pytest.importorskip("openvino")

CPU = torch.device("cpu")


class Conditioned(torch.nn.Module):
    """A network of anybody's, which takes labels by place and a tensor by name."""

    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(2, 2, 3, padding=1)
        self.times = torch.nn.Embedding(100, 2)
        self.classes = torch.nn.Embedding(4, 2)
        self.text = torch.nn.Linear(5, 2)

    def forward(self, x, t, labels, *, text):
        shift = self.times(t) + self.classes(labels) + self.text(text)
        return torch.nn.functional.silu(self.convolution(x) + shift[:, :, None, None])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def conditioned():
    torch.manual_seed(0)
    schedule = ddim.Schedule.linear(100)
    return ddim.Model(Conditioned(), schedule, "v", (2, 8, 8), classes=4, name="mine")


def test_images_are_torch_s_whatever_the_network_takes(conditioned):
    text = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    given = {"n": 5, "steps": 4, "batch_size": 2, "condition": {"text": text}}
    expected = ddim.sample(conditioned.with_backend("torch"), **given)
    model = conditioned.with_backend("openvino")
    assert model.runs_on == "openvino" and conditioned.runs_on == "torch"  # auto: unknown network
    found = ddim.sample(model, **given)
    assert 0 < (found - expected).abs().max() < 1e-5
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(ddim.sample(model, **given), found)
    finally:
        torch.set_num_threads(before)


def test_another_shape_is_converted_too(conditioned):
    model = conditioned.with_backend("openvino")
    expected = conditioned.with_backend("torch")
    for n in (1, 3):
        given = {"n": n, "steps": 2, "batch_size": n, "condition": {"text": torch.ones(n, 5)}}
        assert (ddim.sample(model, **given) - ddim.sample(expected, **given)).abs().max() < 1e-5


def test_the_shipped_model_at_every_level_and_its_cache(cache):
    model = ddim.load("mnist-cond")
    engine = choose("openvino", model.network, model.shape, CPU)
    (kept,) = cache.rglob("*.blob")
    with torch.no_grad():
        for k in (20, 100, 250, 500):
            level = model.schedule.level(k)
            noise = ddim.Noise(0, range(3), model.shape)
            x = level.alpha * noise(1).clamp(-1, 1) + level.sigma * noise(0)
            cond = model.net.condition(model.net.embed(torch.full((1,), level.t)), torch.arange(3))
            true, found = model.net.conditioned(x, cond), engine(x, cond)
            assert (found - true).abs().max() < 1e-5 * true.abs().max(), k
    written = kept.read_bytes()
    again = choose("openvino", model.network, model.shape, CPU)
    assert torch.equal(again(x, cond), found)
    kept.write_bytes(written[:-1] + bytes([written[-1] ^ 1]))  # damaged: not used, made anew
    repaired = choose("openvino", model.network, model.shape, CPU)
    assert torch.equal(repaired(x, cond), found)
    whole = kept.read_bytes()
    assert hashlib.sha256(whole[32:]).digest() == whole[:32]


def test_changed_weights_are_never_drawn_from_as_they_were(conditioned):
    model = conditioned.with_backend("openvino")
    given = {"n": 2, "steps": 2, "condition": {"text": torch.zeros(2, 5)}}
    before = ddim.sample(model, **given)
    model.net.convolution.weight.data.mul_(1.5)  # past torch's own count of changes
    after = ddim.sample(model, **given)
    assert (after - before).abs().max() > 1e-3
    expected = ddim.sample(model.with_backend("torch"), **given)
    assert (after - expected).abs().max() < 1e-5


def test_what_cannot_run_is_refused_in_a_line(conditioned, monkeypatch):
    with pytest.raises(ddim.InputError, match="openvino runs networks in float32 or bfloat16"):
        conditioned.to(dtype=torch.float64).with_backend("openvino")
    conditioned.to(dtype=torch.float32)

    class Untraceable(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x, t):
            return x * self.weight if float(x.sum()) > 0 else x * 2

    model = ddim.Model(Untraceable(), ddim.Schedule.linear(10), "v", (1, 4, 4))
    with pytest.raises(ddim.InputError, match=r"cannot run this Untraceable.*back end torch"):
        ddim.sample(model.with_backend("openvino"), 1, steps=2)
    with pytest.raises(ddim.InputError, match="unknown backend 'openvin': did you mean"):
        model.with_backend("openvin")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'ddim[fast]'" in (why_not(model.net) or "")


def test_an_answer_that_is_not_torch_s_is_refused(conditioned):
    class Twofaced(torch.nn.Module):
        """Exported, it is another network than the one that torch calls."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x, t):
            return x * self.weight * (1.001 if torch.compiler.is_exporting() else 1.0)

    model = ddim.Model(Twofaced(), ddim.Schedule.linear(10), "v", (1, 4, 4))
    with pytest.raises(ddim.RunError, match=r"1\.0e-03 away from torch's"):
        ddim.sample(model.with_backend("openvino"), 1, steps=2)


def test_gradients_run_on_torch(conditioned):
    model = conditioned.with_backend("openvino")
    x = torch.randn(2, 2, 8, 8, requires_grad=True)
    given = ddim.Condition([0, 1], {"text": torch.zeros(2, 5)})
    model.denoiser(given, grad=True)(x, model.schedule.level(50)).x0.sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks at Linux's table of connections")
def test_it_tells_nobody_and_writes_nothing_but_its_cache(tmp_path):
    """In a process whose home is empty: importing, converting, drawing."""
    home = tmp_path / "home"
    home.mkdir()
    script = textwrap.dedent(
        """
        import socket, sys
        def refused(*a, **k): print("CONNECTS", a, file=sys.stderr); raise OSError("no network")
        socket.socket.connect = refused; socket.create_connection = refused
        socket.getaddrinfo = refused
        import ddim
        model = ddim.load("mnist").with_backend("openvino")
        ddim.sample(model, 1, steps=2)
        assert not [n for n, m in sys.modules.items() if n == "openvino_telemetry" and m]
        assert "openvino_telemetry" not in sys.modules
        """
    )
    own = {k: v for k, v in os.environ.items() if not k.startswith("XDG_")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**own, "HOME": str(home)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = sorted(p.relative_to(home) for p in home.rglob("*") if p.is_file())
    assert {p.parent for p in found} == {Path(".cache/ddim/openvino")}
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("home", "cache")] == []


def test_the_network_of_a_forked_process_is_torch_s(conditioned, monkeypatch, caplog):
    model = conditioned.with_backend("openvino")
    given = {"n": 1, "steps": 2, "condition": {"text": torch.zeros(1, 5)}}
    expected = ddim.sample(model.with_backend("torch"), **given)
    ddim.sample(model, **given)
    pid = os.getpid()
    monkeypatch.setattr("os.getpid", lambda: pid + 1)
    assert torch.equal(ddim.sample(model, **given), expected)
    (said,) = (r.getMessage() for r in caplog.records if r.name == "ddim")
    assert "forked" in said
