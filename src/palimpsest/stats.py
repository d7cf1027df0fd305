"""Statistics of measurements: intervals for rates and means, ROC figures, and the log-linear law.

Scores follow one convention: higher = more likely a member (the positive class). NaN and empty input raise; nothing here returns
NaN. Random parts take a seed and are vectorised over resamples.

References: Wilson (JASA 1927); Clopper and Pearson (Biometrika 1934); Efron and Tibshirani, *An Introduction to the Bootstrap*
(1993), percentile intervals; Carlini et al., "Membership Inference Attacks From First Principles" (S&P 2022) for TPR at low FPR.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats
from sklearn import metrics

from palimpsest.errors import InputError

_BLOCK = 1 << 24  # resampled numbers held at once


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


class RocCurve(NamedTuple):
    """Operating points from the strictest threshold to the laxest, each array float64 of equal length."""

    fpr: np.ndarray
    tpr: np.ndarray
    thresholds: np.ndarray


@dataclass(frozen=True)
class LogLaw:
    """y = intercept + slope * log10(x).

    Attributes:
        slope: what ten times more x adds to y.
        intercept: y at x = 1.
        r2: share of the variance of the fitted points that the line explains.
        low, high: ends of the bootstrap interval of the slope.
        n: number of fitted points (levels of x).
    """

    slope: float
    intercept: float
    r2: float
    low: float
    high: float
    n: int

    def __call__(self, x: ArrayLike) -> np.ndarray:
        """The line at `x`."""
        return self.intercept + self.slope * np.log10(np.asarray(x, dtype=np.float64))

    def to_dict(self) -> dict[str, float | int]:
        """The law as plain JSON types."""
        return asdict(self)


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a rate; keeps its coverage for small n and rates near 0 and 1.

    Raises:
        InputError: n < 1, or successes outside 0..n.

    Example:
        >>> [round(x, 3) for x in wilson_interval(0, 20)]
        [0.0, 0.0, 0.161]
    """
    rate, z = _rate(successes, n), float(special.ndtri((1 + _confidence(confidence)) / 2))
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return Interval(rate, max(0.0, centre - half) if successes else 0.0, min(1.0, centre + half) if successes < n else 1.0)


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """The exact interval of a rate: never covers less than `confidence`.

    Raises:
        InputError: n < 1, or successes outside 0..n.

    Example:
        >>> [round(x, 3) for x in clopper_pearson(0, 20)]
        [0.0, 0.0, 0.168]
    """
    rate, tail = _rate(successes, n), (1 - _confidence(confidence)) / 2
    low = float(special.betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(special.betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return Interval(rate, low, high)


def _rate(successes: int, n: int) -> float:
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"{successes} successes of {n} trials is not a rate.", "Give n >= 1 and 0 <= successes <= n.")
    return successes / n


def bootstrap_interval(
    *data: ArrayLike,
    statistic: Callable[..., Any] = np.mean,
    paired: bool = False,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a statistic.

    Args:
        data: one or more samples, each (n_i,) numbers.
        statistic: takes the samples and `axis`, works along that axis of arrays of any shape.
        paired: resample positions once for all samples, which then have equal length.
        resamples, confidence, seed: of the bootstrap.

    Raises:
        InputError: a sample with fewer than 2 numbers, NaN or infinity, or paired samples of different length.

    Example:
        >>> before, after = np.arange(50.0), np.arange(50.0) + 1.0
        >>> difference = lambda a, b, axis: np.mean(b - a, axis=axis)
        >>> bootstrap_interval(before, after, statistic=difference, paired=True)
        Interval(estimate=1.0, low=1.0, high=1.0)
    """
    samples = [_finite(sample, f"sample {number}") for number, sample in enumerate(data)]
    if not samples or min(map(len, samples)) < 2:
        raise InputError(f"The samples have lengths {[len(s) for s in samples]}.", "A bootstrap needs at least 2 numbers in each.")
    if paired and len({len(s) for s in samples}) > 1:
        raise InputError(f"Paired samples have lengths {[len(s) for s in samples]}.", "Give the same positions in each.")
    _confidence(confidence)
    result = stats.bootstrap(
        samples,
        statistic,
        paired=paired,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _BLOCK // max(map(len, samples))),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    estimate = float(statistic(*samples, axis=-1))
    return Interval(estimate, float(result.confidence_interval.low), float(result.confidence_interval.high))


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
    positive, negative = _scores(members, nonmembers)
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
    positive, negative = _scores(members, nonmembers)
    values, index = np.unique(np.concatenate([positive, negative]), return_inverse=True)
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // len(values))
    areas: list[np.ndarray] = []
    for begin in range(0, resamples, block):
        size = min(block, resamples - begin)
        drawn = []
        for side, n in ((index[: len(positive)], len(positive)), (index[len(positive) :], len(negative))):
            share = np.bincount(side, minlength=len(values)) / n
            drawn.append(rng.multinomial(n, share / share.sum(), size=size))
        below = np.cumsum(drawn[1], axis=1) - drawn[1] / 2  # non-members below each value, ties one half
        areas.append((drawn[0] * below).sum(axis=1) / (len(positive) * len(negative)))
    low, high = _ends(np.concatenate(areas), confidence)
    return Interval(auc(positive, negative), low, high)


def roc_curve(members: ArrayLike, nonmembers: ArrayLike) -> RocCurve:
    """The ROC curve at every threshold that can be set; a text is called a member when its score is at or above the threshold.

    Raises:
        InputError: an empty side, NaN or infinity.

    Example:
        >>> roc_curve([2.0, 3.0], [0.0, 1.0]).tpr.tolist()
        [0.0, 0.5, 1.0, 1.0, 1.0]
    """
    positive, negative = _scores(members, nonmembers)
    _finite(positive, "member scores")
    _finite(negative, "non-member scores")
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
    positive, negative = _scores(members, nonmembers)
    if not 0 <= fpr <= 1:
        raise InputError(f"A false positive rate of {fpr} was asked for.", "Give a share in [0, 1].")
    allowed = int(np.floor(fpr * len(negative) + 1e-9))
    if allowed >= len(negative):
        return 1.0
    threshold = np.sort(negative)[::-1][allowed]  # the highest score that must not be flagged
    return float(np.mean(positive > threshold))


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation.

    Raises:
        InputError: different lengths, fewer than 2 pairs, NaN, or a side whose values are all equal (it has no rank order).

    Example:
        >>> spearman([1, 2, 3], [10, 20, 15])
        0.5
    """
    a, b = _finite(x, "x"), _finite(y, "y")
    if len(a) != len(b) or len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        raise InputError(
            f"There is no rank correlation of {len(a)} and {len(b)} values with ranges {np.ptp(a):g} and {np.ptp(b):g}.",
            "Give at least 2 pairs that differ on both sides.",
        )
    return float(stats.spearmanr(a, b).statistic)


def fit_log_law(
    x: ArrayLike,
    y: Sequence[Any] | np.ndarray,
    *,
    paired: bool = False,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> LogLaw:
    """Least squares of y on log10(x), with R² and a bootstrap interval of the slope.

    Args:
        x: levels, (L,) positive numbers of which at least 2 differ.
        y: either (L,) numbers, one a level, and the interval comes from resampling the levels; or L rows of observations, whose
            means are fitted, and the interval comes from resampling the observations inside each level.
        paired: the rows of `y` hold the same subjects in the same order (one subject under every level), resampled together.
        resamples, confidence, seed: of the bootstrap.

    Raises:
        InputError: levels that are not positive or all equal, a row without observations, unequal paired rows, NaN.

    Example:
        >>> law = fit_log_law([1, 10, 100], [1.0, 3.0, 5.0])
        >>> round(law.slope, 9), round(law.intercept, 9), round(law.r2, 9)
        (2.0, 1.0, 1.0)
    """
    levels = _finite(x, "x")
    if levels.min() <= 0 or np.ptp(levels) == 0:
        raise InputError(f"The levels {levels.tolist()} have no log-linear fit.", "Give positive levels of which at least 2 differ.")
    if len(y) != len(levels):
        raise InputError(f"There are {len(levels)} levels and {len(y)} rows of y.", "Give one row for every level.")
    rng = np.random.default_rng(seed)
    log_x = np.log10(levels)
    if all(np.ndim(row) == 0 for row in y):
        means = _finite(y, "y")
        drawn = rng.integers(len(levels), size=(resamples, len(levels)))
        drawn = drawn[np.ptp(levels[drawn], axis=1) > 0]  # a draw of one level only has no slope
        slopes = _slope(log_x[drawn], means[drawn])
    else:
        rows = [_finite(row, f"y[{number}]") for number, row in enumerate(y)]
        if paired and len({len(row) for row in rows}) > 1:
            raise InputError(f"Paired rows have lengths {[len(row) for row in rows]}.", "Give the same subjects under every level.")
        means = np.array([row.mean() for row in rows])
        slopes = _slope(log_x, _resampled_means(rows, paired, resamples, rng))
    slope = float(_slope(log_x, means))
    intercept = float(means.mean() - slope * log_x.mean())
    spread = float(((means - means.mean()) ** 2).sum())
    residual = float(((means - intercept - slope * log_x) ** 2).sum())
    flat = np.ptp(means) <= 1e-12 * max(1.0, float(np.abs(means).max()))  # equal means lie on the flat line exactly
    r2 = 1.0 if flat else 1.0 - residual / spread
    low, high = _ends(slopes, confidence)
    return LogLaw(slope, intercept, r2, low, high, len(levels))


def _slope(log_x: np.ndarray, y: np.ndarray) -> np.ndarray:
    centred = log_x - log_x.mean(axis=-1, keepdims=True)
    return (centred * y).sum(axis=-1) / (centred**2).sum(axis=-1)


def _resampled_means(rows: list[np.ndarray], paired: bool, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Means of every level in every resample: (resamples, levels)."""
    means = np.empty((resamples, len(rows)))
    block = max(1, _BLOCK // max(map(len, rows)))
    for begin in range(0, resamples, block):
        size = min(block, resamples - begin)
        subjects = rng.integers(len(rows[0]), size=(size, len(rows[0])))
        for level, row in enumerate(rows):
            drawn = subjects if paired else rng.integers(len(row), size=(size, len(row)))
            means[begin : begin + size, level] = row[drawn].mean(axis=1)
    return means


def _ends(values: np.ndarray, confidence: float) -> tuple[float, float]:
    tail = (1 - _confidence(confidence)) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _confidence(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise InputError(f"The confidence is {confidence}.", "Give a share between 0 and 1, such as 0.95.")
    return confidence


def _finite(values: ArrayLike, what: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise InputError(f"{what} has shape {array.shape} and {bad} values that are NaN or infinite.", "Give one row of finite numbers.")
    return array


def _scores(members: ArrayLike, nonmembers: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    sides = np.asarray(members, dtype=np.float64), np.asarray(nonmembers, dtype=np.float64)
    for side, name in zip(sides, ("members", "non-members"), strict=True):
        if side.ndim != 1 or side.size == 0 or np.isnan(side).any():
            raise InputError(f"The scores of {name} have shape {side.shape} or hold NaN.", "Give one row of numbers for each side.")
    return sides
