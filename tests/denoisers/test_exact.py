from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddim.denoisers.exact import Empirical, Gaussian, Mixture
from ddim.noise.nodes import uniform
from ddim.noise.schedule import Level, Schedule
from ddim.samplers.loop import final, integrate
from ddim.samplers.methods.ddim import ddim

LEVELS = [
    Level(0.8, 0.6, 0),
    Level(0.99, 0.05, 0),
    Level(0.1, 0.9, 0),
    Level(0.0, 1.0, 0),
    Level(1.0, 30.0, 0),
]
every_level = pytest.mark.parametrize(
    "level", LEVELS, ids=lambda level: f"{level.alpha}-{level.sigma}"
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def mixture(std: Tensor | float | None = None) -> Mixture:
    std = torch.tensor([0.3, 0.05, 1.2, 0.6], dtype=torch.float64) if std is None else std
    weights = torch.tensor([1.0, 2.0, 0.5, 4.0], dtype=torch.float64)
    return Mixture(randn(4, 2, 3), std, weights)


def log_density(model: Mixture, x: Tensor, level: Level) -> Tensor:
    """log p(x) of the noised mixture, component by component, shape (N,)."""
    components = []
    weights = model.log_weights.exp()
    for mean, variance, weight in zip(model.means, model.variance, weights, strict=True):
        total = level.alpha**2 * variance + level.sigma**2
        distance = (x - level.alpha * mean).flatten(1).square().sum(1)
        dims = mean.numel()
        components.append(
            weight.log() - distance / (2 * total) - dims / 2 * (2 * math.pi * total).log()
        )
    return torch.stack(components, dim=1).logsumexp(dim=1)


def score(log_p: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(log_p.sum(), x)[0]


@every_level
def test_gaussian_is_the_conditional_mean(level):
    """E[x0 | x] of jointly Gaussian (x0, x): mean + cov(x0, x)/var(x)·(x - E x)."""
    mean, std = randn(3), torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    x = randn(5, 3, seed=1)
    prediction = Gaussian(mean, std)(x, level)
    variance = level.alpha**2 * std**2 + level.sigma**2
    close(prediction.x0, mean + level.alpha * std**2 / variance * (x - level.alpha * mean))
    close(level.alpha * prediction.x0 + level.sigma * prediction.eps, x)


@every_level
def test_gaussian_eps_is_the_score(level):
    x = randn(6, seed=1).requires_grad_()
    variance = level.alpha**2 * 0.5**2 + level.sigma**2
    log_p = -((x - level.alpha * 0.3) ** 2) / (2 * variance)
    close(Gaussian(0.3, 0.5)(x, level).eps, -level.sigma * score(log_p, x))


@every_level
def test_gaussian_is_a_mixture_of_one(level):
    x = randn(4, 2, seed=1)
    mean = randn(2, seed=2)
    single, mixed = Gaussian(mean, 0.4)(x, level), Mixture(mean[None], 0.4)(x, level)
    close(single.x0, mixed.x0)
    close(single.eps, mixed.eps)


@given(st.integers(0, 50), st.floats(0.01, 1.5), st.floats(0.01, 1.5))
def test_the_flow_is_a_flow(seed, a, b):
    """It solves the ODE (dy = ε dρ, y = x/α), composes, and returns."""
    model = Gaussian(0.3, 0.5)
    x = randn(4, seed=seed)
    source, target = (Level(math.cos(u), math.sin(u), 0) for u in (a, b))
    middle = Level(math.cos((a + b) / 2), math.sin((a + b) / 2), 0)
    there = model.flow(x, source, target)
    close(model.flow(there, target, source), x, 1e-10)
    close(model.flow(model.flow(x, source, middle), middle, target), there, 1e-10)
    close(model.flow(x, source, source), x)
    h = 1e-5
    rho = source.sigma / source.alpha
    y = []
    for sign in (-1, 1):
        angle = math.atan(rho + sign * h)
        near = Level(math.cos(angle), math.sin(angle), 0)
        y.append(model.flow(x, source, near) / near.alpha)
    close((y[1] - y[0]) / (2 * h), model(x, source).eps, 1e-6)


def test_the_flow_carries_one_marginal_to_the_other():
    model = Gaussian(0.3, 0.5)
    source, target = Level(0.2, 0.9, 0), Level(0.9, 0.3, 0)
    sd = [math.hypot(level.alpha * 0.5, level.sigma) for level in (source, target)]
    quantiles = torch.tensor([-2.0, 0.0, 1.0], dtype=torch.float64)
    close(
        model.flow(source.alpha * 0.3 + sd[0] * quantiles, source, target),
        target.alpha * 0.3 + sd[1] * quantiles,
    )


def test_ddim_in_many_steps_follows_the_flow():
    schedule = Schedule.cosine(4000)
    model = Gaussian(0.3, 0.5)
    x = randn(50, seed=3)
    exact = model.flow(x, schedule.level(schedule.T), schedule.level(0))
    errors = []
    for steps in (1000, 4000):
        tableau = ddim(schedule, uniform(schedule, steps))
        errors.append(float((final(integrate(model, tableau, x))[0] - exact).abs().max()))
    assert errors[1] < 2e-3
    assert errors[1] < 0.35 * errors[0]


@every_level
def test_responsibilities_are_bayes(level):
    model = mixture()
    x = randn(7, 2, 3, seed=4) * math.hypot(level.alpha, level.sigma)
    got = model.responsibilities(x, level)
    for n in range(len(x)):
        joint = []
        weights = model.log_weights.exp()
        for mean, variance, weight in zip(model.means, model.variance, weights, strict=True):
            total = float(level.alpha**2 * variance + level.sigma**2)
            normal = torch.distributions.Normal(level.alpha * mean, total**0.5)
            joint.append(float(weight.log() + normal.log_prob(x[n]).sum()))
        expected = np.exp(np.array(joint) - max(joint))
        np.testing.assert_allclose(got[n].numpy(), expected / expected.sum(), rtol=1e-9, atol=1e-12)


@every_level
def test_mixture_eps_is_the_score(level):
    """ε = -σ ∇ log p, by automatic differentiation of the density."""
    model = mixture()
    x = (randn(5, 2, 3, seed=5) * math.hypot(level.alpha, level.sigma)).requires_grad_()
    prediction = model(x, level)
    close(prediction.eps.detach(), -level.sigma * score(log_density(model, x, level), x), 1e-9)
    close((level.alpha * prediction.x0 + level.sigma * prediction.eps).detach(), x.detach())


def test_weights_are_normalised_and_equal_by_default():
    means = randn(3, 2)
    x, level = randn(4, 2, seed=1), LEVELS[0]
    same = [Mixture(means, 0.2), Mixture(means, 0.2, torch.full((3,), 7.0))]
    close(same[0](x, level).x0, same[1](x, level).x0, 1e-6)
    heavy = Mixture(means, 0.2, torch.tensor([1e9, 1.0, 1.0], dtype=torch.float64))
    close(heavy(x, level).x0, Mixture(means[:1], 0.2)(x, level).x0, 1e-4)


@every_level
def test_empirical_is_a_softmax_over_the_images(level):
    images = randn(9, 1, 4, 4).clamp(-1, 1)
    x = level.alpha * images[:3] + level.sigma * randn(3, 1, 4, 4, seed=6)
    got = Empirical(images)(x, level)
    for n in range(3):
        distance = torch.stack([(x[n] - level.alpha * image).square().sum() for image in images])
        weight = torch.softmax(-distance / (2 * level.sigma**2), dim=0)
        close(got.x0[n], sum(w * image for w, image in zip(weight, images, strict=True)), 1e-9)
    close(level.alpha * got.x0 + level.sigma * got.eps, x)


def test_empirical_sampling_ends_at_the_images_themselves():
    images = randn(6, 1, 3, 3).clamp(-1, 1)
    schedule = Schedule.linear(200, scaled=True)
    tableau = ddim(schedule, uniform(schedule, 50))
    (out,) = final(integrate(Empirical(images), tableau, randn(20, 1, 3, 3, seed=7)))
    nearest = (out[:, None] - images[None]).flatten(2).abs().amax(2).amin(1)
    assert float(nearest.max()) < 1e-6


@pytest.mark.parametrize("size", [4, 28])
def test_single_precision_is_good_enough_next_to_the_data(size):
    """The squared distances cancel; at σ = 0.01 they are divided by 1e-4."""
    images = torch.rand(40, 1, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    schedule = Schedule.linear()
    level = schedule.level(1)
    x = level.alpha * images[:5].double() + level.sigma * randn(5, 1, size, size)
    exact = Empirical(images.double())(x, level)
    single = Empirical(images)(x.float(), level)
    assert float((single.x0 - exact.x0).abs().max()) < 1e-6


def test_refusals(refuses):
    with refuses(r"means must have shape \(M, \*\), not \(3,\)"):
        Mixture(torch.zeros(3))
    with refuses("means must have shape"):
        Mixture(torch.zeros(0, 2))
    with refuses("weights must be 2 positive numbers"):
        Mixture(torch.zeros(2, 2), 0.1, torch.tensor([1.0, 0.0]))
    with refuses("weights must be 2 positive numbers"):
        Mixture(torch.zeros(2, 2), 0.1, torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_states_of_another_precision_keep_it(dtype):
    data = Empirical(randn(3, 2, 4).float())
    x = randn(5, 2, 4, seed=1).to(dtype)
    found = data(x, LEVELS[0])
    assert found.x0.dtype == found.eps.dtype == dtype
    torch.testing.assert_close(found.x0, data(x.float(), LEVELS[0]).x0.to(dtype))
