"""Every snippet of the README and the docs runs as it stands, and what they say is so."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import ddim
from ddim.base.code import load_named
from ddim.cli.groups import SamplerOptions
from ddim.cli.main import main
from ddim.cli.options import parse
from ddim.samplers import lookup
from ddim.samplers.registry import METHODS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", ROOT / "CONTRIBUTING.md"]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
IN_ORDER = ("adding-a-method", "bring-your-model")
"""Pages whose snippets build on each other, and are run together by tests of their own.

That of bring-your-model is tests/checkpoints/test_bring_your_model.py, which makes its files.
"""


def blocks(page: Path, kinds: str = "python") -> list[tuple[str, str]]:
    """The kind and the text of a page's code blocks of some kinds, such as ``python|console``."""
    return re.findall(rf"```({kinds})\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


SNIPPETS = [
    pytest.param(
        text,
        id=f"{page.name}-{i}",
        # The same is in tests/interop.
        marks=[pytest.mark.slow] if "onnxruntime" in text else [],
    )
    for page in PAGES
    if page.stem not in IN_ORDER
    for i, (_, text) in enumerate(blocks(page))
]


@pytest.fixture(autouse=True)
def registry():
    """The methods that a page declares are gone after it."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)
    lookup._installed.cache_clear()


def run(snippet: str) -> dict[str, object]:
    namespace: dict[str, object] = {"__name__": "snippet"}
    exec(compile(snippet, "snippet", "exec"), namespace)
    return namespace


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet_runs(snippet, tmp_path, monkeypatch):
    if "onnxruntime" in snippet:  # needs Python 3.11
        pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    # Calibration on two latents: no padding up to eight.
    monkeypatch.setattr("ddim.calibration.calibration.pick_batch_size", lambda *_: 2)
    run(snippet)


def commands() -> list[object]:
    """Every command line of ours in the pages, with its shell variables filled in."""
    found = []
    for page in (page for page in PAGES if page.stem not in IN_ORDER):
        for _, text in blocks(page, "console"):
            variables = dict(re.findall(r'^(\w+)="(.*)"$', text, re.M))
            for line in text.splitlines():
                for name, value in variables.items():
                    line = line.replace(f"${name} ", f"{value} ")
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words and words[0].rpartition("/")[2] == "ddim":
                    found.append(pytest.param(words[1:], id=f"{page.name}: {' '.join(words[1:])}"))
    return found


@pytest.mark.parametrize("words", commands())
def test_the_options_of_a_command_are_there(words):
    verb, *rest = words
    module = import_module(f"ddim.cli.{verb}")
    options = parse(getattr(module, f"{verb.capitalize()}Options"), verb, rest)
    for group in vars(options).values():
        if isinstance(group, SamplerOptions):
            group.sampler()


def test_a_method_is_added_by_its_page_alone(tmp_path, monkeypatch):
    """From an empty folder: its files are written, its commands run, its tests called."""
    monkeypatch.chdir(tmp_path)
    done = []
    for kind, text in blocks(ROOT / "docs" / "adding-a-method.md", "python|toml|console"):
        if kind == "toml":
            Path("pyproject.toml").write_text(text, encoding="utf-8")
        elif text.startswith("# mine.py\n"):
            Path("mine.py").write_text(text, encoding="utf-8")
        elif kind == "python":
            run(text)
        else:
            for line in text.splitlines():
                command = shlex.split(line.removeprefix("$ "))
                done.append(" ".join(command[:3]))
                command_line(command, monkeypatch)
    assert done.count("ddim sample --method") == 3
    assert "python -m pytest" in done and "python -m pip" in done
    drawn = {"samples.png", "half.png", "compared.png", "named.png"}
    assert {path.name for path in Path().glob("*.png")} == drawn


def command_line(command: list[str], monkeypatch) -> None:
    """Run a command of the page: ours, a call of pytest, or an installation."""
    if command[0] == "ddim":
        assert main(command[1:]) == 0, command
    elif command[:3] == ["python", "-m", "pytest"]:
        file = command[3]
        names = re.findall(r"^def (test_\w+)", Path(file).read_text(encoding="utf-8"), re.M)
        assert names
        for name in names:
            load_named(f"{file}:{name}").value()
    else:
        assert command[:4] == ["python", "-m", "pip", "install"]
        install(monkeypatch)


def install(monkeypatch) -> None:
    """What pip writes of the project in this folder, as far as entry points go."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    folder = Path(f"{project['name']}-{project['version']}.dist-info")
    folder.mkdir()
    fields = {"Metadata-Version": "2.1", "Name": project["name"], "Version": project["version"]}
    (folder / "METADATA").write_text("".join(f"{k}: {v}\n" for k, v in fields.items()))
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(Path.cwd()))
    METHODS.pop("sa")  # as in a new process
    lookup._installed.cache_clear()


def test_the_model_that_the_tour_trains_draws_its_points():
    (snippet,) = (text for _, text in blocks(ROOT / "docs" / "tour.md") if "# any shape" in text)
    torch.manual_seed(0)
    drawn = ddim.sample(run(snippet)["model"], n=2000, steps=10)
    assert drawn.mean(0).tolist() == pytest.approx([1.0, -1.0], abs=0.1)
    assert drawn.std(0).tolist() == pytest.approx([0.3, 0.3], abs=0.1)


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_links_within_pages_lead_to_a_heading():
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text("utf-8")):
            other = (page.parent / target) if target else page
            headings = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.M)
            plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
            assert anchor in {heading.replace(" ", "-") for heading in plain}, f"{page}: {anchor}"


def test_the_table_of_methods_is_that_of_the_registry():
    script = import_file(ROOT / "scripts" / "method_table.py")
    text = script.PAGE.read_text(encoding="utf-8")
    written = text.partition(script.BEGIN)[2].partition(script.END)[0].strip()
    assert written == script.table(), "run python scripts/method_table.py --write"


def test_the_tree_of_the_page_on_architecture_is_the_package():
    """Every folder has its line, in the order of imports; those to come say so."""
    layout = import_file(Path(__file__).with_name("test_layout.py"))
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(\w+)/` \| (planned)?", text, re.M)
    assert [folder for folder, _ in named] == [*layout.FOLDERS, "shipped"]
    for folder, planned in named:
        assert (ROOT / "src" / "ddim" / folder).is_dir() is not bool(planned), folder


def import_file(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_functions_that_the_page_on_architecture_names_are_there():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?!tests)[a-z_]+(?:/[a-z_]+)+)\.([A-Za-z_.]+)`", text)
    assert len(named) > 20
    for module, name in named:
        value = import_module("ddim." + module.replace("/", "."))
        for part in name.split("."):
            value = getattr(value, part)


@pytest.mark.parametrize("name", sorted(set(ddim.__all__) - {"__version__"}))
def test_every_public_name_is_explained(name):
    value = getattr(ddim, name)
    if callable(value):
        # A dataclass without a docstring is given its signature for one.
        doc = vars(value).get("__doc__") if isinstance(value, type) else value.__doc__
        assert doc and not doc.startswith(f"{name}("), name
        return
    texts = []
    for path in (ROOT / "src" / "ddim").rglob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for before, after in itertools.pairwise(body):
            if isinstance(before, ast.AnnAssign) and ast.unparse(before.target) == name:
                texts.append(isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
    assert texts == [True], name
