"""Sample sizes against the intervals and tests that they are for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest import stats
from palimpsest.errors import InputError


@settings(max_examples=80)
@given(st.floats(0, 1), st.floats(0.005, 0.3), st.sampled_from([0.8, 0.95, 0.99]))
def test_the_size_is_the_smallest_that_is_enough(rate, wanted, confidence):
    n = stats.samples_for_half_width(rate, wanted, confidence)
    assert stats.half_width(rate, n, confidence) <= wanted * (1 + 1e-6)
    assert n == 1 or stats.half_width(rate, n - 1, confidence) > wanted * (1 - 1e-6)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_half_width_is_that_of_wilsons_interval(rate):
    k, n = rate
    interval = stats.wilson_interval(k, n)
    assert stats.half_width(k / n, n) == pytest.approx((interval.high - interval.low) / 2, abs=1e-12)


def test_clusters_cost_samples():
    alone = stats.samples_for_half_width(0.5, 0.05)
    assert stats.samples_for_half_width(0.5, 0.05, per_cluster=10, correlation=0) == alone
    assert stats.samples_for_half_width(0.5, 0.05, per_cluster=10, correlation=1) == pytest.approx(10 * alone, abs=10)


@given(st.floats(0.001, 0.9), st.sampled_from([0.8, 0.95, 0.999]))
def test_none_of_so_many_bounds_the_rate(rate, confidence):
    n = stats.samples_to_exclude(rate, confidence)
    one_sided = 2 * confidence - 1
    assert stats.clopper_pearson(0, n, one_sided).high <= rate + 1e-9
    assert n == 1 or stats.clopper_pearson(0, n - 1, one_sided).high > rate - 1e-9
    assert 1 - (1 - rate) ** n >= confidence - 1e-9


def test_the_power_of_mcnemar_is_as_planned():
    n = stats.samples_for_difference(0.15, 0.3)
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(500):
        u = rng.random(n)  # only the second right with 0.225, only the first with 0.075
        found += stats.mcnemar((u >= 0.225) & (u < 0.3), u < 0.225).p_value <= 0.05
    assert 0.70 <= found / 500 <= 0.87  # the exact test is a little weaker than the normal approximation
    assert stats.samples_for_difference(0.15, 0.3, power=0.9) > n
    assert stats.samples_for_difference(-0.15, 0.3) == n


@pytest.mark.parametrize(
    "bad",
    [
        lambda: stats.samples_for_half_width(1.5, 0.1),
        lambda: stats.samples_for_half_width(0.5, 0.0),
        lambda: stats.samples_for_half_width(0.5, 1e-320),
        lambda: stats.samples_for_half_width(0.5, 1e-160),
        lambda: stats.samples_for_half_width(0.0, 1e-160),
        lambda: stats.samples_for_half_width(0.5, float("nan")),
        lambda: stats.samples_for_half_width(0.5, 0.1, 1.0),
        lambda: stats.samples_for_half_width(0.5, 0.1, per_cluster=float("inf"), correlation=0.5),
        lambda: stats.samples_to_see(1e-320),
        lambda: stats.samples_for_difference(1e-200, 0.2),
        lambda: stats.samples_for_half_width(0.5, 0.1, per_cluster=0),
        lambda: stats.half_width(0.5, 0),
        lambda: stats.samples_to_see(0.0),
        lambda: stats.samples_to_exclude(0.1, 1.0),
        lambda: stats.samples_for_difference(0.0, 0.2),
        lambda: stats.samples_for_difference(0.3, 0.2),
        lambda: stats.samples_for_difference(0.1, 0.2, power=1.0),
    ],
)
def test_numbers_out_of_range_are_refused(bad):
    with pytest.raises(InputError):
        bad()
