"""The set-up that README shows installs what README's commands import."""

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def named(requirement):
    name, extras = re.match(r"([\w.-]+)(?:\[(.*?)\])?", requirement).groups()
    return name.lower().replace("_", "-"), extras.split(",") if extras else []


def installed(extras):
    """The distributions of the core and of some extras."""
    wanted = list(PROJECT["dependencies"])
    wanted += [r for extra in extras for r in PROJECT["optional-dependencies"][extra]]
    found = set()
    for name, more in map(named, wanted):
        found |= installed(more) if name == "ddim" else {name}
    return found


def imported():
    """The packages that the commands import; diffusers and onnxruntime are for who has them."""
    found = set()
    for path in (ROOT / "src/ddim").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
                found |= {"tensorboard" for alias in node.names if "tensorboard" in alias.name}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found |= {node.module.split(".")[0]}
                found |= {"tensorboard"} if "tensorboard" in node.module else set()
    return found - sys.stdlib_module_names - {"ddim", "diffusers", "onnxruntime", "tomli"}


@pytest.mark.parametrize("file", ["README.md", "Makefile"])
def test_the_set_up_installs_what_the_commands_import(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    lines = re.findall(r"install (?:--quiet )?-e (?:'\.\[(.*?)\]'|\.)", text)
    lines = [extras for extras in lines if extras != "docs"]  # which is for the site alone
    assert len(lines) == 2  # to use, and to test
    providers = importlib.metadata.packages_distributions()
    needed = {named(providers[name][0])[0] for name in imported()}
    assert {"torch", "matplotlib", "scikit-learn", "tensorboard"} <= needed
    for extras in lines:
        assert needed <= installed(extras.split(",") if extras else []), extras
