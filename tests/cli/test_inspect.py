from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from ddim.checkpoints.calibration import write_calibration
from ddim.model.opening import load
from ddim.noise.schedule import Schedule
from ddim.samplers.sampler import Sampler, make_tableau


def strict(text: str) -> dict:
    """JSON as the standard has it, without NaN and infinities."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_text(ddim):
    answer = ddim("inspect", "--T", 20, "--steps", 4)
    assert (answer.status, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert lines[0].startswith("Schedule(kind=linear, T=20")
    assert lines[1] == "4 steps, 5 nodes, 4 network calls"
    assert lines[3].split() == ["k", "t", "alpha_bar", "alpha", "sigma", "rho", "lambda"]
    assert [line.split()[0] for line in lines[5:10]] == ["20", "15", "10", "5", "0"]
    schedule = Schedule.linear(20)
    assert str(make_tableau(schedule, (20, 15, 10, 5, 0))) in answer.out


def test_json(ddim):
    answer = ddim("inspect", "--T", 20, "--steps", 2, "--method", "ddpm", "--json")
    assert (answer.status, answer.err) == (0, "")
    found = strict(answer.out)
    schedule = Schedule.linear(20)
    assert found["schedule"] == dict(schedule.spec)
    assert found["nodes"] == [20, 10, 0]
    assert [level["alpha_bar"] for level in found["levels"]] == [
        float(schedule.alpha_bar[k]) for k in (20, 10, 0)
    ]
    assert found["levels"][-1]["lambda"] == "inf"
    tableau = make_tableau(schedule, (20, 10, 0), "ddpm")
    assert found["tableau"]["calls"] == 2
    assert found["tableau"]["method"] == "ddpm"
    assert found["tableau"]["options"] == {"variance": "posterior"}
    for row, given in zip(found["tableau"]["rows"], tableau.rows, strict=True):
        assert row["noise"] == given.noise
        assert row["x0"] == [list(term) for term in given.x0]
        assert row["eps"] == [list(term) for term in given.eps]


@pytest.mark.parametrize("kind", ["linear", "scaled-linear", "cosine", "sigmoid", "flow"])
def test_every_schedule(ddim, kind):
    found = strict(ddim("inspect", "--schedule", kind, "--T", 30, "--json").out)
    assert found["schedule"]["kind"] == kind
    assert len(found["nodes"]) == 11


def test_zero_terminal_snr(ddim):
    found = strict(ddim("inspect", "--zero-snr", "--T", 30, "--json").out)
    assert found["levels"][0]["rho"] == "inf"
    assert found["levels"][0]["lambda"] == "-inf"
    assert ddim("inspect", "--zero-snr", "--T", 30).status == 0


def test_a_scaled_schedule(ddim, fails):
    found = strict(ddim("inspect", "--scaled", "--T", 500, "--steps", 2, "--json").out)
    assert found["levels"][0]["alpha"] == float(Schedule.linear(500, scaled=True).alpha[500])
    fails(2, "--scaled is for the linear", "inspect", "--scaled", "--schedule", "cosine")


def test_a_model_has_its_own_schedule(fails, tiny):
    for flag, value in (("--T", 30), ("--schedule", "cosine"), ("--beta-start", 0.1)):
        fails(
            2, f"{flag} is of a schedule without --model", "inspect", "--model", tiny, flag, value
        )


def test_a_list_of_nodes_and_encoding(ddim):
    found = strict(ddim("inspect", "--T", 20, "--nodes", "20,7,0", "--json").out)
    assert found["nodes"] == [20, 7, 0]
    found = strict(ddim("inspect", "--T", 20, "--nodes", "0,7,20", "--json").out)
    assert found["nodes"] == [0, 7, 20]


def test_short_schedules_have_fewer_steps(ddim):
    assert "4 steps, 5 nodes" in ddim("inspect", "--T", 4).out
    assert "1 steps, 2 nodes" in ddim("inspect", "--T", 1).out


def test_the_schedule_of_a_model(ddim, tiny):
    found = strict(ddim("inspect", "--model", tiny, "--steps", 2, "--json").out)
    schedule = Schedule.linear(20, 0.01, 0.4)
    assert found["levels"][0]["alpha"] == float(schedule.alpha[20])
    assert found["nodes"] == [20, 10, 0]


def test_models_that_are_none(fails):
    fails(2, "unknown model 'mnst': did you mean 'mnist'", "inspect", "--model", "mnst")


def test_a_model_of_ones_own(ddim, tiny, tmp_path):
    code = f"import ddim\ndef own():\n    return ddim.load({str(tiny)!r})\n"
    (tmp_path / "mine.py").write_text(code)
    found = ddim("inspect", "--model", "mine.py:own", "--steps", 2)
    assert found.out == ddim("inspect", "--model", tiny, "--steps", 2).out


def test_what_calibration_found_for_a_model(ddim, fails, tiny, tmp_path):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    model = load(copy)
    sampler = Sampler("dpmpp", nodes=(20, 13, 5, 0), order=3)
    moments = (20, 10, 0), np.array([0.5, 0.4]), 1
    write_calibration(
        copy / "calibrated.json", model.identity, model.schedule, sampler, moments, {}
    )
    inspect = ("inspect", "--model", copy, "--json")
    found = strict(ddim(*inspect, "--method", "calibrated", "--steps", 3).out)
    assert (found["nodes"], found["tableau"]["method"]) == ([20, 13, 5, 0], "calibrated dpmpp")
    fails(2, "tiny is calibrated for 3 steps, not for 10", *inspect, "--method", "calibrated")
    assert len(strict(ddim(*inspect, "--method", "analytic", "--steps", 4).out)["nodes"]) == 5


@pytest.mark.parametrize("extra", [[], ["--zero-snr"], ["--schedule", "flow"]], ids=str)
def test_plot(ddim, tmp_path, extra):
    pytest.importorskip("matplotlib")
    arguments = ("inspect", "--T", 20, "--steps", 3, "--output", "plots/x.png", *extra)
    answer = ddim(*arguments)
    assert (answer.status, answer.err) == (0, "")
    with Image.open(tmp_path / "plots" / "x.png") as image:
        assert image.size == (1200, 480)
        assert np.array(image.convert("L")).std() > 5
    again = ddim("inspect", "--config", "plots/x.png.run.toml", "--output", "y.png")
    assert again.status == 0
    assert (tmp_path / "y.png").read_bytes() == (tmp_path / "plots/x.png").read_bytes()
    assert ddim(*arguments).status == 2
    assert ddim(*arguments, "--force").status == 0


def test_plots_without_matplotlib(fails, ddim, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    answer = ddim("inspect", "--T", 20, "--output", "x.png")
    assert answer.status == 2
    assert answer.err == "ddim inspect: plots need matplotlib: pip install 'ddim[plot]'\n"
    assert answer.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("match", "flags"),
    [
        ("T must be at least 1, not 0", ["--T", 0]),
        ("steps must be from 1 to T = 20, not 21", ["--steps", 21]),
        ("the number of steps must be at least 1, not 0", ["--steps", 0]),
        ("--schedule is one of .*, not 'linaer': did you mean linear", ["--schedule", "linaer"]),
        ("unknown nodes 'unifrom': did you mean 'uniform'", ["--nodes", "unifrom"]),
        ("unknown method 'dddim': did you mean 'ddim'", ["--method", "dddim"]),
        ("--T is of a schedule without --model", ["--model", "mnst"]),
        ("calibrated samplers belong to a model", ["--method", "calibrated"]),
        ("the method analytic needs gamma", ["--method", "analytic"]),
        ("'ddim' has no option 'order': it has eta", ["--order", 2]),
        ("nodes must rise or fall strictly", ["--nodes", "20,5,5,0"]),
        ("encoding is deterministic", ["--nodes", "0,10,20", "--eta", 1]),
        (r"every β must be in \(0, 1\]", ["--beta-end", 2]),
        ("only a variance-preserving schedule", ["--schedule", "flow", "--zero-snr"]),
        ("--output is a .png file, not x.pdf", ["--output", "x.pdf"]),
        ("eta = 9 is too large", ["--eta", 9, "--steps", 3]),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(fails, match, flags):
    fails(2, match, "inspect", "--T", 20, *flags)
