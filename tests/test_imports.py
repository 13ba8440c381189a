"""The import arrows point down: no module imports one of a higher level."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import ddim

LEVELS = (
    "errors files device schedule compat nodes tableau target methods",
    "denoiser clipping integrate adaptive convergence noise analytic latent loss discrete "
    "calibrate trajectory nets conventions candidates",
    "data images train checkpoints evaluate backends generate inputs encoded codec checks interop "
    "model pipeline loading sampler export fitting",
    "cli web",
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names.split()}
ROOT = Path(ddim.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem[0] != "_")


def imported(path: Path) -> set[str]:
    """The parts of ``ddim`` that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("ddim.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert part in LEVEL, f"say in LEVELS where {part} belongs"
    upwards = {name for name in imported(path) & LEVEL.keys() if LEVEL[name] > LEVEL[part]}
    assert not upwards, f"{path} imports {upwards}"
    if part == "nets":
        assert imported(path) <= {"nets", "errors"}, "networks know nothing of schedules"
    if LEVEL[part] < 3:
        assert not imported(path) & {"cli", "web"}


@pytest.mark.parametrize("name", ddim.__all__)
def test_public_names_are_not_hidden_by_modules(name):
    """``integrate`` and ``generate`` are modules too, which importing them would bind here."""
    for module in sorted(path.stem for path in ROOT.glob("[a-z]*.py")):
        import_module(f"ddim.{module}")
    assert not isinstance(getattr(ddim, name), ModuleType)
