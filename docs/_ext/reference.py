"""The reference, written when the site is built: the public names, and every verb's own help.

The names are those of ``ddim/__init__.pyi``, by the folder that each comes from; what is said of
them are their docstrings. The verbs are those of the command, and their help what it prints.
"""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import operator
import os
import re
import textwrap
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from sphinx.application import Sphinx

import ddim
from ddim.cli.main import GROUPS, main

HERE = Path(__file__).resolve().parents[1]
FOLDERS = {
    "model": "Models and drawing",
    "samplers": "Samplers",
    "noise": "Schedules, nodes, noise",
    "denoisers": "Predictions",
    "latents": "Latents",
    "calibration": "Calibration",
    "train": "Training",
    "shards": "Sets of images over many processes",
    "evaluate": "Measures",
    "data": "Images and pixels",
    "checkpoints": "What is known of a checkpoint",
    "interop": "Other programs",
    "nets": "Networks",
    "backends": "Back ends",
    "web": "The local page",
    "base": "Errors",
}
"""Folders of the package that may have public names, and their titles."""
WIDTH = 88


def public_names() -> dict[str, list[str]]:
    """The public names by folder, in the order of the table.

    Raises:
        KeyError: a name comes from a folder that has no title here.
    """
    table = (Path(ddim.__file__).parent / "__init__.pyi").read_text(encoding="utf-8")
    found: dict[str, list[str]] = {folder: [] for folder in FOLDERS}
    for folder, name in re.findall(r"^from ddim\.(\w+)\S* import (\w+) as \2$", table, re.M):
        found[folder].append(name)
    # Folders that are public as a whole, ddim.FOLDER.NAME.
    for folder in re.findall(r"^import ddim\.(\w+) as \1\b", table, re.M):
        found[folder] += [f"{folder}.{name}" for name in dir(getattr(ddim, folder))]
    return found


def said_of(name: str) -> str:
    """The string below a public value in the source.

    Raises:
        ValueError: no module says anything of it.
    """
    for path in Path(ddim.__file__).parent.rglob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for before, after in itertools.pairwise(body):
            if isinstance(before, ast.AnnAssign) and ast.unparse(before.target) == name:
                return ast.literal_eval(ast.unparse(after))
    raise ValueError(f"ddim.{name} has no docstring")


def escape(app: object, what: str, name: str, obj: object, options: object, lines: list[str]):
    """Take what docstrings mean as it stands, such as the shape (N, *), from reStructuredText."""
    for number, line in enumerate(lines):
        escaped = line.replace(", *)", r", \*)")
        lines[number] = re.sub(r"\|([^|]+)\|", r"\|\1\|", escaped)


def directive(name: str) -> list[str]:
    """How autodoc is told of a name."""
    value = operator.attrgetter(name)(ddim)
    if isinstance(value, type):
        inherited = "   :inherited-members: object" if name == "TrainConfig" else ""
        options = ["   :members:", *([inherited] if inherited else [])]
        return [f".. autoclass:: ddim.{name}", *options, ""]
    if callable(value):
        return [f".. autofunction:: ddim.{name}", ""]
    said = ["   " + line for line in said_of(name).splitlines()]
    return [f".. py:data:: ddim.{name}", "", *said, ""]


def page(title: str, lines: list[str]) -> str:
    """A page of reStructuredText, which docstrings are written in."""
    rule = "=" * sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in title)
    return "\n".join([title, rule, "", *lines])


def help_of(verb: str) -> str:
    """What ``ddim VERB --help`` prints, at the width of a page."""
    text = io.StringIO()
    settings = {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    with (
        mock.patch.dict(os.environ, settings),
        contextlib.redirect_stdout(text),
        contextlib.suppress(SystemExit),
    ):
        main([verb, "--help"])
    lines = text.getvalue().rstrip().splitlines()
    # What is no table of options has lines as long as its paragraphs.
    return "\n".join(part for line in lines for part in textwrap.wrap(line, WIDTH) or [""])


def pages() -> Iterator[tuple[str, str]]:
    """Name and text of every page of the reference that is not written by hand."""
    for folder, names in public_names().items():
        lines = [line for name in names for line in directive(name)]
        if lines:
            yield f"python/{folder}.rst", page(FOLDERS[folder], lines)
    for group in GROUPS.values():
        for verb, summary in group.items():
            shown = ["   " + line if line else "" for line in help_of(verb).splitlines()]
            said = f"{summary[0].upper()}{summary[1:]}."
            lines = [said, "", ".. code-block:: text", "", *shown, ""]
            yield f"verbs/{verb}.rst", page(f"ddim {verb}", lines)


def write(folder: Path) -> None:
    """Write the pages, those that changed only, and remove those that are no more."""
    wanted = {folder / name: text for name, text in pages()}
    for path in [*folder.glob("python/*"), *folder.glob("verbs/*")]:
        if path not in wanted:
            path.unlink()
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before Sphinx looks for them."""
    app.connect("autodoc-process-docstring", escape)
    app.connect("config-inited", lambda app, config: write(HERE / "reference"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
