from __future__ import annotations

import functools
import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddim.base.errors import InputError
from ddim.denoisers.exact import Gaussian
from ddim.denoisers.network import NetworkDenoiser
from ddim.noise.nodes import make_nodes, uniform
from ddim.noise.schedule import Schedule
from ddim.samplers.loop import final, integrate
from ddim.samplers.methods.ddim import ddim, ddpm
from ddim.samplers.sampler import make_tableau

LINEAR = Schedule.linear()
SCHEDULES = {
    "linear": LINEAR,
    "cosine": Schedule.cosine(200),
    "flow": Schedule.flow(100),
    "variance-exploding": Schedule.from_alpha_sigma(np.ones(51), [0, *np.geomspace(0.01, 80, 50)]),
    "zero terminal SNR": Schedule.linear(100).rescaled_to_zero_snr(),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


def linear_network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A fixed prediction of ε, linear in x and different at every time."""
    t = t.double().view(-1, 1, 1, 1)
    return (0.6 + 0.3 * torch.cos(t / 300)) * x + 0.2 * torch.sin(t / 100)


def noise_for(shape: tuple[int, ...]):
    """Noise as a pure function of the state's index."""

    def noise(state: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(state)
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    return noise


START = noise_for((2, 1, 3, 3))(0)


# -- against the paper ----------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 50, 1000])
def test_ddim_is_equation_12(eta, steps):
    """x_s = √ᾱ_s·(x - √(1-ᾱ)·ε)/√ᾱ + √(1-ᾱ_s-σ²)·ε + σ·z, σ from equation 16."""
    nodes = uniform(LINEAR, steps)
    noise = noise_for(tuple(START.shape))
    ab = LINEAR.alpha_bar
    x = START
    for n, (t, s) in enumerate(itertools.pairwise(nodes), start=1):
        e = linear_network(x, torch.full((2,), t - 1))
        sigma = eta * math.sqrt((1 - ab[s]) / (1 - ab[t])) * math.sqrt(1 - ab[t] / ab[s])
        x0 = (x - math.sqrt(1 - ab[t]) * e) / math.sqrt(ab[t])
        x = math.sqrt(ab[s]) * x0 + math.sqrt(1 - ab[s] - sigma**2) * e
        if s > 0:
            x = x + sigma * noise(n)
    ours = final(
        integrate(NetworkDenoiser(linear_network), ddim(LINEAR, nodes, eta=eta), START, noise)
    )
    torch.testing.assert_close(ours[0], x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("steps", [1000, 250, 37, 2], ids=lambda s: f"S={s}")
def test_eta_1_is_the_ddpm_posterior(steps):
    """Ho et al., equation 7, on adjacent nodes and, with β of the whole step, on skipped ones."""
    nodes = uniform(LINEAR, steps)
    tableau = ddim(LINEAR, nodes, eta=1.0)
    # 1 - ᾱ as σ²: subtracting ᾱ from 1 again would spoil the reference near the data.
    ab, left = LINEAR.alpha_bar, LINEAR.sigma**2
    for t, s, row in zip(nodes, nodes[1:], tableau.rows, strict=False):
        alpha = ab[t] / ab[s]
        beta = LINEAR.betas[t - 1] if t == s + 1 else 1 - alpha
        mean_x0 = math.sqrt(ab[s]) * beta / left[t]
        mean_x = math.sqrt(alpha) * left[s] / left[t]
        variance = left[s] / left[t] * beta
        # The mean is in x0 and x_t; the row in x0 and ε, with x_t = √ᾱ·x0 + √(1-ᾱ)·ε.
        ((_, on_x0),) = row.x0
        ((_, on_eps),) = row.eps
        assert row.states == ()
        assert on_x0 == pytest.approx(mean_x0 + mean_x * math.sqrt(ab[t]), abs=1e-12)
        assert on_eps == pytest.approx(mean_x * math.sqrt(left[t]), abs=1e-12)
        assert row.noise**2 == pytest.approx(variance, abs=1e-12)
        assert row.noise == pytest.approx(math.sqrt(variance), rel=1e-9, abs=1e-300)


@every_schedule
def test_eta_1_is_the_posterior_of_any_schedule(schedule):
    """q(x_s | x_t, x0) by Bayes, from x_s = α_s·x0 + σ_s·e and x_t = a·x_s + b·e'."""
    nodes = make_nodes(schedule, "uniform", min(9, schedule.T))
    for t, s, row in zip(nodes, nodes[1:], ddim(schedule, nodes, eta=1.0).rows, strict=False):
        a = schedule.alpha[t] / schedule.alpha[s]
        variance = schedule.sigma[s] ** 2
        total = schedule.sigma[t] ** 2  # a²·variance + b²
        left = variance * (1 - a**2 * variance / total)
        assert row.noise**2 == pytest.approx(left, rel=1e-9, abs=1e-13)
        assert row.x0[0][1] == schedule.alpha[s]
        assert row.eps[0][1] == pytest.approx(a * variance / math.sqrt(total), rel=1e-9, abs=1e-12)


@every_schedule
def test_ddpm_is_eta_1(schedule):
    nodes = make_nodes(schedule, "quadratic", min(12, schedule.T))
    one, two = ddim(schedule, nodes, eta=1.0), ddpm(schedule, nodes)
    for a, b in zip(one.rows, two.rows, strict=True):
        assert (a.states, a.x0, a.eps, a.noise) == (b.states, b.x0, b.eps, b.noise)


@every_schedule
def test_eta_scales_the_standard_deviation(schedule):
    """Not the variance, which goes with η²."""
    nodes = make_nodes(schedule, "uniform", 10)
    half, full = ddim(schedule, nodes, eta=0.5), ddim(schedule, nodes, eta=1.0)
    assert full.stochastic
    for a, b in zip(half.rows, full.rows, strict=True):
        assert a.noise == 0.5 * b.noise


@every_schedule
def test_the_larger_variance(schedule):
    """σ̂ injects √(1 - ᾱ_t/ᾱ_s) but makes room only for the posterior's noise."""
    nodes = make_nodes(schedule, "uniform", 10)
    small, large = ddpm(schedule, nodes), ddpm(schedule, nodes, variance="large")
    for t, s, a, b in zip(nodes, nodes[1:], small.rows, large.rows, strict=False):
        assert (a.x0, a.eps) == (b.x0, b.eps)
        if s == 0:
            assert b.noise == 0
            continue
        kernel = (
            schedule.sigma[t] ** 2
            - (schedule.alpha[t] / schedule.alpha[s] * schedule.sigma[s]) ** 2
        )
        assert b.noise**2 == pytest.approx(kernel, rel=1e-11)
        assert b.noise > a.noise
    if schedule is LINEAR:
        for t, s, b in zip(nodes, nodes[1:-1], large.rows, strict=False):
            assert b.noise**2 == pytest.approx(
                1 - schedule.alpha_bar[t] / schedule.alpha_bar[s], rel=1e-11
            )


@every_schedule
def test_a_learned_variance_runs_between_the_posterior_and_the_larger(schedule):
    nodes = make_nodes(schedule, "uniform", 10)
    tableau = ddpm(schedule, nodes)
    largest = ddpm(schedule, nodes, variance="large")
    for row, bound in zip(tableau.rows[:-1], largest.rows, strict=False):
        assert row.noise < row.noise_max == bound.noise
    assert tableau.rows[-1].noise_max is None
    assert all(row.noise_max is None for row in largest.rows)
    assert all(row.noise_max is None for row in ddim(schedule, nodes, eta=1.0).rows)


@given(st.integers(1, 150), st.data())
def test_no_row_to_the_data_injects_noise(T, data):
    schedule = Schedule.cosine(T)
    steps = data.draw(st.integers(1, T))
    for build in (
        ddpm,
        functools.partial(ddpm, variance="large"),
        functools.partial(ddim, eta=1.0),
    ):
        tableau = build(schedule, uniform(schedule, steps))
        last = tableau.rows[-1]
        assert (last.noise, last.noise_max, last.x0, last.eps) == (
            0,
            None,
            ((steps - 1, 1.0),),
            ((steps - 1, 0.0),),
        )
        assert all(row.noise > 0 for row in tableau.rows[:-1])


def test_nodes_that_end_above_the_data_keep_their_noise():
    last = ddim(LINEAR, (1000, 500, 1), eta=1.0).rows[-1]
    assert 0 < last.noise < LINEAR.sigma[1]


def test_the_network_is_told_t_and_never_sees_node_0():
    tableau = ddim(LINEAR, (1000, 400, 1, 0))
    assert [tableau.at(i).t for i in range(3)] == [999, 399, 0]
    assert tableau.at(3) is None
    rising = ddim(LINEAR, (0, 1, 400, 1000))
    # What lies at node 0 is shown as node 1, the lowest that was trained on.
    assert [rising.at(i) for i in range(3)] == [LINEAR.level(1), LINEAR.level(1), LINEAR.level(400)]
    assert rising.level(0)[:3] == (1, 0, -1)


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [-0.1, math.nan, math.inf])
def test_an_eta_that_is_no_amount_is_refused(eta, refuses):
    with refuses("eta must be at least 0"):
        ddim(LINEAR, (1000, 500, 0), eta=eta)


@pytest.mark.parametrize("steps", [2, 10, 50, 1000])
def test_a_complex_root_is_refused_and_the_largest_eta_named(steps, refuses):
    nodes = uniform(LINEAR, steps)
    with pytest.raises(InputError, match=r"^eta = 2 is too large: .*$") as info:
        ddim(LINEAR, nodes, eta=2.0)
    largest = float(re.search(r"the largest is ([\d.]+)$", str(info.value)).group(1))
    assert 1 <= largest < 2
    assert all(math.isfinite(row.eps[0][1]) for row in ddim(LINEAR, nodes, eta=largest).rows)
    with refuses("too large"):
        ddim(LINEAR, nodes, eta=largest + 0.002)


def test_encoding_with_noise_is_refused(refuses):
    with refuses("encoding is deterministic"):
        ddim(LINEAR, (0, 500, 1000), eta=0.5)
    with refuses("encoding is deterministic"):
        ddpm(LINEAR, (0, 500, 1000))


def test_an_unknown_variance_is_refused(refuses):
    with refuses("unknown variance 'small'"):
        make_tableau(LINEAR, (1000, 0), "ddpm", variance="small")


# -- order of convergence -------------------------------------------------------------------------


def test_ddim_converges_with_order_1(lab):
    assert lab.order(ddim) == pytest.approx(1.0, abs=0.1)
    assert lab.error(ddim, 320) < 1e-2


def test_encoding_converges_with_order_1(lab):
    def error(steps: int) -> float:
        schedule, nodes = lab.schedule(steps), lab.nodes(steps)
        exact = lab.data.flow(lab.x, schedule.level(1), schedule.level(steps + 1))
        return float((lab.run(ddim(schedule, nodes[::-1])) - exact).abs().max())

    assert math.log2(error(160) / error(320)) == pytest.approx(1.0, abs=0.1)


def test_the_round_trip_closes_with_order_1(lab):
    def error(steps: int) -> float:
        schedule, nodes = lab.schedule(steps), lab.nodes(steps)
        code = lab.run(ddim(schedule, nodes[::-1]))
        return float((lab.run(ddim(schedule, nodes), code) - lab.x).abs().max())

    assert math.log2(error(160) / error(320)) == pytest.approx(1.0, abs=0.1)


# -- stochastic rows: mean and variance on Gaussian data ------------------------------------------

MEAN, STD = 0.3, 0.5


def propagated(tableau, std: float = STD) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance after each row, of N(α_T·MEAN, α_T²std² + σ_T²) under the exact denoiser.

    x0 = MEAN + g·(x - α·MEAN) and ε = e·(x - α·MEAN) are linear, so that each row maps a Gaussian
    to a Gaussian.
    """
    level = tableau.initial[0].level
    mean, variance = level.alpha * MEAN, level.alpha**2 * std**2 + level.sigma**2
    means, variances = [], []
    for row in tableau.rows:
        total = level.alpha**2 * std**2 + level.sigma**2
        gain, scale = level.alpha * std**2 / total, level.sigma / total
        ((_, on_x0),) = row.x0
        ((_, on_eps),) = row.eps
        slope = on_x0 * gain + on_eps * scale
        mean = on_x0 * MEAN + slope * (mean - level.alpha * MEAN)
        variance = slope**2 * variance + row.noise**2
        level = row.level
        means.append(mean)
        variances.append(variance)
    return np.array(means), np.array(variances)


@pytest.mark.parametrize(
    "build",
    [ddim, functools.partial(ddim, eta=0.5), ddpm, functools.partial(ddpm, variance="large")],
    ids=["eta 0", "eta 0.5", "posterior", "large"],
)
def test_a_thousand_steps_keep_the_marginals(build):
    nodes = uniform(LINEAR, 1000)
    means, variances = propagated(build(LINEAR, nodes))
    levels = [LINEAR.level(k) for k in nodes[1:]]
    exact = np.array([level.alpha**2 * STD**2 + level.sigma**2 for level in levels])
    np.testing.assert_allclose(means, [level.alpha * MEAN for level in levels], rtol=1e-12)
    np.testing.assert_allclose(variances, exact, rtol=0.03)


def test_fewer_steps_lose_variance_unless_it_is_injected():
    """Why the paper's Table 1 has η = 0 ahead at few steps, and σ̂ at many."""
    exact = STD**2
    lost = [exact - propagated(ddim(LINEAR, uniform(LINEAR, S)))[1][-1] for S in (10, 100, 1000)]
    posterior = [
        exact - propagated(ddpm(LINEAR, uniform(LINEAR, S)))[1][-1] for S in (10, 100, 1000)
    ]
    assert lost == sorted(lost, reverse=True)
    assert posterior == sorted(posterior, reverse=True)
    assert all(0 < a < b for a, b in zip(lost, posterior, strict=True))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@every_schedule
def test_a_point_keeps_its_marginals_exactly_at_any_number_of_steps(schedule, eta):
    """Equation 7 of the paper is made so: with x0 known, every η has the marginals of q."""
    nodes = make_nodes(schedule, "uniform", 7)
    means, variances = propagated(ddim(schedule, nodes, eta=eta), std=0.0)
    np.testing.assert_allclose(means, schedule.alpha[list(nodes[1:])] * MEAN, rtol=1e-12)
    np.testing.assert_allclose(
        variances, schedule.sigma[list(nodes[1:])] ** 2, rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize(
    "build",
    [ddim, functools.partial(ddim, eta=0.7), ddpm, functools.partial(ddpm, variance="large")],
    ids=["eta 0", "eta 0.7", "posterior", "large"],
)
def test_samples_have_the_mean_and_variance_that_the_rows_say(build):
    count = 200_000
    tableau = build(LINEAR, uniform(LINEAR, 12))
    generator = torch.Generator().manual_seed(0)

    def noise(state: int) -> torch.Tensor:
        return torch.randn(count, 1, dtype=torch.float64, generator=generator)

    level = tableau.initial[0].level
    x = level.alpha * MEAN + math.sqrt(level.alpha**2 * STD**2 + level.sigma**2) * noise(0)
    means, variances = propagated(tableau)
    for step, mean, variance in zip(
        integrate(Gaussian(MEAN, STD), tableau, x, noise), means, variances, strict=True
    ):
        assert float(step.x.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / count))
        assert float(step.x.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / count))


# -- diffusers, where S divides T -----------------------------------------------------------------


def oracle(make, steps: int, **options):
    """A diffusers scheduler on trailing steps that reads our ᾱ in float64."""
    scheduler = make(1000, timestep_spacing="trailing", clip_sample=False, **options)
    scheduler.alphas_cumprod = torch.from_numpy(LINEAR.alpha_bar[1:])
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("steps", [1, 10, 200, 1000])
def test_agrees_with_diffusers_ddim(diffusers, steps, eta):
    scheduler = oracle(diffusers.DDIMScheduler, steps, set_alpha_to_one=True)
    noise = noise_for(tuple(START.shape))
    x = START
    for n, t in enumerate(scheduler.timesteps, start=1):
        e = linear_network(x, t.expand(len(x)))
        z = noise(n) if eta else None
        x = scheduler.step(e, t, x, eta=eta, variance_noise=z).prev_sample
    nodes = uniform(LINEAR, steps)
    assert [k - 1 for k in nodes[:-1]] == scheduler.timesteps.tolist()
    ours = final(
        integrate(NetworkDenoiser(linear_network), ddim(LINEAR, nodes, eta=eta), START, noise)
    )
    torch.testing.assert_close(ours[0], x, rtol=1e-12, atol=1e-12)


def learned_network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Also a variance, in [-1, 1]."""
    return torch.cat([linear_network(x, t), torch.sin(3 * x)], dim=1)


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("steps", [10, 200, 1000])
def test_agrees_with_diffusers_ddpm(diffusers, monkeypatch, steps, kind):
    scheduler = oracle(diffusers.DDPMScheduler, steps, variance_type=kind)
    noise = noise_for(tuple(START.shape))
    network = learned_network if kind == "learned_range" else linear_network
    x = START
    for n, t in enumerate(scheduler.timesteps, start=1):
        # They inject noise into the last step where S < T; nothing that ends at the data may.
        z = torch.zeros_like(START) if n == steps else noise(n)
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, z=z, **__: z
        )
        x = scheduler.step(network(x, t.expand(len(x))), t, x).prev_sample
    variance = "large" if kind == "fixed_large" else "posterior"
    tableau = ddpm(LINEAR, uniform(LINEAR, steps), variance=variance)
    ours = final(integrate(NetworkDenoiser(network), tableau, START, noise))
    torch.testing.assert_close(ours[0], x, rtol=1e-12, atol=1e-12)
