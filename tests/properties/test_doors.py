"""Every door takes the same spellings of a sampler and refuses the same ones, in the same words."""

import json

import numpy as np
import pytest
import torch

import ddim
from ddim.base.errors import InputError
from ddim.cli.main import main
from ddim.samplers.sampler import Sampler

T = 500
RIGHT = {
    "ddim": Sampler(),
    "ddim:steps=4": Sampler(steps=4),
    "ddim:eta=0.5:steps=4": Sampler(steps=4, eta=0.5),
    "ddpm:variance=large:steps=4": Sampler("ddpm", steps=4, variance="large"),
    "dpmpp:order=3:steps=5": Sampler("dpmpp", steps=5, order=3),
    "unipc:variant=bh1:steps=5": Sampler("unipc", steps=5, variant="bh1"),
    "ddim:steps=4:nodes=quad": Sampler(steps=4, nodes="quadratic"),
    "ddim:steps=4:nodes=trailing": Sampler(steps=4),
    "ddim:nodes=500-250-100-0": Sampler(nodes=(500, 250, 100, 0)),
    "plms:steps=4:nodes=diffusers-leading": Sampler("plms", steps=4, nodes="diffusers-leading"),
    "calibrated:steps=5": Sampler("calibrated", steps=5),
}
WRONG = {
    "dimm": "unknown method 'dimm': did you mean 'ddim'",
    "dpm++:steps=4": "unknown method 'dpm++': did you mean 'dpmpp'",
    "ddim:eta=x": "eta is a number, not 'x'",
    "ddim:sigma=1": "method 'ddim' has no option 'sigma': it has eta",
    "dpmpp:order=4": "dpmpp has the orders 1 to 3, not 4",
    "dpmpp:order=3:steps=2": "order 3 takes at least 3 steps to be reached, not 2",
    "ddim:steps=0": "the number of steps must be at least 1, not 0",
    "ddim:steps=501": "the number of steps must be from 1 to T = 500, not 501",
    "ddim:nodes=quadratc": "unknown nodes 'quadratc': did you mean 'quadratic'",
    "ddim:nodes=500-600-0": "nodes must rise or fall strictly",
    "ddim:nodes=501-0": "nodes must be in 0..500",
    "ddim:nodes=500-0:steps=3": "2 nodes are 1 steps, not 3",
    "ddim:eta=-1": "eta must be at least 0, not -1",
    "ddim:eta=0:eta=1": "says eta twice",
    "ddim:quick": "an option of a method is KEY=VALUE, not 'quick'",
}
"""Spellings that are wrong for this model, and the beginning of what is said of each."""


@pytest.fixture(scope="module")
def model():
    found = ddim.load("mnist")
    assert found.schedule.T == T
    return found


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """``command(*words)`` → status, standard output, standard error; in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        status = main([*words, "--json"])
        captured = capsys.readouterr()
        return status, captured.out, captured.err.strip()

    return run


def by_flags(text):
    """The same spelling, its parts as the command's own flags."""
    method, *parts = text.split(":")
    flags = ["--method", method]
    for part in parts:
        key, equals, value = part.partition("=")
        known = key in ("steps", "nodes", "eta", "order") and equals
        flags += [f"--{key}", value] if known else ["--option", part]
    return flags


# -- the library ---------------------------------------------------------------------------------


def scheduler(model, text):
    """Diffusers' pipelines choose the number of steps when they run."""
    made = ddim.diffusers_scheduler(model.schedule, text)
    steps = Sampler.parse(text).steps
    made.set_timesteps(50 if steps is None else steps)
    return made.tableau


LIBRARY = {
    "Sampler": lambda model, text: model.tableau(Sampler.parse(text)),
    "Model.tableau": lambda model, text: model.tableau(text),
    "sample": lambda model, text: ddim.sample(model, 1, text, batch_size=1),
    "export": lambda model, text: ddim.export_scheduler(model, text),
    "scheduler": scheduler,
}
EXPORTED = ("ddim", "ddpm", "dpmpp", "unipc", "calibrated")


@pytest.mark.parametrize("door", LIBRARY)
@pytest.mark.parametrize("text", WRONG)
def test_the_library_refuses_the_same(model, door, text):
    if door == "scheduler":
        pytest.importorskip("diffusers")
    with pytest.raises(InputError) as info:
        LIBRARY[door](model, text)
    assert WRONG[text] in str(info.value)


@pytest.mark.parametrize("text", RIGHT)
def test_the_library_takes_the_same(model, text):
    expected = RIGHT[text]
    assert Sampler.parse(text) == expected
    rows = model.tableau(expected).rows
    assert model.tableau(text).rows == rows
    if expected.steps is not None and expected.steps <= 5 and expected.method != "calibrated":
        pytest.importorskip("diffusers")
        assert scheduler(model, text).rows == rows
    # Diffusers has η at every call, and another form of the order 3.
    apart = expected.options.get("eta") or expected.options.get("order") == 3
    if expected.method in EXPORTED and not apart:
        nodes = model.resolve(expected).place(model.schedule)
        exported = ddim.export_scheduler(model, text)
        assert exported.timesteps == tuple(k - 1 for k in nodes[:-1])


# -- the command ---------------------------------------------------------------------------------


VERBS = {
    "sample": lambda text: ["sample", "-n", "1", "--method", text, "--quiet"],
    "sample by flags": lambda text: ["sample", "-n", "1", *by_flags(text), "--quiet"],
    "inspect": lambda text: ["inspect", "--model", "mnist", "--method", text],
    "inspect by flags": lambda text: ["inspect", "--model", "mnist", *by_flags(text)],
    "compare": lambda text: ["compare", "-n", "1", "--methods", text, "--quiet"],
    "evaluate": lambda text: ["evaluate", "-n", "2", "--methods", text, "--quiet", "--dry-run"],
    "convert": lambda text: ["convert", "mnist", "converted", "--method", text],
}
BY_FLAGS = {  # what is written by a flag is read as one
    "ddim:eta=x": "--eta takes a number, not 'x'",
    "ddim:eta=0:eta=1": "",
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("text", WRONG)
def test_the_command_refuses_the_same(command, verb, text):
    flags = "flags" in verb
    if flags and text == "ddim:eta=0:eta=1":
        return  # the last of two flags counts, as on every command line
    status, out, err = command(*VERBS[verb](text))
    assert (status, out) == (2, ""), err
    assert len(err.splitlines()) == 1
    assert (BY_FLAGS.get(text) if flags and text in BY_FLAGS else WRONG[text]) in err


@pytest.mark.parametrize("text", [t for t, s in RIGHT.items() if s.steps is not None])
def test_the_command_takes_the_same(command, model, text):
    calls = model.tableau(text).calls
    for verb in ("sample", "sample by flags"):
        status, out, err = command(*VERBS[verb](text), "--force", "--batch-size", "1")
        assert status == 0, err
        assert json.loads(out)["network_calls"] == calls
    for verb in ("inspect", "inspect by flags"):
        status, out, err = command(*VERBS[verb](text))
        assert status == 0, err


# -- codecs --------------------------------------------------------------------------------------


CODED = [text for text in WRONG if text.startswith(("ddim:steps", "ddim:nodes", "ddim:quick"))]


@pytest.mark.parametrize("text", CODED)
def test_codecs_refuse_the_same(model, command, text, tmp_path):
    parts = text.partition(":")[2]
    images = torch.zeros(1, *model.shape)
    with pytest.raises(InputError) as info:
        ddim.encode(model, images, codec=f"obelm:{parts}")
    assert WRONG[text].replace("ddim", "obelm") in str(info.value)
    np.savez(tmp_path / "one.npz", images=np.zeros((1, 28, 28, 1), np.uint8))
    status, _, err = command("encode", "--data", "one.npz", "-n", "1", "--codec", f"obelm:{parts}")
    assert status == 2
    assert WRONG[text].replace("ddim", "obelm") in err


def test_codecs_take_the_same(model):
    images = torch.zeros(1, *model.shape)
    for text in ("obelm:steps=4:nodes=quad", "obelm:nodes=500-250-100-0"):
        options = RIGHT[text.replace("obelm", "ddim")]
        spelled = ddim.encode(model, images, codec=text)
        given = ddim.encode(model, images, codec="obelm", nodes=options.nodes, steps=options.steps)
        assert spelled.nodes == given.nodes
        assert all(map(torch.equal, spelled.tensors, given.tensors))
