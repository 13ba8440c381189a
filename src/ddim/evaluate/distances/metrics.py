"""Distances between two sets of features beyond the Fréchet distance, by their definitions.

Everything is computed in float64 and in blocks, so that no N x N matrix is ever held.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ddim.base.errors import InputError

__all__ = ["ClassChi2", "PrecisionRecall", "class_chi2", "kid", "precision_recall"]

Array = NDArray[np.float64]

_BLOCK = 1024


class PrecisionRecall(NamedTuple):
    """Shares between 0 and 1.

    Attributes:
        precision: Of the samples, how many lie where real images do.
        recall: Of the real images, how many lie where samples do.
    """

    precision: float
    recall: float


class ClassChi2(NamedTuple):
    """A χ² test of whether two histograms are of one distribution.

    Attributes:
        statistic: χ², about `dof` where they are.
        dof: Degrees of freedom: the classes that occur, less one.
        p: The probability of a χ² as large as this where they are.
    """

    statistic: float
    dof: int
    p: float


def kid(x: ArrayLike, y: ArrayLike) -> float:
    """The kernel distance: an unbiased estimate of the squared maximum mean discrepancy.

        k(a, b) = (a·b/D + 1)³
        Σ_{i≠j} k(x_i, x_j)/(m(m-1)) + Σ_{i≠j} k(y_i, y_j)/(n(n-1)) - 2·Σ_{ij} k(x_i, y_j)/(mn)

    Its expectation does not depend on m or n, unlike that of the Fréchet distance, and is 0 for
    equal distributions; a single estimate can be negative. Many programs average it over subsets
    of 1,000; the estimate of all at once has the same expectation and a smaller variance.

    Reference:
        M. Binkowski, D. Sutherland, M. Arbel, A. Gretton, Demystifying MMD GANs, 2018, section 4,
        https://arxiv.org/abs/1801.01401; the estimator is equation 3 of A. Gretton et al., A kernel
        two-sample test, 2012, https://jmlr.org/papers/v13/gretton12a.html

    Args:
        x: Features (m, D), m at least 2.
        y: Features (n, D), n at least 2.

    Returns:
        The estimate, of the dimension of a kernel value.

    Raises:
        InputError: The shapes do not fit, a value is not finite, or there are too few rows.

    Example:
        >>> round(kid([[0.0], [0.0]], [[1.0], [1.0]]), 12)  # 1 + 8 - 2
        7.0
    """
    a, b = _pair(x, y, 2)
    cross = sum(float(_kernel(part, b).sum()) for _, part in _blocks(a))
    return _within(a) + _within(b) - 2 * cross / (len(a) * len(b))


def precision_recall(real: ArrayLike, samples: ArrayLike, k: int = 3) -> PrecisionRecall:
    """How much of each set lies on the manifold of the other.

    The manifold of a set is the union of balls around its points, each as large as the distance
    to the k-th nearest other point of the set. Precision is the share of the samples on the real
    manifold; recall is the share of the real points on that of the samples. Both depend on the
    number of points: compare figures of equal numbers only.

    Reference:
        T. Kynkäänniemi, T. Karras, S. Laine, J. Lehtinen, T. Aila, Improved precision and recall
        metric for assessing generative models, 2019, equations 1 and 2,
        https://arxiv.org/abs/1904.06991

    Args:
        real: Features (M, D), M more than k.
        samples: Features (N, D), N more than k.
        k: Which neighbour sets the radius, at least 1; the paper's is 3.

    Raises:
        InputError: k is out of range, or as for :func:`kid`.

    Example:
        >>> precision_recall([[0.0], [1.0], [2.0]], [[1.5], [2.5], [9.0]], k=1)
        PrecisionRecall(precision=0.6666666666666666, recall=0.6666666666666666)
    """
    if k < 1:
        raise InputError(f"k must be at least 1, not {k}")
    truth, drawn = _pair(real, samples, k + 1)
    # Distances come from |a|² + |b|² - 2a·b, which is exact enough near the origin only.
    centre = truth.mean(axis=0)
    truth, drawn = truth - centre, drawn - centre
    slack = 1e-12 * max(float((side**2).sum(axis=1).max()) for side in (truth, drawn))
    radii = _radii(drawn, k) + slack
    within = np.zeros(len(drawn), dtype=bool)
    covered = 0
    for start, part in _blocks(truth):
        squares = _squares(part, drawn)
        own = _radii(truth, k, start, len(part)) + slack
        within |= (squares <= own[:, None]).any(axis=0)
        covered += int((squares <= radii).any(axis=1).sum())
    return PrecisionRecall(float(within.mean()), covered / len(truth))


def class_chi2(counts: ArrayLike, reference: ArrayLike) -> ClassChi2:
    """Whether classes occur as often among samples as among real images.

        χ² = Σ_c (√(M/N)·a_c - √(N/M)·b_c)²/(a_c + b_c),    N = Σa, M = Σb,

    over the classes that occur in either; the numbers need not be equal.

    Reference:
        W. Press et al., Numerical recipes, 3rd edition, 2007, equation 14.3.3

    Args:
        counts: (K,), how many samples were classified as each class.
        reference: (K,), the same of the real images.

    Raises:
        InputError: The shapes differ, a count is negative or not whole, or one side is empty.

    Example:
        >>> class_chi2([10, 10], [5, 15]).statistic.__round__(3)
        2.667
    """
    a, b = np.asarray(counts, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or not a.size:
        raise InputError(f"class counts must have one shape (K,), not {a.shape} and {b.shape}")
    for side in (a, b):
        if not ((side >= 0) & (side == np.floor(side))).all() or side.sum() == 0:
            raise InputError("class counts must be whole numbers, not negative, and not all 0")
    occurs = a + b > 0
    a, b = a[occurs], b[occurs]
    ratio = math.sqrt(b.sum() / a.sum())
    statistic = float(((ratio * a - b / ratio) ** 2 / (a + b)).sum())
    dof = len(a) - 1
    if dof == 0:
        return ClassChi2(0.0, 0, 1.0)
    half = torch.tensor([dof / 2, statistic / 2], dtype=torch.float64)
    return ClassChi2(statistic, dof, float(torch.special.gammaincc(half[0], half[1])))


def _pair(x: ArrayLike, y: ArrayLike, least: int) -> tuple[Array, Array]:
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise InputError(f"features must have shapes (M, D) and (N, D), not {a.shape}, {b.shape}")
    if min(len(a), len(b)) < least:
        raise InputError(f"this needs at least {least} rows a side, not {len(a)} and {len(b)}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("features must be finite: there is a NaN or an infinity among them")
    return a, b


def _blocks(x: Array) -> Iterator[tuple[int, Array]]:
    for start in range(0, len(x), _BLOCK):
        yield start, x[start : start + _BLOCK]


def _kernel(x: Array, y: Array) -> Array:
    base = x @ y.T
    base /= x.shape[1]
    base += 1
    cubed = base * base
    cubed *= base
    return cubed


def _within(x: Array) -> float:
    """The mean of the kernel over ordered pairs of different rows; blocks above the diagonal."""
    total = 0.0
    for start, part in _blocks(x):
        own = _kernel(part, part)
        total += float(own.sum() - own.trace())
        if start + len(part) < len(x):
            total += 2 * float(_kernel(part, x[start + len(part) :]).sum())
    return total / (len(x) * (len(x) - 1))


def _squares(x: Array, y: Array) -> Array:
    """Squared distances, of shape (len(x), len(y))."""
    out = x @ y.T
    out *= -2
    out += (x**2).sum(axis=1)[:, None]
    out += (y**2).sum(axis=1)
    return out


def _radii(x: Array, k: int, start: int = 0, count: int | None = None) -> Array:
    """The squared distance of each row in a range to its k-th nearest other row."""
    chosen = x[start:] if count is None else x[start : start + count]
    found = []
    for offset, part in _blocks(chosen):
        squares = _squares(part, x)
        # A row is not its own neighbour, whatever rounding makes of its distance to itself.
        squares[np.arange(len(part)), start + offset + np.arange(len(part))] = np.inf
        smallest = torch.from_numpy(squares).topk(k, dim=1, largest=False).values
        found.append(smallest[:, -1].numpy())
    return np.concatenate(found).clip(min=0.0)
