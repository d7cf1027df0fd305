"""Paired tests against scipy, enumeration, and their own promise of level and coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest import stats
from palimpsest.errors import InputError

PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30)
NUMBERS = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=9)


@given(PAIRS)
def test_mcnemar_adds_up_the_binomial(pairs):
    a, b = map(list, zip(*pairs, strict=True))
    result = stats.mcnemar(a, b)
    only_b, differ = sum(y and not x for x, y in pairs), sum(x != y for x, y in pairs)
    likelier = [math.comb(differ, k) for k in range(differ + 1)]
    naive = sum(c for c in likelier if c <= likelier[only_b]) / 2**differ
    assert result.p_value == pytest.approx(naive)
    assert result.statistic == only_b
    assert result.difference.estimate == pytest.approx(np.mean(b) - np.mean(a))
    assert -1 <= result.difference.low <= result.difference.estimate <= result.difference.high <= 1
    assert stats.mcnemar(b, a).p_value == pytest.approx(result.p_value)
    assert stats.mcnemar(b, a).difference.low == pytest.approx(-result.difference.high)


def test_the_interval_of_a_paired_difference_covers_as_often_as_it_promises():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        both = rng.random(50) < 0.6  # outcomes that go together
        a = both & (rng.random(50) < 0.8)
        b = both | (rng.random(50) < 0.2)
        interval = stats.paired_rate_difference(a, b)
        covered += interval.low <= (0.6 + 0.4 * 0.2) - 0.6 * 0.8 <= interval.high
    assert 0.92 <= covered / 400 <= 0.99


def test_items_that_go_together_narrow_the_interval_and_none_that_differ_do_not_close_it():
    a = np.arange(100) < 50
    together = stats.paired_rate_difference(a, a | (np.arange(100) == 99))
    apart = stats.paired_rate_difference(a, np.roll(a, 25) | (np.arange(100) == 99))
    assert together.high - together.low < 0.5 * (apart.high - apart.low)
    same = stats.paired_rate_difference(a, a)
    assert same.low < 0 < same.high


@settings(max_examples=60)
@given(NUMBERS)
def test_the_permutation_test_enumerates_all_signs(pairs):
    a, b = (np.array(side, float) for side in zip(*pairs, strict=True))
    result = stats.paired_permutation(a, b)
    d = b - a
    sums = [abs(np.dot(d, signs)) for signs in itertools.product((-1, 1), repeat=len(d))]
    assert result.p_value == pytest.approx(np.mean(np.array(sums) >= abs(d.sum()) - 1e-9))
    theirs = scipy.stats.permutation_test((a, b), lambda x, y, axis: np.mean(y - x, axis=axis), permutation_type="samples", vectorized=True)
    assert result.p_value == pytest.approx(theirs.pvalue)
    assert result.difference.estimate == pytest.approx(d.mean()) == result.statistic


def test_drawn_signs_come_near_all_signs_and_are_never_certain():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=14), rng.normal(0.6, 1, size=14)
    exact = stats.paired_permutation(a, b, draws=2**14)
    drawn = stats.paired_permutation(a, b, draws=8000, seed=1)
    assert drawn.p_value == pytest.approx(exact.p_value, abs=4 * math.sqrt(exact.p_value / 8000) + 1e-3)
    assert drawn == stats.paired_permutation(a, b, draws=8000, seed=1)
    far = stats.paired_permutation(np.zeros(200), np.ones(200), draws=999)
    assert far.p_value == 1 / 1000


def test_the_permutation_test_keeps_its_level():
    rng = np.random.default_rng(3)
    small = [stats.paired_permutation(*rng.exponential(size=(2, 12)), draws=500, seed=i).p_value <= 0.05 for i in range(400)]
    assert 0.015 <= np.mean(small) <= 0.085


@settings(max_examples=40)
@given(NUMBERS)
def test_wilcoxon_is_scipys(pairs):
    a, b = (np.array(side, float) for side in zip(*pairs, strict=True))
    result = stats.wilcoxon(a, b)
    if (a == b).all():
        assert result.p_value == 1
    else:
        theirs = scipy.stats.wilcoxon(b, a)
        assert (result.statistic, result.p_value) == (theirs.statistic, theirs.pvalue)


@given(st.integers(2, 5).flatmap(lambda k: st.lists(st.lists(st.booleans(), min_size=k, max_size=k), min_size=1, max_size=20)))
def test_cochran_q_is_its_sum_of_squares(rows):
    table = np.array(rows, float)  # (items, conditions)
    n, k = table.shape
    result = stats.cochran_q(*table.T)
    between = n * ((table.mean(axis=0) - table.mean()) ** 2).sum()
    within = ((table - table.mean(axis=1, keepdims=True)) ** 2).sum() / (n * (k - 1))
    assert result.statistic == pytest.approx(between / within if within else 0)
    assert result.p_value == pytest.approx(scipy.stats.chi2.sf(result.statistic, k - 1))
    if k == 2:  # McNemar's χ² without correction
        differ = (table[:, 0] != table[:, 1]).sum()
        assert result.statistic == pytest.approx((table[:, 0].sum() - table[:, 1].sum()) ** 2 / differ if differ else 0)


def test_pairs_are_corrected_for_being_many():
    rng = np.random.default_rng(4)
    outcomes = {"a": rng.random(60) < 0.3, "b": rng.random(60) < 0.6, "c": rng.random(60) < 0.9}
    omnibus, pairs = stats.compare_pairs(outcomes)
    assert (omnibus.n, omnibus.k, omnibus.degrees) == (60, 3, 2)
    assert omnibus.p_value < 0.01
    assert [(pair.first, pair.second) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [pair.adjusted for pair in pairs] == pytest.approx(stats.holm([pair.p_value for pair in pairs]))
    for pair in pairs:
        assert pair.p_value == stats.mcnemar(outcomes[pair.first], outcomes[pair.second]).p_value
    assert pairs[0].to_dict()["difference"]["low"] == pairs[0].difference.low


def test_holm_keeps_the_family_of_pairs_at_its_level():
    rng = np.random.default_rng(5)
    false_findings = 0
    for _ in range(400):  # A/A: three conditions of equal rates on the same items
        _, pairs = stats.compare_pairs({name: rng.random(80) < 0.5 for name in "abc"})
        false_findings += min(pair.adjusted for pair in pairs) <= 0.05
    assert false_findings / 400 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: stats.mcnemar([], []),
        lambda: stats.mcnemar([0, 1], [1]),
        lambda: stats.mcnemar([0, 2], [1, 0]),
        lambda: stats.mcnemar([0.0, np.nan], [1, 0]),
        lambda: stats.paired_permutation([1.0, 2.0], [1.0]),
        lambda: stats.paired_permutation([1.0, np.nan], [1.0, 2.0]),
        lambda: stats.paired_permutation([1.0, 2.0], [1.0, 2.0], draws=0),
        lambda: stats.wilcoxon([1.0], [2.0]),
        lambda: stats.cochran_q([1, 0]),
        lambda: stats.cochran_q([1, 0], [1]),
    ],
)
def test_what_cannot_be_compared_is_refused(bad):
    with pytest.raises(InputError):
        bad()
