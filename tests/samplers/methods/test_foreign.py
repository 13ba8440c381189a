"""The grids of other programs against their formulas, and their loops written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddim.base.errors import InputError
from ddim.denoisers.clipping import Clip, Clipping, StaleEps
from ddim.denoisers.network import NetworkDenoiser
from ddim.noise.foreign import FOREIGN_NODES, improved_ddim, leading, nngen, official, sections
from ddim.noise.nodes import NODES, make_nodes, uniform
from ddim.noise.schedule import Schedule
from ddim.samplers.lookup import METHODS
from ddim.samplers.loop import final, integrate
from ddim.samplers.methods.foreign import ddim_pairs
from ddim.samplers.sampler import make_tableau

LINEAR = Schedule.linear()
HALF = Schedule.linear(500, scaled=True)


def network(x: Tensor, t: Tensor) -> Tensor:
    t = t.to(x.dtype).view(-1, 1, 1, 1)
    return (0.6 + 0.3 * torch.cos(t / 300)) * x + 0.2 * torch.sin(t / 100)


def noise(index: int) -> Tensor:
    generator = torch.Generator().manual_seed(index)
    return torch.randn(2, 1, 3, 3, dtype=torch.float64, generator=generator)


START = noise(0)
STALE = Clipping("clip", stale_eps=True)


def run(tableau, clipping: Clipping | None = None) -> Tensor:
    denoiser = (clipping or Clipping()).wrap(NetworkDenoiser(network))
    return final(integrate(denoiser, tableau, START, noise))[0]


# -- the grids ------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(FOREIGN_NODES)), st.integers(1, 300), st.data())
def test_a_grid_falls_within_the_schedule_or_is_refused(name, T, data):
    schedule = Schedule.linear(T, scaled=T >= 20)
    steps = data.draw(st.integers(1, T))
    try:
        nodes = make_nodes(schedule, name, steps)
    except InputError:
        return
    assert all(type(k) is int for k in nodes)
    assert all(a > b for a, b in itertools.pairwise(nodes))
    assert 1 <= nodes[0] <= T
    assert nodes[-1] == (1 if name.startswith("nngen") else 0)
    if name.startswith(("diffusers", "improved")):
        assert len(nodes) == steps + 1


def test_names_do_not_collide():
    assert not FOREIGN_NODES.keys() & NODES.keys()


@pytest.mark.parametrize("steps", [10, 20, 50, 100, 300, 1000])
def test_official(steps):
    skip = 1000 // steps
    assert official(LINEAR, steps) == (*(t + 1 for t in reversed(range(0, 1000, skip))), 0)
    times = [int(t) for t in np.linspace(0, np.sqrt(1000 * 0.8), steps) ** 2]
    nodes = official(LINEAR, steps, quadratic=True)
    assert nodes == (*sorted({t + 1 for t in times}, reverse=True), 0)
    assert nodes[0] == 801


def test_the_numbers_of_steps_that_official_takes():
    """334 for 300 of 1000; and with its squares 49 for 50, 96 for 100 that lead anywhere."""
    assert len(official(LINEAR, 300)) - 1 == 334
    found = [len(official(LINEAR, S, quadratic=True)) - 1 for S in (10, 20, 50, 100, 1000)]
    assert found == [10, 20, 49, 96, 688]


@pytest.mark.parametrize("steps", [1, 20, 50, 60, 300, 499])
def test_nngen(steps):
    times = np.asarray(range(0, 500, 500 // steps))[:steps] + 1
    assert nngen(HALF, steps) == (*(int(t) + 1 for t in reversed(times)), 1)
    times = (np.linspace(0, np.sqrt(500 * 0.8), steps) ** 2).astype(int) + 1
    expected = (*sorted({int(t) + 1 for t in times}, reverse=True), 1)
    assert nngen(HALF, steps, quadratic=True) == expected


def test_nngen_starts_below_the_middle():
    """T = 500, S = 300 starts at t = 300."""
    assert HALF.level(nngen(HALF, 300)[0]).t == 300


def test_improved():
    assert sections(LINEAR, (1000,)) == tuple(range(1000, -1, -1))
    assert sections(LINEAR, (1,)) == (1, 0)
    assert sections(Schedule.linear(300), (10, 15, 20))[:3] == (300, 295, 290)
    assert len(sections(Schedule.linear(300), (10, 15, 20))) == 46
    assert sections(Schedule.linear(11), (2, 2, 1)) == (9, 8, 5, 4, 1, 0)
    assert improved_ddim(LINEAR, 250) == official(LINEAR, 250)
    # 1000 in steps of 3 are 334.
    assert improved_ddim(LINEAR, 334)[:2] == (1000, 997)


@pytest.mark.parametrize("name", sorted(set(FOREIGN_NODES) - {"improved-ddim"}))
def test_a_grid_serves_every_method(name):
    nodes = make_nodes(HALF, name, 12)
    for method in ("ddim", "ddpm", "dpmpp", "unipc", "plms", "deis", "heun"):
        assert run(make_tableau(HALF, nodes, method)).isfinite().all()


def test_diffusers_trailing_is_uniform_but_for_halves():
    for steps in range(1, 1001):
        if not (2000 * np.arange(1, steps) % (2 * steps) == steps).any():
            assert make_nodes(LINEAR, "diffusers-trailing", steps) == uniform(LINEAR, steps)
    assert uniform(LINEAR, 16)[1:4:2] == (938, 813)
    assert make_nodes(LINEAR, "diffusers-trailing", 16)[1:4:2] == (938, 812)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nngen(HALF, 500), "past the end of its table, at t = 500 ≥ 500"),
        (lambda: leading(HALF, 500, offset=1), "past the end of its table"),
        (lambda: leading(HALF, 500, multistep=True), "from 1 to 499, not 500"),
        (lambda: official(HALF, 0), "from 1 to 500, not 0"),
        (lambda: sections(HALF, (300, 200)), "section 0 of 250 nodes cannot have 300 steps"),
        (lambda: sections(HALF, ()), "at least one"),
        (lambda: improved_ddim(LINEAR, 300), "no whole stride through 1000 gives exactly 300"),
        (lambda: make_nodes(HALF, "diffusers-leadin", 5), "did you mean 'diffusers-leading'"),
    ],
)
def test_grids_that_are_not_there(make, message, refuses):
    with refuses(message):
        make()


# -- the loops ------------------------------------------------------------------------------------


def alpha_bars(schedule: Schedule, t: int, s: int) -> tuple[float, float]:
    return float(schedule.alpha_bar[t]), float(schedule.alpha_bar[s])


def generalized(schedule, pairs, eta: float, clip: float, stale: bool = True) -> Tensor:
    """x0, then √ᾱ₊·x0 + √(1 - ᾱ₊ - c²)·e + c·z, from nodes t to s, as all three write it."""
    x = START
    for n, (t, s) in enumerate(pairs, start=1):
        a, b = alpha_bars(schedule, t, s)
        e = network(x, torch.full((2,), t - 1))
        x0 = (x - math.sqrt(1 - a) * e) / math.sqrt(a)
        x0 = x0.clamp(-clip, clip)
        if not stale:
            e = (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
        c = eta * math.sqrt((1 - b) / (1 - a) * (1 - a / b))
        x = math.sqrt(b) * x0 + math.sqrt(1 - b - c**2) * e + c * noise(n)
    return x


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize(
    ("name", "clip", "stale"),
    [
        ("official", math.inf, True),
        ("official-quadratic", math.inf, True),
        ("nngen", 1.0, True),
        ("improved", 1.0, False),
        ("improved-ddim", 1.0, False),
    ],
)
def test_ddim_of_the_three(name, clip, stale, eta):
    nodes = make_nodes(HALF, name, 20)
    expected = generalized(HALF, itertools.pairwise(nodes), eta, clip, stale)
    found = run(make_tableau(HALF, nodes, eta=eta), Clipping("clip", clip, stale_eps=stale))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("clip", [math.inf, 0.3])
def test_steps_of_length_zero(clip):
    """The squares of nngen repeat t = 1 three times at S = 50: nothing happens there."""
    times = (np.linspace(0, np.sqrt(500 * 0.8), 50) ** 2).astype(int) + 1
    assert times[:4].tolist() == [1, 1, 1, 2]
    visited = [*(int(t) + 1 for t in reversed(times)), 1]
    pairs = list(itertools.pairwise(visited))
    expected = generalized(HALF, pairs, 0.0, clip)
    clipping = Clipping("clip", clip, stale_eps=True)
    found = run(ddim_pairs(HALF, pairs), clipping)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    if clip == math.inf:
        left_out = run(make_tableau(HALF, make_nodes(HALF, "nngen-quadratic", 50)))
        torch.testing.assert_close(left_out, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["official", "official-quadratic"])
def test_the_larger_variance_of_the_official_code(name):
    """Its ``ddpm_noisy``: the posterior mean from the clipped x0, √β of noise but in the last."""
    nodes = make_nodes(LINEAR, name, 20)
    x = START
    for n, (t, s) in enumerate(itertools.pairwise(nodes), start=1):
        a, b = alpha_bars(LINEAR, t, s)
        beta = 1 - a / b
        e = network(x, torch.full((2,), t - 1))
        x0 = (x / math.sqrt(a) - math.sqrt(1 / a - 1) * e).clamp(-1, 1)
        x = (math.sqrt(b) * beta * x0 + math.sqrt(1 - beta) * (1 - b) * x) / (1 - a)
        x = x + (math.sqrt(beta) * noise(n) if t > 1 else 0)
    found = run(make_tableau(LINEAR, nodes, "ddpm", variance="large"), Clipping("clip"))
    torch.testing.assert_close(found, x, rtol=1e-11, atol=1e-11)


# -- steps and clipping ---------------------------------------------------------------------------


def test_where_pairs_do_not_chain_the_network_is_told_so():
    tableau = ddim_pairs(LINEAR, [(1000, 500), (600, 1), (1, 1)])
    assert [tableau.level(i) for i in range(4)] == [LINEAR.level(k) for k in (1000, 500, 1, 1)]
    assert [tableau.at(i) for i in range(3)] == [LINEAR.level(k) for k in (1000, 600, 1)]
    assert tableau.at(3) is None
    encoder = make_tableau(LINEAR, (0, 1, 501), "diffusers-ddim")
    assert encoder.at(0)[:3] == (1.0, 0.0, 0.0)
    assert encoder.at(1) == LINEAR.level(1)._replace(t=500.0)


def test_chained_pairs_are_ddim():
    nodes = uniform(LINEAR, 30)
    one, two = (
        ddim_pairs(LINEAR, list(itertools.pairwise(nodes)), eta=0.6),
        make_tableau(LINEAR, nodes, eta=0.6),
    )
    assert one.rows == two.rows
    assert one.initial == two.initial


def test_bounding_leaves_x0_or_eps_alone():
    level = LINEAR.level(300)
    plain = NetworkDenoiser(network)(START, level)
    right = Clip(NetworkDenoiser(network), 0.5)(START, level)
    stale = StaleEps(Clip(NetworkDenoiser(network), 0.5))(START, level)
    assert torch.equal(stale.x0, right.x0)
    assert torch.equal(stale.eps, plain.eps)
    assert not torch.equal(stale.eps, right.eps)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ddim_pairs(LINEAR, []), "needs pairs"),
        (lambda: ddim_pairs(LINEAR, [(5, 6)]), "not above it"),
        (lambda: ddim_pairs(LINEAR, [(0, 0)]), "needs pairs"),
        (lambda: ddim_pairs(LINEAR, [(5, 0)], eta=math.nan), "eta must be at least 0"),
        (lambda: ddim_pairs(LINEAR, [(900, 500)], eta=2.0), "eta = 2 is too large: the step from"),
        (lambda: make_tableau(LINEAR, (5, 1), "diffusers-ddim"), "timesteps plus one and 0"),
        (lambda: make_tableau(LINEAR, (5, 0), "diffusers-ddim", final="one"), "unknown final"),
        (lambda: make_tableau(LINEAR, (0, 5), "diffusers-ddim", eta=1.0), "deterministic"),
        (lambda: make_tableau(LINEAR, (0, 5), "diffusers-pndm"), "must fall"),
        (
            lambda: make_tableau(LINEAR.rescaled_to_zero_snr(), (1000, 0), "diffusers-pndm"),
            "divides by α",
        ),
        (
            lambda: run(make_tableau(LINEAR, (0, 5), "diffusers-ddim"), Clipping("clip")),
            "no eps follows from a changed x0",
        ),
        (lambda: make_tableau(LINEAR, (5, 0), "diffusers-pndn"), "did you mean 'diffusers-pndm'"),
    ],
)
def test_steps_that_are_not_there(make, message, refuses):
    with refuses(message):
        make()


@pytest.mark.parametrize("method", sorted(name for name, m in METHODS.items() if m.program))
def test_every_number_of_steps(method):
    schedule = Schedule.linear(23, scaled=True)
    for steps in range(1, 24):
        nodes = make_nodes(schedule, "diffusers-leading", steps)
        assert run(make_tableau(schedule, nodes, method)).isfinite().all()


# -- the constants that diffusers publishes in its tests ------------------------------------------

FIRST = Schedule.linear(1000, 0.01, 0.02)
RAMP = (torch.arange(768).reshape(3, 8, 8, 4) / 768).permute(3, 0, 1, 2)
RAMP_NOISE = (torch.arange(768).flip(0).reshape(3, 8, 8, 4) / 768).permute(3, 0, 1, 2)


def published(schedule, nodes, method="ddim", target="eps", clipping=STALE, x=RAMP, **options):
    """Sum of |x| in float32 with their stand-in for a network, x·t/(t + 1)."""

    def stand_in(x: Tensor, t: Tensor) -> Tensor:
        t = t.to(x.dtype).view(-1, 1, 1, 1)
        return x * t / (t + 1)

    generator = torch.Generator().manual_seed(0)
    denoiser = clipping.wrap(NetworkDenoiser(stand_in, target))
    tableau = make_tableau(schedule, nodes, method, **options)
    steps = integrate(denoiser, tableau, x, lambda _: torch.randn(4, 3, 8, 8, generator=generator))
    return float(final(steps)[0].abs().sum())


def noised(schedule: Schedule, k: int) -> Tensor:
    return schedule.level(k).alpha * RAMP + schedule.level(k).sigma * RAMP_NOISE


LEADING = leading(LINEAR, 10)
MULTISTEP = (*make_nodes(LINEAR, "diffusers-multistep-linspace", 10)[:-1], 1)
NONE, CLIP = Clipping(), Clipping("clip")
# Two are published as means over the 768 elements, with four digits.
MEANS = (0.3301 * 768, 0.2251 * 768)
# Their ᾱ in single precision moves this one by 0.012.
PNDM = 198.1318
RK = {"start": "runge-kutta", "clipping": NONE}


@pytest.mark.parametrize(
    ("constant", "found"),
    [
        (172.0067, lambda: published(LINEAR, LEADING)),
        (52.5302, lambda: published(LINEAR, LEADING, target="v")),
        (149.8295, lambda: published(FIRST, LEADING)),
        (149.0784, lambda: published(FIRST, LEADING, "diffusers-ddim", final="first")),
        (354.5418, lambda: published(LINEAR, LEADING[8:], x=noised(LINEAR, 101))),
        (671.6816, lambda: published(LINEAR, LEADING[::-1], "diffusers-ddim")),
        (1394.2185, lambda: published(LINEAR, LEADING[::-1], "diffusers-ddim", "v")),
        (539.9622, lambda: published(FIRST, LEADING[::-1], "diffusers-ddim")),
        (542.6722, lambda: published(FIRST, LEADING[::-1], "diffusers-ddim", final="first")),
        (258.9606, lambda: published(LINEAR, uniform(LINEAR, 1000), "ddpm", clipping=CLIP)),
        (202.0296, lambda: published(LINEAR, uniform(LINEAR, 1000), "ddpm", "v", CLIP)),
        (MEANS[0], lambda: published(LINEAR, MULTISTEP, "dpmpp", clipping=NONE)),
        (MEANS[1], lambda: published(LINEAR, MULTISTEP, "dpmpp", "v", NONE)),
        (PNDM, lambda: published(LINEAR, LEADING[:-1], "diffusers-pndm", **RK)),
        (
            318.4111,
            lambda: published(
                LINEAR, MULTISTEP[5:], "dpmpp", clipping=NONE, x=noised(LINEAR, MULTISTEP[5])
            ),
        ),
    ],
)
def test_published_constants(constant, found):
    """DDIM, DDIMInverse, DDPM, DPMSolverMultistep and PNDM; their tolerance is 1e-2 too."""
    assert found() == pytest.approx(constant, abs=0.05 if constant in (*MEANS, PNDM) else 1e-2)


def test_a_published_constant_that_is_rounding():
    """DDPM from t = 1, where their float32 β is off by 5e-4: 387.9466, and 387.9672 in float64."""
    found = published(LINEAR, (2, 1, 0), "ddpm", clipping=CLIP, x=noised(LINEAR, 2))
    assert found == pytest.approx(387.9672, abs=1e-3)
