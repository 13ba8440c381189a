"""Calibration of a model: what the command does, in memory."""

import pytest
import torch

import ddim
from ddim.calibration.calibration import calibrate, teach, work_of


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t, y):
        return torch.tanh(self.conv(x) + (t + y).view(-1, 1, 1, 1) / 10)


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = Network().requires_grad_(False)
    return ddim.Model(net, ddim.Schedule.cosine(20), "eps", (1, 4, 4), classes=3)


def test_teachers_serve_several_numbers_of_calls(model):
    done = []

    def watch(stage, count):
        done.append((stage, count))

    options = {"latents": 3, "batch_size": 2, "seed": 5}
    teachers = teach(model, 4, watch=watch, **options)
    assert {stage for stage, _ in done} == {"teacher"}
    assert [len(part.end) for part in teachers] == [3, 3, 6]
    found = [
        calibrate(model, calls, teachers=teachers, moves=4, watch=watch, **options)
        for calls in (2, 4)
    ]
    assert [one.sampler.steps for one in found] == [2, 4]
    assert sum(count for _, count in done) <= work_of(model, (2, 4), 3, 2, moves=4)
    alone = calibrate(model, 4, moves=4, **options)
    assert (alone.sampler, alone.errors) == (found[1].sampler, found[1].errors)
    assert ddim.sample(model, n=3, method=alone.sampler).shape == (3, 1, 4, 4)


def test_a_condition_has_a_row_for_each_latent(model, refuses):
    options = {"latents": 2, "moves": 0, "weights": False}
    one, other = (calibrate(model, 2, condition=ddim.Condition(k), **options) for k in (0, 2))
    assert one.errors != other.errors
    with refuses("9 labels were given for 8 images"):
        calibrate(model, 2, condition=ddim.Condition([0] * 9), **options)


def test_refusals(model, refuses):
    for calls in (1, 21):
        with refuses(f"from 2 to T = 20, not {calls}"):
            calibrate(model, calls)
    with refuses("moves must not be negative: -1"):
        calibrate(model, 2, moves=-1)
    with refuses("latents must be at least 1, not 0"):
        calibrate(model, 2, latents=0)
