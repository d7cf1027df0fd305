"""Rank correlation and log-linear laws against exact laws and numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest import stats
from palimpsest.errors import InputError


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
