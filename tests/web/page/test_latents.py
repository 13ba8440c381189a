"""Latents: a drawing goes to its latent and comes back, pixel by pixel."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import ddim
from browser import canvas, drawn, grid, run_python, settled

LATENTS = "#latents?model=tiny&steps=5"
EXACT = ".latents[data-encoded='exact']"
DRAWING = ".latents canvas.drawing"
PLACES = {"given": 1, "latent": 2, "decoded": 3}


def _panel(page, key):
    return canvas(page, f".latents .panels figure:nth-child({PLACES[key]}) canvas")


def _between(page, which):
    """What is decoded on the line or the square, once it is there."""
    name = {"line": "Decoded between", "square": "Decoded at"}[which]
    place = page.get_by_role("img", name=name)
    selector = f".latents .pair canvas[role=img][aria-label^='{name}'][data-shares]"
    page.wait_for_selector(selector, state="attached")
    assert place.is_visible()
    return canvas(page, selector)


def test_a_drawing_makes_the_round_trip(visit, tmp_path):
    page = visit(LATENTS + "&image=none", wait=".latents .primary:enabled")
    page.get_by_text("Nothing drawn yet.").wait_for()
    assert canvas(page, DRAWING).max() == 0
    area = page.locator(DRAWING)
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    for i, (x, y) in enumerate([(0.3, 0.2), (0.7, 0.25), (0.5, 0.5), (0.45, 0.8)]):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if i == 0:
            page.mouse.down()
    page.mouse.up()
    page.wait_for_selector(EXACT, state="attached")
    pixels = canvas(page, DRAWING)
    assert pixels.max() > 200 and (pixels == 0).sum() > 16
    assert np.array_equal(_panel(page, "given"), pixels)
    assert np.array_equal(_panel(page, "decoded"), pixels)
    assert not np.array_equal(_panel(page, "latent"), pixels)
    assert page.get_by_text("Every pixel is the same.").is_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save drawn.png").click()
    download.value.save_as(tmp_path / "drawn.png")
    with Image.open(tmp_path / "drawn.png") as picture:
        assert np.array_equal(np.asarray(picture.convert("L")), pixels)
    page.get_by_role("button", name="Copy as Python").first.click()
    page.get_by_text("Copied.").wait_for()
    names = run_python(page.evaluate("navigator.clipboard.readText()"), tmp_path)
    assert any(isinstance(each, ddim.Latents) and len(each) == 1 for each in names.values()), (
        sorted(names)
    )


@pytest.mark.slow
def test_keys_alone_take_an_image_and_walk(visit):
    page = visit(LATENTS + "&others=5", wait=EXACT)
    before = canvas(page, DRAWING)
    for name in ("Example", "A seed's image"):
        url = page.url
        page.get_by_role("button", name=name).press("Enter")
        page.wait_for_url(lambda new, old=url: new != old)
        page.wait_for_selector(EXACT, state="attached")
    _between(page, "square")
    assert not np.array_equal(canvas(page, DRAWING), before)
    first = _between(page, "line")
    page.get_by_role("slider", name="From first to second").press("End")
    second = _between(page, "line")
    assert not np.array_equal(first, second)
    square = page.get_by_role("slider", name="Place between four images")
    middle = _between(page, "square")
    square.press("ArrowRight")
    square.press("ArrowDown")
    assert square.get_attribute("aria-valuetext") == "55% to the right, 55% down"
    moved = _between(page, "square")
    assert not np.array_equal(middle, moved)
    settled(page, "x=0.550&y=0.550")


@pytest.mark.slow
def test_the_pointer_moves_over_the_square(visit, tmp_path):
    page = visit(LATENTS + "&others=5&image=none")
    _between(page, "square")
    square = page.get_by_role("slider", name="Place between four images")
    for key, corner in (("Home", "nw"), ("End", "se")):
        square.press(key)
        assert np.array_equal(_between(page, "square"), canvas(page, f".latents canvas.{corner}"))
    square.scroll_into_view_if_needed()
    box = square.bounding_box()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.25 * box["height"], steps=8)
    page.mouse.up()
    page.get_by_text("75% to the right, 25% down").wait_for()
    page.wait_for_selector(
        ".latents canvas[data-shares^='0.75 0.25'], .latents canvas[data-shares^='0.7']",
        state="attached",
    )
    shown = _between(page, "square")
    section = page.locator(".between").nth(1)
    section.get_by_role("button", name="Copy as Python").click()
    page.get_by_text("Copied.").wait_for()
    text = page.evaluate("navigator.clipboard.readText()")
    assert np.array_equal(grid(drawn(run_python(text, tmp_path))), shown)


def test_a_file_is_taken_and_a_link_restores_it(visit):
    page = visit(LATENTS + "&image=none", wait=".latents .primary:enabled")
    values = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    content = io.BytesIO()
    Image.fromarray(values).save(content, "PNG")
    page.locator(".latents input[type=file]").set_input_files(
        {"name": "ramp.png", "mimeType": "image/png", "buffer": content.getvalue()}
    )
    page.wait_for_selector(EXACT, state="attached")
    assert np.array_equal(_panel(page, "decoded"), values)
    page.get_by_role("slider", name="From first to second").press("ArrowLeft")
    line, square = _between(page, "line"), _between(page, "square")
    assert np.array_equal(canvas(page, DRAWING), values)
    address = settled(page, "share=0.48")
    visit.expected.append("status of 400")
    page.locator(".latents input[type=file]").set_input_files(
        {"name": "text.png", "mimeType": "image/png", "buffer": b"no image"}
    )
    page.wait_for_selector(".latents [data-phase='failed']", state="attached")
    assert page.get_by_text("That failed:").is_visible()
    again = visit(address, wait=EXACT)
    assert np.array_equal(canvas(again, DRAWING), values)
    assert np.array_equal(_between(again, "line"), line)
    assert np.array_equal(_between(again, "square"), square)
