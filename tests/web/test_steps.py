from __future__ import annotations

import math

import pytest
import torch

from asking import images
from ddim.data.pixels import grid, to_pixels
from ddim.model.drawing import sample
from ddim.model.opening import load


def told(page, body):
    events = page.job("steps", {"model": "tiny", "seed": 2, **body})
    assert [name for name, _ in events] == ["start", *["frame"] * (len(events) - 2), "done"]
    return events[0][1], [data for _, data in events[1:-1]], events[-1][1]


def test_every_step_is_told_and_the_last_is_the_image(page, folders):
    start, frames, done = told(page, {"sampler": "ddim:steps=6:eta=1", "image": 3})
    assert start == {"nodes": [20, 17, 13, 10, 7, 3, 0], "rows": 6, "calls": 6}
    assert [frame["step"] for frame in frames] == list(range(6))
    drawn = sample(load(folders["tiny"]), 4, "ddim:steps=6:eta=1", seed=2)
    assert torch.equal(images(done["image"]), to_pixels(drawn[3:]))


def test_equation_12_is_the_row(page, folders):
    schedule = load(folders["tiny"]).schedule
    _, frames, _ = told(page, {"sampler": "ddim:steps=4:eta=0.5"})
    for frame in frames:
        nodes = frame["node"], frame["to"]["node"]
        assert (frame["to"]["alpha"], frame["to"]["sigma"]) == (
            schedule.alpha[nodes[1]],
            schedule.sigma[nodes[1]],
        )
        twelve = frame["equation12"]
        assert twelve["x0"] == schedule.alpha[nodes[1]]
        direction = math.hypot(twelve["eps"], twelve["noise"])
        assert direction == pytest.approx(schedule.sigma[nodes[1]])
        assert frame["row"]["x0"] == [[0, twelve["x0"]]]
    assert frames[0]["equation12"]["noise"] > 0 == frames[-1]["equation12"]["noise"]


def test_rows_of_other_methods_read_older_predictions(page):
    _, frames, _ = told(page, {"sampler": "dpmpp:order=2:steps=4"})
    assert all(frame["equation12"] is None for frame in frames)
    ages = {age for frame in frames for kind in ("x0", "eps") for age, _ in frame["row"][kind]}
    assert ages == {0, 1}
    _, frames, _ = told(page, {"sampler": "dpm-solver-2:steps=3"})
    assert len(frames) == 5 and frames[0]["to"]["node"] is None, "a stage between two nodes"


def test_a_class_is_the_race_s_unless_it_is_asked_for(page, folders, ways):
    model = load(folders["classes"])
    body = {"model": "classes", "sampler": "ddim:steps=2", "image": 4}
    own = told(page, body)[2]
    assert torch.equal(images(own["image"]), to_pixels(sample(model, 5, steps=2, seed=2)[4:]))
    asked = told(page, {**body, "label": 2})[2]
    drawn = to_pixels(sample(model, 5, steps=2, seed=2, labels=2))
    assert torch.equal(images(asked["image"]), drawn[4:])
    for made in ways(asked["ways"], "samples.png"):
        assert (made == grid(drawn)[0].numpy()).all()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"image": 16}, "numbered from 0 to 15"),
        ({"label": 1}, "no classes"),
        ({"model": "classes", "label": 4}, "labels are from 0 to 2"),
        ({"sampler": "ddim:eta=9"}, "too large"),
    ],
)
def test_refusals(page, body, text):
    answer = page.post("/api/steps", {"model": "tiny", "sampler": "ddim:steps=2", **body})
    assert answer.status_code == 400 and text in answer.json()["error"]["text"]
