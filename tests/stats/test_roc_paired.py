"""DeLong's test of two AUCs, and the interval of a TPR at a low FPR."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.errors import InputError
from palimpsest.stats import auc, auc_difference, auc_interval, delong_interval, tpr_at_fpr, tpr_interval, wilson_interval

scores = st.lists(st.integers(0, 6).map(float), min_size=3, max_size=9)


def delong_by_pairs(first, second):
    """The variance from the definition: the kernel of every pair of a member and a non-member."""
    kernels = []
    for members, others in (first, second):
        x, y = np.asarray(members)[:, None], np.asarray(others)[None, :]
        kernels.append((x > y) + 0.5 * (x == y))
    change = kernels[1] - kernels[0]
    return change.mean(), change.mean(axis=1).var(ddof=1) / change.shape[0] + change.mean(axis=0).var(ddof=1) / change.shape[1]


@given(st.data())
def test_the_difference_and_its_variance_are_those_of_the_kernel(data):
    first = data.draw(scores), data.draw(scores)
    second = tuple(data.draw(st.lists(st.integers(0, 6).map(float), min_size=len(side), max_size=len(side))) for side in first)
    found = auc_difference(first, second)
    difference, variance = delong_by_pairs(first, second)
    assert found.difference.estimate == pytest.approx(difference)
    assert found.difference.estimate == pytest.approx(auc(*second) - auc(*first))
    assert 0 <= found.p_value <= 1
    assert found.difference.low <= found.difference.estimate <= found.difference.high
    if variance > 1e-12:
        assert found.statistic == pytest.approx(difference / np.sqrt(variance))
    back = auc_difference(second, first)
    assert back.p_value == pytest.approx(found.p_value)
    assert back.difference.estimate == pytest.approx(-found.difference.estimate)


def test_pairing_takes_out_what_both_scores_share():
    rng = np.random.default_rng(0)
    ease = rng.normal(size=(2, 200))
    blind = [side + rng.normal(0, 0.3, 200) for side in ease]
    score = [ease[0] + 0.5 + rng.normal(0, 0.3, 200), ease[1] + rng.normal(0, 0.3, 200)]
    unrelated = [rng.permutation(side) for side in blind]
    paired, apart = auc_difference(blind, score), auc_difference(unrelated, score)
    assert paired.p_value < apart.p_value / 100
    assert paired.difference.high - paired.difference.low < 0.7 * (apart.difference.high - apart.difference.low)


def test_under_the_null_five_percent_are_rejected_and_intervals_cover():
    rng = np.random.default_rng(1)
    rejected = covered = 0
    for _ in range(400):
        first, second = (rng.normal(size=(2, 60)) for _ in range(2))
        found = auc_difference(tuple(first), tuple(second))
        rejected += found.p_value <= 0.05
        covered += found.difference.low <= 0 <= found.difference.high
    assert 0.02 <= rejected / 400 <= 0.09
    assert covered + rejected == 400


def test_perfect_scores_leave_doubt():
    perfect, constant = ([1.0] * 3, [0.0] * 3), ([0.0] * 3, [0.0] * 3)
    few = auc_difference(constant, perfect)
    assert few.difference.estimate == 0.5
    assert few.p_value > 0.05  # three texts prove nothing
    assert auc_difference(([0.0] * 80, [0.0] * 80), ([1.0] * 80, [0.0] * 80)).p_value < 1e-6
    same = auc_difference(perfect, perfect)
    assert (same.p_value, same.difference.estimate) == (1.0, 0.0)
    assert same.difference.low < 0 < same.difference.high


def test_scores_of_other_texts_are_refused():
    for second in (([1.0, 2.0], [0.0, 1.0, 2.0]), ([1.0], [0.0])):
        with pytest.raises(InputError):
            auc_difference(([1.0, 2.0], [0.0, 1.0]), second)


@given(scores, scores, st.sampled_from([0.0, 0.01, 0.2, 0.5, 1.0]))
def test_the_interval_holds_the_rate_and_wilsons(members, others, fpr):
    found = tpr_interval(members, others, fpr, resamples=50)
    rate = tpr_at_fpr(members, others, fpr)
    wilson = wilson_interval(round(rate * len(members)), len(members))
    assert found.estimate == rate
    assert found.low <= wilson.low
    assert wilson.high <= found.high <= 1


def test_the_resampled_rates_are_those_of_resampled_texts():
    rng = np.random.default_rng(3)
    members, others = rng.normal(1, 1, 60).round(1), rng.normal(0, 1, 50).round(1)
    found = tpr_interval(members, others, 0.1, resamples=4000)
    plain = [tpr_at_fpr(rng.choice(members, 60), rng.choice(others, 50), 0.1) for _ in range(4000)]
    wilson = wilson_interval(round(found.estimate * 60), 60)
    assert found.low == pytest.approx(min(np.quantile(plain, 0.025), wilson.low), abs=0.03)
    assert found.high == pytest.approx(max(np.quantile(plain, 0.975), wilson.high), abs=0.03)


def test_delongs_interval_is_about_the_bootstraps_and_covers():
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(300):
        members, others = rng.normal(1.2, 1, 50), rng.normal(0, 1, 40)
        found = delong_interval(members, others)
        covered += found.low <= 0.8020 <= found.high  # Φ(1.2 / √2)
    assert 0.91 <= covered / 300 <= 0.985
    boot = auc_interval(members, others)
    assert found.estimate == pytest.approx(boot.estimate)
    assert (found.low, found.high) == pytest.approx((boot.low, boot.high), abs=0.03)
    wider = delong_interval(members, others, confidence=0.999)
    assert wider.low < found.low
    assert found.high < wider.high < 1


@given(scores, scores)
def test_delongs_interval_never_collapses_and_stays_in_range(members, others):
    found = delong_interval(members, others)
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    assert found.low < found.high


def test_delongs_interval_needs_two_a_side():
    with pytest.raises(InputError, match="1 members"):
        delong_interval([1.0], [0.0, 2.0])
