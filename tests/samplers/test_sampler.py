"""Samplers by name for a model: calibrated ones, and DDIM with the variance that is optimal."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import ddim
from ddim.calibration.search import CalibratedSampler, Calibration
from ddim.checkpoints.calibration import read_calibration, write_calibration
from ddim.denoisers.target import Target
from ddim.model.sampler import calibration_of, make_sampler
from ddim.nets.unet import UNet, UNetConfig
from ddim.samplers.methods.analytic import analytic_tableau

NODES = (50, 31, 12, 4, 0)


def model(path, seed=0):
    config = UNetConfig(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        attention_head_dim=None,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        net = UNet(config).requires_grad_(False).eval()
    schedule = ddim.Schedule.linear(50, 0.002, 0.16)
    return ddim.Model(net, schedule, Target.EPS, (1, 8, 8), name="tiny", calibration=path)


def found(sampler, teacher=(50, 20, 5, 0), moments=(0.9, 0.5, 0.2)):
    errors = {"uniform": (0.2, 0.3), "calibrated": (0.1, 0.2)}
    return Calibration(sampler, errors, NODES, np.array(moments), teacher, (8, 8, 16))


@pytest.fixture
def model(tmp_path):
    model = model(tmp_path / "calibrated.json")
    for sampler in (
        CalibratedSampler(NODES, "dpmpp", {"order": 2}),
        CalibratedSampler((50, 20, 0), "learned", {"weights": [[], [-0.4]]}),
    ):
        write_calibration(
            model.calibration, model.identity, model.schedule, found(sampler), {"seed": 3}
        )
    return model


def test_calibrated_nodes_bring_their_method(model):
    nodes, tableau = make_sampler(model, "calibrated", 4)
    assert nodes == NODES
    assert tableau.method == "calibrated dpmpp"
    plain = ddim.make_tableau(model.schedule, NODES, "dpmpp", order=2)
    assert tableau.rows == plain.rows
    nodes, tableau = make_sampler(model, "calibrated", 2)
    assert tableau.method == "calibrated learned"
    assert tableau.rows[1].eps[1][0] == 0  # the earlier output is read


def test_sample_draws_by_them(model):
    images = ddim.sample(model, n=2, steps=4, nodes="calibrated")
    plain = ddim.sample(model, n=2, steps=None, nodes=NODES, method="dpmpp")
    assert torch.equal(images, plain)


def test_nodes_may_be_an_array(model):
    assert make_sampler(model, np.array(NODES))[0] == NODES


def test_the_file_says_how_it_was_found(model):
    entry = json.loads(model.calibration.read_text())["calls"]["4"]
    assert entry["rms"] == {"uniform": [0.2, 0.3], "calibrated": [0.1, 0.2]}
    assert (entry["latents"], entry["seed"]) == ([8, 8, 16], 3)


def test_what_cannot_be_asked_of_it(model, refuses):
    with refuses("tiny is calibrated for 2, 4 steps, not for 5"):
        make_sampler(model, "calibrated", 5)
    with refuses("calibrated for 2, 4 steps, not for None"):
        make_sampler(model, "calibrated")
    with refuses("their own method, here dpmpp"):
        make_sampler(model, "calibrated", 4, "unipc")
    with refuses("their own method, here dpmpp"):
        make_sampler(model, "calibrated", 4, eta=0.5)
    with refuses("strength has no part"):
        make_sampler(model, "calibrated", 4, strength=0.5)
    with refuses("belong to a model"):
        ddim.make_nodes(model.schedule, "calibrated", 4)


def test_a_calibration_of_other_weights_is_stale(model, refuses):
    other = model(model.calibration, seed=1)
    with refuses("calibrated.json is stale, of other weights"):
        make_sampler(other, "calibrated", 4)
    schedule = ddim.Schedule.linear(50, 0.002, 0.15)
    with refuses("is stale"):
        calibration_of(dataclasses.replace(model, schedule=schedule))
    # Another model's calibration takes its place, and is not mixed with it.
    write_calibration(
        model.calibration, other.identity, other.schedule, found(CalibratedSampler(NODES)), {}
    )
    assert list(read_calibration(model.calibration).samplers) == [4]


def test_without_a_calibration(refuses, tmp_path):
    for path in (None, tmp_path / "calibrated.json"):
        with refuses("tiny has no calibration: `ddim calibrate MODEL --calls N` makes one"):
            make_sampler(model(path), "calibrated", 4)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(format="x"),
        lambda v: v.pop("moments"),
        lambda v: v["calls"]["4"].pop("nodes"),
        lambda v: v["calls"]["4"].update(nodes=[50, 0]),
        lambda v: v.update(calls=[1]),
        lambda v: v["moments"].update(gamma=[0.1]),
    ],
)
def test_a_damaged_file(model, refuses, change):
    values = json.loads(model.calibration.read_text())
    change(values)
    model.calibration.write_text(json.dumps(values))
    with refuses("calibrated.json is not a calibration"):
        make_sampler(model, "calibrated", 4)


def test_the_optimal_variance_is_that_of_the_calibration(model, refuses):
    nodes = (50, 20, 5, 0)
    _, tableau = make_sampler(model, nodes, None, "analytic", eta=0.5)
    expected = analytic_tableau(model.schedule, nodes, [0.9, 0.5, 0.2], eta=0.5)
    assert [row.noise for row in tableau.rows] == [row.noise for row in expected.rows]
    # Between the nodes that were measured, Γ is linear in log ρ.
    gamma = calibration_of(model).gamma(model.schedule, (20, 10, 0))
    lam = model.schedule.lam
    share = (lam[10] - lam[20]) / (lam[5] - lam[20])
    assert gamma == pytest.approx([0.5, 0.5 + share * (0.2 - 0.5)])
    with refuses("'analytic' has no option 'order'"):
        make_sampler(model, "uniform", 3, "analytic", order=2)
