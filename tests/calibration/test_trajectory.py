import pytest
import torch

from ddim.base.errors import RunError
from ddim.calibration.trajectory import follow
from ddim.denoisers.exact import Gaussian, Mixture
from ddim.noise.schedule import Schedule

DATA = Gaussian(0.3, 0.5)
X = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule.linear(400, scaled=True),
        Schedule.cosine(400),
        Schedule.linear(400, scaled=True).rescaled_to_zero_snr(),
        Schedule.flow(400),
    ],
    ids=str,
)
def test_every_node_lies_on_the_exact_solution(schedule):
    first = schedule.level(400)
    scale = (first.alpha**2 + first.sigma**2) ** 0.5
    found = follow(schedule, [(DATA, X[:4]), (DATA, X[4:])])
    assert found.nodes[0] == 400 and len(found.nodes) == 61
    # Between the solver's nodes as on them: the error is the solver's, not the interpolation's.
    worst = 0.0
    for k in range(1, 401):
        exact = DATA.flow(X * scale, first, schedule.level(k))
        worst = max(worst, float((found.at(k) - exact).abs().max()))
    on_nodes = max(
        float((found.at(k) - DATA.flow(X * scale, first, schedule.level(k))).abs().max())
        for k in found.nodes[:-1]
    )
    assert worst < 1.2 * on_nodes + 1e-5
    assert on_nodes < 0.02
    assert (found.at(0) == found.end).all()


def test_outputs_along_the_way():
    schedule = Schedule.linear(100, scaled=True)
    done = []
    found = follow(schedule, [(DATA, X)], steps=20, watch=done.append)
    assert done == [6 * 20]
    for i, k in enumerate(found.nodes[:-1]):
        level = schedule.level(k)
        assert torch.allclose(found.eps(i), DATA(found.states[i], level).eps, atol=1e-9)
    # E ε̂² of a Gaussian: σ²/(α²s² + σ²), here of six draws.
    level = schedule.level(found.nodes[0])
    exact = level.sigma**2 / (level.alpha**2 * 0.25 + level.sigma**2)
    many = torch.randn(20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moments = follow(schedule, [(Gaussian(0.0, 0.5), many)], steps=20).moments()
    assert moments[0] == pytest.approx(exact, rel=0.03)
    low = schedule.level(found.nodes[-2])
    assert moments[-1] == pytest.approx(
        low.sigma**2 / (low.alpha**2 * 0.25 + low.sigma**2), rel=0.03
    )


def test_fewer_nodes_than_steps():
    schedule = Schedule.linear(10)
    assert follow(schedule, [(DATA, X)]).nodes == tuple(range(10, -1, -1))


def test_refusals(refuses):
    schedule = Schedule.linear(10)
    with refuses("no latents"):
        follow(schedule, [])
    found = follow(schedule, [(DATA, X)], steps=3)
    with refuses("not at 11"):
        found.at(11)
    broken = Mixture(torch.tensor([[float("nan"), 0, 0]], dtype=torch.float64), 0.1)
    with pytest.raises(RunError, match="not finite"):
        follow(schedule, [(broken, X)])
