from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddim.noise.nodes import NODES, check_nodes, log_snr, make_nodes, quadratic, uniform
from ddim.noise.schedule import Schedule

SCHEDULES = {
    "linear": Schedule.linear,
    "cosine": Schedule.cosine,
    "sigmoid": Schedule.sigmoid,
    "flow": Schedule.flow,
    "zero terminal SNR": lambda T: Schedule.linear(T + 1).rescaled_to_zero_snr(),
}


@st.composite
def problems(draw) -> tuple[Schedule, int]:
    schedule = SCHEDULES[draw(st.sampled_from(sorted(SCHEDULES)))](draw(st.integers(1, 200)))
    return schedule, draw(st.integers(1, schedule.T))


def assert_exact(nodes: tuple[int, ...], start: int, steps: int) -> None:
    assert len(nodes) == steps + 1
    assert nodes[0] == start
    assert nodes[-1] == 0
    assert all(a > b for a, b in itertools.pairwise(nodes))
    assert all(type(k) is int for k in nodes)


@given(problems(), st.sampled_from(sorted(NODES)))
def test_exactly_s_steps_from_the_noise_to_the_data(problem, family):
    schedule, steps = problem
    assert_exact(NODES[family](schedule, steps), schedule.T, steps)


@pytest.mark.parametrize("name", SCHEDULES)
def test_exactly_s_steps_for_every_small_length(name):
    for T in range(1, 19):
        schedule = SCHEDULES[name](T)
        for steps in range(1, schedule.T + 1):
            for family in (uniform, quadratic, log_snr):
                assert_exact(family(schedule, steps), schedule.T, steps)


@given(problems())
def test_uniform_is_the_formula_in_exact_arithmetic(problem):
    schedule, steps = problem
    share = Fraction(schedule.T, steps)
    expected = [math.floor(share * m + Fraction(1, 2)) for m in range(steps, -1, -1)]
    assert list(uniform(schedule, steps)) == expected


@given(problems())
def test_quadratic_is_the_formula_in_exact_arithmetic(problem):
    schedule, steps = problem
    expected = [
        max(math.floor(schedule.T * Fraction(m, steps) ** 2 + Fraction(1, 2)), m)
        for m in range(steps, -1, -1)
    ]
    assert list(quadratic(schedule, steps)) == expected


def test_uniform_rounds_a_half_upwards():
    """34·21/28 is 25.5; 34/28·21 in floating point is below and would give 25."""
    assert uniform(Schedule.linear(34), 28)[28 - 21] == 26


def test_quadratic_rounds_a_half_upwards():
    """50·0.7² is 24.5; (0.7)² in floating point is below .49 and would give 24."""
    assert quadratic(Schedule.linear(50), 10)[3] == 25


@given(problems(), st.floats(0.01, 1))
def test_quadratic_from_a_lower_start_keeps_the_count(problem, start):
    schedule, steps = problem
    nodes = quadratic(schedule, steps, start=start)
    assert_exact(nodes, max(math.floor(start * schedule.T + 0.5), steps), steps)


def test_quadratic_is_the_papers_grid_where_no_nodes_meet():
    """Song et al., appendix D.2: τ_m = ⌊c·m²⌋, here rounded instead and ending at T."""
    nodes = np.array(quadratic(Schedule.linear(1000), 10)[::-1])
    np.testing.assert_array_equal(nodes, 10 * np.arange(11) ** 2)


@pytest.mark.parametrize("make", [Schedule.linear, Schedule.cosine, Schedule.flow])
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_log_snr_is_even_in_lambda(make, steps):
    schedule = make(1000)
    nodes = log_snr(schedule, steps)
    assert nodes[-2] == 1
    first = 1 if schedule.alpha[-1] == 0 else 0  # λ = -∞ is left out of the spacing
    lam = schedule.lam
    wanted = np.linspace(lam[nodes[first]], lam[1], steps - first)
    for m, (k, place) in enumerate(zip(nodes[first:-1], wanted, strict=True)):
        # Where neighbouring nodes are further apart than the spacing, some are pushed aside.
        crowded = k <= steps or k >= nodes[first] - m
        assert crowded or lam[k + 1] < place < lam[k - 1]


def test_log_snr_starts_at_infinite_noise_and_spaces_the_rest():
    schedule = Schedule.linear(1000).rescaled_to_zero_snr()
    nodes = log_snr(schedule, 8)
    assert nodes[:2] == (1000, 999)
    gaps = np.diff(schedule.lam[list(nodes[1:-1])])
    assert gaps.max() / gaps.min() < 1.3


def test_names_and_lists():
    schedule = Schedule.linear(10)
    assert make_nodes(schedule) == tuple(range(10, -1, -1))
    assert (
        make_nodes(schedule, "uniform", 4)
        == make_nodes(schedule, "trailing", 4)
        == (10, 8, 5, 3, 0)
    )
    assert make_nodes(schedule, "quadratic", 4) == (10, 6, 3, 1, 0)
    assert (
        make_nodes(schedule, "10,4,0")
        == make_nodes(schedule, "10-4-0")
        == make_nodes(schedule, [10, 4, 0], 2)
        == (10, 4, 0)
    )
    assert make_nodes(schedule, [0, 4, 10]) == (0, 4, 10)  # rising: encoding
    assert make_nodes(schedule, np.array([7, 3])) == (7, 3)
    assert check_nodes(schedule, [3.0, 1.0]) == (3, 1)


@pytest.mark.parametrize(
    ("nodes", "steps", "message"),
    [
        ("uniform", 0, "from 1 to T = 10, not 0"),
        ("uniform", 11, "from 1 to T = 10, not 11"),
        ("quadratic", -3, "from 1 to T = 10, not -3"),
        ("log-snr", 11, "from 1 to T = 10, not 11"),
        ("quadratc", 3, "did you mean 'quadratic'"),
        ([10, 5, 0], 3, "3 nodes are 2 steps, not 3"),
        ([10, 10, 0], None, "rise or fall strictly"),
        ([10, 0, 5], None, "rise or fall strictly"),
        ([0, 5, 5], None, "rise or fall strictly"),
        ([11, 0], None, "must be in 0..10"),
        ([5, -1], None, "must not be negative"),
        ([10, 2.5, 0], None, "whole numbers"),
        ([10], None, "at least two"),
        ([], None, "at least two"),
        ("10,five,0", None, "a name or numbers"),
        ("10,,0", None, "a name or numbers"),
        ("calibrated", 4, "calibrated nodes come with their method"),
    ],
)
def test_refusals(nodes, steps, message, refuses):
    with refuses(message):
        make_nodes(Schedule.linear(10), nodes, steps)


@pytest.mark.parametrize("start", [0, -0.5, 1.1, math.nan])
def test_quadratic_start_out_of_range(start, refuses):
    with refuses("start must be in"):
        quadratic(Schedule.linear(10), 3, start=start)
