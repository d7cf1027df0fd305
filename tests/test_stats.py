"""Statistics against closed forms, scikit-learn, scipy and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from palimpsest import stats
from palimpsest.errors import InputError

SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=15)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.5, 0.95, 0.999]))
@settings(deadline=None, max_examples=80)
def test_rate_intervals_equal_scipy(rate, confidence):
    k, n = rate
    test = scipy.stats.binomtest(k, n)
    for ours, method in ((stats.wilson_interval, "wilson"), (stats.clopper_pearson, "exact")):
        theirs = test.proportion_ci(confidence, method)
        assert ours(k, n, confidence) == pytest.approx((k / n, theirs.low, theirs.high), abs=1e-9)


def test_clopper_pearson_at_the_ends_has_a_closed_form():
    assert stats.clopper_pearson(0, 30) == pytest.approx((0, 0, 1 - 0.025 ** (1 / 30)))
    assert stats.clopper_pearson(30, 30) == pytest.approx((1, 0.025 ** (1 / 30), 1))


@pytest.mark.parametrize("function", [stats.wilson_interval, stats.clopper_pearson])
@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_impossible_rates_are_refused(function, k, n):
    with pytest.raises(InputError, match=f"{k} successes of {n}"):
        function(k, n)


def test_intervals_cover_as_often_as_they_promise():
    rng = np.random.default_rng(0)
    covered = np.zeros(3)
    for seed in range(300):
        rate, n = 0.3, 40
        k = rng.binomial(n, rate)
        for i, interval in enumerate((stats.wilson_interval(k, n), stats.clopper_pearson(k, n))):
            covered[i] += interval.low <= rate <= interval.high
        interval = stats.bootstrap_interval(rng.normal(1.0, 2.0, 60), resamples=400, seed=seed)
        covered[2] += interval.low <= 1.0 <= interval.high
    assert (covered / 300 > [0.90, 0.93, 0.89]).all()
    assert (covered / 300 < [0.99, 1.00, 0.985]).all()


def test_bootstrap_is_seeded_and_pairs_positions():
    rng = np.random.default_rng(1)
    a = rng.normal(size=80)
    b = a + 0.5 + 0.01 * rng.normal(size=80)

    def difference(x, y, axis):
        return np.mean(y, axis=axis) - np.mean(x, axis=axis)

    apart = stats.bootstrap_interval(a, b, statistic=difference, seed=3)
    paired = stats.bootstrap_interval(a, b, statistic=difference, paired=True, seed=3)
    assert paired == stats.bootstrap_interval(a, b, statistic=difference, paired=True, seed=3)
    assert paired.high - paired.low < 0.02 < 0.3 < apart.high - apart.low
    assert paired.estimate == pytest.approx(np.mean(b - a))


@pytest.mark.parametrize("bad", [[], [1.0], [1.0, np.nan], [1.0, np.inf], [[1.0, 2.0]]])
def test_bootstrap_refuses_what_has_no_interval(bad):
    with pytest.raises(InputError):
        stats.bootstrap_interval(bad)
    with pytest.raises(InputError, match="lengths"):
        stats.bootstrap_interval([1.0, 2.0], [1.0, 2.0, 3.0], paired=True)


@settings(deadline=None, max_examples=150)
@given(SCORES, SCORES)
def test_auc_counts_pairs_and_ties_half(members, nonmembers):
    pairs = [(m > n) + 0.5 * (m == n) for m in members for n in nonmembers]
    assert stats.auc(members, nonmembers) == pytest.approx(np.mean(pairs))
    labels = [1] * len(members) + [0] * len(nonmembers)
    assert stats.auc(members, nonmembers) == pytest.approx(roc_auc_score(labels, members + nonmembers))
    assert stats.auc(nonmembers, members) == pytest.approx(1 - stats.auc(members, nonmembers))


@settings(deadline=None, max_examples=150)
@given(SCORES, SCORES, st.sampled_from([0.0, 0.001, 0.1, 0.25, 0.5, 1.0]))
def test_tpr_at_fpr_is_the_best_threshold_that_can_be_set(members, nonmembers, fpr):
    thresholds = [-np.inf, *members, *nonmembers]
    best = max(
        (np.mean(np.array(members) > t) for t in thresholds if np.mean(np.array(nonmembers) > t) <= fpr + 1e-12),
        default=0.0,
    )
    assert stats.tpr_at_fpr(members, nonmembers, fpr) == pytest.approx(best)
    curve = stats.roc_curve(members, nonmembers)
    assert stats.tpr_at_fpr(members, nonmembers, fpr) == pytest.approx(curve.tpr[curve.fpr <= fpr + 1e-12].max())


def test_auc_interval_is_the_bootstrap_of_the_auc():
    rng = np.random.default_rng(5)
    members, nonmembers = np.round(rng.normal(0.8, 1, 60), 1), np.round(rng.normal(0, 1, 90), 1)
    ours = stats.auc_interval(members, nonmembers, resamples=4000, seed=1)
    draws = [stats.auc(rng.choice(members, 60), rng.choice(nonmembers, 90)) for _ in range(4000)]
    assert ours.estimate == stats.auc(members, nonmembers)
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.008)
    assert ours == stats.auc_interval(members, nonmembers, resamples=4000, seed=1)


def test_infinite_scores_have_a_rank_and_nan_has_none():
    assert stats.auc([np.inf, 0.0], [-np.inf, 0.0]) == 0.875
    assert stats.tpr_at_fpr([np.inf], [0.0], 0.0) == 1.0
    for bad in ([], [np.nan]):
        with pytest.raises(InputError):
            stats.auc(bad, [1.0])
        with pytest.raises(InputError):
            stats.tpr_at_fpr([1.0], bad, 0.01)
    with pytest.raises(InputError, match="rate of 1"):
        stats.tpr_at_fpr([1.0], [0.0], 1.5)


def test_spearman_refuses_what_has_no_order():
    assert stats.spearman([1, 2, 3, 4], [2, 4, 8, 16]) == pytest.approx(1)
    with pytest.raises(InputError, match="rank correlation"):
        stats.spearman([1, 2, 3], [5, 5, 5])
    with pytest.raises(InputError, match="rank correlation"):
        stats.spearman([1, 2, 3], [1, 2])


@settings(deadline=None, max_examples=60)
@given(st.floats(-5, 5), st.floats(-5, 5), st.lists(st.integers(1, 10**6), min_size=2, max_size=9, unique=True))
def test_exact_laws_are_recovered(intercept, slope, x):
    law = stats.fit_log_law(x, intercept + slope * np.log10(x), resamples=50)
    assert (law.slope, law.intercept) == pytest.approx((slope, intercept), abs=1e-9)
    assert law.low == pytest.approx(slope, abs=1e-8) == law.high
    assert law.n == len(x)
    assert law([10.0])[0] == pytest.approx(intercept + slope, abs=1e-8)


def test_the_slope_interval_covers_the_truth_with_noisy_observations():
    levels, covered = [1, 4, 16, 64], 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        rows = [rng.normal(0.3 * np.log10(x), 0.5, 25 + 10 * i) for i, x in enumerate(levels)]
        law = stats.fit_log_law(levels, rows, resamples=300, seed=seed)
        covered += law.low <= 0.3 <= law.high
        assert law.slope == pytest.approx(np.polyfit(np.log10(levels), [r.mean() for r in rows], 1)[0])
    assert 0.88 <= covered / 200 <= 0.99


def test_paired_rows_shrink_the_interval_of_the_slope():
    rng = np.random.default_rng(0)
    subject = rng.normal(0, 3, 100)
    rows = [subject + 0.5 * np.log10(x) + 0.05 * rng.normal(size=100) for x in (10, 50, 100)]
    paired, apart = stats.fit_log_law([10, 50, 100], rows, paired=True), stats.fit_log_law([10, 50, 100], rows)
    assert paired.slope == apart.slope
    assert paired.high - paired.low < 0.1 * (apart.high - apart.low)
    with pytest.raises(InputError, match="Paired rows"):
        stats.fit_log_law([1, 2], [[1.0, 2.0], [1.0]], paired=True)


@pytest.mark.parametrize(
    ("x", "y"),
    [([1, 1], [0.0, 1.0]), ([0, 1], [0.0, 1.0]), ([1, 2], [0.0]), ([1, 2], [0.0, np.nan]), ([1, 2], [[1.0], []]), ([], [])],
)
def test_levels_without_a_fit_are_refused(x, y):
    with pytest.raises(InputError):
        stats.fit_log_law(x, y)


def test_equal_means_fit_the_flat_line():
    law = stats.fit_log_law([1, 10, 100], [0.5, 0.5, 0.5])
    assert law.r2 == 1
    assert (law.slope, law.low, law.high) == pytest.approx((0, 0, 0), abs=1e-12)
