"""One browser and one server for the tests of a process; a page for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

import ddim
from browser import ARGUMENTS, PATIENCE, find_browser, serving
from ddim.checkpoints.calibration import write_calibration
from tiny import tiny_unet

CONTEXT = {
    "viewport": {"width": 1000, "height": 800},
    "locale": "en-GB",
    "permissions": ["clipboard-read", "clipboard-write"],
}
SLOW = """
import time

import ddim
from browser_models import slow_model

time.sleep(1)
slow = slow_model()
"""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser."""
    executable = find_browser()
    playwright = pytest.importorskip("playwright.sync_api", exc_type=ImportError)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield browser
        browser.close()


def _save(folder: Path, classes: int | None) -> ddim.Model:
    schedule = ddim.Schedule.linear(20, 0.01, 0.4)
    model = ddim.Model(
        tiny_unet(classes), schedule, "eps", (1, 8, 8), classes=classes, null_label=classes
    )
    model.save(folder)
    return model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | str]:
    """Untrained models of 8 x 8 pixels with T = 20: a calibrated one, one of three classes, a
    slow one, and one whose weights are damaged."""
    root = tmp_path_factory.mktemp("served")
    model = _save(root / "tiny", None)
    _save(root / "classes", 3)
    sampler = ddim.Sampler("dpmpp", nodes=(20, 16, 12, 8, 4, 0), order=2)
    moments = (20, 0), np.array([0.5]), 1
    write_calibration(
        root / "tiny" / "calibrated.json", model.identity, model.schedule, sampler, moments, {}
    )
    _save(root / "broken", None)
    for weights in (root / "broken").rglob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:100])
    (root / "slow.py").write_text(SLOW)
    return {
        "tiny": root / "tiny",
        "classes": root / "classes",
        "slow": f"{root / 'slow.py'}:slow",
        "broken": root / "broken",
    }


@pytest.fixture(scope="session")
def served(chromium: Any, models: dict[str, Path | str]) -> Iterator[str]:
    """The address of a server of these models."""
    with serving(list(models.values())) as (address, _):
        yield address


class Visit:
    """What a test does with pages: it opens them, and they are watched until it ends."""

    def __init__(self, chromium: Any, context: Any, address: str) -> None:
        self.chromium, self.context, self.address = chromium, context, address
        self.opened: list[Any] = []
        self.requests: list[str] = []
        self.complaints: list[str] = []
        # An idle model begins to load when it is asked for, which is said as 503.
        self.expected = ["status of 503", "Canvas2D"]

    def __call__(self, hash: str = "", *, wait: str | None = None, **options: Any) -> Any:
        """Open an address, and wait for a selector; with options in a context of its own."""
        context = self.context
        if options:
            context = self.chromium.new_context(**(CONTEXT | options))
            context.set_default_timeout(PATIENCE)
            self.opened.append(context)
        page = context.new_page()
        self.opened.append(page)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._hear)
        page.goto(f"{self.address}/{hash}")
        if wait is not None:
            page.wait_for_selector(wait, state="attached")
        return page

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def close(self) -> None:
        """Close what was opened: no request has left this machine, nothing was complained of."""
        for each in reversed(self.opened):
            each.close()
        for url in self.requests:
            parts = urlsplit(url)
            assert parts.scheme in ("data", "blob") or parts.hostname == "127.0.0.1", url
        other = [
            text for text in self.complaints if not any(each in text for each in self.expected)
        ]
        assert not other, other


@pytest.fixture(scope="session")
def context(chromium: Any) -> Iterator[Any]:
    """What pages share that need nothing of their own."""
    context = chromium.new_context(**CONTEXT)
    context.set_default_timeout(PATIENCE)
    yield context
    context.close()


@pytest.fixture
def visits(chromium: Any, context: Any) -> Iterator[Callable[[str], Visit]]:
    """Makes what opens pages of the server at an address."""
    made: list[Visit] = []

    def make(address: str) -> Visit:
        made.append(Visit(chromium, context, address))
        return made[-1]

    yield make
    for visit in made:
        visit.close()


@pytest.fixture
def visit(visits: Callable[[str], Visit], served: str) -> Visit:
    """Opens pages of the server that the tests share."""
    return visits(served)


@pytest.fixture(scope="module")
def viewed(
    request: pytest.FixtureRequest, chromium: Any, context: Any, served: str
) -> Iterator[Any]:
    """The page of a view, by the view's address and the selector that says that all is there."""
    visit = Visit(chromium, context, served)
    address, ready = request.param
    yield visit(address, wait=ready)
    visit.close()
