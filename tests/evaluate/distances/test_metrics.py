import math

import numpy as np
import pytest

from ddim.evaluate.distances import metrics
from ddim.evaluate.distances.metrics import class_chi2, kid, precision_recall


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks smaller than the sets, so that every seam is crossed."""
    monkeypatch.setattr(metrics, "_BLOCK", 7)


def naive_kid(x, y):
    """The definition, pair by pair."""

    def k(a, b):
        return (a @ b / len(a) + 1) ** 3

    m, n = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j)
    yy = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j)
    xy = sum(k(a, b) for a in x for b in y)
    return xx / (m * (m - 1)) + yy / (n * (n - 1)) - 2 * xy / (m * n)


def naive_precision_recall(real, samples, k):
    def share(points, of):
        radii = [sorted(np.linalg.norm(of - p, axis=1))[k] for p in of]  # [0] is p itself
        covered = [any(np.linalg.norm(of - p, axis=1) <= radii) for p in points]
        return np.mean(covered)

    return share(samples, real), share(real, samples)


class TestKid:
    @pytest.mark.usefixtures("small_blocks")
    @pytest.mark.parametrize(("m", "n"), [(2, 2), (20, 9), (7, 14), (30, 31)])
    def test_is_its_definition(self, rng, m, n):
        x, y = rng.standard_normal((m, 5)), rng.standard_normal((n, 5)) + 0.5
        assert kid(x, y) == pytest.approx(naive_kid(x, y), rel=1e-12, abs=1e-13)

    def test_blocks_do_not_matter(self, rng, monkeypatch):
        x, y = rng.standard_normal((2, 50, 3))
        whole = kid(x, y)
        monkeypatch.setattr(metrics, "_BLOCK", 3)
        assert kid(x, y) == pytest.approx(whole, rel=1e-12)

    def test_is_unbiased_whatever_the_number(self, rng):
        """In one dimension the expectation is closed: with moments a_p and b_p of the two, it is
        Σ_p binom(3, p)·(a_p - b_p)², p = 1..3."""
        shift, s = 0.5, 0.5
        a, b = (0, s**2, 0), (shift, s**2 + shift**2, 3 * shift * s**2 + shift**3)
        truth = sum(math.comb(3, p + 1) * (a[p] - b[p]) ** 2 for p in range(3))
        for m, n in ((3, 5), (20, 4)):
            drawn = [
                kid(s * rng.standard_normal((m, 1)), s * rng.standard_normal((n, 1)) + shift)
                for _ in range(1500)
            ]
            error = np.std(drawn) / math.sqrt(len(drawn))
            assert abs(np.mean(drawn) - truth) < 4 * error
            # Sums that kept the diagonal would be wrong by more than this.
            assert 4 * error < 0.3

    def test_of_equal_distributions_is_zero_in_the_mean(self, rng):
        drawn = [kid(*rng.standard_normal((2, 10, 4))) for _ in range(800)]
        assert abs(np.mean(drawn)) < 4 * np.std(drawn) / math.sqrt(len(drawn))
        assert min(drawn) < 0

    def test_of_points(self):
        # All pairs are alike: (1 + 0)³ + (1 + 4)³ - 2·(1 + 0)³.
        assert kid(np.zeros((3, 2)), np.full((4, 2), 2.0)) == pytest.approx(1 + 125 - 2)

    def test_refuses(self, refuses):
        with refuses("at least 2 rows"):
            kid(np.zeros((1, 2)), np.zeros((5, 2)))
        with refuses("shapes"):
            kid(np.zeros((5, 2)), np.zeros((5, 3)))
        with refuses("finite"):
            kid(np.full((5, 2), np.nan), np.zeros((5, 2)))


class TestPrecisionRecall:
    @pytest.mark.usefixtures("small_blocks")
    @pytest.mark.parametrize("k", [1, 3])
    @pytest.mark.parametrize(("m", "n"), [(20, 20), (16, 31), (35, 6)])
    def test_is_its_definition(self, rng, k, m, n):
        real, samples = rng.standard_normal((m, 2)), 0.7 * rng.standard_normal((n, 2)) + 0.8
        expected = naive_precision_recall(real, samples, k)
        assert tuple(precision_recall(real, samples, k)) == pytest.approx(expected)

    def test_of_a_set_with_itself_is_one(self, rng):
        x = 1e3 + rng.standard_normal((40, 8))
        assert precision_recall(x, x) == (1, 1)

    def test_of_sets_far_apart_is_zero(self, rng):
        x = rng.standard_normal((40, 8))
        assert precision_recall(x, x + 100) == (0, 0)

    def test_of_a_collapsed_sampler_has_precision_without_recall(self, rng):
        real = rng.standard_normal((200, 2))
        samples = 1e-3 * rng.standard_normal((200, 2))
        precision, recall = precision_recall(real, samples)
        assert precision == 1
        assert recall < 0.02

    def test_of_constant_features(self):
        x = np.full((10, 4), 0.1)
        assert precision_recall(x, x) == (1, 1)
        assert precision_recall(x, x + 1) == (0, 0)

    def test_refuses(self, refuses):
        with refuses("at least 4 rows"):
            precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))
        with refuses("k must be at least 1"):
            precision_recall(np.zeros((3, 2)), np.zeros((9, 2)), 0)


class TestClassChi2:
    def test_of_equal_numbers_is_the_textbook_form(self):
        a, b = np.array([30, 20, 50]), np.array([35, 25, 40])
        assert class_chi2(a, b).statistic == pytest.approx(((a - b) ** 2 / (a + b)).sum())

    def test_is_the_contingency_table(self):
        table = np.array([[30, 20, 50], [350, 250, 400]])
        expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
        found = class_chi2(*table)
        assert found.statistic == pytest.approx(((table - expected) ** 2 / expected).sum())
        assert found.dof == 2
        assert found.p == pytest.approx(math.exp(-found.statistic / 2))  # closed for two

    def test_has_its_distribution_where_nothing_differs(self, rng):
        shares = [0.1] * 10
        found = [
            class_chi2(rng.multinomial(1000, shares), rng.multinomial(4000, shares))
            for _ in range(1000)
        ]
        assert np.mean([f.statistic for f in found]) == pytest.approx(9, abs=0.6)
        assert np.mean([f.p < 0.1 for f in found]) == pytest.approx(0.1, abs=0.04)

    def test_classes_that_never_occur_do_not_count(self):
        assert class_chi2([5, 0, 5], [4, 0, 6]).dof == 1
        assert class_chi2([5, 0], [9, 0]) == (0, 0, 1)

    @pytest.mark.parametrize(
        ("a", "b", "message"),
        [
            ([1, 2], [1, 2, 3], "shape"),
            ([-1, 2], [1, 2], "not negative"),
            ([0.5, 2], [1, 2], "whole"),
            ([0, 0], [1, 2], "not all 0"),
        ],
    )
    def test_refuses(self, refuses, a, b, message):
        with refuses(message):
            class_chi2(a, b)
