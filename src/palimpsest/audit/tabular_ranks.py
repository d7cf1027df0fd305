"""Rank tests: does the truth stand above rivals that it cannot be told from without having seen it?

One trial: the truth and m rivals are exchangeable when the model has not seen the table, so the rank of the truth's score is uniform on
1 … m + 1 and p = rank / (m + 1) (Besag and Clifford, Biometrika 1989); equal scores share their places by lot, which keeps it uniform.
Many trials: the sum of their ranks has the distribution of a sum of independent uniform numbers, which is computed exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from palimpsest.errors import InputError


def rank(truth: float, rivals: Sequence[float] | np.ndarray, rng: np.random.Generator) -> int:
    """Place of `truth` among itself and `rivals`, 1 for the highest; equal scores share places by lot.

    Raises:
        InputError: no rivals, or NaN.

    Example:
        >>> rank(2.0, [1.0, 3.0, 0.0], np.random.default_rng(0))
        2
    """
    values = np.asarray(rivals, np.float64)
    if values.size == 0 or np.isnan(values).any() or np.isnan(truth):
        raise InputError(f"A rank among {values.size} rivals was asked for, NaN among them or none.", "Give at least one number.")
    return 1 + int((values > truth).sum()) + int(rng.integers(int((values == truth).sum()) + 1))


def mean_rank_p(ranks: Sequence[int] | np.ndarray, rivals: int) -> float:
    """Probability that so many ranks, each uniform on 1 … rivals + 1, have a mean as low as these.

    Raises:
        InputError: no ranks, or one outside 1 … rivals + 1.

    Example:
        >>> round(mean_rank_p([1, 1], 4), 6), mean_rank_p([5, 5], 4)
        (0.04, 1.0)
    """
    observed = np.asarray(ranks, np.int64)
    if observed.size == 0 or observed.min() < 1 or observed.max() > rivals + 1:
        raise InputError(f"{observed.tolist()[:5]} are no ranks among {rivals} rivals.", "Give integers from 1 to rivals + 1.")
    one = np.full(rivals + 1, 1 / (rivals + 1))
    sums = np.ones(1)
    for _ in range(observed.size):
        sums = np.convolve(sums, one)
    return float(min(1.0, sums[: int((observed - 1).sum()) + 1].sum()))


def more_often(first: Sequence[bool] | np.ndarray, second: Sequence[bool] | np.ndarray) -> float:
    """One-sided exact McNemar test: p-value of `first` being right more often than `second` on the same trials.

    Raises:
        InputError: different lengths, or no trials.

    Example:
        >>> more_often([True] * 5, [False] * 5)
        0.03125
    """
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    if a.shape != b.shape or a.size == 0:
        raise InputError(f"{a.size} trials were compared with {b.size}.", "Give the same trials, at least one.")
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    differ = only_first + only_second
    return float(stats.binomtest(only_first, differ, alternative="greater").pvalue) if differ else 1.0
