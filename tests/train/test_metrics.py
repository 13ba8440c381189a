from __future__ import annotations

import json
import math

import pytest

from ddim.train.config import TrainConfig
from ddim.train.loop import TrainStep
from ddim.train.metrics import METRICS, Metrics

CONFIG = TrainConfig(images=96, batch_size=8, log_every=3)


def line(step: object) -> bytes:
    return json.dumps({"step": step, "loss": 1.0}).encode()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b'{"step": 9, "ima',
        b"[1, 2]",
        b"7",
        b"null",
        b'{"images": 24}',
        b'{"step": "3"}',
        b'{"step": null}',
        b'{"step": true}',
        b'{"step": 1e400}',
        b'{"step": -3}',
        b'{"step": ' + b"1" * 5000 + b"}",
        b"\xff\xfe\x00\x01",
        b"\x00" * 4096,
        b"[" * 100_000,
        b'{"step": ' + b"[" * 100_000,
    ],
    ids=lambda damage: repr(damage[:12]),
)
def test_damaged_lines_are_left_out_and_the_others_kept(tmp_path, damage):
    path = tmp_path / METRICS
    path.write_bytes(b"\n".join([line(3), damage, line(6), line(9)]))
    Metrics(tmp_path, CONFIG).begin(6)
    assert path.read_bytes() == line(3) + b"\n" + line(6) + b"\n"


def test_a_log_without_any_line(tmp_path):
    Metrics(tmp_path, CONFIG).begin(3)
    assert not (tmp_path / METRICS).exists()
    (tmp_path / METRICS).write_bytes(b"")
    Metrics(tmp_path, CONFIG).begin(3)
    assert (tmp_path / METRICS).read_bytes() == b""


def test_the_mean_between_lines_goes_on_from_what_was_kept(tmp_path):
    metrics = Metrics(tmp_path, CONFIG)
    metrics.interval = [10.0, 2]  # of steps 1 and 2, before the run was interrupted
    metrics.begin(2)
    assert math.isnan(metrics.loss)
    with metrics.aside():
        pass
    metrics.add(TrainStep(3, 2.0, 0.5, 1e-3))
    (found,) = [json.loads(text) for text in (tmp_path / METRICS).read_text().splitlines()]
    assert (found["step"], found["images"], found["loss"]) == (3, 24, 4.0)
    assert metrics.interval == [0.0, 0.0]
