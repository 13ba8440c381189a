"""The text for node exporters, read by a strict parser of its own."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from ddim.base.exposition import Metric, check_exposition, exposition, write_exposition

LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="((?:[^"\\\n]|\\\\|\\"|\\n)*)"'
SAMPLE = re.compile(
    rf"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{{({LABEL}(?:,{LABEL})*)\}})? "
    r"(NaN|[+-]Inf|[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
)


def parsed(text: str) -> dict[str, tuple[str, float, str]]:
    """Kind, value and label text by name; fails on whatever the format does not have."""
    assert text.endswith("\n")
    found: dict[str, tuple[str, float, str]] = {}
    lines = text[:-1].split("\n")
    assert len(lines) % 3 == 0
    for about, kind, sample in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        match = SAMPLE.fullmatch(sample)
        assert match, sample
        name = match[1]
        assert re.fullmatch(rf"# HELP {name} (?:[^\\]|\\\\|\\n)+", about), about
        told = re.fullmatch(rf"# TYPE {name} (gauge|counter)", kind)
        assert told, kind
        assert name not in found
        found[name] = told[1], float(match[match.lastindex or 0]), match[2] or ""
    return found


def test_what_is_written_is_what_was_given():
    values = [0, 12, 1.5, 1e-9, 2e22, math.nan, math.inf, -math.inf, -3]
    metrics = {f"a_{i}": Metric(value, "Its\nmeaning \\ unit.") for i, value in enumerate(values)}
    metrics["n_total"] = Metric(3, "Some.", "counter")
    for labels in ({}, {"run": 'a"b\\c\nd', "host": "ä"}):
        found = parsed(exposition(metrics, labels))
        assert [found[f"a_{i}"][1] for i in range(9)] == pytest.approx(values, nan_ok=True)
        assert found["n_total"][:2] == ("counter", 3.0)
    assert r"run=\"a" not in found["a_0"][2]
    assert found["a_0"][2] == r'run="a\"b\\c\nd",host="ä"'


def test_the_file_is_replaced_whole_and_nothing_else_ends_in_prom(tmp_path, monkeypatch):
    path, seen = tmp_path / "x.prom", []
    inner = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (seen.extend(tmp_path.iterdir()), inner(self, to))[1]
    )
    for value in (1, 2):
        write_exposition(path, {"a": Metric(value, "A.")})
    assert parsed(path.read_text())["a"][1] == 2
    assert {p.name for p in seen} == {"x.prom", ".x.prom.part"}
    assert [p.name for p in tmp_path.iterdir()] == ["x.prom"]
    assert path.stat().st_mode & 0o444 == 0o444  # the exporter is another user


def test_files_that_no_exporter_reads_are_refused(tmp_path, refuses):
    with refuses("x.txt: node exporters read files that end in .prom"):
        check_exposition(tmp_path / "x.txt")
    with refuses("cannot be written to"):
        check_exposition(tmp_path / "none" / "x.prom")
