"""The Fréchet distance between two Gaussians, and the moments it is taken from, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddim.base.errors import InputError

__all__ = ["FeatureStatistics", "frechet_distance"]

Array = NDArray[np.float64]

_LARGE = 256
"""Dimensions above which the square roots of matrices are avoided."""


class FeatureStatistics:
    """The mean and covariance of rows that arrive in batches, in one pass.

    Each batch is centred on its own mean and merged, with n = n_a + n_b and δ = μ_b - μ_a, by

        μ = μ_a + δ·n_b/n,    M = M_a + M_b + δδᵀ·n_a·n_b/n,

    so that, unlike with sums of squares, a mean that is large beside the spread costs no digits.

    Reference:
        T. Chan, G. Golub, R. LeVeque, Algorithms for computing the sample variance, 1983,
        equation 2.1, https://doi.org/10.1080/00031305.1983.10483115

    Example:
        >>> statistics = FeatureStatistics(2)
        >>> statistics.update([[0.0, 1.0], [2.0, 1.0]])
        >>> statistics.update([[4.0, 4.0]])
        >>> statistics.count, statistics.mean.tolist(), statistics.cov.tolist()
        (3, [2.0, 2.0], [[4.0, 3.0], [3.0, 3.0]])
    """

    def __init__(self, width: int) -> None:
        if width < 1:
            raise InputError(f"features have at least one column, not {width}")
        self.count = 0
        self._mean = np.zeros(width)
        self._scatter = np.zeros((width, width))

    @classmethod
    def from_moments(cls, count: int, mean: ArrayLike, scatter: ArrayLike) -> FeatureStatistics:
        """What has the count, the mean (D,) and the :attr:`scatter` (D, D) of other statistics.

        Raises:
            InputError: A shape is wrong, a value is not finite, or the count is negative.
        """
        mu, m = np.array(mean, dtype=np.float64), np.array(scatter, dtype=np.float64)
        if count < 0 or mu.ndim != 1 or m.shape != (len(mu), len(mu)):
            raise InputError(
                f"moments are a count, a mean (D,) and a scatter (D, D), "
                f"not {count}, {mu.shape} and {m.shape}"
            )
        if not (np.isfinite(mu).all() and np.isfinite(m).all()):
            raise InputError("moments must be finite: there is a NaN or an infinity among them")
        made = cls(len(mu))
        made.count, made._mean, made._scatter = count, mu, m
        return made

    def update(self, features: ArrayLike) -> None:
        """Add rows, of shape (N, width); none is fine.

        Raises:
            InputError: The shape is another, or a value is not finite.
        """
        rows = np.asarray(features, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self._mean):
            raise InputError(f"features must have shape (N, {len(self._mean)}), not {rows.shape}")
        if not np.isfinite(rows).all():
            raise InputError("features must be finite: there is a NaN or an infinity among them")
        if len(rows) == 0:
            return
        mean = rows.mean(axis=0)
        centred = rows - mean
        self._add(len(rows), mean, centred.T @ centred)

    def merge(self, other: FeatureStatistics) -> None:
        """Add all the rows that `other` has seen.

        Raises:
            InputError: The two differ in width.
        """
        if len(other._mean) != len(self._mean):
            raise InputError(
                f"cannot merge statistics of {len(other._mean)} columns into {len(self._mean)}"
            )
        self._add(other.count, other._mean, other._scatter)

    @property
    def mean(self) -> Array:
        """The mean, of shape (width,).

        Raises:
            InputError: There were no rows.
        """
        if self.count == 0:
            raise InputError("the mean of no features is not defined")
        return self._mean.copy()

    @property
    def cov(self) -> Array:
        """The unbiased covariance (divided by count - 1), of shape (width, width).

        Raises:
            InputError: There were fewer than two rows.
        """
        if self.count < 2:
            raise InputError(f"a covariance needs at least 2 features, not {self.count}")
        return self._scatter / (self.count - 1)

    @property
    def scatter(self) -> Array:
        """The sum of (x - mean)(x - mean)ᵀ over the rows, of shape (width, width)."""
        return self._scatter.copy()

    def _add(self, count: int, mean: Array, scatter: Array) -> None:
        if count == 0:
            return
        total = self.count + count
        delta = mean - self._mean
        self._scatter = (
            self._scatter + scatter + np.outer(delta, delta) * (self.count * count / total)
        )
        self._mean = self._mean + delta * (count / total)
        self.count = total


def frechet_distance(mean1: ArrayLike, cov1: ArrayLike, mean2: ArrayLike, cov2: ArrayLike) -> float:
    """The squared Fréchet (2-Wasserstein) distance between two Gaussians.

        d² = |μ₁ - μ₂|² + Tr(C₁ + C₂ - 2·(C₁^½ C₂ C₁^½)^½)

    With symmetric roots A = C₁^½ and B = C₂^½ and the singular values UΣVᵀ = B·A, the last trace is
    ΣΣ, and the whole of the second term is |A - B·UVᵀ|²: the least distance between roots of C₁ and
    of C₂. It is computed so. A difference of roots is small where the covariances are nearly equal,
    while the three traces cancel, and need the root of a product whose rounded eigenvalues may be
    negative.

    Symmetric roots of large matrices are slow, and so are singular vectors. The singular values are
    the same for any A with AAᵀ = C₁ and B with BBᵀ = C₂, so that above 256 dimensions they are
    first taken alone, of Cholesky factors where there are any. That result is kept only where what
    the difference of the traces loses to rounding lies below its sixth digit.

    References:
        D. Dowson, B. Landau, The Fréchet distance between multivariate normal distributions, 1982,
        https://doi.org/10.1016/0047-259X(82)90077-X
        M. Heusel et al., GANs trained by a two time-scale update rule converge to a local Nash
        equilibrium, 2017, equation 6, https://arxiv.org/abs/1706.08500
        R. Bhatia, T. Jain, Y. Lim, On the Bures-Wasserstein distance between positive definite
        matrices, 2017, theorem 1, https://arxiv.org/abs/1712.01504

    Args:
        mean1: (D,).
        cov1: (D, D), symmetric with no negative eigenvalue; it may be of any rank.
        mean2: (D,).
        cov2: (D, D), as `cov1`.

    Returns:
        d², at least 0, in squared units of the features.

    Raises:
        InputError: A shape is wrong, a value is not finite, or a matrix is not a covariance.

    Example:
        >>> frechet_distance([0.0, 0.0], [[4.0, 0.0], [0.0, 0.0]], [3.0, 0.0], [[1.0, 0], [0, 0]])
        10.0
    """
    mu1, c1 = _gaussian(mean1, cov1)
    mu2, c2 = _gaussian(mean2, cov2)
    if mu1.shape != mu2.shape:
        raise InputError(f"the two Gaussians have {len(mu1)} and {len(mu2)} dimensions")
    between_means = float(np.sum((mu1 - mu2) ** 2))
    if len(mu1) > _LARGE:
        spread = _fast(c1, c2, between_means)
        if spread is not None:
            return between_means + spread
    root1, root2 = _root(c1), _root(c2)
    left, _, right = np.linalg.svd(root2 @ root1)
    return between_means + float(np.sum((root1 - root2 @ left @ right) ** 2))


def _fast(c1: Array, c2: Array, between_means: float) -> float | None:
    """Tr(C₁ + C₂) - 2·ΣΣ by any roots, or None where six digits of d² are not certain."""
    product = _any_root(c2).T @ _any_root(c1)
    traces = float(np.trace(c1) + np.trace(c2))
    spread = traces - 2 * float(np.linalg.svd(product, compute_uv=False).sum())
    # Each singular value is good to rounding of the largest; what matters is what the sum loses.
    error = np.finfo(np.float64).eps * len(c1) * traces
    return spread if 2 * error < 1e-6 * (between_means + spread) else None


def _any_root(c: Array) -> Array:
    """A with AAᵀ = C: the Cholesky factor, or what its eigenvectors give of one without."""
    try:
        return np.linalg.cholesky(c).astype(np.float64, copy=False)
    except np.linalg.LinAlgError:
        values, vectors = _eigen(c)
        kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
        return vectors[:, kept] * np.sqrt(values[kept])


def _gaussian(mean: ArrayLike, cov: ArrayLike) -> tuple[Array, Array]:
    """A checked mean and a covariance, checked but for its eigenvalues."""
    mu, c = np.asarray(mean, dtype=np.float64), np.asarray(cov, dtype=np.float64)
    if mu.ndim != 1 or c.shape != (len(mu), len(mu)):
        raise InputError(
            f"mean and cov must have shapes (D,) and (D, D), not {mu.shape}, {c.shape}"
        )
    if not (np.isfinite(mu).all() and np.isfinite(c).all()):
        raise InputError("mean and cov must be finite: there is a NaN or an infinity among them")
    # What float32 arithmetic leaves of symmetry and positivity is accepted; more is a mistake.
    if np.abs(c - c.T).max(initial=0.0) > 1e-5 * np.abs(c).max(initial=0.0):
        raise InputError("cov must be symmetric")
    return mu, (c + c.T) / 2


def _root(c: Array) -> Array:
    """The symmetric root of a covariance."""
    values, vectors = _eigen(c)
    return (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T


def _eigen(c: Array) -> tuple[Array, Array]:
    """The eigenvalues of a covariance, rising, and its eigenvectors."""
    values, vectors = np.linalg.eigh(c)
    if values.min(initial=0.0) < -1e-5 * np.abs(values).max(initial=0.0):
        raise InputError(f"cov must have no negative eigenvalue, not {values[0]:.3g}")
    return values, vectors
