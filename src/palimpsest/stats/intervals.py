"""Intervals for rates and for any statistic of a sample.

Wilson (JASA 1927) and Clopper and Pearson (Biometrika 1934) for rates; Efron and Tibshirani, *An Introduction to the Bootstrap* (1993),
percentile intervals, for everything else. NaN and empty input raise; nothing here returns NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from palimpsest.errors import InputError
from palimpsest.stats.checks import BLOCK, binary_row, finite_row, percentile_ends, rate, require_confidence


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a rate; keeps its coverage for small n and rates near 0 and 1.

    Raises:
        InputError: n < 1, or successes outside 0..n.

    Example:
        >>> [round(x, 3) for x in wilson_interval(0, 20)]
        [0.0, 0.0, 0.161]
    """
    share, z = rate(successes, n), float(special.ndtri((1 + require_confidence(confidence)) / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, max(0.0, centre - half) if successes else 0.0, min(1.0, centre + half) if successes < n else 1.0)


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """The exact interval of a rate: never covers less than `confidence`.

    Raises:
        InputError: n < 1, or successes outside 0..n.

    Example:
        >>> [round(x, 3) for x in clopper_pearson(0, 20)]
        [0.0, 0.0, 0.168]
    """
    share, tail = rate(successes, n), (1 - require_confidence(confidence)) / 2
    low = float(special.betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(special.betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return Interval(share, low, high)


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
    samples = [finite_row(sample, f"sample {number}") for number, sample in enumerate(data)]
    if not samples or min(map(len, samples)) < 2:
        raise InputError(f"The samples have lengths {[len(s) for s in samples]}.", "A bootstrap needs at least 2 numbers in each.")
    if paired and len({len(s) for s in samples}) > 1:
        raise InputError(f"Paired samples have lengths {[len(s) for s in samples]}.", "Give the same positions in each.")
    require_confidence(confidence)
    result = stats.bootstrap(
        samples,
        statistic,
        paired=paired,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, BLOCK // max(map(len, samples))),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    estimate = float(statistic(*samples, axis=-1))
    return Interval(estimate, float(result.confidence_interval.low), float(result.confidence_interval.high))


def clustered_interval(
    values: ArrayLike, clusters: ArrayLike, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of a mean when the items come in clusters: whole clusters are resampled.

    Questions about one fact, or answers of one session, say less than as many about different ones; an interval that takes them
    for independent is too narrow. Cameron, Gelbach and Miller (Review of Economics and Statistics 2008) on the pairs cluster bootstrap.

    Args:
        values: (n,) numbers: outcomes, or differences of paired outcomes.
        clusters: (n,) names or numbers, what each item belongs to.
        resamples, confidence, seed: of the bootstrap.

    Raises:
        InputError: fewer than 2 clusters, NaN, or a different number of values and clusters.

    Example:
        >>> clustered_interval([1, 1, 0, 0], ["a", "a", "b", "b"])
        Interval(estimate=0.5, low=0.0, high=1.0)
    """
    numbers = finite_row(values, "values")
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    if np.ndim(clusters) != 1 or len(member) != len(numbers) or member.max() < 1:
        raise InputError(
            f"There are {len(numbers)} values and {np.size(clusters)} memberships in {len(np.unique(member))} clusters.",
            "Give one cluster for every value, and at least 2 clusters.",
        )
    sums, sizes = np.bincount(member, numbers), np.bincount(member)
    count = len(sizes)
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK // count)
    means: list[np.ndarray] = []
    for begin in range(0, resamples, block):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(block, resamples - begin))
        means.append(drawn @ sums / (drawn @ sizes))
    low, high = percentile_ends(np.concatenate(means), confidence)
    return Interval(float(numbers.mean()), low, high)


def rate_interval(flags: ArrayLike, clusters: ArrayLike | None = None, *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """The interval of a rate of items that may share a source: Wilson's when no two do, else one that resamples sources.

    Where all items agree, resampling would give an interval of no width; it is then Wilson's of as many items as there are sources.

    Args:
        flags: (n,) truth values.
        clusters: (n,) what each item belongs to; None: all are independent.
        confidence, seed: of the interval.

    Raises:
        InputError: no flags, other values than 0 and 1, or several flags of one source only.

    Example:
        >>> rate_interval([1, 0], ["a", "b"]) == wilson_interval(1, 2)
        True
    """
    right = binary_row(flags, "flags")
    if clusters is None or len(np.unique(np.asarray(clusters))) == len(right):
        return wilson_interval(int(right.sum()), len(right), confidence)
    if right.all() or not right.any():  # every resample is equal: the bootstrap would be certain of it
        sources = len(np.unique(np.asarray(clusters)))
        return wilson_interval(sources if right.all() else 0, sources, confidence)
    return clustered_interval(right.astype(np.float64), clusters, confidence=confidence, seed=seed)
