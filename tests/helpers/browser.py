"""A page of `ddim serve` in a headless Chromium, and what is on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddim.data.pixels import to_pixels

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PATIENCE = 60_000
"""Milliseconds that anything may take where the machine is busy."""
SECONDS = 600
"""After which a server ends whatever happens to the tests."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

# A canvas as rows of red values, which grey images have alone; transparent pixels are -1.
CANVAS = """canvas => {
    const { width, height } = canvas;
    const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
    const values = [];
    for (let i = 0; i < data.length; i += 4) values.push(data[i + 3] ? data[i] : -1);
    return [height, width, values];
}"""


def find_browser() -> str:
    """The browser; its absence skips the test, or fails it where DDIM_BROWSER=required."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    missing = None if found else "no Chromium: apt-get install chromium"
    if found and not _has_chinese():
        missing = "no Chinese font: apt-get install fonts-noto-cjk"
    if missing and os.environ.get("DDIM_BROWSER") == "required":
        pytest.fail(missing)
    if missing or found is None:
        pytest.skip(str(missing))
    return found


def _has_chinese() -> bool:
    if shutil.which("fc-list") is None:
        return False
    listed = subprocess.run(
        ["fc-list", ":lang=zh-cn"], capture_output=True, text=True, check=False, timeout=60
    )
    return bool(listed.stdout.strip())


@contextlib.contextmanager
def serving(
    models: Sequence[str | Path], *, port: int | None = None, backend: str = "torch"
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server of its own process: its address and itself. It ends with the block."""
    command = [sys.executable, "-m", "ddim", "serve", "--model", *map(str, models)]
    command += ["--no-browser", "--backend", backend, "--threads", "1"]
    if port is not None:
        command += ["--port", str(port)]
    if shutil.which("timeout"):
        command = ["timeout", "--kill-after=5", str(SECONDS), *command]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line
        yield line.split()[0].rstrip("/"), process
    finally:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    """End a server, kindly first."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)
    if process.stdout is not None:
        process.stdout.close()


def canvas(page: Any, selector: str) -> np.ndarray:
    """The pixels of a canvas, (H, W); -1 where there is nothing."""
    height, width, values = page.locator(selector).evaluate(CANVAS)
    return np.array(values).reshape(height, width)


def grid(images: Tensor) -> np.ndarray:
    """Grey images as the page sets them: as many across as the root of their number, a gap of 1."""
    pixels = [to_pixels(image[None])[0] for image in images]
    pixels = [np.asarray(each).reshape(images.shape[-2:]) for each in pixels]
    height, width = images.shape[-2:]
    across = int(np.ceil(np.sqrt(len(pixels))))
    down = -(-len(pixels) // across)
    sheet = np.full((down * (height + 1) - 1, across * (width + 1) - 1), -1)
    for i, each in enumerate(pixels):
        top, left = (i // across) * (height + 1), (i % across) * (width + 1)
        sheet[top : top + height, left : left + width] = each
    return sheet


def settled(page: Any, *parts: str) -> str:
    """The page's address from its hash on, once these parts are in it."""
    page.wait_for_url(lambda url: all(part in url for part in parts))
    return "#" + page.url.split("#")[1]


def run_python(text: str, folder: Path) -> dict[str, Any]:
    """Run lines that the page gives, in a folder; the names that they bind."""
    names: dict[str, Any] = {}
    before = Path.cwd()
    os.chdir(folder)
    try:
        exec(compile(text, "<copied>", "exec"), names)
    finally:
        os.chdir(before)
    return names


def drawn(names: dict[str, Any]) -> Tensor:
    """The images among what such lines bind."""
    images = names["images"]
    assert isinstance(images, torch.Tensor)
    return images
