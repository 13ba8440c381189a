"""The race, from the buttons to the pixels."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
from PIL import Image

import ddim
from browser import canvas, drawn, grid, run_python, settled
from ddim.cli.main import main

LANES = {"ddpm": "ddpm:steps=20", "yours": "ddim:steps=5", "calibrated": "calibrated:steps=5"}
RACE = "#race?model=tiny&seed=3&images=4&method=ddim&steps=5"


def _finished(page, runs=1):
    page.wait_for_selector(f".race[data-ran='{runs}']", state="attached")


def test_lanes_end_in_the_images_that_the_library_draws(visit, models, tmp_path):
    page = visit(RACE)
    page.get_by_role("button", name="Start the race").click()
    _finished(page)
    model = ddim.load(models["tiny"])
    for kind, sampler in LANES.items():
        shown = canvas(page, f".lane.{kind} canvas")
        assert np.array_equal(shown, grid(ddim.sample(model, 4, sampler, seed=3))), sampler
    counted = page.locator(".race .lane .calls").all_text_contents()
    assert counted == ["20 / 20 calls", "5 / 5 calls", "5 / 5 calls"]
    assert page.locator(".race .status").first.text_content().startswith("Done in ")
    rows = page.locator(".results tbody tr")
    assert sorted(rows.locator("th").all_text_contents()) == sorted(LANES.values())


def test_what_is_copied_makes_the_same_pixels(visit, tmp_path, monkeypatch):
    page = visit(RACE + "&eta=0.5&run=1")
    _finished(page)
    shown = canvas(page, ".lane.yours canvas")
    copied = {}
    for what in ("Copy as Python", "Copy as command"):
        page.locator(".lane.yours").get_by_role("button", name=what).click()
        page.get_by_text("Copied.").wait_for()
        copied[what] = page.evaluate("navigator.clipboard.readText()")
    (tmp_path / "python").mkdir()
    images = drawn(run_python(copied["Copy as Python"], tmp_path / "python"))
    assert np.array_equal(grid(images), shown)
    (tmp_path / "command").mkdir()
    monkeypatch.chdir(tmp_path / "command")
    words = shlex.split(copied["Copy as command"])
    assert words[:2] == ["ddim", "sample"]
    assert main(words[1:]) == 0
    with (
        Image.open(tmp_path / "command" / "samples.png") as one,
        Image.open(tmp_path / "python" / "samples.png") as other,
    ):
        scale = one.width // other.width  # the command enlarges small images
        assert one.size == (scale * other.width, scale * other.height)
        assert np.array_equal(np.asarray(one)[::scale, ::scale], np.asarray(other))


@pytest.mark.slow
def test_a_row_of_the_table_restores_its_race(visit):
    page = visit(RACE + "&run=1")
    _finished(page)
    before = canvas(page, ".lane.ddpm canvas")
    link = page.get_by_role("link", name="Restore run 1, ddim:steps=5").get_attribute("href")
    again = visit(link)
    _finished(again)
    assert np.array_equal(canvas(again, ".lane.ddpm canvas"), before)
    page.get_by_role("spinbutton", name="Seed").fill("4")
    page.get_by_role("spinbutton", name="Seed").press("Tab")
    assert "run=1" not in settled(page, "seed=4")
    page.get_by_role("button", name="Start the race").click()
    _finished(page, 2)
    assert not np.array_equal(canvas(page, ".lane.ddpm canvas"), before)
    page.get_by_role("link", name="Restore run 1, ddpm:steps=20").click()
    _finished(page, 3)
    assert np.array_equal(canvas(page, ".lane.ddpm canvas"), before)


@pytest.mark.slow
def test_sliders_say_what_runs(visit):
    page = visit(RACE, wait=".race .primary:enabled")
    lane = page.locator(".lane.yours .spelling")
    steps = page.get_by_role("slider", name="Steps")
    steps.press("ArrowRight")
    assert lane.text_content() == "ddim:steps=6"
    page.get_by_role("slider", name="η, noise of a step").press("ArrowRight")
    page.get_by_role("combobox", name="Nodes").select_option("quadratic")
    assert lane.text_content() == "ddim:eta=0.05:steps=6:nodes=quadratic"
    page.get_by_role("combobox", name="Method").select_option("dpmpp")
    page.get_by_role("combobox", name="Order").select_option("3")
    assert lane.text_content() == "dpmpp:order=3:steps=6:nodes=quadratic"
    assert page.get_by_role("slider", name="η, noise of a step").is_hidden()
    assert steps.get_attribute("aria-valuetext") == "6 steps"
    fresh = visit(settled(page, "order=3"), wait=".race .primary:enabled")
    assert fresh.locator(".lane.yours .spelling").text_content() == lane.text_content()


def test_a_race_is_cancelled_and_another_begins(visit):
    page = visit("#race?model=slow&images=1&steps=4&run=1")
    page.wait_for_selector(".race [data-phase='running']", state="attached")
    page.wait_for_selector(".lane.yours[data-phase='done']", state="attached")
    page.get_by_role("button", name="Cancel").press("Enter")
    assert page.locator(".race .status").first.text_content() == "Cancelled."
    assert page.evaluate("document.activeElement.textContent") == "Start the race"
    assert page.locator(".lane.ddpm").get_attribute("data-phase") == "running"
    page.get_by_role("combobox", name="Model").select_option("tiny")
    page.wait_for_selector(".race .primary:enabled")
    page.get_by_role("button", name="Start the race").press("Enter")
    _finished(page, 2)


@pytest.mark.slow
def test_labels_race_where_a_model_knows_classes(visit, models):
    page = visit("#race?model=classes&images=2&steps=3&label=2&run=1")
    _finished(page)
    assert page.locator(".lane.calibrated").is_hidden()
    assert page.get_by_text("This model has no calibrated sampler").is_visible()
    model = ddim.load(models["classes"])
    images = ddim.sample(model, 2, "ddim", steps=3, labels=[2, 2])
    assert np.array_equal(canvas(page, ".lane.yours canvas"), grid(images))
