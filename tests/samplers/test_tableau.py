from __future__ import annotations

import dataclasses
import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.base.errors import InputError
from ddim.denoisers.prediction import Prediction
from ddim.noise.nodes import NODES
from ddim.noise.schedule import Level, Schedule
from ddim.samplers.lookup import METHODS
from ddim.samplers.loop import final, integrate
from ddim.samplers.methods.ddim import ddim, ddpm
from ddim.samplers.sampler import make_tableau
from ddim.samplers.tableau import Row, State, Tableau

SCHEDULES = {
    "linear": Schedule.linear,
    "cosine": Schedule.cosine,
    "flow": Schedule.flow,
    "zero terminal SNR": lambda T: Schedule.linear(T + 1).rescaled_to_zero_snr(),
}
BUILDERS = {
    name: functools.partial(make_tableau, method=name)
    for name, m in METHODS.items()
    if not (m.program or m.needs)
} | {
    "ddim, η = 0.3": functools.partial(ddim, eta=0.3),
    "ddim, η = 1": functools.partial(ddim, eta=1.0),
    "ddpm, large": functools.partial(ddpm, variance="large"),
    "encoding": lambda schedule, nodes: ddim(schedule, nodes[::-1]),
}
every_builder = pytest.mark.parametrize("name", BUILDERS)
# These break the marginal variance, and say so; no other may.
BREAK_THE_MARGINAL = {"ddpm, large", "pf-euler"}
NOT_FROM_ZERO_SIGNAL = {"pf-euler", "obelm", "bdia", "edict"}


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


@every_builder
@settings(max_examples=20)
@given(data=st.data())
def test_every_builder_keeps_signal_and_noise(name, data):
    kind = data.draw(st.sampled_from(sorted(SCHEDULES)))
    schedule = SCHEDULES[kind](data.draw(st.integers(1, 80)))
    nodes = NODES[data.draw(st.sampled_from(sorted(NODES)))](
        schedule, data.draw(st.integers(1, schedule.T))
    )
    if name in NOT_FROM_ZERO_SIGNAL and schedule.alpha[-1] == 0:
        with pytest.raises(InputError):
            BUILDERS[name](schedule, nodes)
        return
    tableau = BUILDERS[name](schedule, nodes)
    assert tableau.marginal == (name not in BREAK_THE_MARGINAL)
    for row in tableau.rows:
        signal, noise = kept(tableau, row)
        # Reversible rows subtract numbers far larger than their sum.
        size = 1 + max(abs(c) for _, c in (*row.states, *row.x0, *row.eps))
        assert signal == pytest.approx(row.level.alpha, abs=1e-11 * size)
        if tableau.marginal:
            # ΣA·σ + ΣC = √(σ² - c²), which is steep where c is nearly σ: compared squared, too.
            assert noise >= -1e-9 * size
            assert math.hypot(noise, row.noise) == pytest.approx(row.level.sigma, abs=1e-9 * size)
    assert all(
        tableau.at(i).t >= 0 and tableau.at(i).sigma >= schedule.sigma[1] for i in tableau.evaluated
    )


@every_builder
def test_the_result_is_at_the_last_node(name):
    schedule = Schedule.linear(20)
    nodes = (20, 12, 5, 1)
    tableau = BUILDERS[name](schedule, nodes)
    last = 20 if name == "encoding" else 1
    assert tableau.level(tableau.returns[0])[:2] == schedule.level(last)[:2]
    assert tableau.initial[0].k == 21 - last


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
    tableau = BUILDERS[name](Schedule.linear(10), (10, 5, 2, 0))
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


# -- inverses -------------------------------------------------------------------------------------


def network(x: torch.Tensor, level: Level) -> Prediction:
    """Anything but linear."""
    eps = torch.tanh(3 * x) + 0.1 * torch.cos(5 * x + level.t)
    return Prediction((x - level.sigma * eps) / level.alpha, eps)


@pytest.mark.parametrize("method", ["obelm", "bdia", "edict"])
def test_an_inverse_undoes_its_tableau_for_any_network(method):
    schedule = Schedule.linear(100, scaled=True)
    tableau = make_tableau(schedule, (100, 80, 60, 40, 20, 1), method, pair=True)
    inverse = tableau.inverse()
    assert len(inverse.initial) == len(tableau.returns) == 2
    assert inverse.calls == tableau.calls
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 4, dtype=torch.float64, generator=generator) for _ in range(2)]
    end = final(integrate(network, tableau, start))
    # The newest state first; and back in the order of the initial ones.
    order = [range(len(tableau.initial) + len(tableau.rows))[i] for i in tableau.returns]
    given = [state for _, state in sorted(zip(order, end, strict=True), key=lambda p: -p[0])]
    back = final(integrate(network, inverse, given))
    for a, b in zip(back, start, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(end[0], start[0], atol=0.1)


def test_the_inverse_of_the_inverse():
    schedule = Schedule.linear(100, scaled=True)
    tableau = make_tableau(schedule, (100, 70, 30, 10, 1), "obelm", pair=True)
    again = tableau.inverse().inverse()
    assert [s.level for s in again.initial] == [s.level for s in tableau.initial]
    for a, b in zip(again.rows, tableau.rows, strict=True):
        assert (a.level, a.k, a.needs) == (b.level, b.k, b.needs)
        for field in ("states", "x0", "eps"):
            one, two = dict(getattr(a, field)), dict(getattr(b, field))
            assert one == pytest.approx(two, rel=1e-10)


@pytest.mark.parametrize(
    "tableau",
    [
        ddim(Schedule.linear(9), (9, 4, 1)),  # its row needs the prediction made at what it seeks
        ddim(Schedule.linear(9), (9, 4, 1), eta=1.0),
        make_tableau(Schedule.linear(9), (9, 4, 1), "heun"),
        make_tableau(Schedule.linear(9), (9, 6, 4, 1), "obelm"),  # two states from one
        table(),
    ],
    ids=["ddim", "eta", "heun", "single obelm", "by hand"],
)
def test_what_has_no_inverse_says_so(tableau, refuses):
    with refuses("cannot be inverted"):
        tableau.inverse()


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


def test_the_digest_is_of_the_rows_and_stays_what_it_was():
    """Runs of earlier versions are resumed by it; what noise they start from is not in the rows."""
    schedule = Schedule.linear(100)
    tableau = make_tableau(schedule, "uniform", "dpmpp:steps=10")
    assert tableau.digest.startswith("45e9bb822048")
    other = Schedule.from_alpha_sigma(schedule.alpha, schedule.sigma, 0.5)
    assert make_tableau(other, "uniform", "dpmpp:steps=10").digest == tableau.digest
