"""What builders share."""

import numpy as np
import pytest

from ddim.noise.schedule import Schedule
from ddim.samplers.methods.grid import Grid

GRID = Grid(Schedule.linear(100, 1e-3, 0.2), (100, 71, 52, 30, 14, 0))


@pytest.mark.parametrize("history", [[1], [2, 1], [3, 2, 0]])
def test_integrals_over_one_step_are_those_of_the_polynomials(history):
    """Σ_j ∫ℓ_j·w·p(λ_j) = ∫w·p for every polynomial p that has no higher degree."""
    low, high = GRID.lam(history[0]), GRID.lam(history[0] + 1)
    plain = GRID.integrals(history)
    weighed = GRID.integrals(history, lambda lam: np.exp(lam - high))
    for degree in range(len(history)):
        values = GRID.lams[history] ** degree
        power = (high ** (degree + 1) - low ** (degree + 1)) / (degree + 1)
        assert plain @ values == pytest.approx(power)
        fine = np.linspace(low, high, 20001)
        curve = np.exp(fine - high) * fine**degree
        trapezoids = ((curve[1:] + curve[:-1]) / 2 * np.diff(fine)).sum()
        assert weighed @ values == pytest.approx(trapezoids, rel=1e-6)
