"""Comparisons of two or more conditions on the *same* items: every one with the size of the difference, its interval and a p-value.

* `mcnemar`: right or wrong under two conditions. Of the b + c items on which they differ, c are for the second with probability ½ when
  the conditions are equal: the exact two-sided binomial test (McNemar, Psychometrika 1947). The interval of the difference of the
  two rates is Newcombe's hybrid score interval for paired proportions (Statistics in Medicine 1998, method 10), which does not
  collapse when no item differs.
* `paired_permutation`: numbers under two conditions. When they are equal the sign of every difference is a coin: the mean difference
  is compared with that of 10,000 draws of signs, or of all 2^m when m differences are not zero and these are no more.
* `wilcoxon`: the signed-rank test, for numbers whose sizes say little (scipy).
* `cochran_q`: right or wrong under k conditions. Q = (k − 1)(k Σ_j G_j² − N²) / (k N − Σ_i L_i²) with G_j right answers under
  condition j, L_i of item i, N in all, is χ² with k − 1 degrees of freedom (Cochran, Biometrika 1950). `compare_pairs` follows it with
  the pairs.

A difference is always *second minus first*.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from palimpsest.errors import InputError
from palimpsest.stats.checks import BLOCK, binary_row, finite_row
from palimpsest.stats.correction import holm
from palimpsest.stats.intervals import Interval, bootstrap_interval, wilson_interval


@dataclass(frozen=True)
class Comparison:
    """Two conditions on the same items, compared.

    Attributes:
        test: which test.
        n: items.
        difference: of the means, second minus first, with its interval.
        statistic: of the test: for McNemar the items that only the second gets right.
        p_value: two-sided.
        adjusted: p-value corrected for the other comparisons of its family; None when it stands alone.
        first, second: names of the conditions.
    """

    test: str
    n: int
    difference: Interval
    statistic: float
    p_value: float
    adjusted: float | None = None
    first: str = "first"
    second: str = "second"

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain JSON types."""
        return {**asdict(self), "difference": self.difference._asdict()}


@dataclass(frozen=True)
class Omnibus:
    """Whether several conditions differ at all.

    Attributes:
        test: which test.
        n, k: items and conditions.
        statistic, degrees, p_value: of the test.
    """

    test: str
    n: int
    k: int
    statistic: float
    degrees: int
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """The test as plain JSON types."""
        return asdict(self)


def mcnemar(first: ArrayLike, second: ArrayLike, *, confidence: float = 0.95) -> Comparison:
    """McNemar's exact test: does the second condition get more (or fewer) of the same items right?

    Args:
        first, second: (n,) truth values, or 0 and 1, position i being item i in both.
        confidence: of the interval of the difference.

    Raises:
        InputError: no items, different lengths, or values other than 0 and 1.

    Example:
        >>> mcnemar([1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]).p_value
        0.0625
    """
    a, b = _pair(binary_row(first, "first"), binary_row(second, "second"))
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    differ = only_first + only_second
    p_value = float(stats.binomtest(only_second, differ).pvalue) if differ else 1.0
    return Comparison("McNemar exact", len(a), paired_rate_difference(a, b, confidence=confidence), float(only_second), p_value)


def paired_rate_difference(first: ArrayLike, second: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """The difference of two rates on the same items, second minus first, with Newcombe's interval (1998, method 10).

    The Wilson limits (l, u) of the two rates p are combined with the correlation φ of the outcomes,
    low = d − √((p₂ − l₂)² − 2φ (p₂ − l₂)(u₁ − p₁) + (u₁ − p₁)²) and high likewise with the other limits, φ being corrected for continuity
    when it is positive.

    Raises:
        InputError: as for `mcnemar`.

    Example:
        >>> [round(x, 3) for x in paired_rate_difference([0] * 20, [0] * 20)]
        [0.0, -0.161, 0.161]
    """
    a, b = _pair(binary_row(first, "first"), binary_row(second, "second"))
    n, both, only_first, only_second = len(a), int((a & b).sum()), int((a & ~b).sum()), int((b & ~a).sum())
    neither = n - both - only_first - only_second
    one, two = wilson_interval(both + only_first, n, confidence), wilson_interval(both + only_second, n, confidence)
    product = both * neither - only_first * only_second
    spread = (both + only_first) * (neither + only_second) * (both + only_second) * (neither + only_first)
    phi = 0.0
    if spread:
        phi = (max(product - n / 2, 0.0) if product > 0 else product) / math.sqrt(spread)
    difference = two.estimate - one.estimate
    below = _hypotenuse(two.estimate - two.low, one.high - one.estimate, phi)
    above = _hypotenuse(two.high - two.estimate, one.estimate - one.low, phi)
    return Interval(difference, max(-1.0, difference - below), min(1.0, difference + above))


def _hypotenuse(x: float, y: float, phi: float) -> float:
    return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))


def paired_permutation(first: ArrayLike, second: ArrayLike, *, draws: int = 10_000, confidence: float = 0.95, seed: int = 0) -> Comparison:
    """The paired permutation test of equal means; the interval is a paired bootstrap.

    Args:
        first, second: (n,) numbers, position i being item i in both; at least 2.
        draws: random draws of signs; all of them are enumerated when there are no more.
        confidence, seed: of the interval, and of the draws.

    Returns:
        The comparison; the p-value of random draws is (1 + as extreme) / (1 + draws), never 0.

    Raises:
        InputError: fewer than 2 items, different lengths, NaN, or no draws.

    Example:
        >>> paired_permutation([0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]).p_value
        0.125
    """
    a, b = _pair(finite_row(first, "first"), finite_row(second, "second"))
    if draws < 1:
        raise InputError(f"{draws} draws of a permutation test were asked for.", "Give at least 1; 10,000 is usual.")
    difference = b - a
    moving = difference[difference != 0]
    observed = abs(float(moving.sum()))
    enumerated = len(moving) < 63 and 2 ** len(moving) <= draws
    total = 2 ** len(moving) if enumerated else draws
    least = observed - 1e-9 * float(np.abs(moving).sum())  # sums in another order may differ in the last bits
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK // max(1, len(moving)))
    extreme = 0
    for begin in range(0, total, block):
        size = min(block, total - begin)
        if enumerated:
            flipped = np.arange(begin, begin + size)[:, None] >> np.arange(len(moving)) & 1
        else:
            flipped = rng.integers(2, size=(size, len(moving)), dtype=np.uint8)
        sums = moving.sum() - 2 * (flipped @ moving)
        extreme += int((np.abs(sums) >= least).sum())
    p_value = extreme / total if enumerated else (1 + extreme) / (1 + total)
    return Comparison("paired permutation", len(a), _mean_difference(difference, confidence, seed), float(difference.mean()), p_value)


def wilcoxon(first: ArrayLike, second: ArrayLike, *, confidence: float = 0.95, seed: int = 0) -> Comparison:
    """Wilcoxon's signed-rank test of differences that lie about 0, exact where scipy can be; the interval is a paired bootstrap.

    Items without a difference are left out of the ranks, as Wilcoxon did.

    Raises:
        InputError: fewer than 2 items, different lengths or NaN.

    Example:
        >>> wilcoxon([0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]).p_value
        0.125
    """
    a, b = _pair(finite_row(first, "first"), finite_row(second, "second"))
    difference = b - a
    interval = _mean_difference(difference, confidence, seed)
    if not difference.any():
        return Comparison("Wilcoxon signed rank", len(a), interval, 0.0, 1.0)
    result = stats.wilcoxon(difference, zero_method="wilcox")
    return Comparison("Wilcoxon signed rank", len(a), interval, float(result.statistic), float(result.pvalue))


def _mean_difference(difference: np.ndarray, confidence: float, seed: int) -> Interval:
    return bootstrap_interval(difference, confidence=confidence, seed=seed)


def cochran_q(*conditions: ArrayLike) -> Omnibus:
    """Cochran's Q: do k conditions get equally many of the same items right?

    Args:
        conditions: k >= 2 rows (n,) of truth values, position i being item i in all.

    Returns:
        The test; Q is 0 and p is 1 when no item tells the conditions apart.

    Raises:
        InputError: fewer than 2 conditions, no items, different lengths, or values other than 0 and 1.

    Example:
        >>> cochran_q([1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]).statistic
        8.0
    """
    rows = [binary_row(row, f"condition {number}") for number, row in enumerate(conditions)]
    if len(rows) < 2 or len({len(row) for row in rows}) > 1:
        raise InputError(
            f"Cochran's Q was given rows of lengths {[len(row) for row in rows]}.", "Give the same items under 2 conditions or more."
        )
    table = np.array(rows, dtype=np.int64)  # (conditions, items)
    k, total = len(rows), int(table.sum())
    right, of_item = table.sum(axis=1), table.sum(axis=0)
    spread = k * total - int((of_item**2).sum())
    statistic = (k - 1) * (k * int((right**2).sum()) - total**2) / spread if spread else 0.0
    return Omnibus("Cochran Q", table.shape[1], k, float(statistic), k - 1, float(stats.chi2.sf(statistic, k - 1)))


def compare_pairs(outcomes: Mapping[str, ArrayLike], *, confidence: float = 0.95) -> tuple[Omnibus, list[Comparison]]:
    """Cochran's Q over all conditions, and McNemar's test of every pair with Holm's correction over the pairs.

    Args:
        outcomes: by name of the condition, (n,) truth values of the same items.

    Raises:
        InputError: as for `cochran_q`.

    Example:
        >>> omnibus, pairs = compare_pairs({"parametric": [0, 0, 1], "offline": [1, 1, 1], "online": [1, 1, 1]})
        >>> [(pair.first, pair.second, pair.adjusted) for pair in pairs]
        [('parametric', 'offline', 1.0), ('parametric', 'online', 1.0), ('offline', 'online', 1.0)]
    """
    omnibus = cochran_q(*outcomes.values())
    pairs = [
        replace(mcnemar(outcomes[one], outcomes[two], confidence=confidence), first=one, second=two)
        for one, two in itertools.combinations(outcomes, 2)
    ]
    corrected = holm([pair.p_value for pair in pairs])
    return omnibus, [replace(pair, adjusted=float(p)) for pair, p in zip(pairs, corrected, strict=True)]


def _pair(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(first) != len(second):
        raise InputError(f"There are {len(first)} and {len(second)} outcomes.", "Give the same items under both conditions.")
    return first, second
