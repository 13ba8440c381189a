"""Each view as it looks and as it is read: axe, phones, layout, pictures of the documentation.

``DDIM_PICTURES=write pytest tests/web/page/test_browser.py`` draws all of them anew.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browser import serving

WRITE = os.environ.get("DDIM_PICTURES") == "write"
HERE = Path(__file__).parent
DOCS = HERE.parents[2] / "docs"
BLOCK = 10
"""Pixels a side of what is averaged before it is compared."""
STEP = 20
"""Grey levels by which a block may differ."""
SHARE = 0.04
"""Of the blocks, what may differ by more."""
LONGER = 3
"""Blocks by which a page may be longer or shorter."""
# One font that the tests require, so that lines break where they broke for the reference.
FONT = """() => {
    for (const name of ["--serif", "--sans", "--mono"]) {
        document.documentElement.style.setProperty(name, "'Noto Sans CJK SC'");
    }
}"""
VIEWS = {
    "race": ("#race?model=tiny&images=4&steps=5&run=1", ".race[data-ran]"),
    "steps": ("#steps?model=tiny&steps=5&at=2", ".steps[data-frames]"),
    "latents": ("#latents?model=tiny&steps=5", ".latents .pair canvas[data-shares]"),
    "tradeoff": ("#tradeoff?model=tiny&measured=0", ".tradeoff > .actions [data-phase='done']"),
}
SHOWN = {
    "race": ("#race?model=mnist&seed=5&images=6&run=1", ".race[data-ran]"),
    "steps": ("#steps?model=mnist&seed=5&image=1&at=9", ".steps[data-frames]"),
    "latents": ("#latents?model=mnist&others=5&share=0.4", ".latents .pair canvas[data-shares]"),
    "tradeoff": ("#tradeoff?model=mnist", ".tradeoff[data-shown]"),
}
FRAMES = {"wide": (1000, "light", "en"), "phone": (360, "dark", "zh")}
PHONE = {"viewport": {"width": 360, "height": 800}, "color_scheme": "dark", "locale": "zh-CN"}
CONTRAST = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}

each_view = pytest.mark.parametrize("viewed", VIEWS.values(), ids=list(VIEWS), indirect=True)


def _set(page, width, scheme, language):
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    page.locator("header select").last.select_option(language)


@each_view
def test_axe_finds_nothing(viewed):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for scheme, language, options in (
        ("light", "en", {}),
        ("dark", "en", CONTRAST),
        ("dark", "zh", {}),
        ("light", "zh", CONTRAST),
    ):
        _set(viewed, 1000, scheme, language)
        title = {"en": "Language", "zh": "语言"}[language]
        assert viewed.get_by_role("combobox", name=title).is_visible()
        found = axe.run(viewed, options={"resultTypes": ["violations"], **options})
        told = [
            (each["id"], [node["html"][:150] for node in each["nodes"]])
            for each in found.response["violations"]
        ]
        assert not told, (language, scheme, told)


@each_view
def test_a_phone_shows_it_without_scrolling_sideways(viewed):
    for language in ("en", "zh"):
        _set(viewed, 360, "light", language)
        wide, seen = viewed.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert wide <= seen <= 360


def _blocks(content: bytes) -> np.ndarray:
    """A screenshot as grey averages of blocks."""
    with Image.open(io.BytesIO(content)) as picture:
        grey = picture.convert("L")
        size = grey.width // BLOCK, grey.height // BLOCK
        return np.asarray(grey.resize(size, Image.Resampling.BOX), dtype=np.int16)


def _differ(one: np.ndarray, other: np.ndarray) -> float:
    """The share of blocks that differ; all of them where one is much longer."""
    if one.shape[1] != other.shape[1] or abs(len(one) - len(other)) > LONGER:
        return 1.0
    height = min(len(one), len(other))
    return float((np.abs(one[:height] - other[:height]) > STEP).mean())


@each_view
def test_the_layout_is_that_of_its_reference(viewed, request):
    view = request.node.callspec.id
    viewed.evaluate(FONT)
    for frame, settings in FRAMES.items():
        _set(viewed, *settings)
        seen = _blocks(viewed.screenshot(full_page=True))
        file = HERE / "pictures" / f"{view}-{frame}.png"
        if WRITE:
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(seen.astype(np.uint8)).save(file, optimize=True)
        with Image.open(file) as picture:
            reference = np.asarray(picture, dtype=np.int16)
        assert _differ(seen, reference) < SHARE, frame
    viewed.evaluate("document.styleSheets[document.styleSheets.length - 2].disabled = true")
    broken = _blocks(viewed.screenshot(full_page=True))
    assert _differ(broken, reference) > SHARE, "a broken layout passes"


@pytest.mark.skipif(not WRITE, reason="DDIM_PICTURES=write draws the pictures of docs/")
def test_pictures_of_the_documentation(visits):
    with serving(["mnist"], backend="auto") as (address, _):
        visit = visits(address)
        for view, (place, ready) in SHOWN.items():
            page = visit(place, viewport={"width": 1100, "height": 800})
            page.wait_for_selector(ready, state="attached", timeout=300_000)
            if view == "tradeoff":
                page.locator(".plot .spot").nth(1).click()
                page.wait_for_selector(".lane.point[data-phase='done']", state="attached")
            page.screenshot(path=DOCS / f"page-{view}.png", full_page=True)
        page = visit(SHOWN["steps"][0], wait=SHOWN["steps"][1], **PHONE)
        page.screenshot(path=DOCS / "page-phone.png", full_page=True)
