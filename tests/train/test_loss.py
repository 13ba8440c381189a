from __future__ import annotations

import numpy as np
import pytest
import torch

from ddim.denoisers.target import Target
from ddim.noise.schedule import Schedule
from ddim.train.loss import WEIGHTINGS, diffusion_loss, draw_nodes, loss_weights

SCHEDULE = Schedule.linear(100, 1e-4, 0.08)
ZERO_SNR = SCHEDULE.rescaled_to_zero_snr()


def batch(count: int = 100) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, noise and all nodes 1..T in turn, in float64."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = (
        torch.randn(count, 2, 3, dtype=torch.float64, generator=generator) for _ in range(2)
    )
    return x0, noise, torch.arange(count) % SCHEDULE.T + 1


class Oracle:
    """Knows x0, up to an error of its own, and outputs what the target asks for."""

    def __init__(self, target: Target, schedule: Schedule, x0, error=0.0) -> None:
        self.target, self.schedule, self.x0 = target, schedule, x0 + error

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (
            torch.from_numpy(values.copy())[t + 1].view(-1, 1, 1)
            for values in (self.schedule.alpha, self.schedule.sigma)
        )
        eps = (x - alpha * self.x0) / sigma
        return self.target.of(self.x0, eps, alpha, sigma)


@pytest.mark.parametrize("target", list(Target))
def test_a_perfect_network_has_no_loss(target):
    x0, noise, k = batch()
    loss = diffusion_loss(Oracle(target, SCHEDULE, x0), x0, k, noise, SCHEDULE, target)
    assert loss.shape == (100,)
    assert float(loss.max()) < 1e-12


def test_the_network_is_shown_x_at_its_own_time():
    x0, noise, k = batch()

    def network(x, t):
        assert t.dtype == torch.int64
        assert torch.equal(t, k - 1)
        for n in range(100):
            alpha, sigma = SCHEDULE.alpha[k[n]], SCHEDULE.sigma[k[n]]
            torch.testing.assert_close(
                x[n], alpha * x0[n] + sigma * noise[n], rtol=1e-14, atol=1e-14
            )
        return torch.zeros_like(x)

    loss = diffusion_loss(network, x0, k, noise, SCHEDULE)
    torch.testing.assert_close(loss, noise.float().square().mean(dim=(1, 2)))


@pytest.mark.parametrize("target", list(Target))
@pytest.mark.parametrize("schedule", [SCHEDULE, Schedule.flow(100)], ids=["vp", "flow"])
def test_min_snr_weighs_one_error_of_x0_the_same_for_all_targets(target, schedule):
    """The weighted loss is min(SNR, γ)·|error of x0|², whatever the network outputs."""
    x0, noise, k = batch()
    x0, noise, k = x0[:99], noise[:99], k[:99]  # flow: α = 0 at the last node, where eps is silent
    error = 0.1 * torch.randn(
        x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    weights = loss_weights(schedule, target, "min-snr", 5.0)
    network = Oracle(target, schedule, x0, error)
    loss = diffusion_loss(network, x0, k, noise, schedule, target, weights)
    snr = torch.from_numpy(schedule.snr[1:100].copy())
    expected = snr.clamp(max=5.0) * error.square().mean(dim=(1, 2))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_min_snr_closed_forms(gamma):
    """Hang et al., section 3.4."""
    snr = SCHEDULE.alpha_bar[1:] / SCHEDULE.sigma[1:] ** 2
    clipped = np.minimum(snr, gamma)
    for target, expected in (
        (Target.EPS, clipped / snr),
        (Target.X0, clipped),
        (Target.V, clipped / (snr + 1)),
    ):
        weights = loss_weights(SCHEDULE, target, "min-snr", gamma)
        assert weights.dtype == np.float64
        assert weights[0] == 0
        np.testing.assert_allclose(weights[1:], expected, rtol=1e-12)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("target", list(Target))
def test_weights_are_finite_at_zero_terminal_snr(target, weighting):
    weights = loss_weights(ZERO_SNR, target, weighting)
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()


@pytest.mark.parametrize("schedule", [ZERO_SNR, Schedule.flow(100)], ids=["vp", "flow"])
@pytest.mark.parametrize("target", [Target.X0, Target.V, Target.FLOW])
def test_trap_min_snr_trains_the_node_that_sampling_starts_from(target, schedule):
    """min(SNR, γ) is 0 there; nodes with signal keep their weight."""
    weights = loss_weights(schedule, target, "min-snr")
    assert weights[-1] == 1
    assert (weights[1:] > 0).all()
    snr = schedule.snr[1:-1]
    alpha, sigma = schedule.alpha[1:-1], schedule.sigma[1:-1]
    p, q = target.coefficients(alpha, sigma)
    expected = np.minimum(snr, 5) * (sigma / (alpha * q - sigma * p)) ** 2
    np.testing.assert_allclose(weights[1:-1], expected, rtol=1e-12)


def test_min_snr_is_never_nothing_in_the_precision_of_the_loss():
    """α = 1e-30 is not 0, but its SNR is 0 in float32."""
    schedule = Schedule.from_alpha_sigma([1, 0.5, 1e-30], [0, 0.75**0.5, 1])
    assert loss_weights(schedule, Target.V, "min-snr")[-1] == 1


def test_uniform_weights_are_ones_and_the_same_as_none():
    x0, noise, k = batch()
    weights = loss_weights(SCHEDULE, Target.V)
    assert weights.tolist() == [0.0] + [1.0] * 100
    plain, weighted = (
        diffusion_loss(lambda x, t: x, x0, k, noise, SCHEDULE, "v", w) for w in (None, weights)
    )
    assert torch.equal(plain, weighted)


def test_a_half_precision_network_still_has_a_float32_loss():
    x0, noise, k = batch()
    loss = diffusion_loss(
        lambda x, t: x.bfloat16(),
        x0.float(),
        k,
        noise.float(),
        SCHEDULE,
        weights=loss_weights(SCHEDULE, Target.EPS),
    )
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_antithetic_nodes_come_in_mirrored_pairs(count):
    k = draw_nodes(count, 50, torch.Generator().manual_seed(0))
    assert k.dtype == torch.int64
    assert k.shape == (count,)
    half = (count + 1) // 2
    assert torch.equal(k[: count - half] + k[half:], torch.full((count - half,), 51))


@pytest.mark.parametrize("antithetic", [False, True])
def test_every_node_is_as_likely(antithetic):
    """Including both ends: node 1, nearest the data, and node T."""
    k = draw_nodes(60_000, 10, torch.Generator().manual_seed(0), antithetic=antithetic)
    counts = torch.bincount(k, minlength=11)
    assert counts[0] == 0
    assert len(counts) == 11
    chi2 = float(((counts[1:] - 6000) ** 2 / 6000).sum())
    assert chi2 < (2 if antithetic else 1) * 27.9  # 9 degrees of freedom, once in 1,000


@pytest.mark.parametrize("antithetic", [False, True])
def test_half_of_the_nodes_come_from_the_range_of_focus(antithetic):
    """Both ends of the range included, and every node of it as likely as the next."""
    generator = torch.Generator().manual_seed(0)
    k = draw_nodes(40_001, 50, generator, antithetic=antithetic, focus=(11, 20))
    assert k.shape == (40_001,)
    wide, close = k[:20_001], k[20_001:]
    assert (int(wide.min()), int(wide.max())) == (1, 50)
    counts = torch.bincount(close - 11, minlength=10)
    assert len(counts) == 10
    chi2 = float(((counts - 2000) ** 2 / 2000).sum())
    assert chi2 < (2 if antithetic else 1) * 27.9  # 9 degrees of freedom, once in 1,000


@pytest.mark.parametrize("count", [1, 2, 3])
def test_small_batches_with_focus(count):
    k = draw_nodes(count, 50, torch.Generator().manual_seed(0), focus=(7, 7))
    assert k.shape == (count,)
    assert int((k == 7).sum()) >= count // 2


def test_refusals(refuses):
    x0, noise, k = batch()
    with refuses("unknown weighting 'minsnr': did you mean 'min-snr'"):
        loss_weights(SCHEDULE, Target.EPS, "minsnr")
    with refuses("gamma must be positive"):
        loss_weights(SCHEDULE, Target.EPS, "min-snr", 0)
    with refuses("do not fit together"):
        diffusion_loss(lambda x, t: x, x0, k[:5], noise, SCHEDULE)
    with refuses("do not fit together"):
        diffusion_loss(lambda x, t: x, x0, k, noise[:, :1], SCHEDULE)
    with refuses(r"the network returned \(100, 1, 3\) for \(100, 2, 3\)"):
        diffusion_loss(lambda x, t: x[:, :1], x0, k, noise, SCHEDULE)
    with refuses("images must be floating-point numbers in .*, not torch.uint8"):
        diffusion_loss(lambda x, t: x, x0.to(torch.uint8), k, noise, SCHEDULE)
    with refuses("unknown target"):
        diffusion_loss(lambda x, t: x, x0, k, noise, SCHEDULE, "noise")
