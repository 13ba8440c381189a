from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ddim.cli.main import main
from ddim.denoisers.target import Target
from ddim.model.model import Model
from ddim.noise.schedule import Schedule
from tiny import tiny_unet


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a command returned and said."""

    status: int
    out: str
    err: str


Command = Callable[..., Answer]
Fails = Callable[..., str]


def _save(folder: Path, classes: int | None) -> Path:
    net = tiny_unet(classes)
    schedule = Schedule.linear(20, 0.01, 0.4)
    model = Model(
        net,
        schedule,
        Target.EPS,
        (1, 8, 8),
        classes=classes,
        null_label=classes,
        name=folder.name,
    )
    model.save(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of 8 x 8 pixels with T = 20."""
    return _save(tmp_path_factory.mktemp("models") / "tiny", None)


@pytest.fixture(scope="session")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with three classes and a label for none."""
    return _save(tmp_path_factory.mktemp("models") / "conditional", 3)


@pytest.fixture
def ddim(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Command:
    """Run the command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Answer:
        capsys.readouterr()
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 0
        captured = capsys.readouterr()
        return Answer(status, captured.out, captured.err)

    return run


@pytest.fixture
def fails(ddim: Command) -> Fails:
    """Expect an exit status, nothing on stdout, and one line on stderr; the line is returned."""

    def run(status: int, match: str, *arguments: object) -> str:
        answer = ddim(*arguments)
        assert answer.status == status, answer
        assert answer.out == ""
        assert answer.err.endswith("\n"), answer.err
        line = answer.err[:-1]
        assert "\n" not in line, answer.err
        assert line.startswith(f"ddim {arguments[0]}: ")
        assert re.search(match, line), line
        return line

    return run


@pytest.fixture(scope="session")
def noise_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images of 8 x 8 pixels in three classes, as .npz."""
    path = tmp_path_factory.mktemp("data") / "noise.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(40) % 3)
    return path
