"""The trade-off: points are drawn, measured, opened and restored."""

from __future__ import annotations

import numpy as np
import pytest

import ddim
from browser import canvas, grid, run_python, settled

MEASURED = ".tradeoff[data-shown='measured']"
OPENED = ".lane.point[data-phase='done']"
EVALUATION = {
    "points": [
        {"sampler": "ddim:steps=5", "label": "ddim", "calls": 5, "seconds": 0.01, "value": 1.25},
        {"sampler": "ddim:steps=10", "label": "ddim", "calls": 10, "seconds": 0.02, "value": 0.5},
        {"sampler": None, "label": "mine", "calls": 10, "seconds": None, "value": 0.75},
    ],
    "metric": "LeNet-FD",
    "source": "evaluation",
    "baseline": 0.6,
    "note": "100 images of each seed",
    "command": "ddim evaluate --model tiny",
}


def test_what_an_evaluation_found_is_drawn_and_opens(visit, models):
    page = visit(wait=".race .primary:enabled")
    points = [{**point, "unit": "LeNet-FD", "sd": None} for point in EVALUATION["points"]]
    answer = {**EVALUATION, "points": points}
    page.route("**/api/tradeoff?*", lambda route: route.fulfill(json=answer))
    page.get_by_role("link", name="Trade-off").click()
    first = page.get_by_role("button", name="ddim:steps=5: 1.25 LeNet-FD at 5 calls")
    first.wait_for()
    assert page.locator(".plot .spot").count() == 3
    places = page.locator(".plot .spot").evaluate_all(
        "all => all.map(each => each.getBoundingClientRect().y)"
    )
    assert places[0] < places[2] < places[1], "lower is better, and lower down"
    assert page.locator(".plot").get_by_text("real images: 0.6").is_visible()
    first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(OPENED, state="attached")
    images = ddim.sample(ddim.load(models["tiny"]), 9, "ddim", steps=5)
    assert np.array_equal(canvas(page, ".lane.point canvas"), grid(images))
    assert first.get_attribute("aria-pressed") == "true"
    assert page.get_by_role("button", name="Open samples of mine").is_disabled()
    page.locator(".evaluated .ways").first.get_by_role("button", name="Copy as command").click()
    page.get_by_text("Copied.").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == EVALUATION["command"]


@pytest.mark.slow
def test_a_few_samplers_are_measured_here_and_a_link_restores_them(visit, models, tmp_path):
    page = visit("#tradeoff?model=classes&seed=2", wait=".tradeoff[data-shown='none']")
    assert "ddim evaluate" in page.locator(".tradeoff pre").text_content()
    page.get_by_role("button", name="Measure here").press("Enter")
    page.wait_for_selector(".tradeoff > .actions [data-phase='done']", state="attached")
    rows = page.locator(".numbers tbody tr")
    table = rows.all_text_contents()
    assert table[0].startswith("ddim:steps=5") and len(table) == page.locator(".spot").count()
    page.locator(".evaluated .ways").first.get_by_role("button", name="Copy as Python").click()
    page.get_by_text("Copied.").wait_for()
    text = page.evaluate("navigator.clipboard.readText()")
    found = run_python(text, tmp_path)["found"]
    shown = rows.evaluate_all("all => all.map(row => [0, 2].map(i => row.cells[i].textContent))")
    assert [[name, float(value)] for name, value in shown] == [
        [name, float(f"{value:.3g}")] for name, value in found.items()
    ]
    row = rows.filter(has_text="ddim:steps=10")
    row.get_by_role("button").press("Enter")
    page.wait_for_selector(OPENED, state="attached")
    again = visit(settled(page, "measured=2", "open=ddim%3Asteps%3D10"), wait=OPENED)
    values = "all => all.map(each => each.cells[2].textContent)"
    assert again.locator(".numbers tbody tr").evaluate_all(values) == rows.evaluate_all(values)
    labels = [i % 3 for i in range(9)]
    images = ddim.sample(ddim.load(models["classes"]), 9, "ddim", steps=10, seed=2, labels=labels)
    assert np.array_equal(canvas(again, ".lane.point canvas"), grid(images))
