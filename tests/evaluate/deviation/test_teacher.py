import math

import numpy as np
import pytest
import torch

import ddim
from ddim.denoisers.exact import Gaussian
from ddim.evaluate.deviation.teacher import (
    ErrorSummary,
    image_errors,
    psnr,
    teacher_errors,
    teacher_tableau,
)
from ddim.samplers.loop import final, integrate


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return torch.tanh(self.conv(x) + t.view(-1, 1, 1, 1) / 10)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ddim.Model(
        Network().requires_grad_(False), ddim.Schedule.cosine(12), ddim.Target.EPS, (1, 8, 8)
    )


def test_the_teacher_is_the_exact_solution_on_gaussian_data():
    schedule = ddim.Schedule.linear(200, scaled=True)
    data, x = Gaussian(0.3, 0.5), torch.linspace(-2, 2, 9, dtype=torch.float64)
    # The exact flow to node 1, then the jump to the data that every sampler makes.
    at_one = data.flow(x, schedule.level(200), schedule.level(1))
    exact = data(at_one, schedule.level(1)).x0

    def error(tableau):
        return float((final(integrate(data, tableau, x))[0] - exact).abs().max())

    nodes = tuple(range(200, -1, -1))
    assert error(teacher_tableau(schedule)) < 2e-5
    assert error(teacher_tableau(schedule)) < error(ddim.make_tableau(schedule, nodes)) / 300
    for method in ("dpmpp", "plms"):
        assert error(teacher_tableau(schedule)) < error(ddim.make_tableau(schedule, nodes, method))


def test_errors_are_those_of_the_images(model):
    schedule = model.schedule
    nodes = ddim.make_nodes(schedule, "uniform", 4)
    samplers = {m: ddim.make_tableau(schedule, nodes, m) for m in ("ddim", "dpmpp")}
    samplers["itself"] = teacher_tableau(schedule)
    found = list(teacher_errors(model, samplers, [5, 1, 3], seed=2, batch_size=2))
    assert [batch_size.indices for batch_size in found] == [(5, 1), (3,)]
    assert all(list(batch_size.rms) == ["ddim", "dpmpp", "itself"] for batch_size in found)
    images = {}
    for name, tableau in samplers.items():
        drawn = ddim.generate(model, tableau, [5, 1, 3], seed=2, batch_size=2)
        images[name] = torch.cat([d.images for d in drawn if d.images is not None])
    for name in samplers:
        got = np.concatenate([batch_size.rms[name] for batch_size in found])
        expected = (images[name] - images["itself"]).square().mean(dim=(1, 2, 3)).sqrt()
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-9)
    assert (np.concatenate([batch_size.rms["itself"] for batch_size in found]) == 0).all()
    assert (np.concatenate([batch_size.rms["ddim"] for batch_size in found]) > 1e-3).all()


def test_sums_are_over_all_pixels_and_images():
    summary = ErrorSummary()
    assert math.isnan(summary.rms)
    summary.update([0.1])
    summary.update(np.array([0.2, 0.4]))
    assert summary.count == 3
    assert summary.rms == pytest.approx(math.sqrt((0.01 + 0.04 + 0.16) / 3))
    assert summary.psnr == pytest.approx(np.mean([psnr(v) for v in (0.1, 0.2, 0.4)]))
    assert summary.largest == 0.4


def test_psnr_is_of_the_range():
    assert psnr(2.0) == 0
    assert psnr(0.002) == pytest.approx(60)
    assert psnr(0.0) == math.inf


def test_refuses(model, refuses):
    schedule = model.schedule
    noisy = ddim.make_tableau(schedule, (12, 6, 0), "ddpm")
    plain = ddim.make_tableau(schedule, (12, 6, 0))
    with refuses("eta1 injects noise"):
        teacher_errors(model, {"eta1": noisy}, [0])
    with refuses("the teacher injects noise"):
        teacher_errors(model, {"ddim": plain}, [0], teacher=noisy)
    with refuses("at least one"):
        teacher_errors(model, {}, [0])
    with refuses("at least 1, not 0"):
        teacher_errors(model, {"ddim": plain}, [])
    with refuses("no classes"):
        teacher_errors(model, {"ddim": plain}, [0], condition=ddim.Condition([1]))
    with refuses("one shape"):
        image_errors(torch.zeros(2, 3), torch.zeros(3, 3))
    with refuses("diverged"):
        ErrorSummary().update([math.nan])


def test_no_images_add_nothing():
    summary = ErrorSummary()
    summary.update([0.1])
    summary.update([])
    assert (summary.count, summary.largest) == (1, 0.1)
