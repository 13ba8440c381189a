"""For everyone: keys, screen readers, little motion, both languages, both schemes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "src" / "ddim" / "web" / "page"

LISTEN = """() => {
    window.told = [];
    const live = document.querySelectorAll("[role=status], [role=alert], [aria-live], output");
    for (const each of live) {
        new MutationObserver(() => window.told.push(each.textContent)).observe(
            each, { childList: true, characterData: true, subtree: true });
    }
}"""


def test_keys_reach_everything(visit):
    page = visit("#race?model=tiny&images=2&steps=3", wait=".race .primary:enabled")
    reached = []
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "(e => e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent)"
                "(document.activeElement)"
            )
        )
        if reached[-1] == "Start the race":
            break
    assert reached[0] == "Skip to the view"
    wanted = [
        "Model",
        "Language",
        "Race",
        "Latents",
        "Seed",
        "Another seed",
        "Images",
        "Method",
        "Steps",
        "η, noise of a step",
        "Nodes",
        "Network calls",
        "Start the race",
    ]
    assert [each for each in reached if each in wanted] == wanted
    outlined = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outlined == "solid"
    page.keyboard.press("Enter")
    page.wait_for_selector(".race[data-ran]", state="attached")
    page.get_by_role("link", name="One step, opened").press("Enter")
    page.wait_for_selector(".steps[data-frames]", state="attached")
    assert page.get_by_role("link", name="One step, opened").get_attribute("aria-current") == "page"
    page.go_back()
    assert page.locator(".lane.yours[data-phase='done']").is_visible()


def test_little_is_said_aloud(visit):
    """Live regions change when a race begins and ends, not with every frame."""
    page = visit("#race?model=tiny&images=2&steps=3", wait=".race .primary:enabled")
    page.evaluate(LISTEN)
    page.get_by_role("button", name="Start the race").click()
    page.wait_for_selector(".race[data-ran]", state="attached")
    told = [each for each in page.evaluate("window.told") if each]
    assert told[-1].startswith("Done in") and len(told) <= 4, told


@pytest.mark.slow
def test_scheme_and_motion_are_those_asked_for(visit):
    page = visit("#latents?model=tiny&image=none", wait=".latents .primary:enabled")
    paper = "getComputedStyle(document.body).backgroundColor"
    papers = []
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        papers.append(page.evaluate(paper))
    assert papers[0] != papers[1]
    for wish, still in (("reduce", True), ("no-preference", False)):
        page.emulate_media(reduced_motion=wish)
        for selector in (".pad .dot", "nav a"):
            spans = page.locator(selector).first.evaluate(
                "each => getComputedStyle(each).transitionDuration"
            )
            assert (re.fullmatch(r"(0s(, )?)+", spans) is not None) == still, (selector, spans)


def test_the_language_is_the_browsers_and_a_link_keeps_the_choice(visit):
    page = visit("#race?model=tiny", locale="zh-CN", wait=".race .primary:enabled")
    assert page.evaluate("document.documentElement.lang") == "zh-Hans"
    assert page.get_by_role("heading", level=2).text_content() == "五十步，还是五百步？"
    assert "lang=" not in page.url
    page.get_by_role("combobox", name="语言").select_option("en")
    assert page.get_by_role("heading", level=2).text_content() == "Fifty steps, or five hundred?"
    assert "lang=en" in page.url
    again = visit("#" + page.url.split("#")[1], locale="zh-CN", wait=".race .primary:enabled")
    assert again.get_by_role("button", name="Start the race").is_visible()
    assert again.title() == "Race · ddim"


def _words(language):
    lines = (PAGE / f"words-{language}.js").read_text(encoding="utf-8")
    body = lines[lines.index("{") : lines.rindex("}") + 1]
    return json.loads(re.sub(r",\s*}", "}", body))


def test_both_languages_say_the_same_things():
    english, chinese = _words("en"), _words("zh")
    assert list(english) == list(chinese)
    for key, text in english.items():
        braces = re.compile(r"\{\w+\}")
        assert sorted(braces.findall(text)) == sorted(braces.findall(chinese[key])), key
    code = "\n".join(each.read_text(encoding="utf-8") for each in PAGE.glob("*.js"))
    for key in english:
        stem = key.rsplit(".", 1)[0]
        assert f'"{key}"' in code or f"`{stem}." in code or f"{stem}.${{" in code, key


def test_modules_are_small_and_index_names_them():
    index = (PAGE / "index.html").read_text(encoding="utf-8")
    for file in PAGE.iterdir():
        assert len(file.read_text(encoding="utf-8").splitlines()) < 300, file.name
        if file.name != "index.html":
            assert f"/static/{file.name}" in index, file.name
    assert "style=" not in index and "onclick" not in index
