import itertools

import numpy as np
import pytest
import torch

from ddim.calibration.search import PLAIN, endpoint_errors, most_work, search_sampler
from ddim.calibration.trajectory import fit_weights, follow, shortest_path
from ddim.denoisers.exact import Mixture
from ddim.denoisers.prediction import Prediction
from ddim.noise.nodes import quadratic, uniform
from ddim.noise.schedule import Schedule
from ddim.samplers.loop import final, integrate
from ddim.samplers.sampler import Sampler

SCHEDULE = Schedule.linear(300, scaled=True)
MEANS = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
DATA = Mixture(MEANS.clamp(-1, 1), 0.1)


def latents(seed, count, size=8):
    x = torch.randn(count, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return [(DATA, part) for part in x.split(size)]


@pytest.fixture(scope="module")
def teachers():
    return [follow(SCHEDULE, latents(seed, 32)) for seed in (1, 2, 3)]


def median(teacher, sampler):
    return float(np.median(endpoint_errors(teacher, sampler.tableau(SCHEDULE))))


@pytest.mark.parametrize("calls", [5, 8])
def test_a_calibrated_sampler_is_nearer_to_the_solution(teachers, calls):
    done = {}

    def watch(stage, count):
        done[stage] = done.get(stage, 0) + count

    found = search_sampler(calls, *teachers, moves=60, watch=watch)
    assert found.sampler.steps == calls
    assert found.counts == (32, 32, 32)
    # The figures are those of the latents to report on, measured again.
    plain = Sampler(nodes=uniform(SCHEDULE, calls))
    for name, sampler in (("calibrated", found.sampler), ("ddim", plain)):
        errors = endpoint_errors(teachers[2], sampler.tableau(SCHEDULE))
        assert found.errors[name] == pytest.approx((np.median(errors), errors.mean()))
    assert found.errors["calibrated"][0] < 0.5 * found.errors["ddim"][0]
    best = min(found.errors[name][0] for name in (*PLAIN, "dynamic programming"))
    assert found.errors["calibrated"][0] < best
    assert set(done) == {"families", "methods", "moves", "weights", "measuring"}
    most = most_work(calls, found.counts, 8, moves=60)
    assert 0.7 * most < sum(done.values()) <= most
    assert found.path == shortest_path(teachers[0], calls)
    assert len(found.moments) == len(found.teacher) - 1


def test_the_same_seed_finds_the_same(teachers):
    first, again = (search_sampler(4, *teachers, moves=20, seed=7) for _ in range(2))
    assert first.sampler == again.sampler
    assert first.errors == again.errors


def test_moves_never_make_it_worse_on_what_they_look_at(teachers):
    done = []
    found = search_sampler(
        5, *teachers, moves=0, weights=False, watch=lambda stage, count: done.append(count)
    )
    assert sum(done) <= most_work(5, found.counts, 8, moves=0, weights=False)
    moved = search_sampler(5, teachers[0], teachers[0], teachers[0], moves=60, weights=False)
    assert np.isfinite(found.errors["calibrated"][0])
    scores = [
        np.log(endpoint_errors(teachers[0], c.sampler.tableau(SCHEDULE))).mean()
        for c in (found, moved)
    ]
    assert scores[1] <= scores[0] + 1e-12


def test_fitted_weights_are_far_nearer_than_methods_that_are_none_of_the_networks(teachers):
    nodes = quadratic(SCHEDULE, 10)
    weights, _ = fit_weights(teachers[0], nodes)
    fitted = Sampler("learned", nodes=nodes, weights=weights)
    assert [len(w) for w in weights] == [0, 1, 2, 3, 3, 3, 3, 3, 3, 3]
    assert median(teachers[2], fitted) < 0.1 * median(teachers[2], Sampler(nodes=nodes))
    plms = Sampler("plms", nodes=nodes, order=4)
    assert median(teachers[2], fitted) < 0.2 * median(teachers[2], plms)


def test_what_a_fit_ends_with_is_what_its_sampler_makes(teachers):
    nodes = quadratic(SCHEDULE, 6)
    weights, ends = fit_weights(teachers[0], nodes)
    tableau = Sampler("learned", nodes=nodes, weights=weights).tableau(SCHEDULE)
    images = [final(integrate(net, tableau, part))[0] for net, part in teachers[0].groups]
    assert (torch.cat(images) - ends).abs().max() < 1e-9


def test_weights_of_one_step_are_least_squares(teachers):
    """Against numpy's solver, at the first step that has a history."""
    teacher, nodes = teachers[0], uniform(SCHEDULE, 6)
    x = torch.cat([part for _, part in teacher.groups])
    levels = [SCHEDULE.level(k) for k in nodes[:3]]
    first = DATA(x, levels[0])
    x = levels[1].alpha * first.x0 + levels[1].sigma * first.eps
    second = DATA(x, levels[1])
    plain = levels[2].alpha * second.x0 + levels[2].sigma * second.eps
    step = levels[2].alpha * (SCHEDULE.rho[nodes[2]] - SCHEDULE.rho[nodes[1]])
    feature = (step * (first.eps - second.eps)).flatten().numpy()[:, None]
    residual = (teacher.at(nodes[2]) - plain).flatten().numpy()
    expected = np.linalg.lstsq(feature, residual, rcond=None)[0]
    assert fit_weights(teacher, nodes)[0][1] == pytest.approx(expected, rel=1e-6)


def test_the_shortest_path_is_the_shortest():
    """Against every choice of nodes, on a trajectory short enough to try them all."""
    teacher = follow(Schedule.linear(9, 0.05, 0.6), latents(0, 4))
    levels = [teacher.schedule.level(k) for k in teacher.nodes]

    def cost(i, j):
        x0, eps = teacher.x0[i], teacher.eps(i)
        off = levels[j].alpha * x0 + levels[j].sigma * eps - teacher.states[j]
        return float(off.square().mean().sqrt()) / levels[j].alpha

    for steps in (1, 2, 4, 9):
        choices = [(0, *inner, 9) for inner in itertools.combinations(range(1, 9), steps - 1)]
        best = min(choices, key=lambda c: sum(map(cost, c, c[1:])))
        assert shortest_path(teacher, steps) == tuple(teacher.nodes[i] for i in best)


@pytest.mark.parametrize(
    "schedule",
    [Schedule.flow(60), Schedule.linear(60, scaled=True).rescaled_to_zero_snr()],
    ids=str,
)
def test_other_schedules(schedule):
    """Pure noise at the first node has no ρ; neither search nor fit may divide by it."""
    teachers = [follow(schedule, latents(seed, 8)) for seed in (1, 2, 3)]
    found = search_sampler(4, *teachers, moves=20)
    assert found.errors["calibrated"][0] <= found.errors["ddim"][0]
    assert found.sampler.place(schedule)[-1] == 0


@pytest.mark.parametrize("calls", [2, 20])
def test_as_few_and_as_many_calls_as_there_are(calls):
    schedule = Schedule.linear(20, 0.01, 0.4)
    teachers = [follow(schedule, latents(seed, 8)) for seed in (1, 2, 3)]
    assert search_sampler(calls, *teachers, moves=5).sampler.steps == calls


def test_refusals(teachers, refuses):
    for calls in (1, 301):
        with refuses(f"from 2 to T = 300, not {calls}"):
            search_sampler(calls, *teachers)
    with refuses("60 steps, of which 61 cannot"):
        shortest_path(teachers[0], 61)
    with refuses("60 steps has nothing to teach in 61 calls"):
        search_sampler(61, *teachers)


def test_a_network_whose_output_does_not_change():
    def still(x, level):
        return Prediction(x / level.alpha, torch.zeros_like(x))

    x = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    teacher = follow(SCHEDULE, [(still, x)])
    found, ends = fit_weights(teacher, uniform(SCHEDULE, 4))
    assert found == [[], [0.0], [0.0, 0.0], [0.0, 0.0, 0.0]]
    assert torch.allclose(ends, teacher.end)
