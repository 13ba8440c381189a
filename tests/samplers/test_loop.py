from __future__ import annotations

import itertools
import math
import weakref

import pytest
import torch
from torch import Tensor

from ddim.denoisers.exact import Gaussian
from ddim.denoisers.prediction import Prediction
from ddim.noise.nodes import uniform
from ddim.noise.schedule import Level, Schedule
from ddim.samplers.loop import final, integrate
from ddim.samplers.methods.ddim import ddim, ddpm
from ddim.samplers.sampler import make_tableau
from ddim.samplers.tableau import Row, State, Tableau

SCHEDULE = Schedule.linear(100, scaled=True)


class Recorder:
    """A denoiser that remembers where it was called."""

    def __init__(self, denoiser=None) -> None:
        self.denoiser = denoiser or Gaussian(0.3, 0.5)
        self.levels: list[Level] = []

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        self.levels.append(level)
        return self.denoiser(x, level)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# -- multistep and multistage tables, written by hand ---------------------------------------------


def adams_bashforth(schedule: Schedule, nodes: tuple[int, ...]) -> Tableau:
    """Order 2 from the last two predictions of ε, in y = x/α over ρ; the first step is Euler's."""
    levels = [schedule.level(k) for k in nodes]
    rho = [level.sigma / level.alpha for level in levels]
    rows = []
    for n in range(1, len(nodes)):
        target, step = levels[n], rho[n] - rho[n - 1]
        eps = [(n - 1, target.alpha * step)]
        if n > 1:
            slope = target.alpha * step**2 / (2 * (rho[n - 1] - rho[n - 2]))
            eps = [(n - 1, target.alpha * step + slope), (n - 2, -slope)]
        states = ((n - 1, target.alpha / levels[n - 1].alpha),)
        rows.append(Row(target, target, nodes[n], states, (), tuple(eps)))
    return Tableau("ab2", (State(levels[0], levels[0], nodes[0]),), tuple(rows), (len(rows),))


def heun(schedule: Schedule, nodes: tuple[int, ...]) -> Tableau:
    """Order 2 with an inner stage: Euler's step, then the mean of both slopes."""
    levels = [schedule.level(k) for k in nodes]
    rows, here = [], 0
    for source, target in itertools.pairwise(levels):
        step = target.alpha * (target.sigma / target.alpha - source.sigma / source.alpha)
        states = ((here, target.alpha / source.alpha),)
        stage = here + 1
        rows.append(Row(target, target, None, states, (), ((here, step),)))
        rows.append(Row(target, target, None, states, (), ((here, step / 2), (stage, step / 2))))
        here = stage + 1
    return Tableau("heun", (State(levels[0], levels[0], nodes[0]),), tuple(rows), (len(rows),))


@pytest.mark.parametrize("build", [adams_bashforth, heun])
def test_second_order_tables_converge_with_order_2(lab, build):
    assert lab.order(build) == pytest.approx(2.0, abs=0.1)
    assert lab.error(build, 320) < 1e-4


def test_a_prediction_that_is_read_twice_is_made_once(lab):
    schedule, nodes = lab.schedule(20), lab.nodes(20)
    for build, calls in ((adams_bashforth, 20), (heun, 40)):
        recorder = Recorder(lab.data)
        tableau = build(schedule, nodes)
        final(integrate(recorder, tableau, lab.x))
        assert len(recorder.levels) == tableau.calls == calls


def pair_table() -> Tableau:
    """Two initial states that only ever swap and mix, as reversible methods have."""
    a, b = Level(0.6, 0.8, 5), Level(0.8, 0.6, 3)
    rows = (
        Row(b, b, 1, states=((0, 0.5),), x0=((1, 0.5),), eps=((1, 0.2),)),
        Row(b, None, 0, states=((1, 0.25), (2, 0.75))),
    )
    return Tableau("pair", (State(a, None, 2), State(b, b, 1)), rows, (2, 3))


def test_two_initial_states_and_two_outputs():
    x, y = randn(2, 3), randn(2, 3, seed=1)
    data = Gaussian(0.3, 0.5)
    tableau = pair_table()
    prediction = data(y, tableau.initial[1].level)
    first = 0.5 * x + 0.5 * prediction.x0 + 0.2 * prediction.eps
    steps = list(integrate(data, tableau, [x, y]))
    assert [step.outputs for step in steps[:-1]] == [()]
    torch.testing.assert_close(steps[-1].outputs[0], first)
    torch.testing.assert_close(steps[-1].outputs[1], 0.25 * y + 0.75 * first)


def test_an_initial_state_may_be_an_output():
    tableau = ddim(SCHEDULE, (100, 50, 0))
    both = Tableau("both", tableau.initial, tableau.rows, (0, 2))
    x = randn(2, 1, 3, 3)
    kept, out = final(integrate(Gaussian(), both, x))
    assert torch.equal(kept, x)
    torch.testing.assert_close(out, final(integrate(Gaussian(), tableau, x))[0])


# -- the loop -------------------------------------------------------------------------------------


def test_one_step_a_row_and_the_outputs_at_the_end():
    tableau = ddim(SCHEDULE, uniform(SCHEDULE, 7))
    steps = list(integrate(Gaussian(0.3, 0.5), tableau, randn(2, 1, 4, 4)))
    assert [step.index for step in steps] == list(range(7))
    assert {step.total for step in steps} == {7}
    assert [step.row for step in steps] == list(tableau.rows)
    assert [len(step.outputs) for step in steps] == [0] * 6 + [1]
    assert steps[-1].outputs[0] is steps[-1].x
    # The last row ends at α = 1, σ = 0: it is the predicted image itself.
    torch.testing.assert_close(steps[-1].x, steps[-1].prediction.x0)


@pytest.mark.parametrize("steps", [1, 3, 50, 100])
def test_the_network_is_called_exactly_so_often(steps):
    recorder = Recorder()
    tableau = ddim(SCHEDULE, uniform(SCHEDULE, steps))
    final(integrate(recorder, tableau, randn(1, 2)))
    assert len(recorder.levels) == tableau.calls == steps
    assert [level.t for level in recorder.levels] == [k - 1 for k in uniform(SCHEDULE, steps)[:-1]]


@pytest.mark.parametrize("steps", [1, 10, 100])
def test_the_network_is_never_called_at_node_0(steps):
    recorder = Recorder()
    tableau = ddim(SCHEDULE, uniform(SCHEDULE, steps)[::-1])
    final(integrate(recorder, tableau, randn(1, 2)))
    assert min(level.t for level in recorder.levels) == 0
    assert min(level.sigma for level in recorder.levels) == SCHEDULE.sigma[1]
    assert recorder.levels[0] == SCHEDULE.level(1)


def test_stopping_early_calls_nothing_more():
    recorder = Recorder()
    steps = integrate(recorder, ddim(SCHEDULE, uniform(SCHEDULE, 50)), randn(1, 2))
    assert recorder.levels == []  # nothing runs before it is asked for
    next(steps)
    next(steps)
    steps.close()
    assert len(recorder.levels) == 2


@pytest.mark.parametrize("method", [ddim, ddpm, adams_bashforth, heun])
def test_memory_does_not_grow_with_the_number_of_steps(method):
    schedule = Schedule.linear(200)
    nodes = tuple(range(200, 0, -1))
    alive: list[weakref.ref] = []
    most = 0
    data = Gaussian(0.3, 0.5)

    def denoiser(x: Tensor, level: Level) -> Prediction:
        prediction = data(x, level)
        alive.extend(weakref.ref(t) for t in (prediction.x0, prediction.eps))
        return prediction

    for step in integrate(
        denoiser, method(schedule, nodes), randn(1, 2), lambda i: randn(1, 2, seed=i)
    ):
        alive.append(weakref.ref(step.x))
        del step
        alive = [reference for reference in alive if reference() is not None]
        most = max(most, len(alive))
    assert most <= 10


def test_what_the_caller_keeps_stays_as_it_was():
    """A trajectory is what was yielded: later rows do not write into earlier states."""
    tableau = ddim(SCHEDULE, uniform(SCHEDULE, 10))
    kept, copies = [], []
    for step in integrate(Gaussian(0.3, 0.5), tableau, randn(2, 3)):
        kept.append(step.x)
        copies.append(step.x.clone())
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


@pytest.mark.parametrize("method", [ddim, ddpm, heun])
def test_the_initial_state_is_not_written_to(method):
    x = randn(2, 1, 3, 3)
    before = x.clone()
    final(
        integrate(
            Gaussian(0.3, 0.5),
            method(SCHEDULE, (100, 60, 20, 1)),
            x,
            lambda i: randn(2, 1, 3, 3, seed=i),
        )
    )
    assert torch.equal(x, before)


def test_the_dtype_is_that_of_the_initial_state():
    tableau = ddim(SCHEDULE, uniform(SCHEDULE, 20))
    double = randn(4, 1, 4, 4)
    (exact,) = final(integrate(Gaussian(0.3, 0.5), tableau, double))
    (single,) = final(integrate(Gaussian(0.3, 0.5), tableau, double.float()))
    assert exact.dtype == torch.float64
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-5)
    assert not torch.equal(single.double(), exact)


# -- noise ----------------------------------------------------------------------------------------


def test_noise_is_asked_for_by_the_state_it_goes_into_and_only_where_used():
    asked = []

    def noise(state: int) -> Tensor:
        asked.append(state)
        return torch.zeros(1, 2, dtype=torch.float64)

    nodes = uniform(SCHEDULE, 5)
    final(integrate(Gaussian(), ddim(SCHEDULE, nodes), randn(1, 2), noise))
    assert asked == []
    final(integrate(Gaussian(), ddim(SCHEDULE, nodes, eta=0.3), randn(1, 2), noise))
    assert asked == [1, 2, 3, 4]  # state 5 is the data


def nothing(x: Tensor, level: Level) -> Prediction:
    """Predicts zeros, so that what comes out of a row is its noise alone."""
    return Prediction(torch.zeros_like(x), torch.zeros_like(x))


@pytest.mark.parametrize("variance", ["posterior", "large"])
def test_noise_is_scaled_by_the_row(variance):
    tableau = ddpm(SCHEDULE, (100, 50, 0), variance=variance)
    z = randn(2, 3)
    step = next(integrate(nothing, tableau, randn(2, 3), lambda _: z))
    torch.testing.assert_close(step.x, tableau.rows[0].noise * z)


def test_learned_variance_scales_the_noise_pixel_by_pixel():
    """σ = c_min^(1-v)·c_max^v (Nichol and Dhariwal, equation 15)."""
    tableau = ddpm(SCHEDULE, (100, 50, 0))
    row = tableau.rows[0]
    var = torch.tensor([[0.0, 1.0, 0.25], [0.5, 0.9, 1.0]], dtype=torch.float64)
    z = randn(2, 3)

    def denoiser(x: Tensor, level: Level) -> Prediction:
        return Prediction(torch.zeros_like(x), torch.zeros_like(x), var)

    step = next(integrate(denoiser, tableau, randn(2, 3), lambda _: z))
    torch.testing.assert_close(step.x, row.noise ** (1 - var) * row.noise_max**var * z)
    assert step.x[0, 0] == pytest.approx(row.noise * z[0, 0].item())
    assert step.x[0, 1] == pytest.approx(row.noise_max * z[0, 1].item())
    # A method that has no use for the learned variance ignores it.
    plain = ddim(SCHEDULE, (100, 50, 0), eta=1.0)
    step = next(integrate(denoiser, plain, randn(2, 3), lambda _: z))
    torch.testing.assert_close(step.x, row.noise * z)


def test_the_noise_is_not_written_to():
    z = randn(2, 3)
    before = z.clone()
    final(integrate(Gaussian(), ddpm(SCHEDULE, uniform(SCHEDULE, 5)), randn(2, 3), lambda _: z))
    assert torch.equal(z, before)


# -- refusals -------------------------------------------------------------------------------------


def test_refusals(refuses):
    x = randn(2, 3)
    with refuses("ddim starts from 1 states, not 2"):
        final(integrate(Gaussian(), ddim(SCHEDULE, (100, 0)), (x, x)))
    with refuses("pair starts from 2 states, not 1"):
        final(integrate(Gaussian(), pair_table(), x))
    with refuses("initial states differ in shape"):
        final(integrate(Gaussian(), pair_table(), (x, x[:1])))
    with refuses("ddpm draws noise: integrate needs a source of it"):
        final(integrate(Gaussian(), ddpm(SCHEDULE, (100, 50, 0)), x))
    # A single stochastic step to the data draws none, and needs none.
    assert math.isfinite(float(final(integrate(Gaussian(), ddpm(SCHEDULE, (100, 0)), x))[0].sum()))


def test_noise_alone_is_a_step_too():
    """Restart goes back up to α = 0, where nothing is carried over."""
    schedule = Schedule.linear(100, scaled=True).rescaled_to_zero_snr()
    tableau = make_tableau(schedule, uniform(schedule, 5), "restart", high=1.0, times=1)
    back = next(n for n, row in enumerate(tableau.rows) if row.k == 100)
    assert tableau.rows[back].noise == 1.0
    seen = {}

    def noise(state):
        g = torch.Generator().manual_seed(state)
        seen[state] = torch.randn(3, generator=g, dtype=torch.float64)
        return seen[state]

    data = Gaussian(0.3, 0.5)
    steps = list(integrate(data, tableau, torch.ones(3, dtype=torch.float64), noise))
    assert torch.equal(steps[back].x, seen[back + 1])
    assert all(bool(step.x.isfinite().all()) for step in steps)
