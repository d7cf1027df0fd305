"""How well scores tell two sides apart: ROC curve, area under it, and the true positive rate at a low false positive rate.

Scores follow one convention: higher = more likely a member (the positive class). Carlini et al., "Membership Inference Attacks From
First Principles" (S&P 2022), for TPR at low FPR.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from sklearn import metrics

from palimpsest.errors import InputError
from palimpsest.stats.checks import BLOCK, finite_row, percentile_ends, score_sides
from palimpsest.stats.intervals import Interval, wilson_interval


class RocCurve(NamedTuple):
    """Operating points from the strictest threshold to the laxest, each array float64 of equal length."""

    fpr: np.ndarray
    tpr: np.ndarray
    thresholds: np.ndarray


def auc(members: ArrayLike, nonmembers: ArrayLike) -> float:
    """Area under the ROC curve: the probability that a member scores above a non-member, ties counting one half.

    Args:
        members, nonmembers: scores, higher = more likely a member; infinities are allowed.

    Raises:
        InputError: an empty side or NaN.

    Example:
        >>> auc([1.0, 2.0], [0.0, 1.0])
        0.875
    """
    positive, negative = score_sides(members, nonmembers)
    ranks = stats.rankdata(np.concatenate([positive, negative]))  # mid-ranks: ties count one half
    wins = ranks[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2
    return float(wins / (len(positive) * len(negative)))


def auc_interval(members: ArrayLike, nonmembers: ArrayLike, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0) -> Interval:
    """AUC with a percentile bootstrap interval; members and non-members are resampled apart.

    A resample is a multinomial count of every distinct score, so that all resamples are computed without sorting again.

    Raises:
        InputError: as for `auc`.

    Example:
        >>> auc_interval([2.0, 3.0, 4.0], [0.0, 1.0])
        Interval(estimate=1.0, low=1.0, high=1.0)
    """
    positive, negative = score_sides(members, nonmembers)
    values, index = np.unique(np.concatenate([positive, negative]), return_inverse=True)
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK // len(values))
    areas: list[np.ndarray] = []
    for begin in range(0, resamples, block):
        size = min(block, resamples - begin)
        drawn = []
        for side, n in ((index[: len(positive)], len(positive)), (index[len(positive) :], len(negative))):
            share = np.bincount(side, minlength=len(values)) / n
            drawn.append(rng.multinomial(n, share / share.sum(), size=size))
        below = np.cumsum(drawn[1], axis=1) - drawn[1] / 2  # non-members below each value, ties one half
        areas.append((drawn[0] * below).sum(axis=1) / (len(positive) * len(negative)))
    low, high = percentile_ends(np.concatenate(areas), confidence)
    return Interval(auc(positive, negative), low, high)


def roc_curve(members: ArrayLike, nonmembers: ArrayLike) -> RocCurve:
    """The ROC curve at every threshold that can be set; a text is called a member when its score is at or above the threshold.

    Raises:
        InputError: an empty side, NaN or infinity.

    Example:
        >>> roc_curve([2.0, 3.0], [0.0, 1.0]).tpr.tolist()
        [0.0, 0.5, 1.0, 1.0, 1.0]
    """
    positive, negative = score_sides(members, nonmembers)
    finite_row(positive, "member scores")
    finite_row(negative, "non-member scores")
    labels = np.concatenate([np.ones(len(positive)), np.zeros(len(negative))])
    return RocCurve(*metrics.roc_curve(labels, np.concatenate([positive, negative]), drop_intermediate=False))


def tpr_at_fpr(members: ArrayLike, nonmembers: ArrayLike, fpr: float) -> float:
    """The greatest share of members found by a threshold that flags at most a share `fpr` of the non-members.

    Conservative: only thresholds that can be set are considered (a text is flagged when its score is *above* the threshold, equal
    scores together), and nothing is interpolated. With fewer than 1 / fpr non-members not one false alarm is allowed, so that the
    figure is the share of members above the highest non-member.

    Raises:
        InputError: an empty side, NaN, or fpr outside [0, 1].

    Example:
        >>> tpr_at_fpr([1.0, 2.0, 3.0, 4.0], [0.0, 0.5, 2.5, 1.5], 0.25)
        0.75
    """
    positive, negative = score_sides(members, nonmembers)
    if not 0 <= fpr <= 1:
        raise InputError(f"A false positive rate of {fpr} was asked for.", "Give a share in [0, 1].")
    allowed = int(np.floor(fpr * len(negative) + 1e-9))
    if allowed >= len(negative):
        return 1.0
    threshold = np.sort(negative)[::-1][allowed]  # the highest score that must not be flagged
    return float(np.mean(positive > threshold))


def tpr_interval(
    members: ArrayLike, nonmembers: ArrayLike, fpr: float, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """`tpr_at_fpr` with an interval: a percentile bootstrap of members and non-members, never narrower than Wilson's for the members.

    The bootstrap sees that the threshold, a high quantile of few non-members, is itself uncertain; Wilson's interval does not collapse
    where no member, or every one, is found.

    Raises:
        InputError: as for `tpr_at_fpr`.

    Example:
        >>> found = tpr_interval([1.0, 2.0, 3.0, 4.0], [0.0, 0.5, 2.5, 1.5], 0.25)
        >>> found.estimate, found.low < 0.4, found.high
        (0.75, True, 1.0)
    """
    positive, negative = score_sides(members, nonmembers)
    estimate = tpr_at_fpr(positive, negative, fpr)
    wilson = wilson_interval(round(estimate * len(positive)), len(positive), confidence)
    values, index = np.unique(np.concatenate([positive, negative]), return_inverse=True)
    place = len(values) - 1 - index  # 0 is the highest score
    allowed = int(np.floor(fpr * len(negative) + 1e-9))
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK // len(values))
    rates: list[np.ndarray] = []
    for begin in range(0, resamples, block):
        size = min(block, resamples - begin)
        drawn = []
        offsets = np.arange(size)[:, None] * len(values)
        for side in (place[: len(positive)], place[len(positive) :]):
            chosen = side[rng.integers(len(side), size=(size, len(side)))] + offsets
            counts = np.bincount(chosen.ravel(), minlength=size * len(values)).reshape(size, len(values))
            drawn.append(np.cumsum(counts, axis=1))
        found = np.concatenate([np.zeros((size, 1), dtype=np.int64), drawn[0]], axis=1)  # members above each place
        threshold = (drawn[1] <= allowed).sum(axis=1)  # the place of the highest score that must not be flagged
        rates.append(found[np.arange(size), threshold] / len(positive))
    low, high = percentile_ends(np.concatenate(rates), confidence)
    return Interval(estimate, min(low, wilson.low), max(high, wilson.high))
