"""Discrete data: the multinomial process, its posteriors, its loss and its sampler.

A value is one of K categories. Noising keeps it with probability ``alpha_bar`` and else draws it
anew from all K alike, each pixel for itself. What the paper calls α is ``alpha_bar`` here, and its
σ is a probability that belongs to a step: that of copying ``x_t`` instead of looking at x0.

Probabilities are float64 tensors with the categories along dimension 1, as the logits of
:func:`torch.nn.functional.cross_entropy` are: shape (N, K, *) for values of shape (N, *).

Reference:
    Song, Meng, Ermon, *Denoising Diffusion Implicit Models*, 2020, appendix A,
    https://arxiv.org/abs/2010.02502.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ddim.base.errors import InputError, quoted
from ddim.noise.draws import Noise
from ddim.noise.nodes import check_nodes
from ddim.noise.schedule import Schedule

__all__ = [
    "DiscreteStep",
    "discrete_loss",
    "draw",
    "marginal",
    "one_hot",
    "posterior",
    "sample_discrete",
]

Network = Callable[[Tensor, Tensor], Tensor]


def one_hot(x: Tensor, categories: int) -> Tensor:
    """Values as probabilities: 1 for the value's own category.

    Args:
        x: values in 0..K-1, any integer type, shape (N, *).
        categories: K, at least 2.

    Returns:
        float64 of shape (N, K, *).

    Raises:
        InputError: fewer than two categories, or values that are not integers in 0..K-1.

    Example:
        >>> one_hot(torch.tensor([2, 0]), 3).tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    _check_categories(categories)
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise InputError(f"values must be integers in 0..{categories - 1}, not {x.dtype}")
    if x.numel() and not 0 <= int(x.min()) <= int(x.max()) < categories:
        raise InputError(
            f"values must be in 0..{categories - 1}; they span {int(x.min())}..{int(x.max())}"
        )
    return _encode(x, categories)


def marginal(x0: Tensor, k: Tensor, schedule: Schedule) -> Tensor:
    """q(x_k | x0) = Cat(ᾱ_k·x0 + (1 - ᾱ_k)/K).

    Args:
        x0: probabilities, shape (N, K, *); of known data, :func:`one_hot`.
        k: nodes in 0..T, int64, shape (N,).
        schedule: the noise schedule; ᾱ must fall strictly.

    Returns:
        Probabilities of x_k, float64 of shape (N, K, *).

    Raises:
        InputError: nodes outside 0..T or not one an image, or a schedule whose ᾱ does not fall.
    """
    _check_schedule(schedule)
    if k.shape != x0.shape[:1]:
        raise InputError(f"one node an image is needed: {tuple(k.shape)} nodes, {len(x0)} images")
    if k.numel() and not 0 <= int(k.min()) <= int(k.max()) <= schedule.T:
        raise InputError(
            f"nodes must be in 0..{schedule.T}; they span {int(k.min())}..{int(k.max())}"
        )
    alpha_bar = torch.as_tensor(schedule.alpha_bar, device=x0.device)[k]
    alpha_bar = alpha_bar.view(-1, *(1,) * (x0.ndim - 1))
    return alpha_bar * x0.double() + (1 - alpha_bar) / x0.shape[1]


def posterior(
    x_t: Tensor, x0: Tensor, t: int, s: int, schedule: Schedule, eta: float = 0.0
) -> Tensor:
    """q(x_s | x_t, x0) for nodes s < t, one for each η, all with the marginal of x_s.

    q(x_s | x_t, x0) = Cat(c·x_t + (ᾱ_s - c·ᾱ_t)·x0 + ((1 - ᾱ_s) - c·(1 - ᾱ_t))/K), where
    c = (1 - η)·(1 - ᾱ_s)/(1 - ᾱ_t) is the paper's σ_t. Equally: with probability η forget x_t and
    draw from q(x_s | x0); else copy x_t with probability (1 - ᾱ_s)/(1 - ᾱ_t) and x0 with the rest.

    η = 0 is the least random: the entropy of x_s given x_t and x0 rises with η, to its largest
    possible value at η = 1, where x_s does not depend on x_t. Neither end is the reverse of the
    Markov chain with these marginals. Bayes' rule on the chain gives
    η = (ᾱ_s - ᾱ_t)/(ᾱ_s·(1 + ᾱ_t)) for K = 2, and no member of this family for K > 2 (unless
    s = 0, where all agree, or ᾱ_t = 0, where it is η = 1).

    Args:
        x_t: probabilities, shape (N, K, *); of a known state, :func:`one_hot`.
        x0: probabilities, shape (N, K, *): known data or a network's prediction.
        t: the node of x_t, in 1..T.
        s: the node to go to, in 0..t-1.
        schedule: the noise schedule; ᾱ must fall strictly.
        eta: η, from 0 to 1.

    Returns:
        Probabilities of x_s, float64 of shape (N, K, *).

    Raises:
        InputError: nodes or η out of range, shapes that differ, a schedule whose ᾱ does not fall.
    """
    _check_schedule(schedule)
    _check_eta(eta)
    if not 0 <= s < t <= schedule.T:
        raise InputError(f"a step goes from t to s with 0 ≤ s < t ≤ {schedule.T}: t={t}, s={s}")
    if x_t.shape != x0.shape:
        raise InputError(f"x_t and x0 differ in shape: {tuple(x_t.shape)}, {tuple(x0.shape)}")
    alpha_bar_t, alpha_bar_s = schedule.alpha_bar[[t, s]].tolist()
    copy = (1 - eta) * (1 - alpha_bar_s) / (1 - alpha_bar_t)
    # Zero at η = 0, which the difference of the two terms would miss by a rounding.
    redrawn = eta * (1 - alpha_bar_s)
    known = alpha_bar_s - copy * alpha_bar_t
    return copy * x_t.double() + known * x0.double() + redrawn / x_t.shape[1]


def draw(probabilities: Tensor, noise: Tensor) -> Tensor:
    """Values with these probabilities, from one normal number each.

    The inverse distribution function at Φ(noise), in float64: the first category whose cumulative
    probability reaches Φ(noise). A larger number gives a category that is no lower.

    Args:
        probabilities: shape (N, K, *).
        noise: standard normal, shape (N, *).

    Returns:
        Values in 0..K-1, int64 of shape (N, *).

    Example:
        >>> draw(torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.tensor([-1.0, -1.0])).tolist()
        [0, 1]
    """
    below = probabilities.double().cumsum(dim=1)[:, :-1]
    # As erfc, because torch's ndtr loses the lower tail.
    uniform = torch.special.erfc(noise.double() * -math.sqrt(0.5)) / 2
    return (uniform[:, None] > below).sum(dim=1)


def discrete_loss(
    network: Network, x0: Tensor, k: Tensor, noise: Tensor, schedule: Schedule, categories: int
) -> Tensor:
    """Cross-entropy of the network's prediction of x0 from x_k, the mean over an image's values.

    The divergence of one sampling step, KL(q(x_s | x_t, x0) ‖ q(x_s | x_t, network's x0)), is
    convex in the prediction and so at most (ᾱ_s - c·ᾱ_t) times this cross-entropy (the paper's
    appendix A). η and the nodes change only that weight and not the best prediction, which is
    p(x0 | x_t): one network, trained once, serves every η and every S.

    Args:
        network: called as ``network(x_k, t)`` with values x_k, int64 of shape (N, *), and
            t = k - 1, int64 of shape (N,); returns logits of x0, shape (N, K, *).
        x0: data in 0..K-1, integers, shape (N, *).
        k: nodes, int64, shape (N,), each in 1..T.
        noise: standard normal, the shape of x0.
        schedule: the noise schedule; ᾱ must fall strictly.
        categories: K, at least 2.

    Returns:
        The loss of each image in nats a value, shape (N,), float32 at least. A network that
        knows nothing has log K.

    Raises:
        InputError: values outside 0..K-1, shapes that do not fit together, nodes out of range, a
            schedule whose ᾱ does not fall.
    """
    if x0.shape != noise.shape:
        raise InputError(f"data {tuple(x0.shape)} and noise {tuple(noise.shape)} differ in shape")
    x_k = draw(marginal(one_hot(x0, categories), k, schedule), noise)
    logits = _logits(network, x_k, k - 1, categories)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    loss = F.cross_entropy(logits, x0.long(), reduction="none")
    return loss.view(len(loss), -1).mean(dim=1)


class DiscreteStep(NamedTuple):
    """One step done.

    Attributes:
        k: the node that was reached.
        x: the new state, values in 0..K-1, int64 of shape (N, *).
        x0: the network's prediction from the state before, float64 of shape (N, K, *).
    """

    k: int
    x: Tensor
    x0: Tensor


def sample_discrete(
    network: Network,
    schedule: Schedule,
    nodes: Sequence[int],
    noise: Noise,
    categories: int,
    eta: float = 0.0,
) -> Iterator[DiscreteStep]:
    """Draw images of K categories in S steps, yielding after each.

    x_T is uniform; each step draws x_s from :func:`posterior` with the network's probabilities
    for x0, so the last one, to node 0, draws from the probabilities themselves. The pixels of a
    step are drawn independently of each other given x_t: that, and the network, are the only
    errors, and more steps make the first one smaller at η = 0.

    State n (0 the initial one) takes its randomness from ``noise(n)`` alone, one number a value:
    image i of a seed does not depend on what else is in the batch, but for the last bits of the
    network's own arithmetic.

    Args:
        network: called as ``network(x, t)`` with values x, int64 of shape (N, *), and t = k - 1,
            int64 of shape (N,); returns logits of x0, shape (N, K, *).
        schedule: the noise schedule; ᾱ must fall strictly.
        nodes: S + 1 falling nodes, as :func:`ddim.make_nodes` returns them.
        noise: the images to draw, their shape and device.
        categories: K, at least 2.
        eta: η of :func:`posterior`, from 0 to 1, in every step. With the same η, more steps redraw
            more often.

    Raises:
        InputError: nodes that do not fall, K or η out of range, a schedule whose ᾱ does not fall,
            at once; logits of another shape at the first step; logits that are not numbers at the
            last.
    """
    nodes = check_nodes(schedule, nodes)
    if nodes[0] < nodes[-1]:
        raise InputError(
            f"sampling goes from noise to data, so nodes must fall: {quoted(list(nodes))}"
        )
    _check_categories(categories)
    _check_schedule(schedule)
    _check_eta(eta)

    def steps() -> Iterator[DiscreteStep]:
        shape = (1, categories, *(1 for _ in noise.shape))
        uniform = torch.full(shape, 1 / categories, dtype=torch.float64, device=noise.device)
        x = draw(uniform, noise(0))
        finite = torch.tensor(True, device=noise.device)
        for n, (t, s) in enumerate(itertools.pairwise(nodes), 1):
            times = torch.full((len(x),), t - 1, device=noise.device)
            with torch.no_grad():
                x0 = _logits(network, x, times, categories).double().softmax(dim=1)
            # Looked at once, at the end, so that no step waits for the device.
            finite &= x0.isfinite().all()
            if s == nodes[-1] and not finite:
                raise InputError("the network's logits are not numbers (NaN)")
            x = draw(posterior(_encode(x, categories), x0, t, s, schedule, eta), noise(n))
            yield DiscreteStep(s, x, x0)

    return steps()


def _encode(x: Tensor, categories: int) -> Tensor:
    return F.one_hot(x.long(), categories).movedim(-1, 1).double()


def _logits(network: Network, x: Tensor, t: Tensor, categories: int) -> Tensor:
    logits = network(x, t)
    expected = (len(x), categories, *x.shape[1:])
    if logits.shape != expected:
        raise InputError(
            f"the network must return logits of x0, shape {expected}, not {tuple(logits.shape)}"
        )
    return logits


def _check_categories(categories: int) -> None:
    if categories < 2:
        raise InputError(f"discrete data has at least 2 categories, not {categories}")


def _check_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise InputError(f"eta must be in [0, 1], not {eta}")


def _check_schedule(schedule: Schedule) -> None:
    if not (schedule.alpha[1:] < schedule.alpha[:-1]).all():
        raise InputError("discrete data needs a schedule whose ᾱ falls at every node")
