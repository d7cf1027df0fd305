"""Two scores of the same texts, compared by the area under their ROC curves.

DeLong, DeLong and Clarke-Pearson (Biometrics 1988): with V_i the share of non-members below member i (ties one half) and W_j the share of
members above non-member j, the AUC is the mean of either, and the difference of two AUCs of the same m members and n non-members has the
variance

    var = (s²(V_A) + s²(V_B) − 2 s(V_A, V_B)) / m + (s²(W_A) + s²(W_B) − 2 s(W_A, W_B)) / n,

so that what makes a text easy for both scores does not count as noise. Where both scores are perfect, hopeless or constant the variance is
0, which says nothing of other texts: the bound a(1 − a) / min(m, n) of either AUC stands in for it, a being the AUC with one success and
one failure added.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from palimpsest.errors import InputError
from palimpsest.stats.checks import require_confidence, score_sides
from palimpsest.stats.intervals import Interval
from palimpsest.stats.paired import Comparison


def auc_difference(first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike], *, confidence: float = 0.95) -> Comparison:
    """DeLong's test of equal AUCs, second minus first.

    Args:
        first, second: (members, non-members) under one score each, position i being the same text in both; at least 2 a side.
        confidence: of the interval of the difference.

    Raises:
        InputError: fewer than 2 texts a side, sides of different length under the two scores, or NaN.

    Example:
        >>> blind, score = ([1.0, 4.0, 2.0], [1.0, 3.0, 0.0]), ([7.0, 8.0, 9.0], [1.0, 2.0, 3.0])
        >>> auc_difference(blind, score).difference.estimate.__round__(3)
        0.278
    """
    a, b = score_sides(*first), score_sides(*second)
    m, n = len(a[0]), len(a[1])
    if (m, n) != (len(b[0]), len(b[1])) or min(m, n) < 2:
        raise InputError(
            f"The scores are of {m} and {len(b[0])} members, {n} and {len(b[1])} non-members.", "Score the same texts, at least 2 a side."
        )
    one, two = _shares(*a), _shares(*b)
    areas = [float(above.mean()) for above, _ in (one, two)]
    variance = float(sum((y - x).var(ddof=1) / len(x) for x, y in zip(one, two, strict=True)))
    if variance == 0:
        variance = sum(_bound(area, min(m, n)) for area in areas)
    difference, error = areas[1] - areas[0], math.sqrt(variance)
    z = difference / error
    half = float(special.ndtri((1 + require_confidence(confidence)) / 2)) * error
    interval = Interval(difference, max(-1.0, difference - half), min(1.0, difference + half))
    return Comparison("DeLong", m + n, interval, z, float(min(1.0, 2 * stats.norm.sf(abs(z)))))


def delong_interval(members: ArrayLike, nonmembers: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """AUC with DeLong's interval, taken on the scale of its log-odds: in a closed form, for confidences at which a bootstrap has no draws.

    Raises:
        InputError: fewer than 2 texts a side, or NaN.

    Example:
        >>> wide = delong_interval([2.0, 3.0, 1.0], [0.0, 1.5], confidence=0.999)
        >>> wide.low < wide.estimate < wide.high
        True
    """
    positive, negative = score_sides(members, nonmembers)
    least = min(len(positive), len(negative))
    if least < 2:
        raise InputError(f"There are {len(positive)} members and {len(negative)} non-members.", "Give at least 2 a side.")
    above, below = _shares(positive, negative)
    area = float(above.mean())
    variance = float(above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below))
    centre = area if variance and 0 < area < 1 else (area * least + 1) / (least + 2)
    error = math.sqrt(variance or _bound(area, least)) / (centre * (1 - centre))
    half = float(special.ndtri((1 + require_confidence(confidence)) / 2)) * error
    low, high = (float(special.expit(special.logit(centre) + side * half)) for side in (-1, 1))
    return Interval(area, min(low, area), max(high, area))


def _bound(area: float, least: int) -> float:
    """What the variance of an AUC may be at most; see the module's docstring."""
    smoothed = (area * least + 1) / (least + 2)
    return smoothed * (1 - smoothed) / least


def _shares(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every member the share of non-members below it, of every non-member that of members above it; ties one half."""
    m, n = len(positive), len(negative)
    ranks = stats.rankdata(np.concatenate([positive, negative]))
    below = (ranks[:m] - stats.rankdata(positive)) / n
    above = 1 - (ranks[m:] - stats.rankdata(negative)) / m
    return below, above
