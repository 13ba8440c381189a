"""What is published beside the code: metadata, citation, workflows, addresses, extras."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys
import typing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

import ddim
from ddim.cli.main import VERBS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
LINKS = runpy.run_path(str(ROOT / "scripts" / "readme_links.py"))
WORKFLOWS = sorted((ROOT / ".github").rglob("*.yml"))
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def citation() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_one_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    top = re.search(r"^## (\S+)", changelog, re.M)
    assert top is not None
    versions = {PROJECT["project"]["version"], citation()["version"], ddim.__version__, top[1]}
    assert len(versions) == 1, versions


def test_the_citation_is_of_the_paper():
    whole = citation()
    assert {"cff-version", "message", "title", "authors"} <= whole.keys()
    assert whole["cff-version"] == "1.2.0" and whole["type"] in ("software", "dataset")
    assert whole["license"] == PROJECT["project"]["license"]
    assert all("name" in author or "family-names" in author for author in whole["authors"])
    paper = whole["preferred-citation"]
    assert paper["type"] == "conference-paper"
    assert paper["title"] == "Denoising Diffusion Implicit Models"
    assert [author["family-names"] for author in paper["authors"]] == ["Song", "Meng", "Ermon"]
    assert paper["year"] == 2021 and paper["identifiers"][0]["value"] == "arXiv:2010.02502"


def test_nobody_is_invented():
    project = PROJECT["project"]
    assert [set(author) for author in project["authors"]] == [{"name"}]
    assert {"readme", "urls"} <= set(project["dynamic"]) and "urls" not in project
    pages = [ROOT / name for name in ("CITATION.cff", "README.md", "setup.py")]
    url = LINKS["repository"]()
    for page in [*pages, *WORKFLOWS]:
        text = page.read_text(encoding="utf-8")
        assert not url or url not in text, f"{page.name}: only pyproject.toml says {url}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_and_forms_are_yaml(path: Path):
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.parent.name != "ISSUE_TEMPLATE" or path.stem == "config":
        return
    assert found["name"] and found["description"]
    fields = [part for part in found["body"] if part["type"] != "markdown"]
    assert all(part["attributes"]["label"] and part["id"] for part in fields)
    assert "ddim checks" in path.read_text(encoding="utf-8") and "--json" in str(fields)


def test_what_a_workflow_runs_is_here():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    lines = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    scripts = {word for line in lines for word in re.findall(r"scripts/\S+", line)}
    targets = {word for line in lines for word in re.findall(r"make (\w+)", line)}
    assert scripts == {"scripts/cpu_torch.sh", "scripts/check_package.py"}
    assert targets == {"test", "docs"}
    assert all((ROOT / script).is_file() for script in scripts)
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    versions = jobs["test"]["strategy"]["matrix"]["python"]
    said = [f"Programming Language :: Python :: {version}" for version in versions]
    assert set(said) <= set(PROJECT["project"]["classifiers"])
    assert PROJECT["project"]["requires-python"] == f">={versions[0]}"


def test_an_extra_that_a_message_asks_for_is_one():
    asked = set()
    for path in [*SOURCES, *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        asked |= {
            part for found in re.findall(r"ddim\[([\w,]+)\]", text) for part in found.split(",")
        }
    assert {"fast", "hub", "plot", "data", "ode", "onnx", "tensorboard", "wandb"} <= asked
    assert asked <= EXTRAS.keys()
    assert {"fast", "plot", "hub", "web", "data", "ode", "onnx", "docs", "test"} <= EXTRAS.keys()


def test_the_package_script_asks_for_every_extra_of_the_code():
    script = runpy.run_path(str(ROOT / "scripts" / "check_package.py"))
    text = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    assert set(script["EXTRAS"]) == set(re.findall(r"pip install 'ddim\[(\w+)\]'", text))
    installed = {
        f"ddim/{path.relative_to(ROOT / 'src/ddim').as_posix()}" for path in files_of_ours()
    }
    assert set(script["IN_WHEEL"]) <= installed
    assert all((ROOT / name).is_file() for name in script["IN_SDIST"])


def files_of_ours() -> list[Path]:
    return [path for path in (ROOT / "src/ddim").rglob("*") if path.is_file()]


def test_addresses_of_the_readme():
    absolute, url = LINKS["absolute"], "https://github.com/me/x"
    text = (
        "![one](docs/a.png) [two](docs/b.md#part) [`three`](c.md) "
        "[out](https://x.org) [here](#it)\n`[code](d.md)`\n\n```\n[code](e.md)\n```\n"
    )
    found, count = absolute(text, url, "v1")
    assert count == 3
    assert f"![one]({url}/raw/v1/docs/a.png) [two]({url}/blob/v1/docs/b.md#part)" in found
    assert f"[`three`]({url}/blob/v1/c.md) [out](https://x.org) [here](#it)" in found
    assert "`[code](d.md)`" in found and "\n[code](e.md)\n" in found
    found, count = absolute(text, "", "v1")
    assert count == 3 and found.startswith(" two `three` [out](https://x.org) [here](#it)\n`[code]")


@pytest.mark.parametrize("url", ["", "https://github.com/me/x"])
def test_no_relative_link_is_left_in_the_description(url: str):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found, count = LINKS["absolute"](readme, url, "v1")
    assert count > 20
    prose = LINKS["CODE"].sub("", found)
    targets = [match["target"] for match in LINKS["LINK"].finditer(prose)]
    assert all(LINKS["ELSEWHERE"].match(target) for target in targets)


def test_the_one_place_of_the_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("pyproject.toml", "README.md"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "README.md").write_text("[a](b.md)\n")
    project = (tmp_path / "pyproject.toml").read_text(encoding="utf-8")
    before = f'repository = "{PROJECT["tool"]["ddim"]["repository"]}"'
    assert project.count(before) == 1
    for url, text in (
        ("", "a\n"),
        ("https://github.com/me/x/", "[a](https://github.com/me/x/blob/v"),
    ):
        (tmp_path / "pyproject.toml").write_text(project.replace(before, f'repository = "{url}"'))
        assert LINKS["described"](tmp_path).startswith(text)
        assert ("is empty, so that 1 links" in capsys.readouterr().err) == (not url)
        assert bool(LINKS["addresses"](LINKS["repository"](tmp_path))) == bool(url)
    (tmp_path / "pyproject.toml").write_text(project.replace(before, 'repository = "me/x"'))
    with pytest.raises(ValueError, match="is https://HOST/OWNER/NAME, not 'me/x'"):
        LINKS["repository"](tmp_path)


def test_the_colab_line_of_a_notebook():
    spec = importlib.util.spec_from_file_location("tutorials", ROOT / "scripts" / "tutorials.py")
    assert spec is not None and spec.loader is not None
    tutorials = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tutorials)
    line = LINKS["colab_line"]("examples/notebooks/1.ipynb", "https://github.com/me/x")
    text = tutorials.TUTORIALS[0].read_text(encoding="utf-8")
    made = tutorials.notebook(text, line)
    first = yaml.safe_load(made)["cells"][0]["source"]
    assert first[0].startswith("# ") and first[2] == f"{line}\n"
    assert line not in tutorials.notebook(text, LINKS["colab_line"]("x.ipynb", ""))
    assert LINKS["colab_line"]("x.ipynb", "https://elsewhere.org/me/x") == ""


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_options_are_read_on_every_python(verb: str):
    """Python 3.10 takes no ClassVar without the type of what it holds."""
    options = getattr(import_module(f"ddim.cli.{verb}"), f"{verb.title()}Options")
    assert options.__annotations__["EXAMPLES"] == "ClassVar[tuple[str, ...]]"
    assert typing.get_type_hints(options)
