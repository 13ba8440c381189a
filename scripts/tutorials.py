"""What is made of the tutorials: notebooks, and the cells of the Chinese pages.

The tutorials in docs/tutorials are Markdown with cells of code. With --write each gets a notebook
in examples/notebooks, without outputs, and its Chinese page in docs/zh gets the same cells, one for
one. Without it, what is not up to date is named. Where tool.ddim.repository in pyproject.toml says
where the repository is, a notebook has a line that opens it in Colab.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
NOTEBOOKS = ROOT / "examples" / "notebooks"
CHINESE = ROOT / "docs" / "zh"
LINKS = runpy.run_path(str(ROOT / "scripts" / "readme_links.py"))
CELL = re.compile(r"^```\{code-cell\} ipython3\n(.*?)^```\n", re.M | re.S)
TAGS = re.compile(r"\A:tags: \[(.*)\]\n\n?")


def cells(text: str) -> list[str]:
    """The code cells of a page, with their tags."""
    return CELL.findall(text)


def parts(text: str) -> Iterator[tuple[str, str]]:
    """The page without its front matter, as prose and code in turn."""
    _, _, body = text.removeprefix("---\n").partition("\n---\n")
    for number, part in enumerate(CELL.split(body)):
        if part.strip():
            yield ("code" if number % 2 else "markdown"), part.strip("\n")


def plain(prose: str) -> str:
    """Prose that a notebook shows: admonitions as quotations, links from where notebooks lie."""
    boxes = re.compile(r"^:::\{admonition\} (.*)\n(.*?)^:::$", re.M | re.S)
    quoted = boxes.sub(
        lambda m: "\n".join(f"> {line}" for line in (f"**{m[1]}.**", *m[2].strip().splitlines())),
        prose,
    )
    quoted = re.sub(r"\]\(\.\./([\w-]+\.md)", r"](../../docs/\1", quoted)
    return re.sub(r"\]\((\d-[\w-]+)\.md\)", r"](\1.ipynb)", quoted)


def notebook(text: str, opener: str = "") -> str:
    """A page as a notebook of version 4.5, without outputs.

    Args:
        text: the page.
        opener: the line that opens it elsewhere, below its title; nothing for none.
    """
    made = []
    for number, (kind, part) in enumerate(parts(text)):
        if opener and number == 0:
            title, _, rest = part.partition("\n")
            part = f"{title}\n\n{opener}\n{rest}"
        tags = TAGS.match(part) if kind == "code" else None
        source = plain(part) if kind == "markdown" else TAGS.sub("", part)
        cell: dict[str, object] = {
            "cell_type": kind,
            "id": f"cell-{number}",
            "metadata": {"tags": tags[1].split(", ")} if tags else {},
            "source": source.splitlines(keepends=True),
        }
        made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {
        "cells": made,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def in_step(chinese: str, english: str) -> str:
    """The Chinese page with the English cells.

    Raises:
        ValueError: another number of cells.
    """
    wanted, there = cells(english), cells(chinese)
    if len(wanted) != len(there):
        raise ValueError(f"{len(there)} cells, and {len(wanted)} in the English page")
    remaining = iter(wanted)
    return CELL.sub(lambda _: f"```{{code-cell}} ipython3\n{next(remaining)}```\n", chinese)


def made() -> dict[Path, str]:
    """Every file that is made, and what it should say."""
    files = {}
    for page in TUTORIALS:
        text = page.read_text(encoding="utf-8")
        place = NOTEBOOKS / f"{page.stem}.ipynb"
        opener = LINKS["colab_line"](place.relative_to(ROOT).as_posix(), LINKS["repository"](ROOT))
        files[place] = notebook(text, opener)
        translation = CHINESE / page.name
        files[translation] = in_step(translation.read_text(encoding="utf-8"), text)
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write what is not up to date")
    write = parser.parse_args().write
    behind = {
        path: text
        for path, text in made().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }
    for path, text in behind.items():
        print(path.relative_to(ROOT))
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 0 if write or not behind else 1


if __name__ == "__main__":
    sys.exit(main())
