from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import pytest

from ddim.noise.schedule import SCHEDULES, Schedule

MAKERS = {
    "linear": lambda: Schedule.linear(300),
    "linear of one step": lambda: Schedule.linear(1),
    "linear, scaled": lambda: Schedule.linear(500, scaled=True),
    "scaled-linear": lambda: Schedule.scaled_linear(1000),
    "cosine": lambda: Schedule.cosine(400),
    "cosine of one step": lambda: Schedule.cosine(1),
    "sigmoid": lambda: Schedule.sigmoid(250, -2, 4, 0.9),
    "flow": lambda: Schedule.flow(100),
    "betas": lambda: Schedule.from_betas([1e-3, 0.2, 0.1]),
    "betas to the end": lambda: Schedule.from_betas([0.1, 0.5, 1.0]),
    "alpha-bar": lambda: Schedule.from_alpha_bar([0.9, 0.5, 0.1]),
    "alpha-sigma": lambda: Schedule.from_alpha_sigma([1, 0.9, 0.2], [0, 1.1, 3]),
    "zero terminal SNR": lambda: Schedule.linear(200).rescaled_to_zero_snr(),
    "zero terminal SNR, betas": lambda: Schedule.from_betas([0.1, 0.2]).rescaled_to_zero_snr(),
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


@every
def test_ends_and_monotony(make):
    schedule = make()
    assert schedule.alpha.dtype == schedule.sigma.dtype == np.float64
    assert len(schedule.alpha) == len(schedule.sigma) == schedule.T + 1
    assert schedule.alpha[0] == 1
    assert schedule.sigma[0] == 0
    assert math.copysign(1, schedule.sigma[0]) == 1  # 0, not -0: it shows in printed tables
    assert (np.diff(schedule.alpha) < 0).all()
    assert (np.diff(schedule.sigma) > 0).all()
    assert (np.diff(schedule.rho) > 0).all()
    assert (np.diff(schedule.lam[1:]) < 0).all()
    assert schedule.lam[0] == np.inf
    assert schedule.snr[0] == np.inf


@every
def test_spec_round_trip_is_bit_identical(make):
    schedule = make()
    again = Schedule.from_spec(json.loads(json.dumps(schedule.spec)))
    assert again.alpha.tobytes() == schedule.alpha.tobytes()
    assert again.sigma.tobytes() == schedule.sigma.tobytes()
    assert again.spec == schedule.spec
    assert repr(again) == repr(schedule)


def test_every_kind_is_made_above():
    assert {make().spec["kind"] for make in MAKERS.values()} == set(SCHEDULES)


@every
def test_variance_preserving_identity(make):
    schedule = make()
    kind = schedule.spec["kind"]
    assert schedule.variance_preserving == (kind not in ("flow", "alpha-sigma"))
    if schedule.variance_preserving:
        np.testing.assert_allclose(schedule.alpha_bar + schedule.sigma**2, 1, rtol=0, atol=4e-16)


@every
def test_arrays_cannot_be_changed(make):
    schedule = make()
    for array in (schedule.alpha, schedule.sigma):
        with pytest.raises(ValueError, match="read-only"):
            array[1] = 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.alpha = np.ones(2)  # type: ignore[misc]


def test_arrays_are_copies_of_what_was_given():
    alpha, sigma = np.array([1.0, 0.5]), np.array([0.0, 0.5])
    schedule = Schedule.from_alpha_sigma(alpha, sigma)
    alpha[1] = sigma[1] = 7
    assert schedule.alpha[1] == schedule.sigma[1] == 0.5


def exact_one_minus_alpha_bar(betas: np.ndarray) -> list[Fraction]:
    product, out = Fraction(1), []
    for beta in betas:
        product *= 1 - Fraction(float(beta))
        out.append(1 - product)
    return out


@pytest.mark.parametrize("first", [1e-4, 1e-8, 1e-13])
def test_variance_near_the_data_has_no_cancellation(first):
    """σ² = 1 - ᾱ against rational arithmetic; subtracting in float64 would be off by 1e-16/β."""
    betas = first * np.array([1.0, 1.5, 3.7, 4.1, 8.3, 20])
    schedule = Schedule.from_betas(betas)
    for k, exact in enumerate(exact_one_minus_alpha_bar(betas), start=1):
        relative = Fraction(float(schedule.sigma[k])) ** 2 / exact - 1
        assert abs(float(relative)) < 1e-15
    np.testing.assert_allclose(schedule.alpha_bar[1:], np.cumprod(1 - betas), rtol=1e-15)


def test_linear_is_ho_et_al():
    schedule = Schedule.linear()
    betas = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_allclose(schedule.betas, betas, rtol=1e-11)
    np.testing.assert_allclose(schedule.alpha_bar[1:], np.cumprod(1 - betas), rtol=1e-13)
    assert schedule.alpha_bar[1] == pytest.approx(1 - 1e-4, rel=1e-15)
    assert schedule.alpha_bar[1000] == pytest.approx(4.036e-5, rel=1e-3)


def test_scaling_keeps_the_end_for_every_length():
    full = Schedule.linear(1000).alpha_bar[-1]
    for T in (100, 250, 500, 2000):
        # log ᾱ_T ≈ -Σβ is the same; the next order of the logarithm is not.
        assert np.log(Schedule.linear(T, scaled=True).alpha_bar[-1]) == pytest.approx(
            np.log(full), rel=0.07
        )
    np.testing.assert_allclose(
        Schedule.linear(500, scaled=True).betas, np.linspace(2e-4, 0.04, 500), rtol=1e-11
    )


def test_scaled_linear_is_linear_in_the_root():
    roots = np.sqrt(Schedule.scaled_linear(50, 0.001, 0.02).betas)
    np.testing.assert_allclose(np.diff(roots), (0.02**0.5 - 0.001**0.5) / 49, rtol=1e-9)
    np.testing.assert_allclose(roots[[0, -1]] ** 2, [0.001, 0.02], rtol=1e-12)


def test_cosine_closed_form():
    T, s = 1000, 0.008
    schedule = Schedule.cosine(T)
    f = np.cos((np.arange(T + 1) / T + s) / (1 + s) * np.pi / 2) ** 2
    # The cap on β only acts at the very end.
    np.testing.assert_allclose(schedule.alpha_bar[:-1], f[:-1] / f[0], rtol=1e-9)
    assert schedule.betas[-1] == pytest.approx(0.999, rel=1e-12)


def test_sigmoid_closed_form():
    T, start, end, tau = 100, -3, 3, 0.7
    schedule = Schedule.sigmoid(T, start, end, tau)
    v = [1 / (1 + math.exp(-(start + (end - start) * k / T) / tau)) for k in range(T + 1)]
    expected = [(v[T] - v[k]) / (v[T] - v[0]) for k in range(T)]
    np.testing.assert_allclose(schedule.alpha_bar[:-1], expected, rtol=1e-10)


def test_flow_is_straight():
    schedule = Schedule.flow(8)
    assert schedule.alpha.tolist() == [1 - k / 8 for k in range(9)]
    assert schedule.sigma.tolist() == [k / 8 for k in range(9)]
    assert schedule.rho[-1] == np.inf
    assert schedule.lam[-1] == -np.inf


def test_alpha_bar_with_and_without_node_zero():
    with_zero = Schedule.from_alpha_bar([1.0, 0.75, 0.36])
    without = Schedule.from_alpha_bar([0.75, 0.36])
    assert with_zero.alpha.tolist() == without.alpha.tolist() == [1, 0.75**0.5, 0.6]
    assert without.sigma.tolist() == [0, 0.5, 0.8]


def test_from_alpha_sigma_keeps_what_it_is_given():
    schedule = Schedule.from_alpha_sigma([1, 1, 1], [0, 2, 80])  # variance-exploding
    assert schedule.sigma.tolist() == [0, 2, 80]
    assert schedule.rho.tolist() == [0, 2, 80]
    assert not schedule.variance_preserving


@pytest.mark.parametrize("make", [Schedule.linear, Schedule.scaled_linear, Schedule.cosine])
def test_zero_terminal_snr(make):
    """Lin et al. 2023, algorithm 1: √ᾱ shifted and stretched between its first and its last."""
    before, after = make(100), make(100).rescaled_to_zero_snr()
    assert after.alpha[-1] == 0
    assert after.sigma[-1] == 1
    assert after.alpha[0] == 1
    assert after.alpha[1] == pytest.approx(before.alpha[1], rel=1e-15)
    share = (before.alpha[1:] - before.alpha[-1]) / (before.alpha[1] - before.alpha[-1])
    np.testing.assert_allclose(after.alpha[1:], share * before.alpha[1], rtol=1e-12, atol=1e-15)
    assert after.rescaled_to_zero_snr() is after


def test_levels():
    schedule = Schedule.linear(10)
    level = schedule.level(7)
    assert level == (schedule.alpha[7], schedule.sigma[7], 6, 1)
    assert {type(number) for number in level} == {float}


@every
def test_a_node_is_found_by_its_lambda(make):
    schedule = make()
    for k in range(1, schedule.T + 1):
        if np.isfinite(schedule.lam[k]):
            found = schedule.level_at(float(schedule.lam[k]))
            assert found == pytest.approx(schedule.level(k), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("make", [Schedule.linear, Schedule.cosine, Schedule.flow])
def test_between_nodes(make):
    """λ is met exactly; the variance is kept where it is; k is linear in log α."""
    schedule = make(50)
    for k in (1, 20, 48):
        for share in (0.2, 0.5, 0.9):
            lam = (1 - share) * schedule.lam[k] + share * schedule.lam[k + 1]
            level = schedule.level_at(float(lam))
            assert math.log(level.alpha / level.sigma) == pytest.approx(lam, rel=1e-12, abs=1e-12)
            if schedule.variance_preserving:
                assert level.alpha**2 + level.sigma**2 == pytest.approx(1, rel=1e-14)
            logs = np.log([schedule.alpha[k], level.alpha, schedule.alpha[k + 1]])
            assert level.t - (k - 1) == pytest.approx((logs[1] - logs[0]) / (logs[2] - logs[0]))


def test_between_nodes_where_alpha_is_constant():
    exploding = Schedule.from_alpha_sigma(np.ones(4), [0, 1, 4, 16])
    assert exploding.level_at(-math.log(8)) == pytest.approx((1, 8, 1.5, 1))


def test_the_start_of_zero_terminal_snr_has_no_finite_lambda(refuses):
    schedule = Schedule.linear(50).rescaled_to_zero_snr()
    assert schedule.level_at(float(schedule.lam[49])).t == pytest.approx(48)
    for lam in (float(schedule.lam[49]) - 0.1, float(schedule.lam[1]) + 0.1):
        with refuses("is outside"):
            schedule.level_at(lam)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Schedule.linear(), {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}),
        (
            Schedule.scaled_linear(),
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        ),
        (Schedule.cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
    ],
    ids=["linear", "scaled_linear", "squaredcos_cap_v2"],
)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_agrees_with_diffusers(diffusers, ours, theirs, zero_snr):
    """They keep float32, so that their cumulative product is good to some 1e-5 relative."""
    scheduler = diffusers.DDIMScheduler(1000, rescale_betas_zero_snr=zero_snr, **theirs)
    ours = ours.rescaled_to_zero_snr() if zero_snr else ours
    expected = scheduler.alphas_cumprod.numpy().astype(np.float64)
    np.testing.assert_allclose(
        ours.alpha_bar[1:], expected, rtol=1e-4 if zero_snr else 2e-5, atol=2e-6
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule.linear(0), "T must be at least 1, not 0"),
        (lambda: Schedule.linear(-1), "T must be at least 1, not -1"),
        (lambda: Schedule.cosine(0), "T must be at least 1"),
        (lambda: Schedule.flow(0), "T must be at least 1"),
        (lambda: Schedule.linear(10, scaled=True), "every β must be in"),
        (lambda: Schedule.from_betas([]), "list of numbers"),
        (lambda: Schedule.from_betas([[0.1]]), "list of numbers"),
        (lambda: Schedule.from_betas([0.1, 0.0]), "every β must be in"),
        (lambda: Schedule.from_betas([0.1, 1.1]), "every β must be in"),
        (lambda: Schedule.from_betas([0.1, math.nan]), "every β must be in"),
        (lambda: Schedule.from_betas([1.0, 0.1]), "only the last node may have α = 0"),
        (lambda: Schedule.from_alpha_bar([0.5, 0.6]), "increase strictly"),
        (lambda: Schedule.from_alpha_bar([0.5, 0.5]), "increase strictly"),
        (lambda: Schedule.from_alpha_bar([0.5, -0.1]), "must be in"),
        (lambda: Schedule.from_alpha_bar([math.nan]), "must be in"),
        (lambda: Schedule.from_alpha_bar([]), "list of numbers"),
        (lambda: Schedule.from_alpha_sigma([1, 0.5], [0, 0.5, 1]), "one length"),
        (lambda: Schedule.from_alpha_sigma([1], [0]), "one length"),
        (lambda: Schedule.from_alpha_sigma([0.9, 0.5], [0, 0.5]), "node 0 is clean data"),
        (lambda: Schedule.from_alpha_sigma([1, 0.5], [0.1, 0.5]), "node 0 is clean data"),
        (lambda: Schedule.from_alpha_sigma([1, -0.5], [0, 0.5]), "α must be positive"),
        (lambda: Schedule.from_alpha_sigma([1, math.inf], [0, 1]), "finite"),
        (lambda: Schedule.from_alpha_sigma([1, 0.9, 0.45], [0, 0.2, 0.1]), "increase strictly"),
        (lambda: Schedule.flow(5).rescaled_to_zero_snr(), "variance-preserving"),
        (lambda: Schedule.linear(1).rescaled_to_zero_snr(), "one step"),
        (lambda: Schedule.from_spec({"kind": "linaer", "T": 5}), "did you mean 'linear'"),
        (lambda: Schedule.from_spec({"T": 5}), "unknown schedule ''"),
        (lambda: Schedule.from_spec({"kind": "linear", "beta": 1}), "schedule 'linear': .*beta"),
        (lambda: Schedule.from_spec({"kind": "linear", "T": "many"}), "schedule 'linear'"),
        (lambda: Schedule.from_spec({"kind": "betas", "betas": ["few"]}), "schedule 'betas'"),
        (lambda: Schedule.linear(5).level(6), "node 6 is outside 0..5"),
        (lambda: Schedule.linear(5).level(-1), "node -1 is outside 0..5"),
    ],
)
def test_refusals(make, message, refuses):
    with refuses(message):
        make()


def test_the_scale_of_the_networks_own_data_is_kept():
    """Noise stands for data of variance 1 in the network's range, between the nodes too."""
    own = Schedule.linear(20)
    wide = Schedule.from_alpha_sigma(own.alpha, own.sigma / 3, 3.0)
    for schedule in (wide, Schedule.from_spec(wide.spec)):
        for level in (schedule.level(20), schedule.level_at(float(schedule.lam[20]))):
            assert level.spread == pytest.approx(1 / 3)
    assert "scale" not in own.spec and own.level(20).spread == pytest.approx(1)
