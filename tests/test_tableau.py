from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddim.methods import METHODS, ddim, ddpm, make_tableau
from ddim.nodes import NODES
from ddim.schedule import Level, Schedule
from ddim.tableau import Row, State, Tableau

SCHEDULES = {
    "linear": Schedule.linear,
    "cosine": Schedule.cosine,
    "flow": Schedule.flow,
    "zero terminal SNR": lambda T: Schedule.linear(T + 1).rescaled_to_zero_snr(),
}
BUILDERS = {
    "ddim": lambda s, n, eta: ddim(s, n, eta=eta),
    "ddim, η = 1": lambda s, n, eta: ddim(s, n, eta=1.0),
    "ddpm": lambda s, n, eta: ddpm(s, n),
    "ddpm, large": lambda s, n, eta: ddpm(s, n, variance="large"),
    "encoding": lambda s, n, eta: ddim(s, n[::-1]),
}
MAY_BREAK_THE_MARGINAL = {"ddpm, large"}


def level_of(tableau: Tableau, index: int) -> Level:
    both = [state.level for state in tableau.initial] + [row.level for row in tableau.rows]
    return both[index]


def kept(tableau: Tableau, row: Row) -> tuple[float, float]:
    """What a row makes of a state α·x0 + σ·eps whose predictions are exact: (signal, noise)."""
    signal = sum(b for _, b in row.x0)
    noise = sum(c for _, c in row.eps)
    for index, a in row.states:
        signal += a * level_of(tableau, index).alpha
        noise += a * level_of(tableau, index).sigma
    return signal, noise


@pytest.mark.parametrize("name", BUILDERS)
@given(data=st.data())
def test_every_builder_keeps_signal_and_noise(name, data):
    schedule = SCHEDULES[data.draw(st.sampled_from(sorted(SCHEDULES)))](
        data.draw(st.integers(1, 120))
    )
    family = NODES[data.draw(st.sampled_from(sorted(NODES)))]
    nodes = family(schedule, data.draw(st.integers(1, schedule.T)))
    tableau = BUILDERS[name](schedule, nodes, data.draw(st.floats(0, 1)))
    assert len(tableau.rows) == tableau.calls == len(nodes) - 1
    assert tableau.returns == (len(tableau.rows),)
    for row in tableau.rows:
        signal, noise = kept(tableau, row)
        assert signal == pytest.approx(row.level.alpha, rel=1e-12, abs=1e-12)
        if tableau.marginal:
            assert noise == pytest.approx(
                math.sqrt(max(0.0, row.level.sigma**2 - row.noise**2)), rel=1e-9, abs=1e-7
            )
            assert noise**2 + row.noise**2 == pytest.approx(row.level.sigma**2, rel=1e-12)


@pytest.mark.parametrize("name", BUILDERS)
def test_only_the_larger_variance_breaks_the_marginal(name):
    tableau = BUILDERS[name](Schedule.linear(20), tuple(range(20, -1, -1)), 0.5)
    assert tableau.marginal == (name not in MAY_BREAK_THE_MARGINAL)


def test_every_method_is_tested_here():
    tableaux = [build(Schedule.linear(9), (9, 4, 0), 0.0) for build in BUILDERS.values()]
    assert {tableau.method for tableau in tableaux} >= set(METHODS)


# -- a table that is written by hand: two initial states, an inner stage, an old prediction -------

A, B, C, D = (Level(math.cos(u), math.sin(u), 9 * u) for u in (1.2, 0.9, 0.6, 0.3))


def rows() -> tuple[Row, ...]:
    """Rows that are right: a free combination closed by one coefficient of x0 and one of eps."""

    def row(level: Level, at: Level | None, states, eps, x0, noise=0.0):
        signal = sum(a * LEVELS[i].alpha for i, a in states) + sum(b for _, b in x0[:-1])
        carried = sum(a * LEVELS[i].sigma for i, a in states) + sum(c for _, c in eps[:-1])
        x0 = (*x0[:-1], (x0[-1], level.alpha - signal))
        eps = (*eps[:-1], (eps[-1], math.sqrt(level.sigma**2 - noise**2) - carried))
        return Row(level, at, None, states, x0, eps, noise)

    LEVELS = [A, B, C, C, D]
    return (
        row(C, C, ((0, 0.2), (1, 0.5)), (1,), (1,)),  # state 2
        row(C, None, ((1, 0.7),), (2,), ((1, 0.1), 2), noise=0.3),  # state 3, never evaluated
        row(D, D, ((3, 0.4),), ((1, -0.2), 2), (2,)),  # state 4
    )


def table(**changes) -> Tableau:
    initial = (State(A, None, 12), State(B, B, 9))
    values = {"method": "by-hand", "initial": initial, "rows": rows(), "returns": (4, 3)}
    return Tableau(**(values | changes))


def changed(index: int, **changes) -> tuple[Row, ...]:
    """The right rows with one of them altered."""
    out = list(rows())
    out[index] = dataclasses.replace(out[index], **changes)
    return tuple(out)


def test_calls_count_each_evaluated_state_once():
    tableau = table()
    assert [row.needs for row in tableau.rows] == [(1,), (1, 2), (1, 2)]
    assert tableau.evaluated == (1, 2)
    assert tableau.calls == 2
    assert tableau.stochastic
    assert not table(rows=rows()[:1], returns=(2,)).stochastic


def test_last_use():
    """State 0 is last read by row 0, 1 and 2 by row 2; the returned ones never end."""
    assert table().last_use == (0, 2, 2, 3, 3)
    assert table(returns=(4,)).last_use == (0, 2, 2, 2, 3)
    assert table(returns=(0, 4)).last_use == (3, 2, 2, 2, 3)
    assert table(rows=rows()[:2], returns=(3,)).last_use == (0, 1, 1, 2)
    # A row that is written and never read is done with at once.
    assert table(rows=rows()[:2], returns=(2,)).last_use == (0, 1, 2, -1)


def test_levels_of_states_and_of_what_the_network_sees():
    tableau = table()
    assert [tableau.level(i) for i in range(5)] == [A, B, C, C, D]
    assert [tableau.at(i) for i in range(5)] == [None, B, C, None, D]


def scaled(terms, which: int, factor: float):
    return tuple((i, c * factor if n == which else c) for n, (i, c) in enumerate(terms))


@pytest.mark.parametrize("factor", [1 + 1e-6, 0.5, -1.0])
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("field", ["states", "x0", "eps"])
def test_a_wrong_coefficient_is_refused(index, field, factor, refuses):
    terms = getattr(rows()[index], field)
    for which in range(len(terms)):
        with refuses("by-hand: state \\d (keeps|has noise)"):
            table(rows=changed(index, **{field: scaled(terms, which, factor)}))


@pytest.mark.parametrize("name", ["ddim", "ddim, η = 1", "ddpm", "encoding"])
def test_an_eps_of_the_wrong_sign_is_refused(name, refuses):
    """Its square is right, so that the variance alone would not tell."""
    tableau = BUILDERS[name](Schedule.linear(10), (10, 5, 2, 0), 0.0)
    first = tableau.rows[0]
    wrong = dataclasses.replace(first, eps=scaled(first.eps, 0, -1))
    with refuses("below 0"):
        dataclasses.replace(tableau, rows=(wrong, *tableau.rows[1:]))


def test_a_wrong_amount_of_noise_is_refused(refuses):
    with refuses("state 3 has noise"):
        table(rows=changed(1, noise=0.31))
    with refuses("state 2 has noise"):
        table(rows=changed(0, noise=0.1))


def test_a_wrong_level_is_refused(refuses):
    with refuses("state 4 keeps .* not α"):
        table(rows=changed(2, level=C))


def test_without_the_marginal_the_signal_is_still_checked(refuses):
    table(rows=changed(1, noise=0.9), marginal=False)
    with refuses("keeps .* of the signal"):
        table(rows=changed(1, x0=((1, 0.1), (2, 0.1))), marginal=False)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("field", ["states", "x0", "eps", "noise", "noise_max"])
def test_numbers_that_are_not_finite_are_refused(field, value, refuses):
    change = value if field.startswith("noise") else ((1, value),)
    with refuses("state 2 has a coefficient that is not finite"):
        table(rows=changed(0, **{field: change}))


def test_reading_what_is_not_there_is_refused(refuses):
    with refuses("state 2 reads one that is not there yet"):
        table(rows=changed(0, states=((2, 0.2),)))
    with refuses("state 2 reads one that is not there yet"):
        table(rows=changed(0, eps=((-1, 0.2),)))
    with refuses("state 4 reads a prediction that is never made"):
        table(rows=changed(2, eps=((3, 0.2),)))
    with refuses("no state 5 to return"):
        table(returns=(5,))


def test_printed():
    text = str(make_tableau(Schedule.linear(10), (10, 5, 0), eta=0.5)).splitlines()
    assert text[0] == "ddim, eta=0.5: 2 rows, 2 network calls"
    assert len(text) == 5
    assert text[2].endswith("= given")
    assert "x0(0)" in text[3]
    assert "eps(0)" in text[3]
    assert "·z" in text[3]
    assert text[4].endswith("= +1·x0(1)")  # the last row is the prediction itself, without noise


def test_method_refusals(refuses):
    schedule = Schedule.linear(10)
    with refuses("unknown method 'dimm': did you mean 'ddim'"):
        make_tableau(schedule, (10, 0), "dimm")
    with refuses("method 'ddim' has no option 'variance': it has eta"):
        make_tableau(schedule, (10, 0), "ddim", variance="large")
