import itertools
import math

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from ddim.denoisers.exact import Gaussian, Mixture
from ddim.noise.nodes import uniform
from ddim.noise.schedule import Schedule
from ddim.samplers.loop import final, integrate
from ddim.samplers.methods.learned import learned
from ddim.samplers.sampler import make_tableau

SCHEDULE = Schedule.linear(100, scaled=True)
NODES = uniform(SCHEDULE, 6)
DATA = Mixture(torch.tensor([[1.0, -1.0], [-0.5, 0.5]], dtype=torch.float64), 0.2)
X = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def end(tableau, data=DATA, x=X):
    return final(integrate(data, tableau, x))[0]


def test_without_weights_it_is_ddim():
    for weights in ((), [[]] * 6):
        exact = end(make_tableau(SCHEDULE, NODES, "ddim"))
        assert (end(learned(SCHEDULE, NODES, weights=weights)) - exact).abs().max() < 1e-13


def test_adams_weights_make_adams_method():
    weights = [[], *[[-0.5]] * 4]
    # The jump to the data is DDIM's in both.
    exact = end(make_tableau(SCHEDULE, NODES, "plms", order=2))
    assert (end(learned(SCHEDULE, NODES, weights=weights)) - exact).abs().max() < 1e-12


def test_adams_weights_have_order_two(lab):
    def builder(schedule, nodes):
        rho = schedule.rho[list(nodes)]
        h = np.diff(rho)
        # The weights of unequal steps: -h_n/(2·h_{n-1}).
        return learned(
            schedule, nodes, weights=[[], *[[-b / (2 * a)] for a, b in itertools.pairwise(h)]]
        )

    assert lab.order(builder) == pytest.approx(2, abs=0.15)


@hypothesis.given(st.data())
def test_every_row_is_consistent_whatever_the_weights(data):
    steps = data.draw(st.integers(1, 8))
    number = st.floats(-3, 3)
    weights = [data.draw(st.lists(number, max_size=min(n, 3))) for n in range(steps)]
    # A table checks itself when it is made; a point is kept exactly by any consistent one.
    tableau = learned(SCHEDULE, uniform(SCHEDULE, steps), weights=weights)
    assert tableau.calls == len(tableau.rows) == steps
    point = Gaussian(torch.tensor(0.3, dtype=torch.float64), 0.0)
    level = SCHEDULE.level(100)
    x = level.alpha * 0.3 + level.sigma * X
    assert (end(tableau, point, x) - 0.3).abs().max() < 1e-9


def test_bad_weights_are_refused(refuses):
    with refuses("needs its weights"):
        learned(SCHEDULE, NODES)
    with refuses("falling"):
        learned(SCHEDULE, NODES[::-1], weights=[])
    with refuses("weights were given for 7 steps, not 6"):
        learned(SCHEDULE, NODES, weights=[[]] * 7)
    with refuses("step 0 has 0 earlier outputs, not 1"):
        learned(SCHEDULE, NODES, weights=[[0.1]])
    zero = Schedule.linear(100, scaled=True).rescaled_to_zero_snr()
    with refuses("finite"):
        learned(zero, NODES, weights=[[], [0.1]])
    with refuses("not finite"):
        learned(SCHEDULE, NODES, weights=[[], [math.nan]])
