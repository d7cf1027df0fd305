"""How one quantity goes with another: rank correlation, and the log-linear law with an interval of its slope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from palimpsest.errors import InputError
from palimpsest.stats.checks import BLOCK, finite_row, percentile_ends


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


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation.

    Raises:
        InputError: different lengths, fewer than 2 pairs, NaN, or a side whose values are all equal (it has no rank order).

    Example:
        >>> spearman([1, 2, 3], [10, 20, 15])
        0.5
    """
    a, b = finite_row(x, "x"), finite_row(y, "y")
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
    levels = finite_row(x, "x")
    if levels.min() <= 0 or np.ptp(levels) == 0:
        raise InputError(f"The levels {levels.tolist()} have no log-linear fit.", "Give positive levels of which at least 2 differ.")
    if len(y) != len(levels):
        raise InputError(f"There are {len(levels)} levels and {len(y)} rows of y.", "Give one row for every level.")
    rng = np.random.default_rng(seed)
    log_x = np.log10(levels)
    if all(np.ndim(row) == 0 for row in y):
        means = finite_row(y, "y")
        drawn = rng.integers(len(levels), size=(resamples, len(levels)))
        drawn = drawn[np.ptp(levels[drawn], axis=1) > 0]  # a draw of one level only has no slope
        slopes = _slope(log_x[drawn], means[drawn])
    else:
        rows = [finite_row(row, f"y[{number}]") for number, row in enumerate(y)]
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
    low, high = percentile_ends(slopes, confidence)
    return LogLaw(slope, intercept, r2, low, high, len(levels))


def _slope(log_x: np.ndarray, y: np.ndarray) -> np.ndarray:
    centred = log_x - log_x.mean(axis=-1, keepdims=True)
    return (centred * y).sum(axis=-1) / (centred**2).sum(axis=-1)


def _resampled_means(rows: list[np.ndarray], paired: bool, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Means of every level in every resample: (resamples, levels)."""
    means = np.empty((resamples, len(rows)))
    block = max(1, BLOCK // max(map(len, rows)))
    for begin in range(0, resamples, block):
        size = min(block, resamples - begin)
        subjects = rng.integers(len(rows[0]), size=(size, len(rows[0])))
        for level, row in enumerate(rows):
            drawn = subjects if paired else rng.integers(len(row), size=(size, len(row)))
            means[begin : begin + size, level] = row[drawn].mean(axis=1)
    return means
