from __future__ import annotations

import numpy as np
import pytest
import torch

from asking import images
from ddim.data.pixels import grid, to_pixels
from ddim.model.drawing import sample
from ddim.model.opening import load

LANES = [
    "ddpm:steps=6",
    "ddim:steps=5:eta=0.5:nodes=quadratic",
    "dpmpp:order=2:steps=4",
    "heun:steps=3",
]


def lanes_of(events):
    return {data["lane"]: data for name, data in events if name == "lane"}


@pytest.mark.parametrize(
    ("name", "labels", "n", "size"),
    [
        ("tiny", None, 8, None),
        ("tiny", None, 5, 2),
        ("classes", [2, 0], 5, 2),
        ("colours", None, 3, 1),
    ],
)
def test_every_lane_is_what_sample_draws(page, folders, name, labels, n, size):
    body = {"model": name, "seed": 7, "images": n, "labels": labels, "lanes": LANES}
    events = page.job("race", {**body, "batch_size": size})
    assert events[0][0] == "start" and events[-1][0] == "done"
    start, lanes, model = events[0][1], lanes_of(events), load(folders[name])
    assert start["batch_size"] == (size or 8)
    assert [lane["calls"] for lane in start["lanes"]] == [6, 5, 4, 5]
    assert [lane["stochastic"] for lane in start["lanes"]] == [True, True, False, False]
    for number, text in enumerate(LANES):
        exact = to_pixels(sample(model, n, text, seed=7, labels=labels, batch_size=size))
        assert torch.equal(images(lanes[number]["images"]), exact), text
        assert lanes[number]["calls"] == start["lanes"][number]["calls"]


def test_clocks_are_the_lanes_own(page):
    body = {"model": "tiny", "lanes": ["ddpm:steps=20", "ddim:steps=1"]}
    events = page.job("race", body)
    lanes, done = lanes_of(events), events[-1][1]
    assert 0 < lanes[1]["seconds"] < lanes[0]["seconds"] < done["seconds"]
    assert sum(lane["seconds"] for lane in lanes.values()) <= done["seconds"]
    order = [data["lane"] for name, data in events if name == "lane"]
    assert order == [1, 0], "lanes take turns: the one with fewer steps ends first"


def test_frames_come_while_a_lane_runs(page):
    events = page.job("race", {"model": "tiny", "images": 2, "lanes": ["ddpm:steps=20"]})
    frames = [data for name, data in events if name == "frame"]
    assert frames, "the first is sent at once"
    for frame in frames:
        assert 1 <= frame["step"] == frame["calls"] < frame["total"] == 20
        assert images(frame["images"]).shape == (2, 1, 8, 8)
    assert "frame" not in [name for name, _ in events[-2:]]


@pytest.mark.parametrize("name", ["tiny", "classes"])
def test_the_ways_make_the_same_images(page, ways, name):
    labels = [1, 2] if name == "classes" else None
    body = {"model": name, "seed": 3, "images": 4, "labels": labels, "lanes": [LANES[1]]}
    lane = lanes_of(page.job("race", body))[0]
    wanted = grid(images(lane["images"]))[0].numpy()
    made = ways(lane["ways"], "samples.png", alone=name == "tiny")
    assert len(made) == 2 and all(np.array_equal(one, wanted) for one in made)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"lanes": []}, "lanes are from 1 to 4"),
        ({"lanes": ["ddim"] * 5}, "lanes are from 1 to 4"),
        ({"lanes": ["ddim:steps=21"]}, "21"),
        ({"lanes": ["dimm"]}, "did you mean 'ddim'"),
        ({"lanes": ["mine.py:third"]}, "runs no files"),
        ({"lanes": ["ddim:steps=" + "9" * 3000]}, "at most 2000 characters"),
        ({"lanes": ["ddim:nodes=0-20"]}, "does not lead from noise"),
        ({"lanes": ["obelm:steps=5:pair=true"]}, "does not lead from noise"),
        ({"lanes": ["calibrated:steps=5"]}, "no calibration"),
        ({"images": 0}, "images are from 1 to 16"),
        ({"images": 17}, "images are from 1 to 16"),
        ({"seed": -1}, "the seed"),
        ({"seed": 2**53}, "the seed"),
        ({"labels": [1]}, "no classes"),
        ({"batch_size": 17}, "batch_size"),
        ({"lane": ["ddim"]}, "did you mean 'lanes'"),
        ({"images": 1.5}, "a whole number"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(page, body, text):
    answer = page.post("/api/race", {"model": "tiny", "lanes": ["ddim:steps=2"], **body})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "bad-request"
    assert text in error["text"] and "\n" not in error["text"]
