"""Who watches a run beside its own file: Weights & Biases without a connection, Prometheus."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddim.cli.main import main

SMALL = (
    "--channels", 8, 16, "--blocks", 1, "--groups", 4, "--T", 5, "--beta-start", 0.1,
    "--beta-end", 0.8, "--batch-size", 8, "--images", 96, "--save-every", 40, "--log-every", 3,
    "--sample-every", 96, "--device", "cpu", "--threads", 1,
)  # fmt: skip


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (42, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=pixels)
    return ("train", "--data", tmp_path / "data.npz", *SMALL)


def logged(folder: Path) -> list[dict[str, object]]:
    """The history in the file of a run without a connection: protocol buffers in blocks of 32 KiB,
    each of parts with a checksum of 4 bytes, a length of 2 and a kind, 1 to 4: whole, first, middle
    and last."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("run-*.wandb")
    data, place, parts, found = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record, parts = wandb_internal_pb2.Record.FromString(parts), b""
            items = record.history.item
            found.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in items})
    return found


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train(capsys, *words: object) -> tuple[int, str]:
    """The exit status and what stands on stderr."""
    status = main([str(word) for word in words])
    return status, capsys.readouterr().err


def test_weights_and_biases_without_a_connection(small, tmp_path):
    """Both parts of an interrupted run have one id, and what the run's own file has."""
    pytest.importorskip("wandb")
    environment = {**os.environ, "WANDB_MODE": "offline", "HTTPS_PROXY": "http://127.0.0.1:9"}
    flags = ("--wandb", "mine", "--quiet", "--output", "run")
    for images, more in ((48, ()), (96, ("--resume",))):
        words = [str(word) for word in (*small, *flags, "--images", images, *more)]
        done = subprocess.run(
            [sys.executable, "-m", "ddim", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, "")
    folders = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    name = (tmp_path / "run" / "wandb-id").read_text().strip()
    assert [folder.name.rpartition("-")[2] for folder in folders] == [name, name]
    own = lines(tmp_path / "run")
    found = [line for folder in folders for line in logged(folder) if "loss" in line]
    for line, other in zip(own, found, strict=True):
        assert {key: other[key] for key in line} == line


def test_weights_and_biases_that_is_not_installed(small, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    status, said = train(capsys, *small, "--wandb", "mine", "--quiet")
    assert status == 2
    assert said.endswith("Weights & Biases is not installed: pip install 'ddim[wandb]'\n")


def test_metrics_for_node_exporters(small, capsys, tmp_path):
    assert train(capsys, *small, "--prometheus", "ddim.prom", "--quiet") == (0, "")
    told = (tmp_path / "ddim.prom").read_text().splitlines()
    values = dict(line.split(" ") for line in told if line[0] != "#")
    own = lines(tmp_path / "run")[-1]
    for name, key in {"step": "step", "images_total": "images", "loss": "loss"}.items():
        assert float(values[f'ddim_train_{name}{{run="run"}}']) == own[key]
    assert values['ddim_train_steps{run="run"}'] == "12"
    assert values['ddim_train_seconds_left{run="run"}'] == "0.0"
    assert not [*tmp_path.glob(".*")]
    status, said = train(capsys, *small, "--prometheus", "x.txt", "--output", "b")
    assert status == 2
    assert "x.txt: node exporters read files that end in .prom: give such a name\n" in said
    assert not (tmp_path / "b").exists()


def test_lines_of_json_instead_of_a_bar(small, capsys, tmp_path):
    status, said = train(capsys, *small, "--log")
    assert status == 0
    found = [json.loads(line) for line in said.splitlines()]
    assert (found[-1]["what"], found[-1]["done"], found[-1]["step"]) == ("train", 96, 12)
    assert found[-1]["loss"] > 0
    assert "\nlog =" not in (tmp_path / "run" / "run.toml").read_text()
    status, said = train(capsys, *small, "--log", "--quiet")
    assert (status, said) == (2, "ddim train: --log prints lines and --quiet none: give one\n")
