"""Every Python snippet of the README and the docs runs as it stands."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Its snippets open files: tests/checkpoints/test_bring_your_model.py makes them and runs it.
ELSEWHERE = ("bring-your-model",)
SNIPPETS = [
    pytest.param(block, id=f"{page.name}-{i}")
    for page in PAGES
    if page.stem not in ELSEWHERE
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet_runs(snippet, tmp_path, monkeypatch):
    import ddim

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ddim.samplers.registry.METHODS", dict(ddim.METHODS))
    monkeypatch.setitem(vars(ddim), "METHODS", __import__("ddim.methods").methods.METHODS)
    exec(compile(snippet, "snippet", "exec"), {"__name__": "snippet"})


def test_the_model_that_the_readme_trains_draws_its_points():
    import ddim

    (snippet,) = (
        param.values[0] for param in SNIPPETS if "# any shape after the first" in param.values[0]
    )
    namespace = {"__name__": "snippet"}
    torch.manual_seed(0)
    exec(compile(snippet, "snippet", "exec"), namespace)
    drawn = ddim.sample(namespace["model"], n=2000, steps=10)
    assert drawn.mean(0).tolist() == pytest.approx([1.0, -1.0], abs=0.1)
    assert drawn.std(0).tolist() == pytest.approx([0.3, 0.3], abs=0.1)


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
