"""Agreement against scikit-learn, published examples and naive sums over pairs of ratings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from palimpsest import stats
from palimpsest.errors import InputError

# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C: four observers, twelve units, gaps.
REPORTED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, np.nan, np.nan, np.nan],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, np.nan, 3],
        [np.nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, np.nan],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, np.nan],
    ]
)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=25), st.sampled_from([None, "linear", "quadratic"]))
def test_cohen_is_scikit_learns(pairs, weights):
    a, b = (list(side) for side in zip(*pairs, strict=True))
    assume(len({*a, *b}) > 1)
    ours = stats.cohen_kappa(a, b, weights=weights, resamples=50)
    assert ours.estimate == pytest.approx(cohen_kappa_score(a, b, weights=weights))


def test_words_are_categories_too():
    assert stats.cohen_kappa(["yes", "no", "no"], ["yes", "no", "yes"]).estimate == pytest.approx(cohen_kappa_score([1, 0, 0], [1, 0, 1]))


def test_the_published_fleiss_kappa():
    """Fleiss' example of ten subjects, five categories and fourteen raters: 0.210."""
    counts = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    kappa = stats.fleiss_kappa(counts)
    assert kappa.estimate == pytest.approx(0.210, abs=5e-4)
    assert kappa.low < kappa.estimate < kappa.high


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849), ("ratio", 0.797)])
def test_the_published_krippendorff_alphas(level, published):
    assert stats.krippendorff_alpha(REPORTED, level).estimate == pytest.approx(published, abs=6e-4)


@settings(max_examples=60)
@given(
    st.integers(2, 4).flatmap(
        lambda raters: st.lists(
            st.lists(st.sampled_from([np.nan, 0.0, 1.0, 2.0, 5.0]), min_size=raters, max_size=raters), min_size=2, max_size=10
        )
    ),
    st.sampled_from(["nominal", "interval", "ratio", "ordinal"]),
)
def test_krippendorff_sums_over_pairs_of_ratings(items, level):
    units = [[value for value in unit if not np.isnan(value)] for unit in items]
    units = [unit for unit in units if len(unit) >= 2]
    every = [value for unit in units for value in unit]
    assume(len(set(every)) > 1)

    def distance(c: float, k: float) -> float:
        if level == "nominal":
            return float(c != k)
        if level == "interval":
            return (c - k) ** 2
        if level == "ratio":
            return ((c - k) / (c + k)) ** 2 if c + k else 0.0
        low, high = min(c, k), max(c, k)
        return (sum(low <= v <= high for v in every) - (every.count(c) + every.count(k)) / 2) ** 2

    observed = sum(distance(c, k) / (len(unit) - 1) for unit in units for c, k in itertools.permutations(unit, 2)) / len(every)
    expected = sum(distance(c, k) for c, k in itertools.permutations(every, 2)) / (len(every) * (len(every) - 1))
    ours = stats.krippendorff_alpha(np.array(items).T, level, resamples=50)
    assert ours.estimate == pytest.approx(1 - observed / expected)


def test_the_bootstrap_resamples_items():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 80)
    ratings = np.array([np.where(rng.random(80) < 0.7, truth, rng.integers(0, 3, 80)) for _ in range(3)], float)
    ours = stats.krippendorff_alpha(ratings, resamples=3000, seed=1)
    draws = [stats.krippendorff_alpha(ratings[:, rng.integers(80, size=80)], resamples=1).estimate for _ in range(600)]
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.03)
    assert ours == stats.krippendorff_alpha(ratings, resamples=3000, seed=1)
    cohen = stats.cohen_kappa(ratings[0], ratings[1], resamples=3000)
    assert cohen.low < cohen.estimate < cohen.high


def test_two_raters_agree_alike_by_every_coefficient():
    """With two raters and the same marginals κ, Fleiss' κ and α differ by little, and by nothing when agreement is perfect."""
    a = [0, 1] * 100
    b = [1, 0] * 10 + a[20:]
    table = np.array([[(x == c) + (y == c) for c in (0, 1)] for x, y in zip(a, b, strict=True)])
    kappas = [stats.cohen_kappa(a, b).estimate, stats.fleiss_kappa(table).estimate, stats.krippendorff_alpha([a, b]).estimate]
    assert kappas == pytest.approx([0.8, 0.8, 0.8005], abs=1e-9)
    assert stats.krippendorff_alpha([a, a]) == stats.cohen_kappa(a, a) == (1, 1, 1)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (lambda: stats.cohen_kappa([1, 1], [1, 1]), "one category"),
        (lambda: stats.cohen_kappa([1, 0], [1]), "shapes"),
        (lambda: stats.cohen_kappa([1, 0], [1, 0], weights="cubic"), "cubic"),
        (lambda: stats.fleiss_kappa([[1, 1], [1, 2]]), r"\[2, 3\]"),
        (lambda: stats.fleiss_kappa([[1, 0], [0, 1]]), r"\[1\]"),
        (lambda: stats.fleiss_kappa([[2, 0], [2, 0]]), "one category"),
        (lambda: stats.krippendorff_alpha([[1.0, np.nan], [np.nan, 1.0]]), "rated twice"),
        (lambda: stats.krippendorff_alpha([[1.0, 1.0], [1.0, 1.0]]), "one category"),
        (lambda: stats.krippendorff_alpha([[1.0, 2.0], [1.0, 1.0]], "cardinal"), "cardinal"),
        (lambda: stats.krippendorff_alpha([[-1.0, 2.0], [1.0, 1.0]], "ratio"), "ratio"),
    ],
)
def test_what_has_no_agreement_is_refused(bad, match):
    with pytest.raises(InputError, match=match):
        bad()
