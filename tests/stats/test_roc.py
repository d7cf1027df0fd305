"""ROC figures against scikit-learn and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from palimpsest import stats
from palimpsest.errors import InputError

SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=15)


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
