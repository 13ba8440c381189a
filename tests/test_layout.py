"""The listing of the package is its architecture: which folders there are, and who imports whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import ddim

FOLDERS = (
    "base",
    "data",
    "noise",
    "nets",
    "denoisers",
    "samplers",
    "checkpoints",
    "backends",
    "model",
    "latents",
    "evaluate",
    "calibration",
    "train",
    "shards",
    "interop",
    "web",
    "cli",
)
"""From the ground up: a folder imports itself and those before it. Nobody imports `cli` or `web`.

`shipped` holds weights, and no code.
"""
NUMPY_ONLY = (
    "noise/schedule",
    "noise/nodes",
    "noise/foreign",
    "samplers/tableau",
    "samplers/registry",
    "samplers/lookup",
    "samplers/sampler",
    "samplers/methods",
)
"""What `--help` reads: none of it imports torch where it stands."""
ROOT = Path(ddim.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT)
INSIDE_SAMPLERS = (
    "tableau",
    "loop",
    "registry",
    "methods",
    "lookup",
    "sampler",
    "order adaptive discrete",
)


def imported(path: Path) -> set[tuple[str, ...]]:
    """The modules of ``ddim`` that a file imports, wherever in it, for type checking too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {tuple(name.split(".")[1:]) for name in names if name.startswith("ddim.")}


def test_the_list_names_every_folder():
    found = {path.relative_to(ROOT).parts[0] for path in FILES}
    assert found <= set(FOLDERS)
    assert sorted(path.name for path in ROOT.glob("*.py*")) == [
        "__init__.py",
        "__init__.pyi",
        "__main__.py",
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    """A lower floor knows nothing of a higher one, so that there is no circle between folders."""
    folder = path.relative_to(ROOT).parts[0]
    floor = FOLDERS.index(folder)
    for name in imported(path):
        if name and name[0] in FOLDERS:
            assert FOLDERS.index(name[0]) <= floor, f"{path} imports {name}"
    if folder in ("data", "noise", "nets"):
        assert {name[0] for name in imported(path) if name[0] in FOLDERS} <= {"base", folder}
    if path.name == "__init__.py":
        assert not imported(path), f"{path}: the __init__ of a folder imports nothing"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_inside_samplers_the_arrows_point_down_too(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "samplers" or parts[-1] == "__init__":
        return
    floor = {name: i for i, names in enumerate(INSIDE_SAMPLERS) for name in names.split()}
    for name in imported(path):
        if name[0] == "samplers" and len(name) > 1 and name[1] in floor:
            assert floor[name[1]] <= floor[parts[1]], f"{path} imports {name}"


def modules_of(part: str) -> list[str]:
    path = ROOT / part
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    names = (file.relative_to(ROOT).with_suffix("").as_posix() for file in files)
    return ["ddim." + name.replace("/", ".").removesuffix(".__init__") for name in names]


def test_tables_are_made_without_torch():
    modules = [module for part in NUMPY_ONLY for module in modules_of(part)]
    script = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("name", sorted(ddim.__all__))
def test_every_public_name_can_be_imported(name):
    assert getattr(ddim, name) is not None
    assert not isinstance(getattr(ddim, name), ModuleType)


def test_no_public_name_hides_a_module():
    """``import ddim.samplers.loop`` gives a module, whatever was imported before."""
    for path in FILES:
        if path.stem not in ("__init__", "__main__"):
            name = "ddim." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
            module = import_module(name)
            part: object = ddim
            for attribute in name.split(".")[1:]:
                part = getattr(part, attribute)
            assert part is module, name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Pipelines'"):
        ddim.Pipelines  # noqa: B018
