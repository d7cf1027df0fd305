"""What the families of statistics share: checked input, and the ends of a bootstrap interval."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from palimpsest.errors import InputError

BLOCK = 1 << 24  # resampled numbers held at once


def percentile_ends(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """The percentile interval of bootstrap values (n,)."""
    tail = (1 - require_confidence(confidence)) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def require_confidence(confidence: float) -> float:
    """`confidence`, if it is one."""
    if not 0 < confidence < 1:
        raise InputError(f"The confidence is {confidence}.", "Give a share between 0 and 1, such as 0.95.")
    return confidence


def finite_row(values: ArrayLike, what: str) -> np.ndarray:
    """`values` as float64 (n,), n >= 1, all finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise InputError(f"{what} has shape {array.shape} and {bad} values that are NaN or infinite.", "Give one row of finite numbers.")
    return array


def score_sides(members: ArrayLike, nonmembers: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both sides as float64 (n,), without NaN."""
    sides = np.asarray(members, dtype=np.float64), np.asarray(nonmembers, dtype=np.float64)
    for side, name in zip(sides, ("members", "non-members"), strict=True):
        if side.ndim != 1 or side.size == 0 or np.isnan(side).any():
            raise InputError(f"The scores of {name} have shape {side.shape} or hold NaN.", "Give one row of numbers for each side.")
    return sides


def binary_row(values: ArrayLike, what: str) -> np.ndarray:
    """Truth values (n,), n >= 1, from truth values or 0 and 1."""
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0 or not np.isin(array, (0, 1)).all():
        raise InputError(f"{what} has shape {array.shape} or holds other values than 0 and 1.", "Give one row of right (1) and wrong (0).")
    return array.astype(bool)


def rate(successes: int, n: int) -> float:
    """successes / n, checked."""
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"{successes} successes of {n} trials is not a rate.", "Give n >= 1 and 0 <= successes <= n.")
    return successes / n
