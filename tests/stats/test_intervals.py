"""Intervals against scipy, closed forms and their own promise of coverage."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest import stats
from palimpsest.errors import InputError


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


def test_clusters_are_resampled_whole():
    rng = np.random.default_rng(6)
    covered, naive = 0, 0
    for seed in range(200):
        facts = rng.normal(size=30)
        values = np.repeat(facts, 8) + 0.1 * rng.normal(size=240)
        interval = stats.clustered_interval(values, np.repeat(np.arange(30), 8), resamples=400, seed=seed)
        covered += interval.low <= 0 <= interval.high
        alone = stats.bootstrap_interval(values, resamples=200, seed=seed)
        naive += alone.low <= 0 <= alone.high
    assert 0.88 <= covered / 200 <= 0.98
    assert naive / 200 < 0.7


def test_the_interval_of_a_rate_looks_whether_sources_are_shared():
    rng = np.random.default_rng(8)
    sources = np.repeat(np.arange(12), 5)
    flags = np.repeat(rng.random(12) < 0.5, 5)
    assert stats.rate_interval(flags) == stats.rate_interval(flags, np.arange(60)) == stats.wilson_interval(int(flags.sum()), 60)
    shared = stats.rate_interval(flags, sources)
    assert shared == stats.clustered_interval(flags.astype(float), sources)
    assert shared.high - shared.low > 1.5 * (stats.rate_interval(flags).high - stats.rate_interval(flags).low)
    with pytest.raises(InputError, match="other values"):
        stats.rate_interval([0.5])


def test_clusters_of_one_are_the_ordinary_bootstrap():
    values = np.random.default_rng(7).normal(size=60)
    clustered = stats.clustered_interval(values, np.arange(60), resamples=5000)
    assert clustered == pytest.approx(stats.bootstrap_interval(values, resamples=5000), abs=0.03)
    assert clustered.estimate == pytest.approx(values.mean())
    for bad in (["a"] * 60, np.arange(59)):
        with pytest.raises(InputError, match="clusters"):
            stats.clustered_interval(values, bad)


@pytest.mark.parametrize("flag", [False, True])
def test_a_rate_on_which_all_agree_is_as_certain_as_its_sources_are_many(flag):
    found = stats.rate_interval([flag] * 12, np.repeat(np.arange(4), 3))
    assert found == stats.wilson_interval(4 * flag, 4)
    assert found.high - found.low > 0.4
