"""Samplers: their spelling, and those that need a model."""

import json
import pickle
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ddim
from ddim.checkpoints.calibration import read_calibration, write_calibration
from ddim.denoisers.target import Target
from ddim.noise.foreign import FOREIGN_NODES
from ddim.noise.nodes import NODES as FAMILIES
from ddim.samplers.lookup import METHODS
from ddim.samplers.methods.analytic import analytic
from ddim.samplers.sampler import Sampler
from tiny import tiny_unet

NODES = (50, 31, 12, 4, 0)
SCHEDULE = ddim.Schedule.linear(100)


# -- spelling ------------------------------------------------------------------------------------


def values_of(option):
    """Values that an option takes, those that the method cannot run with among them."""
    if option.choices:
        return st.sampled_from(option.choices)
    return {
        bool: st.booleans(),
        int: st.integers(0, 1000),
        float: st.floats(-10, 10, allow_nan=False),
        str: st.sampled_from(["a", "b-c"]),
        list: st.lists(st.lists(st.floats(-1, 1), max_size=2), max_size=3),
    }[option.kind]


@st.composite
def samplers(draw):
    method = draw(st.sampled_from(sorted(METHODS)))
    declared = METHODS[method].options
    chosen = draw(st.sets(st.sampled_from(sorted(declared)))) if declared else ()
    options = {name: draw(values_of(declared[name])) for name in sorted(chosen)}
    steps = draw(st.none() | st.integers(4, 1000))
    nodes = None
    if METHODS[method].needs != "calibration" and (method != "learned" or options.get("weights")):
        listed = st.lists(st.integers(0, 10**6), min_size=5, max_size=9, unique=True)
        falling = listed.map(lambda nodes: tuple(sorted(nodes, reverse=True)))
        nodes = draw(st.sampled_from(sorted([*FAMILIES, *FOREIGN_NODES])) | falling)
    if isinstance(nodes, tuple):
        steps = None
    return Sampler(method, steps, nodes, **options)


@given(samplers())
def test_what_is_spelled_is_parsed_to_an_equal_sampler(sampler):
    again = Sampler.parse(str(sampler))
    assert again == sampler
    assert hash(again) == hash(sampler)
    assert str(again) == str(sampler)
    assert pickle.loads(pickle.dumps(sampler)) == sampler
    assert sampler.replace() == sampler


def test_a_sampler_is_spelled_in_one_way():
    first = Sampler("dpmpp", steps=10, nodes="quadratic", order=3)
    assert str(first) == "dpmpp:order=3:steps=10:nodes=quadratic"
    for other in (
        Sampler.parse("dpmpp:order=3", steps=10, nodes="quad"),
        Sampler.parse("dpmpp:nodes=quadratic:order=3:form=exact:steps=10"),
        Sampler.parse("dpmpp", 10, "quadratic", order=3),
        Sampler.parse(first),
        Sampler.parse(first, steps=10),
        Sampler("dpmpp", steps=np.int64(10), nodes="quad", order=3.0),
    ):
        assert other == first
    listed = Sampler.parse("ddim:nodes=500-250-100-0")
    assert listed == Sampler(nodes=[500, 250, 100, 0]) == Sampler.parse("ddim:nodes=500,250,100,0")
    assert (str(listed), listed.steps) == ("ddim:nodes=500-250-100-0", 3)
    assert str(Sampler(nodes="trailing")) == str(Sampler(nodes="linear")) == "ddim"
    assert Sampler(eta=0) == Sampler()
    assert Sampler(eta=0).options == {"eta": 0.0}


def test_samplers_cannot_be_changed():
    with pytest.raises(AttributeError):
        Sampler().steps = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_the_default_number_of_steps_is_capped_at_t():
    assert len(Sampler().place(SCHEDULE)) - 1 == 50
    assert len(Sampler().place(ddim.Schedule.linear(20))) - 1 == 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dimm", "unknown method 'dimm': did you mean 'ddim'"),
        ("dpm++", "did you mean 'dpmpp'"),
        ("DPM++ 2M", "did you mean 'dpmpp'"),
        ("dpmpp_3m", "did you mean 'dpmpp:order=3'"),
        ("euler_a", "did you mean 'ddpm'"),
        ("euler", "did you mean 'ddim'"),
        ("unipc3", "did you mean 'unipc:order=3'"),
        ("deis-2", "did you mean 'deis:order=2'"),
        ("pndm", "did you mean 'plms'"),
        ("ddim:eta=x", "eta is a number, not 'x'"),
        ("ddim:eta=inf", "eta must be a finite number"),
        ("ddim:order=2", "method 'ddim' has no option 'order': it has eta"),
        ("heun:order=2", "method 'heun' has no option 'order': it has none"),
        ("dpmpp:order=4", "dpmpp has the orders 1 to 3, not 4"),
        ("dpmpp:order=2.5", "dpmpp has the orders 1 to 3, not 2.5"),
        ("dpmpp:form=exakt", "unknown form 'exakt': did you mean 'exact'"),
        ("bdia:pair=maybe", "pair is true or false, not 'maybe'"),
        ("restart:times=1.5", "times is a whole number, not '1.5'"),
        ("learned:weights=[", "weights is a list such as"),
        ("ddim:eta", "KEY=VALUE, not 'eta'"),
        ("ddim:eta=1:eta=0", "says eta twice"),
        ("ddim:steps=0", "the number of steps must be at least 1, not 0"),
        ("ddim:steps=ten", "steps is a whole number, not 'ten'"),
        ("ddim:nodes=quadratc", "unknown nodes 'quadratc': did you mean 'quadratic'"),
        ("ddim:nodes=500-500-0", "nodes must rise or fall strictly"),
        ("ddim:nodes=500-x", "nodes must be a name or numbers like 500-250-0, not '500-x'"),
        ("ddim:nodes=500-0:steps=3", "2 nodes are 1 steps, not 3"),
        ("ddim:nodes=calibrated", "calibrated nodes come with their method"),
        ("dpmpp:order=3:steps=2", "order 3 takes at least 3 steps to be reached, not 2"),
        ("calibrated:nodes=quadratic", "calibrated brings its own nodes"),
        ("calibrated:eta=1", "method 'calibrated' has no option 'eta': it has none"),
        ("nowhere.py:third", "nowhere.py cannot be read"),
    ],
)
def test_what_is_refused(text, message, refuses):
    with refuses(message):
        Sampler.parse(text)


def test_what_contradicts_is_refused(refuses):
    with refuses("says steps = 5, which is not 10"):
        Sampler.parse("ddim:steps=5", steps=10)
    with refuses("says eta = 1, which is not 0"):
        Sampler.parse("ddim:eta=1", eta=0.0)
    assert Sampler.parse("ddim:eta=1", eta=1.0).options["eta"] == 1
    for wrong in (3, None, ["ddim"]):
        with refuses("a method is a name such as 'ddim', or a ddim.Sampler"):
            Sampler.parse(wrong)
    with refuses("steps is a whole number, not 2.5"):
        Sampler(steps=2.5)


def test_an_edit_may_leave_fewer_steps_than_the_order():
    sampler = Sampler("dpmpp", steps=10, order=3)
    part = sampler.starting(0.1, SCHEDULE)
    assert part.place(SCHEDULE) == (10, 0)
    assert part.options["order"] == 1
    assert part.tableau(SCHEDULE).calls == 1


# -- methods of the user's -----------------------------------------------------------------------

OWN = """
import ddim

@ddim.method("half-way")
def half_way(schedule, nodes, *, share: float = 0.5):
    \"\"\"DDIM with a share of its noise.\"\"\"
    return ddim.make_tableau(schedule, nodes, "ddim", eta=share)

def plain(schedule, nodes):
    return ddim.make_tableau(schedule, nodes, "heun")

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ddim.samplers.lookup.METHODS", METHODS)
    (tmp_path / "own.py").write_text(OWN)
    yield tmp_path / "own.py"
    METHODS.pop("half-way", None)


def test_a_method_in_a_file_of_the_users(own, refuses):
    sampler = Sampler.parse("own.py:half_way:share=0.25", steps=5)
    assert str(sampler) == "own.py:half_way:share=0.25:steps=5"
    assert Sampler.parse(str(sampler)) == sampler
    same = ddim.make_tableau(SCHEDULE, sampler.place(SCHEDULE), "ddim", eta=0.25)
    assert sampler.tableau(SCHEDULE).rows == same.rows
    assert Sampler("half-way").options == {"share": 0.5}  # by its own name, once it is declared
    assert Sampler("own.py:plain", steps=4).tableau(SCHEDULE).calls == 7
    with refuses("'own.py:half_way' has no option 'sharp': it has share"):
        Sampler("own.py:half_way", sharp=1)
    with refuses("unknown name in own.py 'hal': did you mean 'half_way'"):
        Sampler("own.py:hal")
    with refuses("own.py:number is a int, and not a function"):
        Sampler("own.py:number")
    before = sampler.checksum
    own.write_text(OWN.replace("eta=share", "eta=2 * share"))
    assert sampler.checksum != before
    assert sampler.tableau(SCHEDULE).rows != same.rows
    own.write_text("import nowhere")
    with refuses("own.py cannot be run: ModuleNotFoundError"):
        Sampler("own.py:plain")


def test_no_method_takes_the_name_of_another(refuses):
    with refuses("there is a method 'ddim' already"):

        @ddim.method("ddim")
        def mine(schedule, nodes):
            return None

    assert METHODS["ddim"].build.__module__ == "ddim.samplers.methods.ddim"


def test_an_installed_package_brings_methods(tmp_path, monkeypatch):
    """Entry points are listed without loading them, and loaded when their name is asked for."""
    (tmp_path / "brings.py").write_text(OWN.replace("half-way", "brought"))
    info = tmp_path / "brings-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brings\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[ddim.methods]\nbrought = brings:half_way\nddim = brings:plain\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from ddim.samplers import lookup as module

    module._installed.cache_clear()
    try:
        assert "brought" in module.method_names()
        assert "brings" not in sys.modules
        assert Sampler("brought", steps=3).options == {"share": 0.5}
        assert "brings" in sys.modules
        assert Sampler("ddim").entry is METHODS["ddim"]
    finally:
        module._installed.cache_clear()
        METHODS.pop("brought", None)
        sys.modules.pop("brings", None)


def test_every_method_says_what_it_is():
    for name, entry in METHODS.items():
        assert entry.summary.endswith((".", ").")), name
        if entry.needs in entry.options:  # what the model fills in
            assert entry.options[entry.needs].default is None, name


# -- samplers that need a model ------------------------------------------------------------------


def make(path, seed=0):
    net = tiny_unet(seed=seed).requires_grad_(False)
    schedule = ddim.Schedule.linear(50, 0.002, 0.16)
    return ddim.Model(net, schedule, Target.EPS, (1, 8, 8), name="tiny", calibration=path)


def write(model, sampler, teacher=(50, 20, 5, 0), gamma=(0.9, 0.5, 0.2)):
    facts = {"rms": {"uniform": [0.2, 0.3], "calibrated": [0.1, 0.2]}, "seed": 3}
    moments = (teacher, np.array(gamma), 8)
    write_calibration(model.calibration, model.identity, model.schedule, sampler, moments, facts)


@pytest.fixture
def model(tmp_path):
    model = make(tmp_path / "calibrated.json")
    write(model, Sampler("dpmpp", nodes=NODES))
    write(model, Sampler("learned", nodes=(50, 20, 0), weights=[[], [-0.4]]))
    return model


def test_calibrated_brings_method_and_nodes(model):
    tableau = model.tableau("calibrated:steps=4")
    assert tableau.method == "calibrated dpmpp"
    assert tableau.rows == ddim.make_tableau(model.schedule, NODES, "dpmpp").rows
    assert model.resolve(Sampler("calibrated", 4)) == Sampler("dpmpp", nodes=NODES)
    learned = model.tableau("calibrated:steps=2")
    assert learned.method == "calibrated learned"
    assert learned.rows[1].eps[1][0] == 0  # the earlier output is read
    assert model.tableau("learned:steps=2").rows == learned.rows


def test_sample_draws_by_them(model):
    images = ddim.sample(model, n=2, steps=4, method="calibrated")
    assert torch.equal(images, ddim.sample(model, n=2, nodes=NODES, method="dpmpp"))


def test_nodes_may_be_an_array(model):
    assert Sampler(nodes=np.array(NODES)).place(model.schedule) == NODES


def test_the_file_says_how_it_was_found(model):
    entry = json.loads(model.calibration.read_text())["calls"]["4"]
    assert entry["rms"] == {"uniform": [0.2, 0.3], "calibrated": [0.1, 0.2]}
    assert entry["seed"] == 3
    assert entry["nodes"] == list(NODES)


def test_what_cannot_be_asked_of_it(model, refuses):
    with refuses("tiny is calibrated for 2, 4 steps, not for 5"):
        model.tableau("calibrated:steps=5")
    with refuses("give steps: tiny is calibrated for 2, 4 of them"):
        model.tableau("calibrated")
    with refuses("the calibration of tiny for 4 steps is dpmpp, not learned"):
        model.tableau("learned:steps=4")
    with refuses("strength has no part"):
        model.tableau("calibrated:steps=4", strength=0.5)
    for method, what in (
        ("calibrated:steps=4", "belong to a model"),
        ("learned:steps=4", "needs its weights"),
        ("analytic:steps=4", "needs gamma"),
    ):
        with refuses(what):
            Sampler.parse(method).tableau(model.schedule)


def test_a_calibration_of_other_weights_is_stale(model, refuses):
    other = make(model.calibration, seed=1)
    with refuses("calibrated.json is stale, of other weights"):
        other.tableau("calibrated:steps=4")
    with refuses("is stale"):
        model.replace(schedule=ddim.Schedule.linear(50, 0.002, 0.15)).calibrated()
    # Another model's calibration takes its place, and is not mixed with it.
    write(other, Sampler(nodes=NODES))
    assert list(read_calibration(model.calibration).samplers) == [4]


def test_without_a_calibration(refuses, tmp_path):
    for path in (None, tmp_path / "calibrated.json"):
        with refuses("tiny has no calibration: `ddim calibrate MODEL --calls N` makes one"):
            make(path).tableau("calibrated:steps=4")


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(format="x"),
        lambda v: v.pop("moments"),
        lambda v: v["calls"]["4"].pop("nodes"),
        lambda v: v["calls"]["4"].update(nodes=[50, 0]),
        lambda v: v.update(calls=[1]),
        lambda v: v["moments"].update(gamma=[0.1]),
        lambda v: v["calls"]["4"].update(method="dimm"),
        lambda v: v["calls"]["4"].update(method="own.py:half_way"),
        lambda v: v["calls"]["4"].update(options={"order": 9}),
    ],
)
def test_a_damaged_file(model, refuses, change):
    values = json.loads(model.calibration.read_text())
    change(values)
    model.calibration.write_text(json.dumps(values))
    with refuses("calibrated.json is not a calibration"):
        model.tableau("calibrated:steps=4")


def test_the_optimal_variance_is_that_of_the_calibration(model, refuses):
    nodes = (50, 20, 5, 0)
    tableau = model.tableau(Sampler("analytic", nodes=nodes, eta=0.5))
    expected = analytic(model.schedule, nodes, gamma=[0.9, 0.5, 0.2], eta=0.5)
    assert tableau.rows == expected.rows
    # Between the nodes that were measured, Γ is linear in log ρ.
    gamma = model.calibrated().gamma(model.schedule, (20, 10, 0))
    lam = model.schedule.lam
    share = (lam[10] - lam[20]) / (lam[5] - lam[20])
    assert gamma == pytest.approx([0.5, 0.5 + share * (0.2 - 0.5)])
    with refuses("'analytic' has no option 'order'"):
        model.tableau("analytic:order=2")


def test_what_brings_its_nodes_takes_no_others(model, refuses):
    for method in ("calibrated", "learned"):
        with refuses(f"the method {method} brings its own nodes"):
            Sampler(method, 2, "quadratic")
    with refuses("strength has no part"):
        model.tableau("learned:steps=2", strength=0.5)
    weighted = Sampler("learned", nodes=(50, 20, 0), weights=[[], [-0.4]])
    assert model.tableau(weighted).rows == model.tableau("learned:steps=2").rows


# -- what is said ---------------------------------------------------------------------------------


def test_a_default_that_was_given_is_given(refuses):
    for said in (Sampler(eta=0), Sampler.parse("ddim:eta=0")):
        assert said == Sampler()
        with refuses("says eta = 0.*, which is not 1"):
            Sampler.parse(said, eta=1.0)
    assert Sampler.parse(Sampler(), eta=1.0).options["eta"] == 1
    with refuses("order 4 takes at least 4 steps"):
        Sampler.parse(Sampler("plms", order=4), steps=2)


def test_nodes_that_a_method_says_are_not_dropped(refuses):
    with refuses("3 nodes are 2 steps, not 7"):
        ddim.make_tableau(SCHEDULE, (100, 50, 0), "ddim:steps=7")
    with refuses("says nodes = 100-0, which is not"):
        ddim.make_tableau(SCHEDULE, (100, 50, 0), "ddim:nodes=100-0")
    assert ddim.make_tableau(SCHEDULE, (100, 50, 0), "ddim:steps=2").calls == 2


def test_an_order_that_few_steps_do_not_reach_is_spelled_as_it_runs():
    few = Sampler("dpmpp", order=3).replace(steps=2)
    assert str(few) == "dpmpp:steps=2"
    assert Sampler.parse(str(few)) == few
    one = Sampler("plms").replace(steps=1)
    assert one.tableau(SCHEDULE).rows == Sampler("ddim", 1).tableau(SCHEDULE).rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ddim:method=heun", "says method twice"),
        ("ddim:nodes=5²-0", "nodes must be a name or numbers"),
        (5, "a method is a name such as 'ddim'"),
    ],
)
def test_odd_spellings(text, message, refuses):
    with refuses(message):
        Sampler.parse(text)


def test_options_of_the_users_builders(own, refuses):
    own.write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "import ddim\n"
        "if TYPE_CHECKING:\n"
        "    from ddim import Schedule\n"
        "def typed(schedule: Schedule, nodes, *, share: float = 0.5):\n"
        "    return ddim.make_tableau(schedule, nodes, 'ddim', eta=share)\n"
        "def bare(schedule, nodes, *, share):\n"
        "    return None\n"
        "def taken(schedule, nodes, *, steps=3):\n"
        "    return None\n"
    )
    assert Sampler("own.py:typed", share=0.25).options == {"share": 0.25}
    for name in ("bare", "taken"):
        with refuses("an option has a default and another name than steps or nodes"):
            Sampler(f"own.py:{name}", 4)
    own.write_text("import sys\nsys.exit(3)\n")
    with refuses("own.py cannot be run: SystemExit"):
        Sampler("own.py:typed")


def test_builders_that_build_no_table_or_half_of_one(own, refuses):
    own.write_text(
        "import ddim\n"
        "def nothing(schedule, nodes):\n"
        "    pass\n"
        "def half(schedule, nodes):\n"
        "    grid = ddim.Grid(schedule, nodes)\n"
        "    rows = [grid.first_order(n + 1, n) for n in range(grid.steps - 1)]\n"
        "    return grid.tableau('half', rows)\n"
    )
    with refuses("own.py:nothing returned a NoneType, not a Tableau"):
        Sampler("own.py:nothing", 4).tableau(SCHEDULE)
    with refuses("half: the last row makes node 25, not the last node 0"):
        Sampler("own.py:half", 4).tableau(SCHEDULE)
    with refuses("own.py is a file: name the method in it, as in own.py:NAME"):
        Sampler("own.py", 4)
    with refuses("'a-name' is no function of own.py: give the function's name, not the one that"):
        Sampler("own.py:a-name", 4)
