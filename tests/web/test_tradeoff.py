from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from asking import paged
from ddim.cli.main import main
from ddim.evaluate.deviation.teacher import finer_sampler, image_errors
from ddim.model.drawing import sample
from ddim.model.opening import load
from ddim.web.tradeoff import RMS, read_evaluation, tradeoff
from ddim.web.ways import Origin


@pytest.fixture(scope="module")
def evaluation(folders, tmp_path_factory):
    """The folder of a real, tiny run of `ddim evaluate`."""
    root = tmp_path_factory.mktemp("evaluation")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    np.savez(root / "noise.npz", images=pixels)
    (root / "mine.py").write_text(
        "import torch\n"
        "def means(images):\n"
        "    return torch.nn.functional.avg_pool2d(images, 4).flatten(1)\n"
    )
    words = ["evaluate", "--model", folders["tiny"], "--data", root / "noise.npz"]
    words += ["--features", f"{root / 'mine.py'}:means", "-n", 8, "--steps", "2,4"]
    words += ["--eta", "0,sigma-hat", "--seeds", "0", "--teacher", 0, "--quiet"]
    assert main([str(word) for word in [*words, "--output", root / "sweep"]]) == 0
    return root / "sweep"


def test_an_evaluation_s_figures_are_shown_as_they_are(folders, evaluation, capsys):
    written = json.loads((evaluation / "results.json").read_text())
    with paged(folders["tiny"], evaluation=read_evaluation(str(evaluation))) as page:
        assert page.get("/api/state").json()["evaluation"] is True
        found = page.get("/api/tradeoff", params={"model": "tiny"}).json()
        assert found["source"] == "evaluation" and found["command"].startswith("ddim evaluate ")
        assert found["metric"] == written["distance"]
        assert len(found["points"]) == len(written["rows"]) == 4
        for point, row in zip(found["points"], written["rows"], strict=True):
            assert point["value"] == row[found["metric"]] and point["calls"] == row["calls"]
            body = {"model": "tiny", "images": 1, "lanes": [point["sampler"]]}
            start = page.job("race", body)[0][1]["lanes"][0]
            assert start["calls"] == point["calls"]
            assert start["stochastic"] == (row["eta"] == "sigma-hat")


def test_an_evaluation_of_another_model_is_not_shown(page, folders, evaluation):
    model, origin = load(folders["classes"]), Origin(str(folders["classes"]))
    found = tradeoff(model, origin, read_evaluation(str(evaluation)))
    assert found["points"] is None and str(folders["classes"]) in found["command"]


def test_a_shipped_model_has_the_figures_of_its_calibration():
    model = load("mnist")
    found = tradeoff(model, Origin("mnist"), None)
    entries = model.calibrated().entries
    assert found["source"] == "calibration" and "128 latents" in found["note"]
    by_text = {point["sampler"]: point["value"] for point in found["points"]}
    assert by_text["ddim:steps=5"] == entries["5"]["rms"]["uniform"][0]
    assert by_text["calibrated:steps=10"] == entries["10"]["rms"]["calibrated"][0]
    assert len(by_text) == 4 * len(entries)


def test_solver_error_is_measured_where_nothing_is_known(page, folders):
    none = page.get("/api/tradeoff", params={"model": "tiny"}).json()
    assert none["points"] is None and none["command"].startswith("ddim evaluate --model ")
    events = page.job("tradeoff", {"model": "tiny", "images": 3, "seed": 4})
    done = events[-1][1]
    assert [name for name, _ in events] == ["start", *["point"] * 3, "done"]
    assert [p["calls"] for p in done["points"]] == [5, 10, 20] and done["metric"] == RMS
    model = load(folders["tiny"])
    fine = finer_sampler(model.schedule, [model.tableau("ddim:steps=20")])
    errors = image_errors(sample(model, 3, "ddim:steps=5", seed=4), sample(model, 3, fine, seed=4))
    assert done["points"][0]["value"] == pytest.approx(float(torch.tensor(errors).median()))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"samplers": ["ddpm:steps=5"]}, "draws noise"),
        ({"samplers": ["ddim:steps=2"] * 13}, "at most 12"),
        ({"images": 17}, "from 1 to 16"),
    ],
)
def test_refusals(page, body, text):
    answer = page.post("/api/tradeoff", {"model": "tiny", **body})
    assert answer.status_code == 400 and text in answer.json()["error"]["text"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "has no results.json"),
        ("{", "not valid JSON"),
        ("{}", "not of `ddim evaluate`"),
        ('{"facts": {}, "distance": "FD", "rows": [{"calls": 3}]}', "FD must be a finite number"),
    ],
)
def test_a_folder_of_something_else_is_refused(refuses, tmp_path, content, text):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with refuses(text):
        read_evaluation(str(tmp_path))
