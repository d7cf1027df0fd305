"""p-values corrected for being many.

Holm (Scandinavian Journal of Statistics 1979) bounds the chance of *any* false finding: p₍ᵢ₎ becomes max_{j ≤ i} min(1, (m − j + 1) p₍ⱼ₎).
Benjamini and Hochberg (JRSS B 1995) bound the expected *share* of false findings: p₍ᵢ₎ becomes min_{j ≥ i} min(1, m p₍ⱼ₎ / j), for p-values
that are independent or positively dependent. Holm is for a few comparisons that are all read, Benjamini–Hochberg for many slices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from palimpsest.errors import InputError
from palimpsest.stats.checks import finite_row

MANY = 20  # above so many comparisons the false discovery rate is bounded instead of the chance of any


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's adjusted p-values, in the order given: reject those at or below α, and the chance of any false finding is at most α.

    Raises:
        InputError: no p-values, or one outside [0, 1].

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
        [0.03, 0.06, 0.06]
    """
    p = _p_values(p_values)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def benjamini_hochberg(p_values: ArrayLike) -> np.ndarray:
    """Benjamini and Hochberg's adjusted p-values, in the order given: of those at or below q, a share of at most q is false on average.

    Raises:
        InputError: no p-values, or one outside [0, 1].

    Example:
        >>> benjamini_hochberg([0.01, 0.04, 0.03]).round(3).tolist()
        [0.03, 0.04, 0.04]
    """
    return stats.false_discovery_control(_p_values(p_values), method="bh")


def adjusted(p_values: ArrayLike) -> tuple[np.ndarray, str]:
    """The correction that fits the number of comparisons, and its name: Holm's up to 20, Benjamini and Hochberg's above.

    Raises:
        InputError: no p-values, or one outside [0, 1].

    Example:
        >>> adjusted([0.01, 0.04])[1]
        'Holm'
    """
    p = _p_values(p_values)
    return (holm(p), "Holm") if len(p) <= MANY else (benjamini_hochberg(p), "Benjamini-Hochberg")


def _p_values(values: ArrayLike) -> np.ndarray:
    p = finite_row(values, "p-values")
    if p.min() < 0 or p.max() > 1:
        raise InputError(f"The p-values lie between {p.min():g} and {p.max():g}.", "Give probabilities in [0, 1].")
    return p
