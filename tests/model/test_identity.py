"""What makes two models the same, and copies of them."""

import copy
import pickle

import pytest
import torch
from torch import nn

import ddim
from ddim.checkpoints.record import Facts
from tiny import tiny_unet

SCHEDULE = ddim.Schedule.linear(50, scaled=True)
SHAPE = (1, 8, 8)


class Own(nn.Module):
    """A network of the user's."""

    def __init__(self, value=0.5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value]))

    def forward(self, x, t, shift=0.0):
        return self.weight * x + shift


def unet(seed=0):
    return tiny_unet(seed=seed).requires_grad_(False)


def own(**options):
    return ddim.Model(Own(options.pop("value", 0.5)), SCHEDULE, "eps", SHAPE, **options)


def test_the_way_to_a_model_makes_no_difference(tmp_path):
    made = ddim.Model(unet(), SCHEDULE, "eps", SHAPE)
    made.save(tmp_path / "folder")
    opened = ddim.load(tmp_path / "folder")
    around = torch.nn.DataParallel(opened.net)
    for other in (
        opened,
        ddim.Model(opened.net, opened.schedule, opened.target, opened.shape),
        ddim.Model(around, opened.schedule, "eps", SHAPE),
        made.replace(name="another", facts=Facts(source="elsewhere")),
        made.to(dtype=torch.float64),
    ):
        assert other.identity == made.identity


def test_conventions_are_part_of_it_and_their_order_is_not():
    models = [
        own(),
        own(value=0.25),
        own(time="one-based"),
        own(data_range=(0, 1)),
        own(arguments={"shift": 0.1}),
        own(arguments={"shift": torch.tensor([0.1])}),
        own(arguments={"shift": torch.tensor([0.2])}),
        own().replace(target="v"),
        own().replace(schedule=ddim.Schedule.cosine(50)),
    ]
    assert len({model.identity for model in models}) == len(models)
    assert own(time="fraction").identity == own().replace(time="fraction").identity
    assert own(name="a", clipping=ddim.Clipping("clip")).identity == own().identity


@pytest.mark.parametrize("options", [{}, {"time": "fraction", "data_range": (0, 1)}])
@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_the_same_model_with_weights_of_their_own(options, again):
    model = own(**options)
    copied = again(model)
    assert copied.identity == model.identity
    assert copied.net is not model.net
    drawn = [ddim.sample(m, 2, steps=3) for m in (model, copied)]
    assert torch.equal(*drawn)
    assert (copied.schedule.alpha == model.schedule.alpha).all()
    with torch.no_grad():
        copied.net.weight.mul_(2)
    assert copied.identity != model.identity
    assert torch.equal(ddim.sample(model, 2, steps=3), drawn[0])


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies_of_a_rounded_model_know_what_it_was(again):
    whole = ddim.Model(unet(), SCHEDULE, "eps", SHAPE)
    identity = whole.identity
    rounded = whole.to(dtype=torch.bfloat16)
    assert again(rounded).identity == rounded.identity == identity


def test_a_replaced_field_is_checked(refuses):
    with refuses("classes must be at least 1, not 0"):
        own().replace(classes=0)
    with refuses("unknown time 'fractions'"):
        own().replace(time="fractions")
    shifted = own(offset=1)
    assert shifted.schedule.T == 49
    assert shifted.replace(name="again").schedule.T == 49  # the offset is applied once


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (0, 8, 8)}, "shape is that of one image"),
        ({"shape": 8}, "shape is that of one image"),
        ({"classes": 0}, "classes must be at least 1"),
        ({"null_label": 3}, "null_label is for a class-conditional network"),
        ({"labels_as": "y"}, "labels_as is for a class-conditional network"),
        ({"offset": 1.5}, "offset is a whole number"),
        ({"data_range": (0, 1, 2)}, "data_range is two numbers"),
        ({"time_dtype": "long"}, "time_dtype is a torch.dtype"),
        ({"arguments": {"shift": object()}}, "arguments are numbers, text and tensors"),
        ({"net": lambda x, t: x}, "a model needs a torch.nn.Module, not a function"),
        ({"schedule": 100}, "a model needs a ddim.Schedule, not a int"),
        ({"facts": {"assumed": 3}}, "assumed must be a list whose parts are text"),
    ],
)
def test_what_is_no_model(options, message, refuses):
    parts = {"net": Own(), "schedule": SCHEDULE, "target": "eps", "shape": SHAPE, **options}
    with refuses(message):
        ddim.Model(**parts)


def test_it_says_what_it_is():
    assert isinstance(own(), ddim.Model)
    said = repr(own(name="mine"))
    assert len(said) < 200
    assert "mine" in said
    assert "Own" in said


# -- a model in a file of the user's -------------------------------------------------------------

FILE = """
import torch, ddim

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.5]))

    def forward(self, x, t):
        return self.weight * x

def make():
    return ddim.Model(Net(), ddim.Schedule.linear(50, scaled=True), "eps", (1, 8, 8), name="own")

made = make()
number = 3
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(FILE)


@pytest.mark.parametrize("name", ["make", "made"])
def test_a_model_in_a_file_is_opened(file, name, refuses):
    model = ddim.load(f"own.py:{name}")
    assert (model.name, model.shape) == ("own", (1, 8, 8))
    assert ddim.sample(model, 2, steps=2).shape == (2, 1, 8, 8)
    with refuses("own.py:number is a int, not a ddim.Model"):
        ddim.load("own.py:number")
    with refuses("unknown name in own.py 'mak': did you mean 'make'"):
        ddim.load("own.py:mak")
    with refuses("nowhere.py cannot be read"):
        ddim.load("nowhere.py:make")
    with refuses("records its own schedule"):
        ddim.load(f"own.py:{name}", schedule=SCHEDULE)


VERBS = {
    "sample": "sample -n 2 --steps 2 --output a.png",
    "compare": "compare -n 2 --steps 2 3",
    "encode": "encode --data data.npz -n 2 --steps 3",
    "decode": "decode",
    "reconstruct": "reconstruct --data data.npz -n 2 --steps 3 --codecs obelm",
    "interpolate": "interpolate --between 0 1 --frames 3 --steps 3",
    "evaluate": "evaluate -n 4 --steps 2 --data data.npz --features features.py:flat",
    "calibrate": "calibrate own.py:make --calls 3 --latents 2 --moves 0 --output found.json",
    "checks": "checks own.py:make --data data.npz -n 2",
    "inspect": "inspect --steps 2",
}


def test_every_verb_takes_it(file, tmp_path, capsys):
    import numpy as np

    from ddim.cli.main import main

    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=pixels)
    (tmp_path / "features.py").write_text(
        "def flat(images):\n    return images.flatten(1)[:, :3]\n"
    )
    for verb, words in VERBS.items():
        own = [] if "own.py" in words else ["--model", "own.py:make"]
        quiet = [] if verb in ("inspect", "checks") else ["--quiet"]
        status = main([*words.split(), *own, *quiet])
        problems = verb == "checks"  # it was never trained
        assert (status, capsys.readouterr().err) == (int(problems), ""), verb


def test_a_network_without_parameters_is_where_it_was_moved():
    class Half(nn.Module):
        def forward(self, x, t):
            return x / 2

    model = ddim.Model(Half(), SCHEDULE, "eps", SHAPE)
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)
    assert model.to(dtype=torch.float64).dtype is torch.float64
    assert model.to("meta").device.type == "meta"


def test_times_between_nodes_have_the_states_precision():
    seen = []

    class Times(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x, t):
            seen.append(t.dtype)
            return x * self.weight

    for dtype in (torch.float32, torch.float64):
        model = ddim.Model(Times(), SCHEDULE, "eps", SHAPE).to(dtype=dtype)
        x = torch.zeros(1, *SHAPE, dtype=dtype)
        model.denoiser()(x, SCHEDULE.level(5)._replace(t=3.5))
    assert seen == [torch.float32, torch.float64]
