"""The adaptive integrator: against the exact flow, and what it reports."""

import math

import pytest
import torch

from ddim.base.errors import InputError
from ddim.denoisers.exact import Gaussian, Mixture
from ddim.noise.nodes import uniform
from ddim.noise.schedule import Schedule
from ddim.samplers.adaptive import solve_adaptively
from ddim.samplers.loop import final, integrate
from ddim.samplers.sampler import make_tableau

DATA = Gaussian(0.3, 0.5)
X = torch.tensor([[0.7, -1.1], [2.0, 0.1]], dtype=torch.float64)


class Counted:
    def __init__(self, denoiser):
        self.denoiser, self.calls = denoiser, 0

    def __call__(self, x, level):
        assert len(x) == 1
        self.calls += 1
        return self.denoiser(x, level)


@pytest.mark.parametrize(
    "schedule", [Schedule.linear(100, scaled=True), Schedule.cosine(50), Schedule.flow(40)]
)
def test_follows_the_exact_flow_both_ways(schedule):
    start = schedule.T if schedule.alpha[-1] > 0 else schedule.T - 1
    counted = Counted(DATA)
    down = solve_adaptively(counted, schedule, X, start=start, stop=3, rtol=1e-9, atol=1e-9)
    exact = DATA.flow(X, schedule.level(start), schedule.level(3))
    assert (down.x - exact).abs().max() < 1e-6
    assert sum(down.calls) == counted.calls
    up = solve_adaptively(DATA, schedule, down.x, start=3, stop=start, rtol=1e-9, atol=1e-9)
    assert (up.x - X).abs().max() < 1e-6


def test_the_tolerance_decides_error_and_calls():
    schedule = Schedule.linear(1000)
    exact = DATA.flow(X, schedule.level(1000), schedule.level(1))
    found = [
        solve_adaptively(DATA, schedule, X, stop=1, rtol=t, atol=t) for t in (1e-2, 1e-4, 1e-7)
    ]
    errors = [(f.x - exact).abs().max().item() for f in found]
    calls = [sum(f.calls) for f in found]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-5
    assert calls[0] < calls[1] < calls[2]


def test_ends_on_the_data_by_a_step_of_ddim():
    schedule = Schedule.linear(1000)
    at_one = solve_adaptively(DATA, schedule, X, stop=1)
    at_zero = solve_adaptively(DATA, schedule, X)
    assert torch.equal(at_zero.x, DATA(at_one.x, schedule.level(1)).x0)
    assert at_zero.calls == tuple(c + 1 for c in at_one.calls)
    assert solve_adaptively(DATA, schedule, X, start=1).calls == (1, 1)


def test_is_what_many_steps_of_ddim_come_to():
    """Median over images of a mixture, where single trajectories may part."""
    generator = torch.Generator().manual_seed(0)
    data = Mixture(torch.randn(4, 3, generator=generator, dtype=torch.float64), std=0.2)
    schedule = Schedule.linear(500, scaled=True)
    x = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    (many,) = final(integrate(data, make_tableau(schedule, uniform(schedule, 500), "ddim"), x))
    found = solve_adaptively(data, schedule, x, rtol=1e-6, atol=1e-6).x
    assert (found - many).norm(dim=1).median() < 0.02
    assert math.isfinite(found.sum())


def test_an_image_does_not_depend_on_the_others():
    schedule = Schedule.linear(100, scaled=True)
    assert torch.equal(
        solve_adaptively(DATA, schedule, X).x[1:], solve_adaptively(DATA, schedule, X[1:]).x
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"start": 5, "stop": 5}, "from 5 to 5"),
        ({"start": 0, "stop": 5}, "from 0"),
        ({"stop": 101}, "101"),
        ({"rtol": 0.0}, "positive"),
    ],
)
def test_refusals(options, match):
    with pytest.raises(InputError, match=match):
        solve_adaptively(DATA, Schedule.linear(100, scaled=True), X, **options)


def test_zero_terminal_snr_is_refused():
    schedule = Schedule.linear(100, scaled=True).rescaled_to_zero_snr()
    with pytest.raises(InputError, match="start at node 99"):
        solve_adaptively(DATA, schedule, X)
