from __future__ import annotations

import contextlib
import importlib.util
import json
import os

import pytest
import torch

from ddim.evaluate.speed import contestants, measure, race
from ddim.evaluate.speed.plan import Plan
from ddim.model.opening import load
from ddim.train.speed import training_table

RATIO = {"median", "low", "high"}


def without(monkeypatch, *names: str) -> None:
    """Make packages look as if they were not installed."""
    find = importlib.util.find_spec

    def found(name: str, package: str | None = None):
        return None if name in names else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", found)


@pytest.fixture
def slow(monkeypatch):
    """No back end but torch."""
    without(monkeypatch, "ncnn", "openvino")


@pytest.fixture
def alone(monkeypatch):
    """Nothing but torch."""
    without(monkeypatch, "ncnn", "openvino", "diffusers")


def test_a_quick_run_has_every_table(ddim, tiny, tmp_path, slow):
    pytest.importorskip("diffusers")
    before = torch.get_num_threads()
    options = ("--quick", "--dtype", "bfloat16", "--json", "--output", "speeds.md", "--quiet")
    answer = ddim("bench", tiny, *options)
    assert (answer.status, answer.err) == (0, "")
    document = json.loads(answer.out)
    assert document["model"]["parameters"] == "41,609"
    assert document["plan"]["rounds"] == 2
    assert {"cpu", "cores", "torch", "load average", "load average afterwards"} <= set(
        document["machine"]
    )
    assert any("fewer than 7 rounds" in note for note in document["notes"])
    assert any("fastest in batches of" in note for note in document["notes"])
    tables = {name: table["rows"] for name, table in document["tables"].items()}
    assert list(tables)[:5] == ["images", "one", "threads", "busy", "dtype"]
    assert list(tables)[-1] == "training"
    for name in ("images", "one", "threads", "busy"):
        assert tables[name][0]["contestant"] == "torch"
        assert {row["contestant"].split(",")[0] for row in tables[name]} >= {"torch", "diffusers"}
        assert all(set(row["× diffusers"]) == RATIO for row in tables[name])
        assert tables[name][0]["× torch"] == {"median": 1, "low": 1, "high": 1}
    first, *_, theirs = tables["images"]
    assert first["difference"] == 0 and theirs["difference"] < 1e-3
    assert all(row["network error"] < 1e-5 for row in tables["images"])
    assert [row["batch"] for row in tables["one"] if row["contestant"] == "torch"] == [8, 1]
    assert all(set(row["share"]) == RATIO for row in tables["busy"])
    halves = {row["contestant"]: row for row in tables["dtype"]}
    assert {"torch, bfloat16", "diffusers, autocast"} <= set(halves)
    assert all(0 < row["RMS"] <= row["largest"] < 1 for row in halves.values())
    assert all(20 < row["PSNR dB"] < 90 for row in halves.values())
    text = (tmp_path / "speeds.md").read_text(encoding="utf-8")
    for table in document["tables"].values():
        assert f"### {table['title']}\n\n{table['note']}\n\n| " in text
    assert (tmp_path / "speeds.md.run.toml").exists()
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_a_back_end_says_what_it_takes_beforehand(ddim, tiny, monkeypatch, tmp_path):
    pytest.importorskip("openvino")
    without(monkeypatch, "diffusers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    answer = ddim("bench", tiny, "--quick", "--parts", "images", "--json", "--quiet")
    tables = json.loads(answer.out)["tables"]
    assert list(tables) == ["images", "set_up"]
    *_, row = tables["images"]["rows"]
    assert row["contestant"] == "openvino" and row["difference"] < 1e-3
    *_, row = tables["set_up"]["rows"]
    assert row["back end"] == "openvino" and row["first s"] > 0
    assert not (tmp_path / "cache").exists()  # what it kept went with the run


def test_without_diffusers_there_is_no_opponent_and_a_line_says_so(ddim, tiny, alone):
    answer = ddim("bench", tiny, "--quick", "--parts", "images,one", "--quiet")
    assert answer.status == 0 and answer.err == ""
    assert "note: without an opponent, diffusers: diffusers is not installed" in answer.out
    assert "note: without openvino: the back end openvino is not installed" in answer.out
    assert "× diffusers" not in answer.out and "Beside" not in answer.out
    assert "\ntorch           8 " in answer.out


@pytest.mark.parametrize("parts", ["images,busy", "threads"])
def test_parts_choose(ddim, tiny, alone, parts):
    answer = ddim("bench", tiny, "--quick", "--parts", parts, "--json")
    assert list(json.loads(answer.out)["tables"]) == parts.split(",")
    assert "timing" in answer.err


def test_a_conditional_model_has_no_opponent(ddim, conditional, slow):
    answer = ddim("bench", conditional, "--quick", "--parts", "images", "--json")
    notes = json.loads(answer.out)["notes"]
    assert any("takes no class labels" in note for note in notes) or any(
        "not installed (pip" in note for note in notes
    )


MINE = """
import ddim, torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
    def forward(self, x, t):
        return self.layer(x)

def model():
    return ddim.Model(Net(), ddim.Schedule.cosine(20), "v", (3, 4), name="mine")
"""


@pytest.mark.parametrize("kind", ["tiny", "conditional"])
def test_training_is_timed_beside_a_plain_loop_on_a_copy(ddim, request, kind, slow):
    pytest.importorskip("diffusers")
    model, options = load(request.getfixturevalue(kind)), ("--dtype", "bfloat16", "--json")
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    plan = Plan(parts=("training",), dtype="bfloat16", quick=True)
    report = measure.measure(model, plan, "", training_table)
    assert all(torch.equal(value, before[name]) for name, value in model.net.state_dict().items())
    assert not model.net.training
    (table,) = report.tables
    answer = ddim("bench", request.getfixturevalue(kind), "--quick", "--parts=training", *options)
    (name, found), *_ = json.loads(answer.out)["tables"].items()
    assert name == table.name == "training"
    for row in (*table.to_json()["rows"], *found["rows"]):
        assert row["batch"] == 8 and row["images/s"] > 0
        assert set(row["× plain loop"]) == set(row["× ddim"]) == RATIO
    names = ["ddim", "ddim, autocast", "plain loop"]
    assert [row["contestant"] for row in found["rows"]] == names
    assert found["rows"][-1]["× plain loop"] == {"median": 1, "low": 1, "high": 1}
    assert "training" in answer.err and "preparing" not in answer.err


def test_training_without_diffusers_has_no_plain_loop(ddim, tiny, alone):
    answer = ddim("bench", tiny, "--quick", "--parts", "training", "--dtype", "float32", "--quiet")
    assert answer.status == 0 and answer.err == ""
    assert "\nnote: training without a plain loop: diffusers is not installed" in answer.out
    assert "\nddim            8 " in answer.out and "autocast  " not in answer.out


def test_a_step_that_fails_is_told(ddim, tiny, alone, monkeypatch):
    def fails(*_, **__):
        raise MemoryError("too much")

    monkeypatch.setattr("ddim.train.loop.diffusion_loss", fails)
    answer = ddim("bench", tiny, "--quick", "--parts", "training", "--quiet")
    assert answer.status == 0
    assert "\nnote: without training: out of memory at step 1, with a batch_size of 8" in answer.out


def test_a_network_of_ones_own(ddim, tmp_path, slow):
    (tmp_path / "mine.py").write_text(MINE)
    answer = ddim("bench", "mine.py:model", "--quick", "--parts", "images,training", "--json")
    document = json.loads(answer.out)
    assert document["model"]["shape"] == "3×4"
    assert document["tables"]["images"]["rows"][0]["network error"] < 1e-5
    assert any("without an opponent" in note for note in document["notes"])
    assert any("without training: it is for a UNet" in note for note in document["notes"])


def test_bfloat16_is_left_out_where_there_are_no_instructions(ddim, tiny, alone, monkeypatch):
    monkeypatch.setattr(measure, "has_bfloat16", lambda: False)
    answer = ddim("bench", tiny, "--quick", "--parts", "images", "dtype", "--json")
    document = json.loads(answer.out)
    assert list(document["tables"]) == ["images"]
    assert any("no instructions for bfloat16" in note for note in document["notes"])


def test_a_start_is_timed_in_fresh_processes(ddim, tiny, alone, monkeypatch):
    monkeypatch.setattr("ddim.evaluate.speed.fresh.child", lambda action: race.once(list))
    rows = json.loads(ddim("bench", tiny, "--quick", "--parts", "start", "--json").out)["tables"]
    assert [row["process"] for row in rows["start"]["rows"]] == [
        "torch: import",
        "ddim: import, open",
        "ddim: import, open, one image",
    ]


def test_refusals(fails, tiny, tmp_path, monkeypatch):
    fails(2, "n must be at least 1", "bench", tiny, "-n", 0)
    fails(2, "rounds must be at least 1", "bench", tiny, "--rounds", 0)
    fails(2, "unknown part 'imagse': did you mean 'images'", "bench", tiny, "--parts", "imagse")
    fails(2, "--output is a .md file, not x.txt", "bench", tiny, "--output", "x.txt")
    fails(2, "T = 20, fewer than 21 steps", "bench", tiny, "--steps", 21)
    fails(2, "did you mean 'mnist'", "bench", "mnits")
    fails(2, "threads must be at least 1", "bench", tiny, "--threads", 0)
    (tmp_path / "speeds.md").write_text("mine")
    fails(2, "exists already: give --force", "bench", tiny, "--output", "speeds.md")
    monkeypatch.setattr(measure, "has_bfloat16", lambda: False)
    fails(2, "nothing else to measure", "bench", tiny, "--parts", "dtype")
    fails(2, "in dtype and training", "bench", tiny, "--parts=one", "--dtype=bfloat16")


def test_an_interruption_leaves_nothing(fails, tiny, alone, monkeypatch):
    spin, processes = race.busy_process, []

    @contextlib.contextmanager
    def noted():
        with spin() as process:
            processes.append(process)
            yield process

    def draw(self, noise, steps, batch_size):
        if processes:
            raise KeyboardInterrupt
        return noise

    monkeypatch.setattr(race, "busy_process", noted)
    monkeypatch.setattr(contestants.Ours, "draw", draw)
    before = torch.get_num_threads()
    fails(130, "interrupted", "bench", tiny, "--quick", "--parts", "busy", "--quiet")
    assert torch.get_num_threads() == before
    (process,) = processes
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
