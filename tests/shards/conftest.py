from __future__ import annotations

from pathlib import Path

import pytest

from ddim.model.model import Model
from ddim.noise.schedule import Schedule
from tiny import tiny_unet


@pytest.fixture(scope="session")
def model() -> Model:
    """An untrained model of 8 x 8 pixels with T = 20."""
    return Model(tiny_unet(), Schedule.linear(20, 0.01, 0.4), "eps", (1, 8, 8))


@pytest.fixture(scope="session")
def conditional() -> Model:
    """The same with three classes and a label for none."""
    schedule = Schedule.linear(20, 0.01, 0.4)
    return Model(tiny_unet(3), schedule, "eps", (1, 8, 8), classes=3, null_label=3)


@pytest.fixture
def files():
    """What stands in a folder, by name, hidden things too."""

    def read(folder: Path) -> dict[str, bytes | None]:
        found = sorted(folder.rglob("*"))
        return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in found}

    return read
