"""One step, opened: what is shown of each step is what the library computes."""

from __future__ import annotations

import numpy as np
import pytest

import ddim
from browser import canvas, grid, settled

STEPS = "#steps?model=tiny&seed=3&image=2&method=ddim&steps=5"
READY = ".steps[data-frames]"
WATCH = """() => {
    const position = document.querySelector(".position");
    window.seen = [];
    new MutationObserver(() => window.seen.push(position.textContent)).observe(
        position, { childList: true });
}"""


def _walk(model, sampler, image=2, seed=3):
    """The states before each step and after the last, and what the network said at each."""
    tableau = model.tableau(sampler)
    noise = ddim.Noise(seed=seed, images=[image], shape=model.shape)
    start = tableau.start(noise(0))
    states, said = [start], []
    for step in ddim.integrate(model.denoiser(), tableau, start, noise):
        states.append(step.x)
        said.append(step.prediction)
    return tableau, states, said


def _near(shown, images):
    """Equal pixels, or where the batch has another size off by one grey level."""
    return np.abs(shown - grid(images)).max() <= 1


def test_scrubbing_shows_each_step_as_it_was(visit, models):
    page = visit(STEPS, wait=READY)
    model = ddim.load(models["tiny"])
    tableau, states, said = _walk(model, "ddim:steps=5")
    slider = page.get_by_role("slider", name="Through time")
    for i, (key, row) in enumerate(zip(["Home", *["ArrowRight"] * 4], tableau.rows, strict=True)):
        slider.press(key)
        node = tableau.initial[0].k if i == 0 else tableau.rows[i - 1].k
        text = f"Step {i + 1} of 5: node {node} → {row.k}"
        assert page.locator(".position").text_content() == text
        assert slider.get_attribute("aria-valuetext") == text
        assert _near(canvas(page, ".steps .state canvas"), states[i])
        assert _near(canvas(page, ".steps .x0 canvas"), said[i].x0)
    page.evaluate(WATCH)
    page.get_by_role("button", name="Play").press("Enter")
    page.get_by_text("Step 5 of").wait_for()
    assert [text[:6] for text in page.evaluate("window.seen")] == [f"Step {i}" for i in range(1, 6)]
    images = ddim.sample(model, 3, "ddim", steps=5, seed=3)
    assert np.array_equal(canvas(page, ".steps .final canvas"), grid(images[2:]))


def test_the_rows_numbers_stand_beside_equation_12(visit, models):
    page = visit(STEPS + "&eta=0.5&at=1", wait=READY)
    row = ddim.load(models["tiny"]).tableau("ddim:steps=5:eta=0.5").rows[1]
    ((_, x0),), ((_, eps),) = row.x0, row.eps
    body = page.locator(".equation tbody tr")
    numbers = [each.split() for each in body.locator("td:nth-of-type(1)").all_text_contents()]
    paper = body.locator("td:nth-of-type(2)").all_text_contents()
    assert numbers == [[f"{x0:.6f}"], [f"{eps:.6f}"], [f"{row.noise:.6f}"]]
    assert paper == [each for (each,) in numbers]
    assert page.get_by_text("Row and equation").is_visible()
    formula = page.locator(".formula").inner_text()
    assert f"{x0:.4f}" in formula and f"{eps:.4f}" in formula and str(row.k) in formula
    page.get_by_role("combobox", name="Method").select_option("dpmpp")
    page.get_by_text("This method is not equation 12").wait_for()
    page.wait_for_selector(READY, state="attached")
    assert page.get_by_role("cell", name="–").count() > 0


@pytest.mark.slow
def test_the_schedule_is_named_and_its_place_marked(visit, models):
    page = visit(STEPS + "&at=3", wait=READY)
    schedule = ddim.load(models["tiny"]).schedule
    curve = page.get_by_role("img", name="Noise schedule")
    name = curve.get_attribute("aria-label")
    assert f"from node 8 (α = {schedule.alpha[8]:.4f}) to node 4" in name
    assert curve.locator("circle.node").count() == 6
    left = [
        float(x)
        for x in curve.locator("circle.alpha").evaluate_all(
            "all => all.map(each => each.getAttribute('cx'))"
        )
    ]
    assert left[0] < left[1]


def test_a_link_restores_the_step(visit):
    page = visit(STEPS, wait=READY)
    page.get_by_role("slider", name="Through time").press("End")
    page.get_by_role("slider", name="Through time").press("ArrowLeft")
    again = visit(settled(page, "at=3"), wait=READY)
    assert again.locator(".position").text_content() == "Step 4 of 5: node 8 → 4"
    for panel in ("state", "x0", "eps", "final"):
        selector = f".steps .{panel} canvas"
        assert np.array_equal(canvas(again, selector), canvas(page, selector))
