from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddim.denoisers.target import Target
from ddim.noise.schedule import Level


@st.composite
def levels(draw) -> Level:
    if draw(st.booleans()):
        angle = draw(st.floats(1e-3, math.pi / 2 - 1e-3))
        return Level(math.cos(angle), math.sin(angle), 0.0)
    u = draw(st.floats(1e-3, 1 - 1e-3))
    return Level(1 - u, u, 0.0)


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 3, 4, dtype=torch.float64, generator=generator) for _ in range(2))


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    return bool((a - b).abs().max() <= tolerance)


@given(levels(), st.sampled_from(list(Target)), st.integers(0, 99))
def test_split_solves_for_what_was_put_in(level, target, seed):
    x0, eps = pair(seed)
    x = level.alpha * x0 + level.sigma * eps
    got_x0, got_eps = target.split(target.of(x0, eps, level.alpha, level.sigma), x, level)
    # Rounding of x is divided by the smaller of the two scales.
    tolerance = 1e-14 / min(level.alpha, level.sigma)
    assert close(got_x0, x0, tolerance)
    assert close(got_eps, eps, tolerance)


@given(levels(), st.sampled_from(list(Target)), st.integers(0, 99))
def test_any_output_splits_into_a_pair_that_makes_up_x(level, target, seed):
    """x = α·x0 + σ·eps holds even for a wrong network."""
    output, x = pair(seed)
    x0, eps = target.split(output, x, level)
    p, q = target.coefficients(level.alpha, level.sigma)
    assert close(level.alpha * x0 + level.sigma * eps, x, 1e-13)
    assert close(p * x0 + q * eps, output, 1e-13 / min(level.alpha, level.sigma))


def test_coefficients_are_the_definitions():
    x0, eps = pair()
    alpha, sigma = 0.6, 0.8
    assert torch.equal(Target.EPS.of(x0, eps, alpha, sigma), eps)
    assert torch.equal(Target.X0.of(x0, eps, alpha, sigma), x0)
    assert close(Target.V.of(x0, eps, alpha, sigma), alpha * eps - sigma * x0, 1e-15)
    assert close(Target.FLOW.of(x0, eps, alpha, sigma), eps - x0, 1e-15)


def test_v_is_the_derivative_of_x_along_the_angle():
    """Salimans and Ho, appendix D: with x = cos φ·x0 + sin φ·eps, v = dx/dφ."""
    x0, eps = pair()
    angle = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x = angle.cos() * x0 + angle.sin() * eps
    derivative = [
        torch.autograd.grad(element, angle, retain_graph=True)[0] for element in x.flatten()
    ]
    v = Target.V.of(x0, eps, math.cos(0.7), math.sin(0.7))
    assert close(v.flatten(), torch.stack(derivative), 1e-15)


def test_scales_may_be_tensors_that_broadcast():
    x0, eps = pair()
    alpha = torch.tensor([0.6, 0.8], dtype=torch.float64).view(2, 1, 1)
    both = Target.V.of(x0, eps, alpha, alpha.flip(0))
    assert close(both[1], Target.V.of(x0[1], eps[1], 0.8, 0.6), 1e-15)


@pytest.mark.parametrize("target", [Target.V, Target.FLOW, Target.X0])
def test_finite_at_zero_terminal_snr(target):
    x0, eps = pair()
    level = Level(0.0, 1.0, 999.0)
    got_x0, got_eps = target.split(target.of(x0, eps, 0.0, 1.0), eps, level)
    assert close(got_x0, x0, 1e-15)
    assert close(got_eps, eps, 1e-15)


@pytest.mark.parametrize("target", [Target.V, Target.FLOW, Target.EPS])
def test_finite_at_the_data(target):
    x0, eps = pair()
    got_x0, got_eps = target.split(target.of(x0, eps, 1.0, 0.0), x0, Level(1.0, 0.0, 0.0))
    assert close(got_x0, x0, 1e-15)
    assert close(got_eps, eps, 1e-15)


@pytest.mark.parametrize(
    ("target", "level"), [(Target.EPS, Level(0.0, 1.0, 9.0)), (Target.X0, Level(1.0, 0.0, 0.0))]
)
def test_refused_where_nothing_is_said(target, level, refuses):
    x, output = pair()
    with refuses(f"predicts {target.value} says nothing at α={level.alpha:g}, σ={level.sigma:g}"):
        target.split(output, x, level)


@pytest.mark.parametrize("target", list(Target))
def test_split_changes_neither_the_output_nor_the_state(target):
    output, x = pair()
    before = output.clone(), x.clone()
    target.split(output, x, Level(0.6, 0.8, 0.0))
    assert torch.equal(output, before[0])
    assert torch.equal(x, before[1])


def test_by_name(refuses):
    assert [Target.named(t.value) for t in Target] == list(Target)
    assert Target.named(Target.V) is Target.V
    with refuses("unknown target 'epsilon'"):
        Target.named("epsilon")
