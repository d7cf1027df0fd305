"""Equivalence against numerical likelihood, scipy's t-tests, published numbers and simulation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest import stats
from palimpsest.errors import InputError
from palimpsest.stats.equivalence import likeliest_rates, score_statistic

RATE = st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize("paired", [True, False])
def test_tost_is_two_of_scipys_t_tests(paired):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=25), rng.normal(0.1, 1.5, 25)
    ours = stats.tost(a, b, 0.6, paired=paired)
    options = {"alternative": "greater"}
    if paired:
        lower = scipy.stats.ttest_1samp(b - a, -0.6, **options).pvalue
        upper = scipy.stats.ttest_1samp(a - b, -0.6, **options).pvalue
    else:
        lower = scipy.stats.ttest_ind(b + 0.6, a, equal_var=False, **options).pvalue
        upper = scipy.stats.ttest_ind(a + 0.6, b, equal_var=False, **options).pvalue
    assert ours.p_value == pytest.approx(max(lower, upper))
    assert ours.equivalent == (ours.p_value <= 0.05)
    assert ours.equivalent == (ours.difference.low > -0.6 and ours.difference.high < 0.6)


@settings(max_examples=100)
@given(RATE, RATE, st.sampled_from([-0.6, -0.2, -0.05, 0.05, 0.3]))
def test_the_restricted_rates_have_the_greatest_likelihood(first, second, difference):
    (k1, n1), (k2, n2) = first, second

    def unlikely(q: float) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            return -float(scipy.stats.binom.logpmf(k1, n1, q) + scipy.stats.binom.logpmf(k2, n2, q - difference))

    q1, q2 = likeliest_rates(first, second, difference)
    assert q1 - q2 == pytest.approx(difference)
    assert -1e-9 <= q1 <= 1 + 1e-9
    assert -1e-9 <= q2 <= 1 + 1e-9
    low, high = max(0.0, difference), min(1.0, 1 + difference)
    best = scipy.optimize.minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-10})
    inside = min(max(q1, low + 1e-9), high - 1e-9)
    assert unlikely(inside) <= best.fun + 1e-5


def test_the_score_statistic_of_no_difference_is_the_pooled_z():
    z = score_statistic((30, 50), (20, 60), 0.0)
    pooled = 50 / 110
    assert z == pytest.approx((30 / 50 - 20 / 60) / np.sqrt(pooled * (1 - pooled) * (1 / 50 + 1 / 60)))


def test_the_published_interval_of_a_difference():
    """Newcombe 1998, table II (a): 56/70 and 48/80, method 10."""
    assert stats.rate_difference((48, 80), (56, 70)) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_equivalence_of_rates_is_found_where_it_is_and_rarely_where_it_is_not():
    rng = np.random.default_rng(1)
    margin, same, apart = 0.1, 0, 0
    for _ in range(400):
        first = (int(rng.binomial(300, 0.2)), 300)
        same += stats.rates_equivalent(first, (int(rng.binomial(300, 0.2)), 300), margin).equivalent
        apart += stats.rates_equivalent(first, (int(rng.binomial(300, 0.3)), 300), margin).equivalent
    assert same / 400 > 0.8
    assert apart / 400 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)


def test_rates_of_zero_are_equivalent_only_with_enough_trials():
    assert stats.rates_equivalent((0, 20), (0, 20), 0.05).p_value == pytest.approx(stats.rates_equivalent((20, 20), (20, 20), 0.05).p_value)
    p_values = [stats.rates_equivalent((0, n), (0, n), 0.05).p_value for n in (10, 20, 40, 80, 160)]
    assert p_values == sorted(p_values, reverse=True)
    assert p_values[0] > 0.2
    assert p_values[-1] < 0.01
    assert not stats.rates_equivalent((0, 50), (50, 50), 0.05).equivalent
    assert stats.rates_equivalent((0, 50), (50, 50), 0.05).p_value > 0.999


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (lambda: stats.tost([1.0, 1.0], [1.0, 1.0], 0.1), "do not vary"),
        (lambda: stats.tost([0.1] * 3, [0.1] * 4, 0.05), "do not vary"),
        (lambda: stats.tost([0.1] * 3, [1e9 + 0.1] * 3, 0.05, paired=True), "do not vary"),
        (lambda: stats.tost([0.1, 0.2, 0.7], [0.2, 0.3, 0.8], 0.05, paired=True), "do not vary"),
        (lambda: stats.tost([1.0, 2.0], [1.0, 2.0], 0.0), "margin is 0"),
        (lambda: stats.tost([1.0], [1.0, 2.0], 0.1), "1 and 2 numbers"),
        (lambda: stats.tost([1.0, 2.0], [1.0, 2.0, 3.0], 0.1, paired=True), "2 and 3 numbers"),
        (lambda: stats.rates_equivalent((3, 2), (1, 2), 0.1), "3 successes of 2"),
        (lambda: stats.rates_equivalent((1, 2), (1, 2), 1.0), "margin is 1"),
        (lambda: stats.rates_equivalent((1, 2), (1, 2), 0.1, alpha=0.7), "alpha 0.7"),
    ],
)
def test_what_has_no_equivalence_is_refused(bad, match):
    with pytest.raises(InputError, match=match):
        bad()
