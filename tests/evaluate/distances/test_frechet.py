import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddim.base.errors import InputError
from ddim.evaluate.distances import frechet
from ddim.evaluate.distances.frechet import FeatureStatistics, frechet_distance


def covariance(rng, dimension, rows):
    """A covariance of rank min(dimension, rows) whose eigenvalues span some decades."""
    x = rng.standard_normal((rows, dimension)) * np.logspace(-2, 1, dimension)
    x = x @ np.linalg.qr(rng.standard_normal((dimension, dimension)))[0]
    return x.T @ x / rows


@pytest.fixture
def rng():
    return np.random.default_rng(0)


class TestDistance:
    def test_of_equal_covariances_is_that_of_the_means(self, rng):
        c = covariance(rng, 20, 100)
        a, b = rng.standard_normal((2, 20))
        assert frechet_distance(a, c, b, c) == pytest.approx(np.sum((a - b) ** 2), rel=1e-13)

    def test_of_diagonal_gaussians_is_the_closed_form(self, rng):
        a, b = rng.standard_normal((2, 7))
        s, r = rng.uniform(0, 3, (2, 7))
        expected = np.sum((a - b) ** 2) + np.sum((s - r) ** 2)
        got = frechet_distance(a, np.diag(s**2), b, np.diag(r**2))
        assert got == pytest.approx(expected, rel=1e-13)

    def test_of_commuting_gaussians_is_the_closed_form(self, rng):
        q = np.linalg.qr(rng.standard_normal((9, 9)))[0]
        s, r = rng.uniform(0.1, 3, (2, 9))
        got = frechet_distance(np.zeros(9), q * s**2 @ q.T, np.zeros(9), q * r**2 @ q.T)
        assert got == pytest.approx(np.sum((s - r) ** 2), rel=1e-12)

    def test_of_two_dimensions_is_the_closed_form(self, rng):
        # The trace of the root of a 2x2 matrix X is sqrt(tr X + 2·sqrt(det X)).
        a, b = covariance(rng, 2, 5), covariance(rng, 2, 5)
        root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
        expected = np.trace(a) + np.trace(b) - 2 * root
        assert frechet_distance([0, 0], a, [0, 0], b) == pytest.approx(expected, rel=1e-10)

    def test_of_generic_covariances_is_the_trace_formula(self, rng):
        a, b = covariance(rng, 30, 200), covariance(rng, 30, 200)
        # The eigenvalues of C₁C₂ are those of C₁^½ C₂ C₁^½.
        root = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
        zero = np.zeros(30)
        expected = np.trace(a) + np.trace(b) - 2 * root
        assert frechet_distance(zero, a, zero, b) == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("rows", [0, 1, 10])
    def test_of_deficient_rank(self, rng, rows):
        c = covariance(rng, 64, rows) if rows else np.zeros((64, 64))
        zero = np.zeros(64)
        assert frechet_distance(zero, c, zero, c) == pytest.approx(0, abs=1e-12 * np.trace(c))
        assert frechet_distance(zero, c, zero, 4 * c) == pytest.approx(np.trace(c), rel=1e-12)
        # Between orthogonal spaces the mixed term is 0.
        a, b = np.diag([1.0, 2, 0, 0]), np.diag([0.0, 0, 3, 4])
        assert frechet_distance(zero[:4], a, zero[:4], b) == pytest.approx(10, rel=1e-13)

    def test_of_nearly_equal_covariances_keeps_its_digits(self, rng):
        # |(1+h)·R - R|² = h²·tr C, which lies below the rounding of the traces.
        c, h, zero = covariance(rng, 64, 500), 1e-9, np.zeros(64)
        got = frechet_distance(zero, c, zero, (1 + h) ** 2 * c)
        assert got == pytest.approx(h**2 * np.trace(c), rel=1e-3)

    @given(st.integers(1, 12), st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
    def test_is_symmetric_and_not_negative(self, dimension, n, m, seed):
        rng = np.random.default_rng(seed)
        a, b = covariance(rng, dimension, n), covariance(rng, dimension, m)
        x, y = rng.standard_normal((2, dimension))
        d = frechet_distance(x, a, y, b)
        assert d >= 0
        assert d == pytest.approx(frechet_distance(y, b, x, a), rel=1e-6, abs=1e-6)

    def test_accepts_the_rounding_of_float32(self, rng):
        x = rng.standard_normal((10, 50)).astype(np.float32)
        c = np.cov(x.T, dtype=np.float32)
        assert frechet_distance(np.zeros(50), c, np.zeros(50), c) < 1e-4

    @pytest.mark.parametrize(
        ("mean", "cov", "message"),
        [
            ([0.0, 0.0], np.eye(3), "shapes"),
            (0.0, np.eye(1), "shapes"),
            ([np.nan, 0.0], np.eye(2), "finite"),
            ([0.0, 0.0], [[np.inf, 0], [0, 1]], "finite"),
            ([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]], "symmetric"),
            ([0.0, 0.0], [[1.0, 0.0], [0.0, -1.0]], "negative eigenvalue"),
            ([0.0, 0.0, 0.0], np.eye(3), "2 dimensions"),
        ],
    )
    def test_refuses_what_is_no_gaussian(self, mean, cov, message):
        with pytest.raises(InputError, match=message):
            frechet_distance(mean, cov, [0.0, 0.0], np.eye(2))


class TestLargeDistance:
    """Above 256 dimensions another algorithm is tried first; here above none."""

    @pytest.fixture(autouse=True)
    def large(self, monkeypatch):
        monkeypatch.setattr(frechet, "_LARGE", 0)

    def test_is_the_trace_formula(self, rng, monkeypatch):
        a, b = covariance(rng, 40, 200), covariance(rng, 40, 90)
        zero, shift = np.zeros(40), np.full(40, 0.1)
        got = frechet_distance(zero, a, shift, b)
        assert got - 0.4 == pytest.approx(frechet._fast(a, b, 0.0), rel=1e-9)
        monkeypatch.setattr(frechet, "_LARGE", 40)
        assert got == pytest.approx(frechet_distance(zero, a, shift, b), rel=1e-9)

    @pytest.mark.parametrize("rows", [10, 39, 200])
    @pytest.mark.parametrize("power", [0, 1, 4])
    def test_of_few_rows_and_of_steep_spectra(self, rng, monkeypatch, rows, power):
        falling = np.diag(np.arange(1.0, 41) ** -power)
        a, b = (falling @ covariance(rng, 40, n) @ falling for n in (rows, 300))
        got = frechet._fast(a, b, 0.0)
        monkeypatch.setattr(frechet, "_LARGE", 40)
        zero = np.zeros(40)
        assert got == pytest.approx(frechet_distance(zero, a, zero, b), rel=1e-6)
        assert frechet._fast(b, a, 0.0) == pytest.approx(got, rel=1e-6)

    @pytest.mark.parametrize("rows", [20, 200])
    def test_of_near_or_singular_covariances_keeps_its_digits(self, rng, rows):
        c, h, zero = covariance(rng, 40, rows), 1e-6, np.zeros(40)
        assert frechet._fast(c, (1 + h) ** 2 * c, 0.0) is None
        got = frechet_distance(zero, c, zero, (1 + h) ** 2 * c)
        assert got == pytest.approx(h**2 * np.trace(c), rel=1e-3)

    def test_refuses_a_negative_eigenvalue_on_either_side(self):
        good, bad, zero = np.eye(2), np.diag([1.0, -1.0]), [0.0, 0.0]
        for a, b in ((good, bad), (bad, good)):
            with pytest.raises(InputError, match="negative eigenvalue"):
                frechet_distance(zero, a, zero, b)


class TestStatistics:
    @pytest.mark.parametrize("sizes", [[1000], [1] * 10 + [990], [333, 0, 333, 334]])
    def test_batches_give_the_moments_of_the_whole(self, rng, sizes):
        x = rng.standard_normal((1000, 16)) @ rng.standard_normal((16, 16)) + 5
        statistics = FeatureStatistics(16)
        for part in np.split(x, np.cumsum(sizes)[:-1]):
            statistics.update(part)
        assert statistics.count == 1000
        np.testing.assert_allclose(statistics.mean, x.mean(axis=0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(statistics.cov, np.cov(x.T), rtol=1e-10, atol=1e-12)

    def test_merging_gives_the_moments_of_the_whole(self, rng):
        x = rng.standard_normal((900, 8))
        whole = FeatureStatistics(8)
        for part in np.split(x, [100, 350]):
            one = FeatureStatistics(8)
            one.update(part)
            whole.merge(one)
        whole.merge(FeatureStatistics(8))
        assert whole.count == 900
        np.testing.assert_allclose(whole.mean, x.mean(axis=0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(whole.cov, np.cov(x.T), rtol=1e-10, atol=1e-12)

    def test_comes_back_from_its_moments(self, rng):
        one = FeatureStatistics(3)
        one.update(rng.standard_normal((10, 3)))
        other = FeatureStatistics.from_moments(one.count, one.mean, one.scatter)
        for statistics in (one, other):
            statistics.update([[1.0, 2.0, 3.0]])
        np.testing.assert_array_equal(one.cov, other.cov)
        with pytest.raises(InputError, match="scatter"):
            FeatureStatistics.from_moments(3, np.zeros(2), np.zeros((3, 3)))
        with pytest.raises(InputError, match="finite"):
            FeatureStatistics.from_moments(3, np.zeros(1), [[np.nan]])

    def test_a_large_mean_costs_no_digits(self, rng):
        x = rng.standard_normal((1000, 3))
        near, far = FeatureStatistics(3), FeatureStatistics(3)
        for part in np.split(x, 10):
            near.update(part)
            far.update(part + 1e6)
        np.testing.assert_allclose(far.cov, near.cov, rtol=1e-7, atol=1e-8)

    def test_float32_features_are_summed_in_float64(self, rng):
        x = rng.standard_normal((50_000, 4)).astype(np.float32)
        statistics = FeatureStatistics(4)
        statistics.update(x)
        np.testing.assert_allclose(
            statistics.mean, x.mean(axis=0, dtype=np.float64), rtol=1e-10, atol=1e-12
        )

    def test_what_it_returns_can_be_changed_without_harm(self):
        statistics = FeatureStatistics(1)
        statistics.update([[1.0], [3.0]])
        statistics.mean[:] = 7
        statistics.cov[:] = 7
        assert (statistics.mean, statistics.cov) == (2, 2)

    def test_refuses_bad_rows(self):
        statistics = FeatureStatistics(2)
        with pytest.raises(InputError, match="shape"):
            statistics.update(np.zeros((3, 4)))
        with pytest.raises(InputError, match="finite"):
            statistics.update([[np.nan, 0.0]])
        with pytest.raises(InputError, match="merge"):
            statistics.merge(FeatureStatistics(3))
        with pytest.raises(InputError, match="column"):
            FeatureStatistics(0)

    def test_refuses_moments_of_too_few_rows(self):
        statistics = FeatureStatistics(2)
        with pytest.raises(InputError, match="no features"):
            _ = statistics.mean
        statistics.update([[1.0, 2.0]])
        with pytest.raises(InputError, match="at least 2"):
            _ = statistics.cov
