"""What public functions return is short in a console and a table or a picture in a notebook."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest
import torch

import ddim
from ddim.base.display import Listing
from ddim.calibration.calibration import calibrate
from ddim.data.manifest import Manifest, Shard
from ddim.data.sharded import ShardData
from ddim.evaluate.deviation.teacher import SolverErrors
from ddim.evaluate.distances.comparison import Comparison, Spread, Summary
from ddim.evaluate.sweep.result import Result
from ddim.shards.checking import Verified
from ddim.train.loop import TrainStep
from tiny import tiny_unet

EVIL = "<script>alert('&')</script>" + "x" * 500


@pytest.fixture(scope="module")
def model():
    schedule = ddim.Schedule.linear(20, 0.01, 0.4)
    return ddim.Model(tiny_unet(3), schedule, "eps", (1, 8, 8), classes=3, name=EVIL)


@pytest.fixture(scope="module")
def objects(model, tmp_path_factory):
    """One of everything, the larger ones as large as they get."""
    folder = tmp_path_factory.mktemp("set")
    list(ddim.shards.draw(model, folder, 4, steps=2, shard_size=2))
    images = torch.zeros(5, 1, 8, 8)
    latents = ddim.encode(model, images, codec="implicit", steps=3, condition=_labels(5))
    final = None
    for event in ddim.generate(model, model.tableau("ddim"), range(3), condition=_labels(3)):
        final = event
    assert final is not None
    spread = Spread(12.5, 0.25)
    comparison = Comparison("LeNet-FD", 9, 9, 1.5, 9, 0.1, 0.5, 0.5, 2.0, 9, (EVIL,))
    summary = Summary("LeNet-FD", 9, 3, {"fd": spread}, comparison, (EVIL,) * 9)
    long = ddim.Schedule.from_betas(np.linspace(1e-4, 0.02, 1000))
    nodes = tuple(range(1000, -1, -1))
    net = torch.nn.Linear(4, 4)
    return [
        model,
        model.schedule,
        long,
        long.rescaled_to_zero_snr(),
        ddim.Sampler("dpmpp", steps=10, order=3),
        ddim.Sampler("ddim", nodes=nodes),
        model.tableau(ddim.Sampler("ddpm", 20)),
        ddim.Sampler("plms", nodes=nodes).tableau(long),
        ddim.Sampler("plms", nodes=nodes).tableau(long).rows[500],
        ddim.Condition(range(1000), {EVIL: torch.zeros(1000, 4)}, guidance=2.0),
        latents,
        ddim.encode(model, images, codec="obelm", steps=3, condition=_labels(5)),
        ddim.check_model(model, steps=5),
        ddim.check_model(model, steps=5)[0],
        ddim.check_predictions(model, images, condition=_labels(5), nodes=[3, 9]),
        calibrate(model, 2, latents=2, batch_size=4, condition=_labels(8), moves=1),
        final,
        final.step,
        model.denoiser(_labels(3))(torch.zeros(3, 1, 8, 8), model.schedule.level(3)),
        ddim.METHODS,
        ddim.METHODS["dpmpp"],
        ddim.Grid(long, nodes),
        ddim.TrainConfig(data=EVIL, channels=(8,) * 3, groups=4),
        ddim.TrainState.start(net, ddim.TrainConfig()),
        TrainStep(1, 0.5, 0.1, 1e-4),
        ddim.TensorData(torch.zeros(1000, 1, 8, 8), torch.zeros(1000, dtype=torch.int64)),
        ddim.Hints(image_size=32, target="eps"),
        model.facts,
        ddim.export_scheduler(model, "ddim", steps=5),
        Manifest.read(folder),
        ShardData(folder),
        ddim.shards.verify(folder),
        Verified(10**6, 10**6, tuple(range(10**5)), (), tuple("abc") * 999),
        Shard(1, 2, 3, "f" * 64),
        Result(ddim.Sampler("ddim", 5), 5, summary, (comparison,) * 9, 0.1, 0.2, 20.0, images),
        comparison,
        summary,
        SolverErrors(tuple(range(999)), {"ddim": np.zeros(999)}),
    ]  # fmt: skip


def _labels(count: int) -> ddim.Condition:
    return ddim.Condition([i % 3 for i in range(count)])


def test_everything_is_a_short_line(objects):
    for thing in objects:
        line = repr(thing)
        assert len(line) < 200, type(thing)
        assert "\n" not in line
        assert " object at 0x" not in line


def test_everything_is_html_that_is_escaped_and_fetches_nothing(objects):
    for thing in objects:
        if not hasattr(thing, "_repr_html_"):
            assert isinstance(thing, TrainStep | Shard)  # short as they are
            continue
        page = thing._repr_html_()
        assert "<table" in page, type(thing)
        assert "<script" not in page
        assert not re.search(r"(src|href)=(?!\"data:)|url\(", page)
        assert len(page) < 200_000, type(thing)


def test_html_shows_what_there_is(model, objects):
    schedule = model.schedule._repr_html_()
    assert schedule.count("<svg") == 2 and schedule.count("<polyline") == 2
    tableau = model.tableau("dpmpp:order=3:steps=5")
    assert tableau._repr_html_().count("<tr>") == 1 + 1 + len(tableau.rows)
    for row in tableau.rows:
        assert row.formula in tableau._repr_html_()
        assert row.formula in str(tableau)
    latents = next(thing for thing in objects if isinstance(thing, ddim.Latents))
    assert "data:image/png;base64," in latents._repr_html_()
    findings = ddim.check_model(model, steps=5)
    assert isinstance(findings, Listing)
    assert findings._repr_html_().count("<tr>") == 1 + len(findings)


def test_a_short_line_changes_nothing_else(objects):
    """Records are compared, copied and kept as before."""
    state = objects[6].rows[3]
    assert pickle.loads(pickle.dumps(state)) == state == copy.deepcopy(state)
    assert len({ddim.Sampler("ddim", 5), ddim.Sampler("ddim", 5)}) == 1
    sampler = ddim.Sampler("ddim", nodes=tuple(range(1000, -1, -1)))
    assert ddim.Sampler.parse(str(sampler)) == sampler
    assert len(str(sampler)) > 3000


def test_rows_that_look_alike_are_two_to_a_graph(model):
    """A captured graph is found again by every digit of the rows, not by what is shown of them."""
    from ddim.model.rollout import Rollout

    base = ddim.Schedule.linear(20, 0.01, 0.4)
    near = ddim.Schedule.linear(20, 0.01, 0.4 + 1e-12)
    first, second = (ddim.Sampler("ddim", 5).tableau(schedule) for schedule in (base, near))
    assert repr(first.rows) == repr(second.rows)
    keys = {
        Rollout(model, tableau, ddim.Condition(), torch.float32).key
        for tableau in (first, second, first)
    }
    assert len(keys) == 2
