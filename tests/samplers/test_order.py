"""The order of convergence of every deterministic method, in the Gaussian lab."""

import math

import pytest
import torch

from ddim.base.errors import InputError
from ddim.denoisers.exact import Mixture
from ddim.noise.schedule import Schedule
from ddim.samplers.loop import final, integrate
from ddim.samplers.order import DATA, STARTS, lab_error, lab_schedule, measured_order
from ddim.samplers.registry import METHODS, make_tableau

ORDERS = [
    ("ddim", {}, 1),
    ("gradient-estimation", {}, 1),
    ("pf-euler", {}, 1),
    ("edict", {}, 1),
    ("heun", {}, 2),
    ("dpm-solver-2", {}, 2),
    ("dpm-solver-2", {"r": 0.3}, 2),
    ("dpm-solver-3", {}, 3),
    ("plms", {"order": 1}, 1),
    ("plms", {"order": 2}, 2),
    ("plms", {"order": 3}, 2),
    ("plms", {"order": 4}, 2),
    ("deis", {"order": 1}, 1),
    ("deis", {"order": 2}, 2),
    ("deis", {"order": 3}, 3),
    ("deis", {"order": 2, "variable": "t"}, 2),
    ("deis", {"order": 3, "variable": "t"}, 3),
    ("dpmpp", {"order": 1}, 1),
    ("dpmpp", {"order": 2}, 2),
    ("dpmpp", {"order": 3, "form": "exact"}, 3),
    ("dpmpp", {"order": 3, "form": "published"}, 2),
    ("unipc", {"order": 1}, 2),
    ("unipc", {"order": 2}, 3),
    ("unipc", {"order": 3}, 4),
    ("unipc", {"order": 2, "variant": "bh1"}, 3),
    ("obelm", {}, 2),
    ("bdia", {}, 2),
]
STOCHASTIC = {"ddpm", "sde-dpmpp", "restart"}


@pytest.mark.parametrize(
    ("method", "options", "order"), ORDERS, ids=lambda v: v if isinstance(v, str) else str(v)
)
def test_order(method, options, order):
    assert measured_order(method, **options) == pytest.approx(order, abs=0.15)


def test_every_method_has_its_order_here():
    assert {method for method, _, _ in ORDERS} | STOCHASTIC == set(METHODS)


def test_what_is_measured_is_what_runs():
    """Without exact first states, the lab's error is that of the loop."""
    schedule = lab_schedule(20)
    nodes = tuple(range(schedule.T, 0, -1))
    x = torch.tensor(STARTS, dtype=torch.float64)
    truth = DATA.flow(x, schedule.level(schedule.T), schedule.level(1))
    for method, options, _ in ORDERS:
        (looped,) = final(integrate(DATA, make_tableau(schedule, nodes, method, **options), x))
        error = (looped - truth).abs().max().item()
        assert lab_error(20, method, exact=0, **options) == pytest.approx(error, abs=1e-12), method


@pytest.mark.parametrize("method", sorted(STOCHASTIC))
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

    def run(method, steps, options):
        nodes = tuple(range(321, 0, -(320 // steps)))
        return final(integrate(data, make_tableau(schedule, nodes, method, **options), x))[0]

    truth = run("dpm-solver-3", 320, {})

    def error(method, steps, **options):
        return (run(method, steps, options) - truth).norm(dim=1).median().item()

    return error


@pytest.mark.parametrize(("method", "options", "order"), [o for o in ORDERS if o[2] > 1])
def test_higher_orders_beat_ddim_on_a_mixture(mixture_error, method, options, order):
    assert mixture_error(method, 20, **options) < mixture_error("ddim", 20) / 2


@pytest.mark.parametrize(("method", "options", "order"), [o for o in ORDERS if o[2] == 1])
def test_first_orders_halve_their_error_on_a_mixture(mixture_error, method, options, order):
    ratio = mixture_error(method, 80, **options) / mixture_error(method, 160, **options)
    assert ratio == pytest.approx(2, abs=0.35)


@pytest.mark.parametrize("method", sorted(STOCHASTIC))
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


@pytest.mark.parametrize(("method", "options"), [("ddpm", {}), ("ddim", {"eta": 1.0})])
def test_random_methods_have_no_order(method, options):
    with pytest.raises(InputError, match="draws noise"):
        measured_order(method, **options)
