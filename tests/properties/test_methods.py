"""What holds for every method, whatever the schedule, the steps and the network's target."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.base.errors import InputError
from ddim.denoisers.exact import Gaussian
from ddim.denoisers.network import NetworkDenoiser
from ddim.denoisers.target import Target
from ddim.latents.codecs import CODECS, decoder, encoder
from ddim.noise.draws import Noise
from ddim.noise.nodes import NODES
from ddim.noise.schedule import Schedule
from ddim.samplers.lookup import METHODS
from ddim.samplers.loop import final, integrate
from ddim.samplers.methods.reversible import bdia
from ddim.samplers.sampler import make_tableau

SCHEDULES = {
    "linear": lambda T: Schedule.linear(T, scaled=T >= 20),
    "scaled-linear": lambda T: Schedule.scaled_linear(T),
    "cosine": Schedule.cosine,
    "sigmoid": Schedule.sigmoid,
    "flow": Schedule.flow,
    "zero terminal SNR": lambda T: Schedule.linear(T, scaled=T >= 20).rescaled_to_zero_snr(),
}
PLAIN = sorted(name for name, m in METHODS.items() if not (m.program or m.needs))
ORDERS = {"plms": 4, "deis": 3, "dpmpp": 3, "unipc": 3}
FROM_SIGNAL = {"pf-euler", "obelm", "bdia", "edict"}  # these divide by α of every node
CALLS_A_STEP = {"heun": 2, "dpm-solver-2": 2, "dpm-solver-3": 3, "edict": 2}


def run(schedule, nodes, method, options, target):
    tableau = make_tableau(schedule, nodes, method, **options)
    denoiser = NetworkDenoiser(lambda x, t: torch.tanh(x), target)
    noise = Noise(0, [0, 1], (3,), dtype=torch.float64)
    (x,) = final(integrate(denoiser, tableau, noise(0), noise))
    return tableau, x


@pytest.mark.parametrize("method", PLAIN)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_finite_and_as_many_nodes_as_asked_for(method, data):
    kind = data.draw(st.sampled_from(sorted(SCHEDULES)))
    schedule = SCHEDULES[kind](data.draw(st.integers(4, 60)))
    steps = data.draw(st.integers(1, schedule.T))
    nodes = NODES[data.draw(st.sampled_from(sorted(NODES)))](schedule, steps)
    nothing_left = schedule.alpha[-1] == 0
    allowed = [t for t in Target if not (t is Target.EPS and nothing_left)]
    target = data.draw(st.sampled_from(allowed))
    options = {}
    if method in ORDERS:
        options["order"] = data.draw(st.integers(1, min(ORDERS[method], steps)))
    if method in FROM_SIGNAL and nothing_left:
        with pytest.raises(InputError, match="0"):
            make_tableau(schedule, nodes, method, **options)
        return
    tableau, x = run(schedule, nodes, method, options, target)
    assert x.isfinite().all()
    visited = [row.k for row in tableau.rows if row.k is not None]
    assert {nodes[0], *visited} == set(nodes) or method == "restart"
    assert tableau.level(tableau.returns[0])[:2] == (1.0, 0.0)
    assert tableau.calls <= steps * CALLS_A_STEP.get(method, 1) or method == "restart"


@pytest.mark.parametrize("method", PLAIN)
def test_every_number_of_steps(method):
    """S = 1..T of a short schedule, with the method's own options."""
    schedule = Schedule.linear(23, scaled=True)
    for steps in range(1, 24):
        _, x = run(schedule, NODES["uniform"](schedule, steps), method, {}, Target.EPS)
        assert x.isfinite().all(), steps


@pytest.mark.parametrize("method", sorted(ORDERS))
def test_orders_that_are_not_there(method):
    schedule = Schedule.linear(10)
    for order in (0, ORDERS[method] + 1, -1):
        with pytest.raises(InputError, match=f"orders 1 to {ORDERS[method]}, not {order}"):
            make_tableau(schedule, (10, 5, 0), method, order=order)


@pytest.mark.parametrize("method", sorted(set(PLAIN) - {"ddim", "ddpm", "restart", "sde-dpmpp"}))
def test_deterministic_methods_have_no_eta(method):
    with pytest.raises(InputError, match="no option 'eta'"):
        make_tableau(Schedule.linear(10), (10, 5, 0), method, eta=0.5)


def alive(tableau):
    """The most states that the loop holds at once."""
    start = len(tableau.initial)
    last = tableau.last_use
    return max(
        sum(1 for i in range(start + n + 1) if last[i] >= n or i == start + n)
        for n in range(len(tableau.rows))
    )


@pytest.mark.parametrize("method", PLAIN)
def test_as_many_states_are_held_whatever_the_number_of_steps(method):
    schedule = Schedule.linear(200, scaled=True)
    few, many = (
        alive(make_tableau(schedule, NODES["uniform"](schedule, steps), method))
        for steps in (20, 200)
    )
    assert few == many <= 6


@pytest.mark.parametrize("codec", [c for c in CODECS if c != "implicit"])
def test_codecs_hold_as_many_states_whatever_the_number_of_steps(codec):
    schedule = Schedule.linear(200, scaled=True)
    for way in (encoder, decoder):
        few, many = (
            alive(way(schedule, NODES["uniform"](schedule, steps), codec)) for steps in (20, 200)
        )
        assert few == many <= 6


def test_bdia_is_inverted_at_gamma_one_only():
    schedule = Schedule.linear(50, scaled=True)
    nodes = NODES["uniform"](schedule, 5)
    assert bdia(schedule, nodes, gamma=0.5).calls == 5
    with pytest.raises(InputError, match="gamma = 1 only"):
        bdia(schedule, nodes, gamma=0.5, pair=True)
    for gamma in (0.0, 2.0):
        with pytest.raises(InputError, match=r"gamma must be in \(0, 1\]"):
            bdia(schedule, nodes, gamma=gamma)


def test_coefficients_beyond_single_precision_are_refused():
    schedule = Schedule.linear(50, scaled=True)
    with pytest.raises(InputError, match="beyond 1e"):
        make_tableau(schedule, (50, 25, 10, 0), "gradient-estimation", gamma=1e300)


@pytest.mark.parametrize("method", ["deis", "unipc", "sde-dpmpp", "restart"])
def test_trap_rising_nodes_are_refused_where_a_method_has_no_way_back(method, refuses):
    """DEIS's polynomial in ρ diverges over a rising step, by thousands on a cosine schedule."""
    with refuses(f"{method} runs from noise to data: its nodes must fall"):
        make_tableau(Schedule.cosine(100), (0, 10, 50, 99), method)


@pytest.mark.parametrize("method", ["ddim", "plms", "dpmpp"])
def test_methods_that_encode_follow_the_flow_upwards(method):
    schedule, data = Schedule.cosine(1000), Gaussian(0.3, 0.5)
    nodes = tuple(range(20, 1000, 20))
    x = torch.tensor([[-0.4], [0.2], [0.9]], dtype=torch.float64)
    (end,) = final(integrate(data, make_tableau(schedule, nodes, method), x))
    source, target = schedule.level(nodes[0]), schedule.level(nodes[-1])
    assert (end - data.flow(x, source, target)).abs().max() < 0.05
