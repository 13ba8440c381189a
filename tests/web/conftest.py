from __future__ import annotations

import contextlib
import io
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from asking import Page, paged, save_model
from ddim.cli.main import main


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained models: a plain one, one with classes, one of colours."""
    root = tmp_path_factory.mktemp("models")
    return {
        "tiny": save_model(root / "tiny"),
        "classes": save_model(root / "classes", 3),
        "colours": save_model(root / "colours", channels=3),
    }


@pytest.fixture(scope="session")
def page(folders: dict[str, Path]) -> Iterator[Page]:
    """A page with all of them, ready."""
    with paged(*folders.values()) as page:
        for name in folders:
            page.wait(name)
        yield page


Ways = Callable[..., list[np.ndarray]]


@pytest.fixture
def ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ways:
    """Run what the page offers to copy: the command and the Python text, each in a folder."""

    def run(
        said: Mapping[str, str | None],
        file: str,
        given: Mapping[str, np.ndarray] | None = None,
        *,
        alone: bool = False,
    ) -> list[np.ndarray]:
        """The picture that each has written.

        Args:
            said: the ways of an event.
            file: the picture.
            given: pictures that are there before, by name.
            alone: run the command in a process of its own.
        """
        found = []
        for number, (kind, text) in enumerate(said.items()):
            if text is None:
                continue
            folder = tmp_path / f"{len(list(tmp_path.iterdir()))}-{number}"
            folder.mkdir()
            monkeypatch.chdir(folder)
            for name, pixels in (given or {}).items():
                Image.fromarray(pixels).save(folder / name)
            if kind == "python":
                exec(text, {})
            else:
                for line in text.splitlines():
                    command(line, alone=alone)
            with Image.open(folder / file) as image:
                found.append(own_pixels(np.array(image)))
        return found

    return run


def own_pixels(picture: np.ndarray) -> np.ndarray:
    """A picture of a command at the size of its images: grids are enlarged by whole pixels."""
    for scale in range(64, 1, -1):
        small = picture[::scale, ::scale]
        if np.array_equal(small.repeat(scale, 0).repeat(scale, 1), picture):
            return small
    return picture


def command(line: str, *, alone: bool) -> None:
    """Run a line of a shell."""
    assert line.startswith("ddim ")
    if alone:
        script = f"{shlex.quote(sys.executable)} -m {line}"
        subprocess.run(["bash", "-c", script], check=True, capture_output=True)
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main(shlex.split(line)[1:]) == 0
