"""The traps that existing implementations fall into (REFERENCE, section 8), one test each.

The exact count of images, the resumed sampling run and the exit status need the code that writes
files and the command; their tests are with those.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from ddim.denoisers.clipping import Clip
from ddim.denoisers.exact import Gaussian
from ddim.denoisers.network import NetworkDenoiser
from ddim.denoisers.prediction import Prediction
from ddim.noise.draws import Noise
from ddim.noise.nodes import quadratic, uniform
from ddim.noise.schedule import Level, Schedule
from ddim.samplers.loop import final, integrate
from ddim.samplers.methods.ddim import ddim, ddpm

LINEAR = Schedule.linear()
HALF = Schedule.linear(500, scaled=True)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_steps_that_do_not_divide_t():
    """Uniform with S not dividing T: wrong number of steps, or the loop starts far from T."""
    nodes = uniform(HALF, 300)
    assert len(set(nodes)) == 301
    assert (nodes[0], nodes[-1]) == (500, 0)  # not 300
    for steps in range(1, 501):
        nodes = uniform(HALF, steps)
        assert len(set(nodes)) == steps + 1
        assert (nodes[0], nodes[-1]) == (500, 0)
        # Evenly: no step is longer than another by more than one node.
        lengths = {a - b for a, b in itertools.pairwise(nodes)}
        assert lengths <= {500 // steps, -(-500 // steps)}


def test_an_offset_that_indexes_past_the_end():
    """A +1 offset that indexes past the end at S = T."""
    times: list[float] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        times.append(float(t[0]))
        return x

    for schedule in (LINEAR, HALF):
        assert schedule.alpha_bar[0] == 1
        times.clear()
        tableau = ddim(schedule, uniform(schedule, schedule.T))
        final(integrate(NetworkDenoiser(network), tableau, randn(1, 1, 1, 1)))
        assert times == list(range(schedule.T - 1, -1, -1))


@pytest.mark.parametrize(
    "schedule", [LINEAR, HALF, Schedule.cosine()], ids=["linear", "500", "cosine"]
)
@pytest.mark.parametrize("method", [ddim, ddpm])
@pytest.mark.parametrize("family", [uniform, quadratic])
def test_noise_left_in_every_image(schedule, method, family):
    """The last step stops at alpha_bar[1]: noise of σ = 0.014 left in every image."""
    last = method(schedule, family(schedule, 50)).rows[-1]
    assert last.level[:2] == (1, 0)
    assert (last.x0[0][1], last.eps[0][1], last.noise) == (1, 0, 0)
    # A denoiser that knows the image ends at the image itself, to the last bit.
    image = randn(1, 1, 4, 4).clamp(-1, 1)

    def denoiser(x: Tensor, level: Level) -> Prediction:
        return Prediction(image, (x - level.alpha * image) / level.sigma)

    tableau = method(schedule, family(schedule, 50))
    (out,) = final(
        integrate(denoiser, tableau, randn(1, 1, 4, 4), lambda i: randn(1, 1, 4, 4, seed=i))
    )
    assert torch.equal(out, image)


@pytest.mark.parametrize("steps", [7, 300, 333, 999])
def test_the_next_node_is_looked_up(steps):
    """The previous node computed as t - T//S instead of looked up."""
    for nodes in (uniform(LINEAR, steps), quadratic(LINEAR, steps)):
        tableau = ddim(LINEAR, nodes)
        for n, row in enumerate(tableau.rows):
            assert row.k == nodes[n + 1]
            assert row.level == LINEAR.level(nodes[n + 1])
            # The network sees a state where the row before has put it.
            assert tableau.at(n) == tableau.level(n) == LINEAR.level(nodes[n])
            assert row.needs == (n,)


def test_a_quadratic_grid_with_duplicates():
    """Quadratic grid with duplicates (T = 500, S = 50 gives 48 distinct)."""
    truncated = [int(500 * (m / 50) ** 2) for m in range(51)]
    assert len(set(truncated)) < 51
    for T, steps in ((500, 50), (1000, 100), (1000, 1000), (50, 49)):
        nodes = quadratic(Schedule.cosine(T), steps)
        assert len(set(nodes)) == steps + 1
        assert list(nodes) == sorted(nodes, reverse=True)
        assert (nodes[0], nodes[-1]) == (T, 0)


def test_the_old_eps_kept_after_clipping():
    """x0 clipped, the old eps kept."""
    x = randn(3, 1, 4, 4)
    seen = []

    class Watch:
        def __call__(self, x: Tensor, level: Level) -> Prediction:
            prediction = Clip(Gaussian(0.0, 3.0))(x, level)
            seen.append((x.clone(), level, prediction))
            return prediction

    steps = list(integrate(Watch(), ddim(LINEAR, uniform(LINEAR, 10)), x))
    assert any(float(p.x0.abs().max()) == 1 for _, _, p in seen)
    for state, level, prediction in seen:
        made = level.alpha * prediction.x0 + level.sigma * prediction.eps
        torch.testing.assert_close(made, state, rtol=1e-12, atol=1e-12)
    for step, (_, _, prediction) in zip(steps, seen, strict=True):
        expected = step.row.level.alpha * prediction.x0 + step.row.level.sigma * prediction.eps
        torch.testing.assert_close(step.x, expected, rtol=1e-12, atol=1e-12)


def test_an_image_that_depends_on_its_batch():
    """Noise drawn even when unused; one global generator; image i depends on the batch."""
    tableau = ddim(LINEAR, uniform(LINEAR, 20), eta=1.0)

    def draw(images: list[int]) -> Tensor:
        noise = Noise(5, images, (1, 4, 4))
        return final(integrate(Gaussian(0.3, 0.5), tableau, noise(0), noise))[0]

    torch.manual_seed(0)
    before = torch.get_rng_state()
    whole = draw([0, 1, 2, 3, 4])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(torch.cat([draw([0, 1]), draw([2]), draw([3, 4])]), whole)
    assert torch.equal(draw([4, 2]), whole[[4, 2]])

    def never(state: int) -> Tensor:
        raise AssertionError("noise was drawn and is not used")

    final(integrate(Gaussian(), ddim(LINEAR, uniform(LINEAR, 20)), randn(1, 2), never))


@pytest.mark.parametrize("eta", [1.5, 3.0, math.nan, -1.0])
def test_an_eta_that_takes_the_root_of_a_negative_number(eta, refuses):
    """η > 1 takes the root of a negative number, silently NaN."""
    with refuses("eta"):
        ddim(LINEAR, uniform(LINEAR, 50), eta=eta)
    # A little above 1 the root is still real at 50 steps, and then it is not refused.
    assert all(
        math.isfinite(row.eps[0][1]) for row in ddim(LINEAR, uniform(LINEAR, 50), eta=1.1).rows
    )


def test_s_equal_to_t_is_no_other_sampler():
    """S = T silently switches to another sampler and ignores η."""
    nodes = uniform(LINEAR, 1000)
    for eta in (0.0, 0.5, 1.0):
        tableau = ddim(LINEAR, nodes, eta=eta)
        assert tableau.method == "ddim"
        assert tableau.stochastic == (eta > 0)
        row, full = tableau.rows[500], ddpm(LINEAR, nodes).rows[500]
        assert row.noise == eta * full.noise
    x = randn(2, 3)
    quiet, again = (
        final(integrate(Gaussian(0.3, 0.5), ddim(LINEAR, nodes), x))[0] for _ in range(2)
    )
    assert torch.equal(quiet, again)


def test_intermediates_copied_to_the_host():
    """Every intermediate copied to the CPU.

    Tensors on the meta device have no values: whoever asks for one, to copy it or to decide by
    it, gets an error. The whole loop runs on them.
    """
    x = torch.empty(2, 3, 8, 8, device="meta")

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([x * 0.5, x.clamp(-1, 1)], dim=1)

    denoiser = Clip(NetworkDenoiser(network, "v"))
    for tableau in (ddim(HALF, uniform(HALF, 20)), ddpm(HALF, uniform(HALF, 20))):
        for step in integrate(denoiser, tableau, x, lambda state: torch.empty_like(x)):
            assert step.x.device.type == "meta"
    with pytest.raises((NotImplementedError, RuntimeError)):
        x.cpu()


def test_zero_terminal_snr(refuses):
    """Zero terminal SNR with eps prediction gives Inf, η = 1 NaN."""
    schedule = LINEAR.rescaled_to_zero_snr()
    x = randn(2, 1, 3, 3)

    def noise(state: int) -> Tensor:
        return randn(2, 1, 3, 3, seed=state)

    for tableau in (
        ddim(schedule, uniform(schedule, 10)),
        ddim(schedule, uniform(schedule, 10), eta=1.0),
        ddpm(schedule, uniform(schedule, 10)),
        ddpm(schedule, uniform(schedule, 10), variance="large"),
    ):
        with refuses("predicts eps says nothing at α=0.*predicts v"):
            final(integrate(NetworkDenoiser(lambda x, t: x, "eps"), tableau, x, noise))
        for target in ("v", "x0"):
            (out,) = final(
                integrate(NetworkDenoiser(lambda x, t: 0.3 * x, target), tableau, x, noise)
            )
            assert out.isfinite().all()
    # The exact solution is reached through α = 0 too: data N(0.3, 0.5²) from N(0, 1).
    data = Gaussian(0.3, 0.5)
    (out,) = final(integrate(data, ddim(schedule, uniform(schedule, 1000)), x))
    exact = data.flow(x, schedule.level(1000), schedule.level(0))
    torch.testing.assert_close(out, exact, rtol=0, atol=0.02)
