"""What the page says while something is missing, busy or gone, and that it recovers."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from browser import end, serving

RACE = "#race?model=tiny&images=2&steps=3"


@contextlib.contextmanager
def _waiting(address: str, model: str) -> Iterator[list[int]]:
    """Many who wait for their turn, more than may: what each was answered."""
    body = json.dumps({"model": model, "seed": 0, "images": 1, "lanes": ["ddpm:steps=400"]})
    held = []
    try:
        for i in range(12):
            connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
            held.append(connection)
            headers = {"Content-Type": "application/json", "X-Page": f"{i:032x}"}
            connection.request("POST", "/api/race", body, headers)
        yield [connection.getresponse().status for connection in held]
    finally:
        for connection in held:
            connection.close()


def _offline(page):
    return page.get_by_text("No connection to ddim serve.")


def test_a_server_that_ends_is_missed_and_found_again(visits, models):
    with serving([models["tiny"]]) as (address, process):
        visit = visits(address)
        visit.expected += ["ERR_CONNECTION", "ERR_EMPTY", "ERR_INCOMPLETE", "status of 404"]
        page = visit(RACE, wait="nav a[aria-current]")
        marks = "performance.getEntriesByType('mark').map(mark => [mark.name, mark.startTime])"
        early = dict(page.evaluate(marks))
        assert "model" not in early and early["interactive"] < 2000, early
        page.wait_for_selector(".race .primary:enabled")
        square = visit("#latents?model=tiny&steps=3", wait=".latents .pair canvas[data-shares]")
        assert not _offline(page).is_visible()
        end(process)
        page.get_by_role("button", name="Start the race").click()
        _offline(page).wait_for()
        page.wait_for_selector(".race [data-phase='offline']", state="attached")
    with serving([models["tiny"]], port=urlsplit(address).port):
        _offline(page).wait_for(state="hidden")
        page.get_by_role("button", name="Start the race").click()
        page.wait_for_selector(".lane.yours[data-phase='done']", state="attached")
        place = square.get_by_role("slider", name="Place between four images")
        place.press("Home")  # the latents are gone with the server: they are encoded again
        square.wait_for_selector(".latents canvas[data-shares='0 0']", state="attached")


def test_the_page_is_there_while_the_model_loads(visit):
    page = visit("#race?model=tiny", wait=".race .primary:enabled")
    loading = [True]

    def answer(route):
        state = route.fetch().json()
        for model in state["models"]:
            model["phase"] = "loading" if loading else model["phase"]
        route.fulfill(json=state)

    page.route("**/api/state", answer)
    page.reload()
    page.get_by_text("The model tiny is loading").wait_for()
    assert page.get_by_role("heading", name="Fifty steps, or five hundred?").is_visible()
    assert page.get_by_role("button", name="Start the race").is_disabled()
    loading.clear()
    page.wait_for_selector(".race .primary:enabled")
    assert not page.get_by_text("The model tiny is loading").is_visible()


def test_a_busy_server_says_so(visit):
    visit.expected.append("status of 503")
    page = visit(RACE.replace("tiny", "slow"), wait=".race .primary:enabled")
    with _waiting(visit.address, "slow") as statuses:
        assert {*statuses} == {200, 503}, statuses
        page.get_by_role("button", name="Start the race").click()
        page.wait_for_selector(".race [data-phase='busy']", state="attached")
        assert page.get_by_text("The server is busy:").is_visible()
    page.get_by_role("combobox", name="Model").select_option("tiny")
    page.wait_for_selector(".race .primary:enabled")
    page.get_by_role("button", name="Start the race").click()
    page.wait_for_selector(".lane.ddpm[data-phase='done']", state="attached")


@pytest.mark.slow
def test_who_waits_is_told_the_place(visit):
    page = visit(RACE, wait=".race .primary:enabled")
    other = visit("#race?model=slow&images=1&steps=3&run=1")
    other.wait_for_selector(".race [data-phase='running']", state="attached")
    page.get_by_role("button", name="Start the race").click()
    page.get_by_text("Waiting in line: 1 before you.").wait_for()
    other.get_by_role("button", name="Cancel").click()
    page.wait_for_selector(".lane.ddpm[data-phase='done']", state="attached")


def test_a_model_that_does_not_load_is_named(visit):
    visit.expected.append("status of 500")
    page = visit("#race?model=broken")
    page.get_by_text("The model broken did not load:").wait_for()
    assert page.get_by_role("button", name="Start the race").is_disabled()
    page.get_by_role("combobox", name="Model").select_option("tiny")
    page.wait_for_selector(".race .primary:enabled")
    assert not page.get_by_text("did not load").is_visible()


@pytest.mark.slow
def test_what_a_sampler_refuses_is_said(visit):
    visit.expected.append("status of 400")
    page = visit("#steps?model=tiny&steps=3&method=dpmpp&order=3&nodes=nonsense")
    page.wait_for_selector(".steps[data-frames]", state="attached")
    page.route(
        "**/api/steps",
        lambda route: route.fulfill(
            status=400, json={"error": {"code": "bad-request", "text": "η is from 0 to 1"}}
        ),
    )
    page.get_by_role("spinbutton", name="Seed").fill("7")
    page.get_by_role("spinbutton", name="Seed").press("Tab")
    page.get_by_text("That failed: η is from 0 to 1").wait_for()
