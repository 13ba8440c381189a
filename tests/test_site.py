"""The site: its pages in order, the tutorials in two languages and as notebooks, the reference."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

import ddim
from ddim.cli.main import VERBS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SITE = sorted(DOCS.rglob("*.md"))
"""Pages written by hand; those that the build writes are reStructuredText."""


def import_file(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def titles(page: Path) -> list[str]:
    """The headings of the first level, outside code; those of an included file count."""
    text = page.read_text(encoding="utf-8")
    for name, after in re.findall(r"^```\{include\} (.*)(?:\n:start-after: \"(.*)\")?", text, re.M):
        text += (page.parent / name).read_text(encoding="utf-8").rpartition(after or "\0")[2]
    return re.findall(r"^# (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)


@pytest.mark.parametrize("page", SITE, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_a_page_has_one_title(page):
    assert len(titles(page)) == 1


def test_the_contents_name_every_page_once():
    named = []
    for page in SITE:
        for text in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
            for entry in text.splitlines():
                if entry and not entry.startswith(":"):
                    target = entry.rpartition("<")[2].rstrip(">")
                    path = (page.parent / target).resolve().relative_to(DOCS).as_posix()
                    found = [p for p in SITE if fnmatch(page_name(p), path)]
                    assert found or "*" in path, entry
                    named += found
    assert sorted(named) == sorted(page for page in SITE if page_name(page) != "index")


def page_name(page: Path) -> str:
    return page.relative_to(DOCS).with_suffix("").as_posix()


TUTORIALS = import_file(ROOT / "scripts" / "tutorials.py")


def test_notebooks_and_chinese_pages_have_the_cells_of_the_tutorials():
    assert len(TUTORIALS.TUTORIALS) == 4
    for path, text in TUTORIALS.made().items():
        behind = f"{path.name}: run python scripts/tutorials.py --write"
        assert path.read_text(encoding="utf-8") == text, behind
    notebooks = {path.stem for path in TUTORIALS.NOTEBOOKS.glob("*.ipynb")}
    assert notebooks == {path.stem for path in TUTORIALS.TUTORIALS}


def test_chinese_pages_have_the_headings_and_formulas_of_the_english_ones():
    for english in TUTORIALS.TUTORIALS:
        chinese = TUTORIALS.CHINESE / english.name
        for pattern in (r"^(#+) ", r"\$\$(.*?)\$\$", r":::\{(\w+)\}"):
            ours, theirs = (
                re.findall(pattern, TUTORIALS.CELL.sub("", page.read_text("utf-8")), re.M | re.S)
                for page in (chinese, english)
            )
            assert ours == theirs, (english.name, pattern)


def test_a_chinese_page_of_other_cells_is_noticed():
    page = TUTORIALS.TUTORIALS[0].read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="0 cells, and"):
        TUTORIALS.in_step("# Nothing\n", page)


SMALL = {
    "1-fifty-steps": "training_steps, drawn = 20, 70",
    "2-one-latent": "step_counts, many = (2, 4), 2",
    "3-few-calls": "latents, images, fitted, moves = 2, 2, 2, 0",
    "4-your-own": "training_images, drawn = 500, 12",
}
"""What stands in the notebooks' cells of parameters when they are tested."""


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs_at_small_settings(name, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(TUTORIALS.NOTEBOOKS / f"{name}.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code)
    parameters, *others = (c for c in code if "parameters" in c.metadata.get("tags", ()))
    assert not others
    parameters.source = SMALL[name]
    client = nbclient.NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_the_reference_has_every_name_and_every_verb(tmp_path):
    reference = import_file(DOCS / "_ext" / "reference.py")
    reference.write(tmp_path)
    python = "".join(path.read_text("utf-8") for path in (tmp_path / "python").iterdir())
    named = re.findall(r"^\.\. (?:autoclass|autofunction|py:data):: ddim\.(\w+)$", python, re.M)
    assert sorted(named) == sorted(set(ddim.__all__) - {"__version__"})
    for verb in VERBS:
        text = (tmp_path / "verbs" / f"{verb}.rst").read_text(encoding="utf-8")
        assert f"usage: ddim {verb}" in text and "--help" in text


def test_formulas_become_mathml():
    mathematics = import_file(DOCS / "_ext" / "mathematics.py")
    for page in SITE:
        prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
        for tex in re.findall(r"\$\$(.*?)\$\$", prose, re.S):
            assert mathematics.mathml(tex, block=True).startswith("<math"), tex


@pytest.mark.parametrize("cells", ["off", pytest.param("cache", marks=pytest.mark.slow)])
def test_the_site_builds_without_warnings_and_loads_nothing_from_elsewhere(tmp_path, cells):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    command += ["-D", f"nb_execution_mode={cells}"]
    done = subprocess.run([*command, str(DOCS), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loading = re.compile(
        r"<(?:script|img|iframe|source)[^>]+src=\"https?:|<link[^>]+href=\"(?:https?:)?//"
        r"|@import|url\(['\"]?https?:"
    )
    for path in (*tmp_path.rglob("*.html"), *tmp_path.rglob("*.css")):
        found = loading.search(path.read_text(encoding="utf-8"))
        assert found is None, (path.name, found)
