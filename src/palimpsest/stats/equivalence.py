"""Equivalence: not "no difference was found", but "the difference is smaller than the margin".

Two one-sided tests (Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 1987): equivalence is claimed when both
*difference ≤ −margin* and *difference ≥ margin* are rejected; the p-value is the greater of the two. For numbers these are t-tests
(paired, or Welch's). For rates they are the score tests of Farrington and Manning (Statistics in Medicine 1990), whose variance is that of
the most likely rates p̃₁, p̃₂ with p̃₁ − p̃₂ = ±margin, the root of a cubic: they stay right where both rates are 0 and a t-test has no
variance.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from palimpsest.errors import InputError
from palimpsest.stats.checks import finite_row, rate
from palimpsest.stats.intervals import Interval, wilson_interval

_ROUNDING = 1e-12  # of the greatest number


@dataclass(frozen=True)
class Equivalence:
    """Whether two conditions are the same within a margin.

    Attributes:
        difference: second minus first; the interval has confidence 1 − 2α, it lies inside the margin when the t-tests both reject.
        margin: the greatest difference that does not matter.
        p_value: the greater of the two one-sided p-values.
        alpha: level of each one-sided test.
        equivalent: whether p_value <= alpha.
    """

    difference: Interval
    margin: float
    p_value: float
    alpha: float
    equivalent: bool

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON types."""
        return {**asdict(self), "difference": self.difference._asdict()}


def tost(first: ArrayLike, second: ArrayLike, margin: float, *, paired: bool = False, alpha: float = 0.05) -> Equivalence:
    """Two one-sided t-tests of equal means within `margin`.

    Args:
        first, second: (n,) and (m,) numbers, at least 2 each; with `paired` the same items in the same order.
        margin: in the unit of the numbers, > 0.
        paired: whether the differences of the items are tested; otherwise Welch's test.
        alpha: level of each test.

    Raises:
        InputError: too few numbers, NaN, a margin that is not positive, or numbers that do not vary (a rate of 0, say: see
            `rates_equivalent`).

    Example:
        >>> tost([1.0, 2.0, 3.0], [1.1, 2.0, 3.1], margin=0.5, paired=True).equivalent
        True
    """
    a, b = finite_row(first, "first"), finite_row(second, "second")
    _require(margin, alpha)
    if min(len(a), len(b)) < 2 or (paired and len(a) != len(b)):
        raise InputError(f"There are {len(a)} and {len(b)} numbers.", "Give at least 2 on each side, equally many when they are paired.")
    difference = float(b.mean() - a.mean())
    if paired:
        error, freedom = float((b - a).std(ddof=1)) / math.sqrt(len(a)), float(len(a) - 1)
    else:
        parts = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])
        error = math.sqrt(float(parts.sum()))
        freedom = float(parts.sum() ** 2 / (parts**2 / [len(a) - 1, len(b) - 1]).sum()) if error else 1.0
    scale = float(max(np.abs(a).max(), np.abs(b).max()))
    if error <= _ROUNDING * scale:  # what is left of equal numbers after their mean was rounded is no variance
        raise InputError("The numbers do not vary: their difference has no standard error.", "Compare rates with rates_equivalent.")
    lower, upper = (difference + margin) / error, (difference - margin) / error
    p_value = float(max(stats.t.sf(lower, freedom), stats.t.cdf(upper, freedom)))
    half = float(stats.t.ppf(1 - alpha, freedom)) * error
    return Equivalence(Interval(difference, difference - half, difference + half), margin, p_value, alpha, p_value <= alpha)


def rates_equivalent(first: tuple[int, int], second: tuple[int, int], margin: float, *, alpha: float = 0.05) -> Equivalence:
    """Two one-sided score tests that two independent rates are the same within `margin` (Farrington and Manning 1990).

    Args:
        first, second: (successes, trials).
        margin: a difference of rates, in (0, 1).
        alpha: level of each test.

    Returns:
        The result; its interval is Newcombe's (see `rate_difference`).

    Raises:
        InputError: no rate, or a margin outside (0, 1).

    Example:
        >>> rates_equivalent((0, 20), (0, 20), 0.05).equivalent, rates_equivalent((0, 200), (0, 200), 0.05).equivalent
        (False, True)
    """
    _require(margin, alpha)
    if margin >= 1:
        raise InputError(f"The margin is {margin}.", "Give a difference of rates below 1, such as 0.05.")
    rate(*first), rate(*second)
    lower, upper = score_statistic(second, first, -margin), score_statistic(second, first, margin)
    p_value = float(max(special.ndtr(-lower), special.ndtr(upper)))
    return Equivalence(rate_difference(first, second, confidence=1 - 2 * alpha), margin, p_value, alpha, p_value <= alpha)


def rate_difference(first: tuple[int, int], second: tuple[int, int], *, confidence: float = 0.95) -> Interval:
    """The difference of two independent rates, second minus first, with Newcombe's hybrid score interval (1998, method 10 of the unpaired).

    Args:
        first, second: (successes, trials).

    Raises:
        InputError: no rate.

    Example:
        >>> [round(x, 4) for x in rate_difference((48, 80), (56, 70))]
        [0.2, 0.0524, 0.3339]
    """
    one, two = wilson_interval(*first, confidence), wilson_interval(*second, confidence)
    difference = two.estimate - one.estimate
    below = math.hypot(two.estimate - two.low, one.high - one.estimate)
    above = math.hypot(two.high - two.estimate, one.estimate - one.low)
    return Interval(difference, difference - below, difference + above)


def score_statistic(first: tuple[int, int], second: tuple[int, int], difference: float) -> float:
    """z of the hypothesis p₁ − p₂ = difference, with the variance of the most likely rates under it."""
    (k1, n1), (k2, n2) = first, second
    p1, p2 = k1 / n1, k2 / n2
    q1, q2 = likeliest_rates(first, second, difference)
    variance = q1 * (1 - q1) / n1 + q2 * (1 - q2) / n2
    gap = p1 - p2 - difference
    if variance <= 0:  # the hypothesis sets both rates at the ends, 1 and 0: it fits exactly or not at all
        return 0.0 if gap == 0 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


def likeliest_rates(first: tuple[int, int], second: tuple[int, int], difference: float) -> tuple[float, float]:
    """The rates of greatest likelihood among those with p₁ − p₂ = difference: the root of Farrington and Manning's cubic."""
    (k1, n1), (k2, n2) = first, second
    p1, p2, theta, s = k1 / n1, k2 / n2, n2 / n1, difference
    a = 1 + theta
    b = -(1 + theta + p1 + theta * p2 + s * (theta + 2))
    c = s * s + s * (2 * p1 + theta + 1) + p1 + theta * p2
    d = -p1 * s * (1 + s)
    v = (b / (3 * a)) ** 3 - b * c / (6 * a * a) + d / (2 * a)
    u = math.copysign(math.sqrt(max(0.0, (b / (3 * a)) ** 2 - c / (3 * a))), v)
    angle = (math.pi + math.acos(max(-1.0, min(1.0, v / u**3)))) / 3 if u else 0.0
    q1 = 2 * u * math.cos(angle) - b / (3 * a)
    q1 = min(max(q1, max(0.0, s)), min(1.0, 1.0 + s))  # rounding must not lead out of the square
    return q1, q1 - s


def _require(margin: float, alpha: float) -> None:
    if not margin > 0 or not 0 < alpha < 0.5:
        raise InputError(f"The margin is {margin}, alpha {alpha}.", "Give a margin above 0 and an alpha between 0 and 0.5.")
