from __future__ import annotations

import pytest

from asking import paged
from ddim.web.models import Models, check_source
from ddim.web.ways import Origin

MINE = """
import ddim, torch

class Net(torch.nn.Module):
    def forward(self, x, t):
        return x

def vectors():
    return ddim.Model(Net(), ddim.Schedule.cosine(20), "eps", (5,), name="points")

def volumes():
    return ddim.Model(Net(), ddim.Schedule.cosine(20), "eps", (1, 4, 4, 4), name="scans")

def wide():
    return ddim.Model(Net(), ddim.Schedule.cosine(20), "eps", (3, 4, 10), name="wide")

def ends():
    raise SystemExit("no weights here")
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return f"{tmp_path / 'mine.py'}:"


def test_models_are_loaded_when_they_are_asked_for_and_say_what_they_are(folders):
    with paged(folders["tiny"], folders["classes"]) as page:
        first, second = page.get("/api/state").json()["models"]
        assert first == {
            "name": "tiny",
            "phase": "ready",
            "error": None,
            "shape": [1, 8, 8],
            "T": 20,
            "classes": None,
            "target": "eps",
            "calibrated": [],
            "parameters": first["parameters"],
            "backend": "torch",
            "batch_size": 8,
        }
        assert second["phase"] == "idle" and second["shape"] is None
        answer = page.post("/api/race", {"model": "classes", "lanes": ["ddim"]})
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "loading"
        assert answer.headers["retry-after"] == "1"
        page.wait("classes")
        second = page.get("/api/state").json()["models"][1]
        assert second["phase"] == "ready" and second["classes"] == 3


def test_a_model_that_fails_says_why_and_others_work(folders, mine, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    sources = [broken, mine + "vectors", mine + "volumes", mine + "ends", folders["tiny"]]
    with paged(*sources) as page:
        for name in ("vectors", "volumes", "ends", "tiny"):
            page.wait(name)
        states = {model["name"]: model for model in page.get("/api/state").json()["models"]}
        assert [model["phase"] for model in states.values()] == [*["failed"] * 4, "ready"]
        assert "makes vectors of shape (5,)" in states["vectors"]["error"]
        assert "makes volumes of shape (1, 4, 4, 4)" in states["volumes"]["error"]
        assert states["ends"]["error"] == "SystemExit: no weights here"
        assert all("\n" not in (model["error"] or "") for model in states.values())
        answer = page.post("/api/race", {"model": "ends", "lanes": ["ddim"]})
        assert answer.status_code == 500
        assert answer.json()["error"] == {"code": "failed", "text": "SystemExit: no weights here"}
        body = {"model": "tiny", "images": 1, "lanes": ["ddim:steps=1"]}
        assert page.job("race", body)[-1][0] == "done"


def test_images_that_are_not_square(mine, ways):
    with paged(mine + "wide") as page:
        body = {"model": "wide", "images": 2, "lanes": ["ddim:steps=2"]}
        events = page.job("race", body)
        assert [d["images"]["shape"] for n, d in events if n == "lane"] == [[3, 4, 10]]
        image = {"pixels": "AAAA" * 40}
        done = page.done("encode", {"model": "wide", "image": image, "steps": 2})
        assert done["given"]["shape"] == [3, 4, 10] and done["ways"]["command"] is None


def test_what_the_page_is_told_of_a_model(page):
    found = page.get("/api/model", params={"model": "tiny"}).json()
    assert len(found["schedule"]["alpha"]) == len(found["schedule"]["sigma"]) == 21
    methods = {method["name"]: method for method in found["methods"]}
    assert methods["ddim"]["eta"] and not methods["ddim"]["stochastic"]
    assert methods["ddpm"]["stochastic"] and methods["ddpm"]["options"] == ["variance"]
    assert methods["dpmpp"]["orders"] == [1, 2, 3]
    assert methods["calibrated"]["needs"] == "calibration"
    assert found["nodes"][0] == "uniform" and found["codecs"][0] == "obelm"
    answer = page.get("/api/model", params={"model": "tini"})
    assert answer.status_code == 404 and "did you mean 'tiny'" in answer.json()["error"]["text"]


def test_names_are_plain_and_each_there_once(tmp_path):
    for folder in ("a/run 1", "b/run 1"):
        (tmp_path / folder).mkdir(parents=True)
    sources = [str(tmp_path / "a/run 1"), str(tmp_path / "b/run 1"), "mnist", "x.py:wide"]
    models = Models(sources, lambda source: (None, Origin(source)), None)  # pyright: ignore[reportArgumentType]
    assert [m["name"] for m in models.state()] == ["run-1", "run-1-2", "mnist", "wide"]


def test_sources_are_looked_at_before_anything_begins(refuses, tmp_path):
    assert check_source("mnist") == "mnist"
    assert check_source(str(tmp_path)) == str(tmp_path)
    assert check_source("owner/name@main") == "owner/name@main"
    with refuses("did you mean 'mnist'"):
        check_source("mnits")
    with refuses("no such path"):
        check_source("mine.py:model")
