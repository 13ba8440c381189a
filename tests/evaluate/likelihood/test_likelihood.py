import math

import numpy as np
import pytest
import torch

import ddim
from ddim.calibration.moments import eps_moments
from ddim.denoisers.exact import Gaussian, Mixture
from ddim.denoisers.network import NetworkDenoiser
from ddim.evaluate.likelihood.bound import _decoder_nats, elbo
from ddim.evaluate.likelihood.ode import _divergence, dequantise, log_density, ode_bits
from ddim.samplers.loop import final, integrate
from ddim.samplers.methods.analytic import analytic, optimal_variance

SCHEDULE = ddim.Schedule.linear(200, scaled=True)
NODES = ddim.make_nodes(SCHEDULE, "uniform", 6)
MEAN, STD = 0.3, 0.5
DATA = Gaussian(MEAN, STD)
BIT = math.log(2)


def gamma(nodes=NODES):
    """E|ε̂|²/D of the exact denoiser: σ²/(α²s² + σ²)."""
    alpha, sigma = SCHEDULE.alpha[list(nodes[:-1])], SCHEDULE.sigma[list(nodes[:-1])]
    return sigma**2 / (alpha**2 * STD**2 + sigma**2)


def draws(n, d=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return MEAN + STD * torch.randn(n, d, generator=g, dtype=torch.float64)


class TestOptimalVariance:
    def test_is_that_of_the_true_reverse_step(self):
        """Of Gaussian data q(x_s | x_t) is a Gaussian, whose variance is closed."""
        for n, found in enumerate(optimal_variance(SCHEDULE, NODES, gamma(), largest=math.inf)):
            t, s = SCHEDULE.level(NODES[n]), SCHEDULE.level(NODES[n + 1])
            before = t.alpha**2 * STD**2 + t.sigma**2
            after = s.alpha**2 * STD**2 + s.sigma**2
            covariance = t.alpha / s.alpha * after
            assert found == pytest.approx(after - covariance**2 / before, rel=1e-9)

    @pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
    def test_keeps_the_marginals_in_any_number_of_steps(self, eta):
        tableau = analytic(SCHEDULE, NODES, gamma=gamma(), eta=eta, largest=math.inf)
        start = tableau.initial[0].level
        variance = start.alpha**2 * STD**2 + start.sigma**2
        source = start
        for row in tableau.rows[:-1]:
            unit = torch.ones(1, dtype=torch.float64)
            zero = DATA(0 * unit, source)
            one = DATA(unit, source)
            ((_, b),), ((_, c),) = row.x0, row.eps
            slope = float(b * (one.x0 - zero.x0) + c * (one.eps - zero.eps))
            variance = slope**2 * variance + row.noise**2
            expected = row.level.alpha**2 * STD**2 + row.level.sigma**2
            assert variance == pytest.approx(expected, rel=1e-9)
            source = row.level
        assert tableau.rows[-1].noise == 0
        assert (tableau.method, tableau.marginal) == ("analytic", False)

    def test_moments_are_those_of_the_network(self):
        found = eps_moments(DATA, SCHEDULE, NODES, draws(100, 300))
        np.testing.assert_allclose(found, gamma(), rtol=0.03)

    def test_is_the_samplers_own_where_the_network_knows_all(self):
        perfect = optimal_variance(SCHEDULE, NODES, np.ones(6))
        plain = ddim.make_tableau(SCHEDULE, NODES, "ddim", eta=1.0)
        np.testing.assert_allclose(perfect, [row.noise**2 for row in plain.rows], atol=1e-15)
        np.testing.assert_array_equal(perfect, optimal_variance(SCHEDULE, NODES, np.full(6, 1.5)))
        assert (optimal_variance(SCHEDULE, NODES, np.zeros(6)) > perfect).all()

    def test_samples_with_a_network(self):
        tableau = analytic(SCHEDULE, NODES, gamma=gamma())
        x = torch.zeros(2, 3)
        noise = ddim.Noise(0, [0, 1], (3,))
        assert final(integrate(DATA, tableau, x, noise))[0].isfinite().all()

    def test_refuses(self, refuses):
        with refuses("gamma must be 6 numbers"):
            optimal_variance(SCHEDULE, NODES, [0.5])
        with refuses("nodes of a sampler fall"):
            optimal_variance(SCHEDULE, NODES[::-1], gamma())
        with refuses("eta"):
            analytic(SCHEDULE, NODES, gamma=gamma(), eta=-1)
        with refuses("no images"):
            eps_moments(DATA, SCHEDULE, NODES, torch.zeros(0, 2))


class TestBound:
    def test_with_the_optimal_variance_is_the_entropy(self):
        """All reverse steps being exact, nothing is lost but the KL of the prior."""
        variance = optimal_variance(SCHEDULE, NODES, gamma(), largest=math.inf)
        found = elbo(DATA, SCHEDULE, NODES, draws(400, 100), variance=variance, bins=None)
        entropy = math.log(STD * math.sqrt(2 * math.pi * math.e)) / BIT
        # The prior's term is of q(x_T | x0), the loss is KL(q(x_T) || p(x_T)).
        a, s = SCHEDULE.alpha[-1], SCHEDULE.sigma[-1]
        v = a**2 * STD**2 + s**2
        loss = (v + a**2 * MEAN**2 - 1 - math.log(v)) / (2 * BIT)
        total = found.total
        assert total.mean() == pytest.approx(entropy + loss, abs=4 * total.std() / 20)
        assert total.std() / 20 < 0.01

    def test_terms_with_the_posterior_variance_are_closed(self):
        """½(SNR_s - SNR_t)·E|x0 - x̂0|², the error being s²σ²/(α²s² + σ²)."""
        found = elbo(DATA, SCHEDULE, NODES, draws(400, 100), bins=None)
        assert found.steps.shape == (400, 5)
        for n in range(5):
            t, s = NODES[n], NODES[n + 1]
            error = STD**2 * gamma()[n]
            expected = 0.5 * (SCHEDULE.snr[s] - SCHEDULE.snr[t]) * error / BIT
            got = found.steps[:, n]
            assert got.mean() == pytest.approx(expected, abs=4 * got.std() / 20)

    def test_orders_the_variances(self):
        x = draws(100, 100)
        best = optimal_variance(SCHEDULE, NODES, gamma(), largest=math.inf)
        bits = {
            name: elbo(DATA, SCHEDULE, NODES, x, variance=v, bins=None).total.mean()
            for name, v in (("best", best), ("posterior", "posterior"), ("large", "large"))
        }
        assert bits["best"] < min(bits["posterior"], bits["large"]) - 0.01

    @pytest.mark.parametrize("steps", [1, 2, 20])
    def test_is_no_less_than_the_entropy(self, steps):
        nodes = ddim.make_nodes(SCHEDULE, "log-snr", steps)
        entropy = math.log(STD * math.sqrt(2 * math.pi * math.e)) / BIT
        for variance in ("posterior", "large"):
            found = elbo(DATA, SCHEDULE, nodes, draws(100, 100), variance=variance, bins=None)
            assert found.steps.shape == (100, steps - 1)
            assert found.total.mean() > entropy

    def test_the_decoder_is_a_probability_of_pixels(self):
        levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
        for mean, std in ((0.1, 0.01), (-0.9, 0.3), (0.999, 0.002), (3.0, 0.1)):
            nats = _decoder_nats(levels, torch.tensor(mean), std, 256)
            assert nats.isfinite().all()
            assert float(torch.exp(-nats).sum()) == pytest.approx(1, abs=1e-10)

    def test_image_i_is_image_i(self):
        x = draws(4)
        whole = elbo(DATA, SCHEDULE, NODES, x, bins=None).total
        part = elbo(DATA, SCHEDULE, NODES, x[2:], bins=None, indices=[2, 3]).total
        np.testing.assert_allclose(part, whole[2:], rtol=1e-12)

    def test_refuses(self, refuses):
        x = draws(2)
        with refuses("end at node 0"):
            elbo(DATA, SCHEDULE, (200, 100), x)
        with refuses("unknown variance 'larg': did you mean 'large'"):
            elbo(DATA, SCHEDULE, NODES, x, variance="larg")
        with refuses("6 positive numbers"):
            elbo(DATA, SCHEDULE, NODES, x, variance=np.zeros(6))
        with refuses("2 images but 1"):
            elbo(DATA, SCHEDULE, NODES, x, indices=[0])


class TestFlow:
    def exact(self, x):
        """Of N(mean, s² + ρ₁²), pushed to node T by the exact flow and weighed by the prior."""
        rho = SCHEDULE.rho
        before, after = STD**2 + rho[1] ** 2, STD**2 + rho[-1] ** 2
        y = MEAN + math.sqrt(after / before) * (x - MEAN)
        prior = 1 + rho[-1] ** 2
        log_p = -0.5 * (y**2 / prior + math.log(2 * math.pi * prior))
        return (log_p + 0.5 * math.log(after / before)).sum(dim=1).numpy()

    @pytest.mark.parametrize("probes", [1, None])
    def test_is_closed_on_gaussian_data(self, probes):
        x = draws(6, 3)
        found = log_density(DATA, SCHEDULE, x, probes=probes)
        np.testing.assert_allclose(found, self.exact(x), atol=5e-4)
        # Nearly the density itself: ρ₁ is 0.014.
        normal = -0.5 * ((x - MEAN) / STD) ** 2 - math.log(STD * math.sqrt(2 * math.pi))
        np.testing.assert_allclose(found, normal.sum(dim=1), atol=0.02)

    def test_20_nodes_do_and_so_does_float32(self):
        x = draws(6, 3)
        nodes = ddim.make_nodes(SCHEDULE, "log-snr", 20)[-2::-1]
        for data in (x, x.float()):
            found = log_density(DATA, SCHEDULE, data, nodes)
            np.testing.assert_allclose(found, self.exact(x), atol=2e-3)

    def test_is_that_of_a_mixture(self):
        means = torch.tensor([[0.6, 0.0], [-0.3, 0.5], [-0.3, -0.5]], dtype=torch.float64)
        data = Mixture(means, 0.2)
        x = means + torch.tensor([[0.1, 0.2], [0.3, -0.3], [0.0, 0.0]], dtype=torch.float64)
        variance = 0.2**2 + SCHEDULE.rho[1] ** 2
        squares = (x[:, None] - means).square().sum(dim=2)
        each = -0.5 * squares / variance - math.log(2 * math.pi * variance * 3)
        exact = each.logsumexp(dim=1).numpy()
        found = log_density(data, SCHEDULE, x, probes=None)
        np.testing.assert_allclose(found, exact, atol=2e-3)
        nodes = ddim.make_nodes(SCHEDULE, "log-snr", 16)[-2::-1]
        # One probe of many copies of the points is many probes.
        copies, points = 200, x.repeat(200, 1)
        estimates = log_density(data, SCHEDULE, points, nodes).reshape(copies, 3)
        error = estimates.std(axis=0) / copies**0.5
        assert (np.abs(estimates.mean(axis=0) - exact) < 4 * error + 0.01).all()
        assert error.max() < 0.2

    def test_bits_of_pixels_are_near_the_entropy(self):
        x = (draws(20, 20) * 127.5).round() / 127.5  # pixels/127.5-1, but for an offset
        noisy = dequantise(x)
        assert (noisy - x).abs().max() <= 0.5 / 127.5
        assert float((noisy - x).std()) == pytest.approx(1 / 127.5 / 12**0.5, rel=0.1)
        nodes = ddim.make_nodes(SCHEDULE, "log-snr", 25)[-2::-1]
        bits = ode_bits(DATA, SCHEDULE, x, nodes)
        normal = -0.5 * ((x - MEAN) / STD) ** 2 - math.log(STD * math.sqrt(2 * math.pi))
        assert bits.mean() == pytest.approx(
            float(-normal.mean()) / BIT + math.log2(127.5), abs=0.01
        )

    def test_float32_is_enough_for_the_divergence_of_a_network(self):
        model = ddim.load("mnist")
        x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        v = torch.sign(torch.randn(x.shape, generator=torch.Generator().manual_seed(1)))
        level, found = model.schedule.level(1), []
        for dtype in (torch.float32, torch.float64):
            denoiser = NetworkDenoiser(model.net.to(dtype), model.target)
            found.append(_divergence(denoiser, x.to(dtype), level, [v.to(dtype)]))
        torch.testing.assert_close(*found, rtol=1e-3, atol=0)

    def test_refuses(self, refuses):
        x = draws(2)
        for nodes in ((0, 1, 2, 3), (4, 3, 2, 1), (1, 2, 3)):
            with refuses("at least 4 nodes, from node 1"):
                log_density(DATA, SCHEDULE, x, nodes)
        with refuses("probes"):
            log_density(DATA, SCHEDULE, x, probes=0)
        none = SCHEDULE.rescaled_to_zero_snr()
        with refuses("α = 0"):
            log_density(DATA, none, x, tuple(range(1, none.T + 1)))

    def test_begins_at_the_last_node_where_something_is_left(self):
        x = draws(3)
        for schedule in (ddim.Schedule.cosine(60).rescaled_to_zero_snr(), ddim.Schedule.flow(60)):
            ends = schedule.alpha[:-1], schedule.sigma[:-1]
            below = ddim.Schedule.from_alpha_sigma(*ends)
            found = log_density(DATA, schedule, x, probes=None)
            expected = log_density(DATA, below, x, probes=None)
            assert found == pytest.approx(expected, abs=2e-2)
