import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddim.denoisers.target import Target
from ddim.noise.draws import Noise
from ddim.noise.nodes import make_nodes
from ddim.noise.schedule import Schedule
from ddim.samplers.discrete import (
    discrete_loss,
    draw,
    marginal,
    one_hot,
    posterior,
    sample_discrete,
)
from ddim.train.batches import TensorData
from ddim.train.config import TrainConfig
from ddim.train.loop import TrainState, fit
from ddim.train.loss import diffusion_loss, loss_weights

T = 20
SCHEDULES = {
    "cosine": Schedule.cosine(T),
    "linear": Schedule.linear(T, scaled=True),
    "flow": Schedule.flow(T),
    "zero-snr": Schedule.linear(T, 1e-3, 0.3).rescaled_to_zero_snr(),
}
COSINE = SCHEDULES["cosine"]
CATEGORIES = (2, 4, 10)

schedules = st.sampled_from(sorted(SCHEDULES)).map(SCHEDULES.__getitem__)
categories = st.sampled_from(CATEGORIES)
etas = st.floats(0, 1)
steps = st.integers(1, T).flatmap(lambda t: st.tuples(st.just(t), st.integers(0, t - 1)))


def every(K: int) -> torch.Tensor:
    """Each category once, as one-hot rows: row i is category i."""
    return one_hot(torch.arange(K), K)


def at(k: int, count: int) -> torch.Tensor:
    return torch.full((count,), k)


def table(t: int, s: int, schedule: Schedule, K: int, eta: float) -> torch.Tensor:
    """q(x_s | x_t, x0) as [x0, x_t, x_s]."""
    x_t, x0 = every(K).repeat(K, 1), every(K).repeat_interleave(K, dim=0)
    return posterior(x_t, x0, t, s, schedule, eta).view(K, K, K)


def bayes(t: int, s: int, schedule: Schedule, K: int) -> torch.Tensor:
    """The same for the Markov chain: q(x_s | x0)·q(x_t | x_s)/q(x_t | x0), as [x0, x_t, x_s]."""
    ones = torch.full((K, K), 1 / K, dtype=torch.float64)
    kernel = torch.eye(K, dtype=torch.float64)
    for k in range(s + 1, t + 1):
        kept = float(schedule.alpha_bar[k] / schedule.alpha_bar[k - 1])
        kernel = kernel @ (kept * torch.eye(K, dtype=torch.float64) + (1 - kept) * ones)
    joint = marginal(every(K), at(s, K), schedule)[:, None, :] * kernel.T[None]
    return joint / joint.sum(dim=2, keepdim=True)


def entropy(p: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.special.entr(p.clamp(min=0)).sum(dim)


def independent_pixels(weights: torch.Tensor, schedule: Schedule):
    """The exact p(x0 | x_k) for independent pixels with these probabilities, shape (K, *)."""
    K = len(weights)

    def network(x, t):
        likelihood = marginal(every(K), t[:1].expand(K) + 1, schedule)  # [x0, x_k]
        return (weights * likelihood[:, x].movedim(0, 1)).log()

    return network


def words(probabilities: torch.Tensor, values: torch.Tensor, schedule: Schedule):
    """The exact p(x0 | x_k) of each pixel when every row of an image is one of these words."""
    K = int(values.max()) + 1

    def network(x, t):
        likelihood = marginal(every(K), t[:1].expand(K) + 1, schedule)
        each = likelihood[values, x[..., None, :]].prod(dim=-1) * probabilities
        each = each / each.sum(dim=-1, keepdim=True)
        return torch.einsum("...w,wpk->...pk", each, every(K)[values]).movedim(-1, 1).log()

    return network


def run(network, schedule, steps_, noise, K, eta=0.0):
    nodes = make_nodes(schedule, "uniform", steps_)
    return [*sample_discrete(network, schedule, nodes, noise, K, eta)][-1].x


def chi_square(values: torch.Tensor, probabilities: torch.Tensor) -> float:
    """How often values with these probabilities differ from them by more than the given ones."""
    counts = torch.bincount(values.flatten(), minlength=len(probabilities))
    expected = probabilities * counts.sum()
    chi2 = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc((len(counts) - 1) / 2 * torch.ones(()).double(), chi2 / 2))


# -- the process ------------------------------------------------------------------------------


@pytest.mark.parametrize("K", CATEGORIES)
def test_a_value_is_kept_with_probability_alpha_bar_not_alpha(K):
    k = torch.arange(T + 1)
    x0 = one_hot(torch.ones(T + 1, dtype=torch.int64), K)
    probabilities = marginal(x0, k, COSINE)
    others = (1 - COSINE.alpha_bar) / K
    np.testing.assert_allclose(probabilities[:, 1], COSINE.alpha_bar + others, rtol=1e-15)
    np.testing.assert_allclose(probabilities[:, 0], others, rtol=1e-15)
    assert torch.equal(probabilities[0], x0[0])


@given(schedules, categories, etas, steps)
def test_every_eta_has_the_same_marginals(schedule, K, eta, step):
    """Σ q(x_t | x0)·q(x_s | x_t, x0) over x_t is q(x_s | x0), to the last bits of float64."""
    t, s = step
    q_t, q_s = (marginal(every(K), at(k, K), schedule) for k in (t, s))
    summed = torch.einsum("ij,ijk->ik", q_t, table(t, s, schedule, K, eta))
    torch.testing.assert_close(summed, q_s, rtol=0, atol=1e-15)


@pytest.mark.parametrize("K", CATEGORIES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_marginal_holds_for_the_longest_step(schedule, eta, K):
    q_t = marginal(every(K), at(T, K), schedule)
    summed = torch.einsum("ij,ijk->ik", q_t, table(T, 0, schedule, K, eta))
    torch.testing.assert_close(summed, every(K), rtol=0, atol=1e-15)


@given(schedules, categories, etas, steps)
def test_posteriors_are_probabilities(schedule, K, eta, step):
    probabilities = table(*step, schedule, K, eta)
    assert float(probabilities.min()) >= 0
    torch.testing.assert_close(probabilities.sum(2), torch.ones(K, K).double(), rtol=0, atol=1e-15)


@given(schedules, categories, steps, st.tuples(etas, etas).map(sorted))
def test_randomness_rises_with_eta(schedule, K, step, two):
    """In entropy and in how often x_t changes: η = 0 is the least random."""
    t, s = step
    q_t = marginal(every(K), at(t, K), schedule)
    low, high = (table(t, s, schedule, K, eta) for eta in two)
    randomness = [float((q_t * entropy(p, 2)).sum()) for p in (low, high)]
    assert randomness[0] <= randomness[1] + 1e-12
    kept = [torch.einsum("ij,ijj->i", q_t, p) for p in (low, high)]
    assert (kept[0] >= kept[1] - 1e-12).all()


@given(schedules, categories, steps)
def test_the_ends_of_eta(schedule, K, step):
    """At 0 x_s is x_t or x0; at 1 it does not depend on x_t, the largest entropy there is."""
    t, s = step
    q_s = marginal(every(K), at(s, K), schedule)
    assert torch.equal(table(t, s, schedule, K, 1.0), q_s[:, None].expand(K, K, K))
    least = table(t, s, schedule, K, 0.0)
    copied = (1 - schedule.alpha_bar[s]) / (1 - schedule.alpha_bar[t])
    for i, j in itertools.product(range(K), repeat=2):
        expected = copied * every(K)[j] + (1 - copied) * every(K)[i]
        torch.testing.assert_close(least[i, j], expected, rtol=0, atol=1e-15)


@given(schedules.filter(lambda schedule: schedule.alpha[-1] > 0), steps)
def test_two_categories_have_the_markov_chain_within_the_family(schedule, step):
    """Bayes' rule on the product of the one-step kernels, at the η of the docstring."""
    t, s = step
    alpha_bar_t, alpha_bar_s = schedule.alpha_bar[[t, s]]
    eta = float((alpha_bar_s - alpha_bar_t) / (alpha_bar_s * (1 + alpha_bar_t)))
    assert 0 < eta < 1
    chain = bayes(t, s, schedule, 2)
    torch.testing.assert_close(table(t, s, schedule, 2, eta), chain, rtol=0, atol=1e-14)


@pytest.mark.parametrize("K", [3, 4, 10])
def test_more_categories_have_not(K):
    """The chain's weight on 'neither x_t nor x0' differs between x_t = x0 and x_t ≠ x0."""
    t, s = 12, 6
    chain = bayes(t, s, COSINE, K)
    q_t, q_s = (marginal(every(K), at(k, K), COSINE) for k in (t, s))
    torch.testing.assert_close(torch.einsum("ij,ijk->ik", q_t, chain), q_s)  # a true posterior
    nearest = min(
        float((table(t, s, COSINE, K, eta) - chain).abs().max()) for eta in np.linspace(0, 1, 101)
    )
    assert nearest > 0.01
    assert abs(float(chain[0, 0, 2] - chain[0, 1, 2])) > 0.01
    for eta in (0.0, 0.3, 1.0):
        ours = table(t, s, COSINE, K, eta)
        assert ours[0, 0, 2] == ours[0, 1, 2]


# -- drawing ----------------------------------------------------------------------------------


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=6).filter(lambda p: sum(p) > 0.1),
    st.floats(-6, 6),
)
def test_draw_inverts_the_distribution_function(weights, z):
    p = torch.tensor(weights, dtype=torch.float64)
    p = p / p.sum()
    value = int(draw(p[None], torch.tensor([z], dtype=torch.float64)))
    u = 0.5 * math.erfc(-z / math.sqrt(2))
    assert float(p[:value].sum()) - 1e-12 <= u <= float(p[: value + 1].sum()) + 1e-12


def test_impossible_categories_are_never_drawn():
    z = torch.tensor([-9.0, -6, 0, 6, 9])
    for category in range(4):
        p = one_hot(at(category, 5), 4)
        assert (draw(p, z) == category).all()


def test_rare_categories_are_not_clipped_away():
    """A probability that float32 would lose beside 1."""
    p = torch.tensor([[1 - 1e-9, 1e-9]], dtype=torch.float64)
    assert draw(p, torch.tensor([5.9])).item() == 0
    assert draw(p, torch.tensor([6.1])).item() == 1


def test_draws_have_their_probabilities():
    p = torch.tensor([0.5, 0.02, 0.08, 0.4], dtype=torch.float64)
    values = draw(p.expand(1, 4).view(1, 4, 1), Noise(0, range(4), (5000,))(0))
    assert 0.001 < chi_square(values, p) < 0.999


# -- the loss ---------------------------------------------------------------------------------


@given(schedules, categories, etas, steps, st.integers(0, 1000))
def test_the_divergence_of_a_step_is_bounded_by_the_cross_entropy(schedule, K, eta, step, seed):
    """Appendix A: KL(q(x_s|x_t,x0) ‖ q(x_s|x_t,f)) ≤ (ᾱ_s - c·ᾱ_t)·(-log f[x0]); equal at s = 0."""
    t, s = step
    f = torch.randn(1, K, generator=torch.Generator().manual_seed(seed)).double().softmax(1)
    x0, x_t = every(K)[:1].expand(K, K), every(K)
    true = posterior(x_t, x0, t, s, schedule, eta)
    guess = posterior(x_t, f.expand(K, K), t, s, schedule, eta)
    divergence = (torch.special.xlogy(true, true) - torch.special.xlogy(true, guess)).sum(1)
    alpha_bar_t, alpha_bar_s = schedule.alpha_bar[[t, s]]
    copy = (1 - eta) * (1 - alpha_bar_s) / (1 - alpha_bar_t)
    bound = -(alpha_bar_s - copy * alpha_bar_t) * f[0, 0].log()
    assert (divergence <= bound + 1e-12).all()
    if s == 0:
        torch.testing.assert_close(divergence, bound.expand(K))


def test_the_loss_is_the_cross_entropy_at_x_k():
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(3, (T, 2, 5), generator=generator, dtype=torch.uint8)
    noise = torch.randn(x0.shape, generator=generator)
    k = torch.arange(T) + 1
    seen = []

    def network(x, t):
        assert torch.equal(t, k - 1)
        seen.append(x)
        return torch.stack([x.float(), 0.3 * x, -x * t.view(-1, 1, 1) / T], dim=1)

    loss = discrete_loss(network, x0, k, noise, COSINE, 3)
    assert loss.shape == (T,)
    assert torch.equal(seen[0], draw(marginal(one_hot(x0, 3), k, COSINE), noise))
    p = network(seen[0], k - 1).softmax(1)
    for n in range(T):
        picked = p[n].gather(0, x0[n].long()[None])
        torch.testing.assert_close(loss[n], -picked.log().mean())


def test_a_network_that_knows_nothing_or_everything():
    x0 = torch.randint(4, (6, 3), generator=torch.Generator().manual_seed(0))
    args = (x0, torch.arange(6) + 1, torch.randn(6, 3), COSINE, 4)
    blank = discrete_loss(lambda x, t: torch.zeros(6, 4, 3).bfloat16(), *args)
    assert blank.dtype == torch.float32
    torch.testing.assert_close(blank, torch.full((6,), math.log(4)))
    assert float(discrete_loss(lambda x, t: 1e4 * one_hot(x0, 4), *args).max()) == 0


class Table(torch.nn.Module):
    """Logits of x0 for each x_k and t: exact for independent pixels of one distribution."""

    def __init__(self, T: int, K: int) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(T, K, K))

    def forward(self, x, t):
        return self.logits[t.view(-1, 1), x].movedim(-1, 1)


def test_the_training_loop_takes_the_loss():
    """A table learns p(x0 | x_k), and with it the sampler draws the data's distribution."""
    schedule = Schedule.cosine(4)
    p = torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)
    data = draw(p.view(1, 3, 1), Noise(0, range(200), (50,))(0))
    config = TrainConfig(T=4, images=12_000, batch_size=80, lr=0.1, decay_images=8_000, ema=0.98)
    state = TrainState.start(Table(4, 3), config)
    loss = functools.partial(discrete_loss, categories=3)
    losses = [s.loss for s in fit(state, TensorData(data), schedule, config, loss=loss)]
    assert len(losses) == 150
    shares = torch.bincount(data.flatten(), minlength=3) / data.numel()
    for k in range(1, 5):
        joint = shares[:, None] * marginal(every(3), at(k, 3), schedule)
        exact = (joint / joint.sum(0)).T  # [x_k, x0]
        assert float((state.ema.logits[k - 1].softmax(1) - exact).abs().max()) < 0.03
    x = run(state.ema, schedule, 2, Noise(1, range(100), (100,)), 3)
    drawn = torch.bincount(x.flatten(), minlength=3) / x.numel()
    assert float((drawn - shares).abs().max()) < 0.02


def test_the_gaussian_loss_given_is_the_gaussian_loss_of_old():
    """Bit for bit, weighting and all."""
    config = TrainConfig(T=T, images=320, batch_size=32, target="v", weighting="min-snr")
    data = TensorData(torch.randn(64, 3, generator=torch.Generator().manual_seed(0)))
    weights = loss_weights(COSINE, Target.V, "min-snr", 5.0)
    explicit = functools.partial(diffusion_loss, target="v", weights=weights)

    def trained(loss):
        net = torch.nn.Linear(3, 3)
        torch.nn.init.eye_(net.weight)
        torch.nn.init.zeros_(net.bias)

        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net

            def forward(self, x, t):
                return self.net(x)

        state = TrainState.start(Net(), config)
        return [step.loss for step in fit(state, data, COSINE, config, loss=loss)]

    assert trained(None) == trained(explicit)


# -- the sampler ------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("S", [1, 3, T])
@pytest.mark.parametrize("K", [2, 4])
def test_independent_pixels_are_drawn_exactly_in_any_number_of_steps(K, S, eta):
    """The exact predictor: every marginal is right at every node, so no step adds an error."""
    weights = torch.rand(K, 3, generator=torch.Generator().manual_seed(K)).double() + 0.1
    weights /= weights.sum(0)
    noise = Noise(5, range(40), (3, 100))
    network = independent_pixels(weights[:, :, None], COSINE)
    x = run(network, COSINE, S, noise, K, eta)
    for pixel in range(3):
        assert chi_square(x[:, pixel], weights[:, pixel]) > 0.001


def test_dependent_pixels_are_drawn_ever_better_with_more_steps():
    """Words of four pixels: one step draws the pixels apart, many draw them together."""
    values = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 0], [0, 1, 2, 2]])
    probabilities = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    schedule = Schedule.cosine(200)
    network = words(probabilities, values, schedule)
    noise = Noise(0, range(30), (100, 4))
    place = torch.tensor([27, 9, 3, 1])
    expected = torch.zeros(81, dtype=torch.float64)
    expected[(values * place).sum(1)] = probabilities
    distances = []
    for S in (1, 3, 5, 10, 50):
        x = run(network, schedule, S, noise, 3)
        shares = torch.bincount((x * place).sum(-1).flatten(), minlength=81) / 3000
        distances.append(float((shares - expected).abs().sum()) / 2)
    assert distances[:4] == sorted(distances[:4], reverse=True)
    assert distances[0] > 0.7
    assert distances[-1] < 0.03


def mixing(x, t):
    """A predictor that looks at the whole image, but at no other: float64, no matrix product."""
    other = x.roll(1, dims=-1)
    logits = torch.stack([(x == c) * 2.0 + (other == c) * 1.0 for c in range(3)], dim=1)
    return logits.double() + t.view(-1, *(1,) * x.ndim) / T


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_image_i_does_not_depend_on_the_batch(eta):
    images = [7, 3, 11, 2**40]
    together = run(mixing, COSINE, 5, Noise(9, images, (2, 3, 4)), 3, eta)
    for row, image in enumerate(images):
        alone = run(mixing, COSINE, 5, Noise(9, [image], (2, 3, 4)), 3, eta)
        assert torch.equal(alone[0], together[row])
    assert not torch.equal(together[0], together[1])


def test_each_state_takes_its_own_noise_once():
    asked = []

    class Recorded(Noise):
        def __call__(self, state):
            asked.append(state)
            return super().__call__(state)

    run(mixing, COSINE, 4, Recorded(0, [0], (4,)), 3)
    assert asked == [0, 1, 2, 3, 4]


def test_eta_0_leaves_alone_what_the_network_agrees_with():
    """A certain network: x_s is x_t or x0, so a pixel changes once, to its x0, if at all."""
    goal = torch.arange(60).view(1, 60) % 3
    noise = Noise(0, range(50), (60,))

    def certain(x, t):
        return torch.where(one_hot(goal, 3).bool(), 0.0, -math.inf).expand(len(x), -1, -1)

    nodes = make_nodes(COSINE, "uniform", 10)
    states = [step.x for step in sample_discrete(certain, COSINE, nodes, noise, 3)]
    for before, after in itertools.pairwise(states):
        changed = before != after
        assert (after[changed] == goal.expand(50, 60)[changed]).all()
    assert torch.equal(states[-1], goal.expand(50, 60))
    redrawn = [s.x for s in sample_discrete(certain, COSINE, nodes, noise, 3, eta=1.0)]
    lost = [(a == goal) & (b != goal) for a, b in itertools.pairwise(redrawn)]
    assert any(bool(each.any()) for each in lost)


def test_steps_say_where_they_are():
    nodes = (T, 12, 5, 0)
    drawn = [*sample_discrete(mixing, COSINE, nodes, Noise(0, range(3), (4,)), 3)]
    assert [step.k for step in drawn] == [12, 5, 0]
    for step in drawn:
        assert step.x.shape == (3, 4)
        assert step.x.dtype == torch.int64
        assert step.x0.shape == (3, 3, 4)
        torch.testing.assert_close(step.x0.sum(1), torch.ones(3, 4).double())


# -- refusals ---------------------------------------------------------------------------------


def test_refusals_of_the_process(refuses):
    p = every(3)
    with refuses("at least 2 categories, not 1"):
        one_hot(torch.zeros(3, dtype=torch.int64), 1)
    with refuses(r"values must be in 0\.\.2; they span -1\.\.3"):
        one_hot(torch.tensor([-1, 3]), 3)
    with refuses("values must be integers in 0..2, not torch.float32"):
        one_hot(torch.zeros(3), 3)
    with refuses(r"nodes must be in 0\.\.20; they span 0\.\.21"):
        marginal(p, torch.tensor([0, 21, 3]), COSINE)
    with refuses("one node an image"):
        marginal(p, torch.tensor([1]), COSINE)
    for t, s in ((5, 5), (5, 6), (21, 3), (4, -1)):
        with refuses(f"0 ≤ s < t ≤ 20: t={t}, s={s}"):
            posterior(p, p, t, s, COSINE)
    for eta in (-0.1, 1.1, math.nan):
        with refuses(r"eta must be in \[0, 1\]"):
            posterior(p, p, 5, 3, COSINE, eta)
    with refuses("differ in shape"):
        posterior(p, p[:1], 5, 3, COSINE)
    constant = Schedule.from_alpha_sigma([1, 1, 1], [0, 1, 2])
    with refuses("whose ᾱ falls"):
        posterior(p, p, 2, 1, constant)


def test_refusals_of_the_loss(refuses):
    x0, k, noise = torch.zeros(2, 5, dtype=torch.int64), torch.tensor([1, 2]), torch.zeros(2, 5)
    with refuses(r"shape \(2, 3, 5\), not \(2, 5, 3\)"):
        discrete_loss(lambda x, t: torch.zeros(2, 5, 3), x0, k, noise, COSINE, 3)
    with refuses("differ in shape"):
        discrete_loss(mixing, x0, k, noise[:, :1], COSINE, 3)
    with refuses("at least 2 categories"):
        discrete_loss(mixing, x0, k, noise, COSINE, 1)
    with refuses(r"they span 3\.\.3"):
        discrete_loss(mixing, x0 + 3, k, noise, COSINE, 3)


def test_refusals_of_the_sampler(refuses):
    """At once, before the first step, but for what only the network can get wrong."""
    noise = Noise(0, [0], (5,))
    with refuses("nodes must fall"):
        sample_discrete(mixing, COSINE, (0, 5, 10), noise, 3)
    with refuses("rise or fall strictly"):
        sample_discrete(mixing, COSINE, (10, 10, 0), noise, 3)
    with refuses("at least 2 categories"):
        sample_discrete(mixing, COSINE, (10, 0), noise, 1)
    with refuses(r"eta must be in \[0, 1\], not 2"):
        sample_discrete(mixing, COSINE, (10, 0), noise, 3, eta=2)
    with refuses("whose ᾱ falls"):
        constant = Schedule.from_alpha_sigma([1, 1, 1], [0, 1, 2])
        sample_discrete(mixing, constant, (2, 0), noise, 3)
    with refuses(r"shape \(1, 4, 5\), not \(1, 3, 5\)"):
        next(sample_discrete(mixing, COSINE, (10, 0), noise, 4))
    with refuses("not numbers"):
        [*sample_discrete(lambda x, t: mixing(x, t) * math.nan, COSINE, (10, 5, 0), noise, 3)]
