"""How many samples? Sizes for a rate known to a half-width, for a rate shown to be small, and for a difference that is to be found.

* `samples_for_half_width`: Wilson's interval of a rate p has half-width z √(n p q + z²/4) / (n + z²), which falls with n; solved for n.
* `samples_to_exclude`: when none of n passages leaks, the exact one-sided upper bound of the rate is 1 − (1 − confidence)^(1/n);
  solved for n.
* `samples_to_see`: n such that something of rate p is seen at least once with a probability.
* `samples_for_difference`: pairs for McNemar's test (Connor, Biometrics 1987): n = (z_{1−α/2} √d + z_{power} √(d − δ²))² / δ², where δ is
  the difference of the rates and d the share of items on which the two conditions differ.
"""

from __future__ import annotations

import math

from scipy import special

from palimpsest.errors import InputError
from palimpsest.stats.checks import require_confidence

_NARROWEST = 1e-6
_ROUNDING = 1e-9  # a size is rounded up, but not because of the last bits of a root


def samples_for_half_width(
    rate: float, half_width: float, confidence: float = 0.95, *, per_cluster: float = 1.0, correlation: float = 0.0
) -> int:
    """The fewest samples whose Wilson interval is at most ± `half_width` wide when the rate is as expected.

    Args:
        rate: the expected rate, in [0, 1]; 0.5 is the worst case.
        half_width: from 1e-6 up to 0.5, without it; a trillion samples are more than anybody takes.
        confidence: of the interval.
        per_cluster, correlation: samples that share a source (a document, a fact), and how alike their outcomes are in [0, 1]: the size
            is multiplied with the design effect 1 + (per_cluster − 1) correlation (Kish 1965).

    Raises:
        InputError: a number out of range.

    Example:
        >>> samples_for_half_width(0.5, 0.05), samples_for_half_width(0.01, 0.005)
        (381, 1606)
    """
    _share(rate, "expected rate")
    if not _NARROWEST <= half_width < 0.5:  # the square of a smaller one would be lost beside the other terms, or be 0
        raise InputError(f"The half-width is {half_width}.", f"Give a share between {_NARROWEST:g} and 0.5, such as 0.05.")
    if per_cluster < 1 or not 0 <= correlation <= 1:
        raise InputError(
            f"{per_cluster} samples a cluster with correlation {correlation}.", "Give at least 1, and a correlation in [0, 1]."
        )
    z2, h2, pq = _z(confidence) ** 2, half_width**2, rate * (1 - rate)
    b, c = z2 * (2 * h2 - pq), z2 * z2 * (h2 - 0.25)  # h² n² + b n + c = 0; c < 0, so there is one positive root
    n = (-b + math.sqrt(b * b - 4 * h2 * c)) / (2 * h2)
    return max(1, _up(n * (1 + (per_cluster - 1) * correlation)))


def half_width(rate: float, n: int, confidence: float = 0.95) -> float:
    """Half the width of Wilson's interval of `n` samples when the rate is as expected: the inverse of `samples_for_half_width`.

    Raises:
        InputError: a number out of range.

    Example:
        >>> round(half_width(0.5, 381), 4)
        0.05
    """
    _share(rate, "expected rate")
    if n < 1:
        raise InputError(f"There are {n} samples.", "Give at least 1.")
    z = _z(confidence)
    return z * math.sqrt(n * rate * (1 - rate) + z * z / 4) / (n + z * z)


def samples_to_exclude(rate: float, confidence: float = 0.95) -> int:
    """How many samples without a single hit show, with `confidence`, that the rate is below `rate`.

    Raises:
        InputError: a number outside (0, 1).

    Example:
        >>> samples_to_exclude(0.01)
        299
    """
    return samples_to_see(rate, require_confidence(confidence))


def samples_to_see(rate: float, probability: float = 0.95) -> int:
    """How many samples contain at least one hit with `probability` when the rate is `rate`.

    Raises:
        InputError: a number outside (0, 1).

    Example:
        >>> samples_to_see(0.1, 0.95)
        29
    """
    if not 0 < rate < 1 or not 0 < probability < 1:
        raise InputError(f"The rate is {rate}, the probability {probability}.", "Give shares between 0 and 1, both excluded.")
    return max(1, _up(math.log1p(-probability) / math.log1p(-rate)))


def samples_for_difference(difference: float, differing: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """How many items, each under both conditions, let McNemar's test find a difference of two rates.

    Args:
        difference: of the rates, at least 1e-6 in size.
        differing: share of the items on which the two conditions differ, at least |difference|; with independent outcomes it is
            p₁ (1 − p₂) + p₂ (1 − p₁).
        alpha: two-sided level.
        power: probability to find it.

    Raises:
        InputError: a number out of range.

    Example:
        >>> samples_for_difference(0.1, 0.2)
        155
    """
    _share(differing, "share of items that differ")
    if not _NARROWEST <= abs(difference) <= differing:
        raise InputError(
            f"A difference of {difference} with {differing} of the items differing.",
            f"Give a difference of at least {_NARROWEST:g}, at most that share.",
        )
    if not 0 < alpha < 1 or not 0 < power < 1:
        raise InputError(f"alpha is {alpha}, the power {power}.", "Give shares between 0 and 1.")
    level, found = float(special.ndtri(1 - alpha / 2)), float(special.ndtri(power))
    return max(1, _up((level * math.sqrt(differing) + found * math.sqrt(differing - difference**2)) ** 2 / difference**2))


def _z(confidence: float) -> float:
    return float(special.ndtri((1 + require_confidence(confidence)) / 2))


def _share(value: float, what: str) -> None:
    if not 0 <= value <= 1:
        raise InputError(f"The {what} is {value}.", "Give a share in [0, 1].")


def _up(n: float) -> int:
    if not math.isfinite(n):
        raise InputError("It takes more samples than a number can hold.", "Give a greater rate or fewer samples a cluster.")
    return math.ceil(n * (1 - _ROUNDING))
