"""The order of convergence that every deterministic method declares, in the Gaussian lab."""

import math

import pytest
import torch

from ddim.base.errors import InputError
from ddim.denoisers.exact import Mixture
from ddim.noise.schedule import Schedule
from ddim.samplers.lookup import METHODS
from ddim.samplers.loop import final, integrate
from ddim.samplers.order import DATA, STARTS, lab_error, lab_schedule, measured_order
from ddim.samplers.sampler import make_tableau

PLAIN = {name: m for name, m in METHODS.items() if m.program is None and m.needs is None}
ORDERS = [
    pytest.param(f"{name}:{options}".rstrip(":"), order, id=f"{name}:{options}".rstrip(":"))
    for name, method in PLAIN.items()
    for options, order in method.orders.items()
]
STOCHASTIC = sorted(name for name, method in PLAIN.items() if not method.orders)


@pytest.mark.parametrize(("sampler", "order"), ORDERS)
def test_order(sampler, order):
    """What a method declares of its order is what it measures."""
    assert measured_order(sampler) == pytest.approx(order, abs=0.15)


def test_every_method_declares_its_order_or_draws_noise():
    assert STOCHASTIC == ["ddpm", "restart", "sde-dpmpp"]
    for name in STOCHASTIC:
        assert make_tableau(Schedule.linear(100), (100, 60, 30, 10, 0), name).stochastic


def test_every_value_of_order_is_declared():
    for name, method in PLAIN.items():
        if "order" in method.options:
            declared = {options.split(":")[0] for options in method.orders}
            assert declared == {f"order={n}" for n in method.options["order"].choices}, name


def test_what_is_measured_is_what_runs():
    """Without exact first states, the lab's error is that of the loop."""
    schedule = lab_schedule(20)
    nodes = tuple(range(schedule.T, 0, -1))
    x = torch.tensor(STARTS, dtype=torch.float64)
    truth = DATA.flow(x, schedule.level(schedule.T), schedule.level(1))
    for param in ORDERS:
        sampler = param.values[0]
        (looped,) = final(integrate(DATA, make_tableau(schedule, nodes, sampler), x))
        error = (looped - truth).abs().max().item()
        assert lab_error(20, sampler, exact=0) == pytest.approx(error, abs=1e-12), sampler


@pytest.mark.parametrize("method", STOCHASTIC)
def test_stochastic_rows_keep_mean_and_variance(method):
    """On Gaussian data the state stays Gaussian: propagate both moments, without sampling."""
    schedule = Schedule.linear(1000)
    nodes = tuple(range(1000, -1, -2))
    options = {"times": 2} if method == "restart" else {}
    tableau = make_tableau(schedule, nodes, method, **options)
    # Every prediction is affine in its state, so each state is affine in all the noises.
    count = sum(1 for row in tableau.rows if row.noise) + 1
    drawn = iter(range(1, count))
    mean = [torch.tensor([0.0], dtype=torch.float64)]
    first = torch.zeros(count, dtype=torch.float64)
    first[0] = 1.0
    spread = [first]
    zero = torch.zeros(1, dtype=torch.float64)
    for row in tableau.rows:
        m, s = torch.zeros(1, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
        for terms, which in ((row.states, None), (row.x0, "x0"), (row.eps, "eps")):
            for i, c in terms:
                if which is None:
                    m, s = m + c * mean[i], s + c * spread[i]
                    continue
                level = tableau.at(i)
                offset = getattr(DATA(zero, level), which)
                slope = getattr(DATA(zero + 1, level), which) - offset
                m, s = m + c * (offset + slope * mean[i]), s + c * slope * spread[i]
        if row.noise:
            s[next(drawn)] += row.noise
        mean.append(m)
        spread.append(s)
    assert mean[-1].item() == pytest.approx(0.3, abs=0.01)
    assert spread[-1].norm().item() == pytest.approx(0.5, rel=0.02)


@pytest.fixture(scope="module")
def mixture_error():
    """The median error of a method in so many steps, on a mixture.

    Trajectories that change basin ruin means, so it is the median of the errors.
    """
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(6, 2, generator=generator, dtype=torch.float64) * 1.5
    data = Mixture(means, std=0.2)
    schedule = lab_schedule(320)
    x = torch.randn(200, 2, generator=generator, dtype=torch.float64) * schedule.level(321).sigma

    def run(sampler, steps):
        nodes = tuple(range(321, 0, -(320 // steps)))
        return final(integrate(data, make_tableau(schedule, nodes, sampler), x))[0]

    truth = run("dpm-solver-3", 320)

    def error(sampler, steps):
        return (run(sampler, steps) - truth).norm(dim=1).median().item()

    return error


@pytest.mark.parametrize(("sampler", "order"), [o for o in ORDERS if o.values[1] > 1])
def test_higher_orders_beat_ddim_on_a_mixture(mixture_error, sampler, order):
    assert mixture_error(sampler, 20) < mixture_error("ddim", 20) / 2


@pytest.mark.parametrize(("sampler", "order"), [o for o in ORDERS if o.values[1] == 1])
def test_first_orders_halve_their_error_on_a_mixture(mixture_error, sampler, order):
    ratio = mixture_error(sampler, 80) / mixture_error(sampler, 160)
    assert ratio == pytest.approx(2, abs=0.35)


@pytest.mark.parametrize("method", STOCHASTIC)
def test_random_methods_draw_a_mixture(method):
    """Each component as often as it occurs, and around it as far, by the median."""
    means = torch.tensor([[-1.0, 0.5], [0.2, -0.8], [1.0, 1.0]], dtype=torch.float64)
    data = Mixture(means, std=0.1)
    schedule = Schedule.linear(200, scaled=True)
    tableau = make_tableau(schedule, tuple(range(200, -1, -1)), method)
    generator = torch.Generator().manual_seed(0)

    def noise(state):
        return torch.randn(4000, 2, dtype=torch.float64, generator=generator)

    (x,) = final(integrate(data, tableau, noise(0), noise))
    distance = torch.cdist(x, means)
    # In two dimensions half of a component lies within √(2·log 2) standard deviations.
    assert distance.amin(1).median().item() == pytest.approx(
        0.1 * math.sqrt(2 * math.log(2)), rel=0.15
    )
    shares = torch.bincount(distance.argmin(1), minlength=3) / 4000
    assert (shares - 1 / 3).abs().max() < 0.05


@pytest.mark.parametrize("sampler", ["ddpm", "ddim:eta=1"])
def test_random_methods_have_no_order(sampler):
    with pytest.raises(InputError, match="draws noise"):
        measured_order(sampler)
