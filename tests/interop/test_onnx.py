"""ONNX files in onnxruntime, against `ddim.sample` and the networks themselves."""

from __future__ import annotations

import builtins
import json
import sys

import pytest
import torch
from torch import Tensor, nn

import ddim
from ddim.cli.main import main
from ddim.denoisers.clipping import Clipping
from ddim.interop import graph
from ddim.interop import onnx as module
from ddim.interop.onnx import export_onnx
from ddim.interop.recording import injecting

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

SCHEDULE = ddim.Schedule.linear(20, 0.01, 0.4)
SHAPE = (1, 4, 4)


class Net(nn.Module):
    """A small network of somebody's, with classes (the last is none) and a map where they are."""

    def __init__(self, classes: int | None = None, twice: bool = False) -> None:
        super().__init__()
        self.inward, self.outward = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1 + twice, 1)
        self.classes = None if classes is None else nn.Embedding(classes + 1, 4)

    def forward(
        self, x: Tensor, t: Tensor, labels: Tensor | None = None, depth: Tensor | None = None
    ) -> Tensor:
        h = self.inward(x if depth is None else x + depth) + 0.1 * t[:, None, None, None]
        if self.classes is not None and labels is not None:
            h = h + self.classes(labels)[:, :, None, None]
        return self.outward(torch.tanh(h))


def make(net: nn.Module | None = None, target: str = "eps", **fields) -> ddim.Model:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = net or Net(**{k: fields.pop(k) for k in ("twice",) if k in fields})
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.3)
    return ddim.Model(net, SCHEDULE, target, SHAPE, name="own", **fields)


PLAIN = make()
DEPTH = torch.linspace(-1, 1, 48).view(3, 1, 4, 4)


def run(path, **inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert {i.name for i in session.get_inputs()} == inputs.keys()
    feeds = {name: value.numpy() for name, value in inputs.items()}
    return torch.from_numpy(session.run(None, feeds)[0])


def drawn(model: ddim.Model, sampler: str, n: int, seed: int = 3, **given):
    """What we draw, and the noise that it takes."""
    noise = ddim.Noise(seed, range(n), model.shape)
    tableau = model.tableau(sampler)
    inputs = {"noise": noise(0)}
    if tableau.stochastic:
        inputs["step_noise"] = torch.stack([noise(i) for i in injecting(tableau)])
    return ddim.sample(model, n, sampler, seed=seed, batch_size=n, **given), inputs


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The first model by DDIM in three steps."""
    path = tmp_path_factory.mktemp("onnx") / "plain.onnx"
    return path, export_onnx(PLAIN, path, "ddim:steps=3")


@pytest.mark.parametrize("n", [1, 2, 5])
def test_any_number_of_images(plain, n):
    path, made = plain
    expected, inputs = drawn(PLAIN, "ddim:steps=3", n)
    assert torch.allclose(run(path, **inputs), expected, atol=1e-5, rtol=0)
    assert (made.calls, made.output, made.size) == (3, "images", path.stat().st_size)
    assert made.inputs == {"noise": "float32 (N, 1, 4, 4): standard normal"}
    assert made.error is not None and made.error < 1e-5


def test_the_file_is_sound_and_says_what_it_is(plain):
    path, _ = plain
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    assert facts["ddim.model"] == "own" and facts["ddim.identity"] == PLAIN.identity
    assert facts["ddim.sampler"] == "ddim:steps=3" and facts["ddim.nodes"] == "20-13-7-0"
    assert facts["ddim.target"] == "eps" and facts["ddim.version"] == ddim.__version__
    assert ddim.Schedule.from_spec(json.loads(facts["ddim.schedule"])).T == 20
    assert json.loads(facts["ddim.inputs"]).keys() == {"noise"}
    assert (proto.producer_name, proto.ir_version) == ("ddim", 8)
    assert str(path.parent).encode() not in path.read_bytes()
    assert b"site-packages" not in path.read_bytes()


@pytest.mark.slow
def test_equal_models_make_equal_bytes_and_steps_take_no_weights(plain, tmp_path):
    path, _ = plain
    for model, name in ((PLAIN, "fewer.onnx"), (make(), "again.onnx")):
        export_onnx(model, tmp_path / name, "ddim:steps=1")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "fewer.onnx").read_bytes()
    weights = [
        [t.name for t in onnx.load(p).graph.initializer if t.name.startswith("network.")]
        for p in (path, tmp_path / "fewer.onnx")
    ]
    assert weights[0] == weights[1]
    assert path.stat().st_size - (tmp_path / "fewer.onnx").stat().st_size < 4000


@pytest.mark.parametrize(
    ("sampler", "fields"),
    [
        # A learned variance, and eps kept where x0 is clipped.
        ("ddpm:steps=2", {"twice": True, "clipping": Clipping("clip", stale_eps=True)}),
        # A level between nodes, and a network of other conventions.
        ("dpm-solver-2:steps=1", {"target": "v", "time": "fraction", "data_range": (0, 1)}),
        ("ddim:eta=0.5:steps=1", {"clipping": Clipping("threshold", limit=2, ratio=0.9)}),
    ],
)
@pytest.mark.slow
def test_methods_targets_and_clipping(tmp_path, sampler, fields):
    model = make(**fields)
    made = export_onnx(model, tmp_path / "m.onnx", sampler)
    expected, inputs = drawn(model, sampler, 2)
    found = run(tmp_path / "m.onnx", **inputs)
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)
    assert list(made.inputs) == list(inputs)


def test_classes_with_guidance_and_a_tensor(tmp_path):
    model = make(Net(3), classes=3, null_label=3, null={"depth": torch.zeros(1, 4, 4)})
    condition = ddim.Condition(
        tensors={"depth": DEPTH}, guidance=2.0, rescale=0.7, clip=True, null={}
    )
    made = export_onnx(model, tmp_path / "m.onnx", steps=2, condition=condition)
    expected, inputs = drawn(model, "ddim:steps=2", 3, condition=condition, labels=[2, 0, 1])
    found = run(tmp_path / "m.onnx", **inputs, labels=torch.tensor([2, 0, 1]), depth=DEPTH)
    assert torch.allclose(found, expected, atol=1e-5, rtol=0)
    assert made.calls == 4
    assert made.inputs["labels"] == "int64 (N): classes from 0 to 2, 3 for none"


def test_the_network_alone_is_as_it_was_trained(tmp_path):
    model = make(Net(), time="fraction", data_range=(0, 1))
    made = export_onnx(model, tmp_path / "net.onnx", None, condition={"depth": DEPTH[:1]})
    x, t = torch.rand(3, 1, 4, 4), torch.tensor([0.1, 0.5, 1.0])
    found = run(tmp_path / "net.onnx", x=x, t=t, depth=DEPTH)
    with torch.no_grad():
        assert torch.allclose(found, model.net(x, t, depth=DEPTH), atol=1e-6)
    assert (made.output, made.calls, made.sampler) == ("prediction", 1, None)


class Lengths(Net):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t) + torch.zeros(len(x), 1, 1, 1)


class Branches(Net):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t) if bool(x.sum() > 0) else x


def test_a_network_of_one_batch_size(tmp_path, refuses):
    path = tmp_path / "m.onnx"
    with refuses(r"own cannot be made an ONNX graph: .*; a fixed batch size may help"):
        export_onnx(make(Lengths()), path, steps=2)
    assert not list(tmp_path.iterdir())
    made = export_onnx(make(Lengths()), path, steps=2, batch_size=4)
    expected, inputs = drawn(make(Lengths()), "ddim:steps=2", 4)
    assert torch.allclose(run(path, **inputs), expected, atol=1e-5, rtol=0)
    assert made.inputs["noise"].startswith("float32 (4, 1, 4, 4)")


PAIR = """
import dataclasses
from ddim.samplers.sampler import make_tableau

def pair(schedule, nodes):
    table = make_tableau(schedule, nodes, "ddim")
    first, moved = table.initial[0], lambda terms: tuple((i + 1, c) for i, c in terms)
    rows = tuple(
        dataclasses.replace(r, states=moved(r.states), x0=moved(r.x0), eps=moved(r.eps))
        for r in table.rows
    )
    return dataclasses.replace(
        table, method="pair", initial=(first, first), rows=rows, returns=(len(rows) + 1,)
    )
"""
"""A method whose second state is not noise's to give."""


@pytest.mark.parametrize(
    ("match", "model", "given"),
    [
        ("pair starts from 2 states", PLAIN, {"method": "pair.py:pair"}),
        ("nodes that rise encode images", PLAIN, {"nodes": "0-10-20"}),
        ("own has no calibration", PLAIN, {"method": "calibrated"}),
        ("steps must be from 1 to T = 20", PLAIN, {"steps": 21}),
        ("the network alone takes no steps", PLAIN, {"method": None, "steps": 3}),
        ("neither guided nor clipped", PLAIN, {"method": None, "condition": {"clip": True}}),
        ("labels are an input", PLAIN, {"condition": {"labels": 1}}),
        ("takes no argument 'width'", PLAIN, {"condition": {"tensors": {"width": DEPTH}}}),
        ("input 'noise' of its own", PLAIN, {"condition": {"tensors": {"noise": DEPTH}}}),
        ("depth has no row", PLAIN, {"condition": {"tensors": {"depth": DEPTH[:0]}}}),
        ("guidance compares with", PLAIN, {"condition": {"guidance": 2.0}}),
        ("opset must be at least 18", PLAIN, {"opset": 17}),
        ("batch size must be at least 1", PLAIN, {"batch_size": 0}),
        ("own cannot be made an ONNX graph: ", make(Branches()), {"batch_size": 1}),
    ],
)
def test_what_cannot_be_written(tmp_path, monkeypatch, refuses, match, model, given):
    given = dict(given)
    (tmp_path / "pair.py").write_text(PAIR)
    monkeypatch.chdir(tmp_path)
    if "condition" in given:
        given["condition"] = ddim.Condition(**given["condition"])
    with refuses(match):
        export_onnx(model, tmp_path / "out" / "m.onnx", **given)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_network_in_training_mode(tmp_path, refuses):
    model = make(nn.Sequential(Net(), nn.Dropout(0.5)))
    model.net.train()
    for method in ("ddim", None):
        with refuses("the network is in training mode"):
            export_onnx(model, tmp_path / "m.onnx", method)


def test_precisions_and_sizes(tmp_path, refuses, monkeypatch):
    with refuses("on the CPU in float32, not on cpu in torch.float64"):
        export_onnx(make().to(dtype=torch.float64), tmp_path / "m.onnx")
    monkeypatch.setattr(module, "LARGEST", 100)
    with refuses("GB of weights, and an ONNX file holds less than 2"):
        export_onnx(PLAIN, tmp_path / "m.onnx")


def without(monkeypatch, name: str) -> None:
    """As if a package were not installed."""
    real = builtins.__import__

    def missing(wanted: str, *rest, **named):
        if wanted.split(".")[0] == name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(wanted, *rest, **named)

    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)


def test_packages_that_are_not_there(tmp_path, refuses, monkeypatch):
    with monkeypatch.context() as patch:
        without(patch, "onnxscript")
        with refuses(r"takes the package onnxscript: pip install 'ddim\[onnx\]'"):
            export_onnx(PLAIN, tmp_path / "m.onnx")


def test_a_graph_that_gives_something_else_is_not_written(tmp_path, refuses, monkeypatch):
    real = graph.run
    monkeypatch.setattr(graph, "run", lambda *given: [x + 1 for x in real(*given)])
    (tmp_path / "m.onnx").write_text("before")
    with refuses("gives something else: it differs by 1"):
        export_onnx(PLAIN, tmp_path / "m.onnx", None)
    assert (tmp_path / "m.onnx").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


FILE = """
import torch, ddim
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, t):
        return self.layer(torch.cat([x, t[:, None] / 20], dim=1))

torch.manual_seed(0)
model = ddim.Model(Net(), ddim.Schedule.linear(20, 0.01, 0.4), "eps", (2,), name="points")
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(FILE)

    def run(*words: object):
        status = main(["convert", *map(str, words)])
        return status, *capsys.readouterr()

    return run


def test_the_command(command, tmp_path, monkeypatch):
    words = ("own.py:model", "--onnx", "points.onnx", "--steps", 2, "--method", "dpmpp")
    status, out, err = command(*words)
    assert (status, err) == (0, "")
    assert out.startswith("wrote points.onnx: points, dpmpp:steps=2, 2 calls, 0.0 MB, within ")
    assert out.endswith("\n  noise: float32 (N, 2): standard normal\n")
    assert (tmp_path / "points.onnx.run.toml").exists()
    assert command(*words)[::2] == (
        2,
        "ddim convert: points.onnx exists already: give --force to write over it, or another "
        "--onnx\n",
    )
    # Again, as its record says, and without onnxruntime.
    first = (tmp_path / "points.onnx").read_bytes()
    without(monkeypatch, "onnxruntime")
    status, out, err = command("--config", "points.onnx.run.toml", "--force", "--json")
    assert (status, json.loads(out)["error"]) == (0, None)
    assert err == ("ddim convert: not compared with ddim sample: onnxruntime is not installed\n")
    assert (tmp_path / "points.onnx").read_bytes() == first


@pytest.mark.parametrize(
    ("match", "words"),
    [
        ("DEST is missing", []),
        ("--opset go with --onnx", ["folder", "--network-only"]),
        ("folder is a folder to write, and --onnx a file", ["folder", "--onnx", "x.onnx"]),
        ("leave its options out", ["--onnx", "x.onnx", "--network-only", "--steps", 2]),
        (". is a folder: --onnx takes a file", ["--onnx", "."]),
    ],
)
def test_options_that_contradict(command, tmp_path, match, words):
    status, out, err = command("own.py:model", *words)
    assert (status, out, err.count("\n")) == (2, "", 1) and match in err
    assert not (tmp_path / "x.onnx").exists()


def test_a_shipped_model(tmp_path):
    """A UNet. Its first step divides by α = 0.006, which makes 1e-5 of float32's rounding."""
    model = ddim.load("mnist-cond")
    made = export_onnx(model, tmp_path / "m.onnx", steps=3)
    expected, inputs = drawn(model, "ddim:steps=3", 2, labels=[7, 1])
    found = run(tmp_path / "m.onnx", **inputs, labels=torch.tensor([7, 1]))
    assert torch.allclose(found, expected, atol=1e-4, rtol=0)
    weights = sum(4 * p.numel() for p in model.net.parameters())
    assert weights < made.size < 1.05 * weights
