"""Do raters agree more than by chance? Every coefficient is (p_observed − p_chance) / (1 − p_chance), with a bootstrap over the items.

* Cohen's κ (1960), two raters: chance is the product of their own marginals; with weights, disagreement grows with the distance.
* Fleiss' κ (Psychological Bulletin 1971), as many ratings for every item, by whomever: chance is Σ p_c² over the categories.
* Krippendorff's α (*Content Analysis*, 2004; Hayes and Krippendorff 2007), any number of raters, gaps, and levels of measurement:
  α = 1 − D_o / D_e with D_o = (1/n) Σ_u (1/(m_u − 1)) Σ_{c,k} n_uc n_uk δ²(c, k) over the items u with m_u >= 2 ratings, and
  D_e = (1/(n(n − 1))) Σ_{c,k} n_c n_k δ²(c, k). δ² is 1 for different categories (nominal), (c − k)² (interval),
  ((c − k)/(c + k))² (ratio), or (Σ_{g=c..k} n_g − (n_c + n_k)/2)² (ordinal).

An interval comes from resampling the items as a multinomial count, all resamples at once; a resample in which no two values differ has no
coefficient and is left out. In the ordinal bootstrap δ² stays that of the whole sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from palimpsest.errors import InputError
from palimpsest.stats.checks import BLOCK, percentile_ends
from palimpsest.stats.intervals import Interval

RELIABLE = 0.67  # Krippendorff: below it, not even tentative conclusions
LEVELS = ("nominal", "ordinal", "interval", "ratio")


def cohen_kappa(
    first: Sequence[object] | np.ndarray,
    second: Sequence[object] | np.ndarray,
    *,
    weights: str | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Cohen's κ of two raters.

    Args:
        first, second: (n,) ratings of the same items; with weights, numbers or anything else that sorts in the order of the scale.
        weights: None, "linear" or "quadratic": how disagreement grows with the distance of the categories, in ranks.
        resamples, confidence, seed: of the bootstrap over items.

    Raises:
        InputError: no items, different lengths, unknown weights, or ratings that are all the same (agreement by chance is then certain).

    Example:
        >>> round(cohen_kappa([1, 1, 0, 0], [1, 1, 0, 1]).estimate, 3)
        0.5
    """
    one, two = np.asarray(first), np.asarray(second)
    if one.ndim != 1 or one.shape != two.shape or one.size == 0:
        raise InputError(f"The ratings have shapes {one.shape} and {two.shape}.", "Give one rating an item from each of the two.")
    if weights not in (None, "linear", "quadratic"):
        raise InputError(f"The weights {weights!r} are unknown.", "Give None, 'linear' or 'quadratic'.")
    values, index = np.unique(np.concatenate([one, two]), return_inverse=True)
    v = len(values)
    distance = np.abs(np.subtract.outer(np.arange(v), np.arange(v))).astype(np.float64)
    cost = (distance > 0).astype(np.float64) if weights is None else distance if weights == "linear" else distance**2
    cells, counts = np.unique(index[: one.size] * v + index[one.size :], return_counts=True)  # only the cells that occur
    row, column = cells // v, cells % v

    def kappa(drawn: np.ndarray) -> np.ndarray:  # (resamples, cells)
        n = drawn.sum(axis=1)
        ours = drawn @ (row[:, None] == np.arange(v))
        theirs = drawn @ (column[:, None] == np.arange(v))
        chance = np.einsum("rc,ck,rk->r", ours / n[:, None], cost, theirs / n[:, None])
        observed = drawn @ cost[row, column] / n
        return 1 - np.divide(observed, chance, out=np.full(len(n), np.nan), where=chance > 0)

    return _interval(kappa, counts, "ratings", resamples, confidence, seed)


def fleiss_kappa(counts: ArrayLike, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Fleiss' κ.

    Args:
        counts: (items, categories), how many of the raters put the item into the category; each row adds up to the same number >= 2.
        resamples, confidence, seed: of the bootstrap over items.

    Raises:
        InputError: another shape, rows that add up to different numbers, or one category only.

    Example:
        >>> round(fleiss_kappa([[2, 0], [0, 2], [1, 1]]).estimate, 3)
        0.333
    """
    table = np.asarray(counts)
    whole = table.ndim == 2 and table.size > 0 and np.issubdtype(table.dtype, np.integer) and table.min() >= 0
    raters = table.sum(axis=1) if whole else np.zeros(0, np.int64)
    if not whole or len(set(raters.tolist())) != 1 or raters[0] < 2:
        raise InputError(
            f"The counts have shape {table.shape} and rows that add up to {sorted(set(raters.tolist()))}.",
            "Give whole numbers, (items, categories), with the same number of ratings, at least 2, for every item.",
        )
    m = int(raters[0])
    agreed = ((table**2).sum(axis=1) - m) / (m * (m - 1))

    def kappa(drawn: np.ndarray) -> np.ndarray:  # (resamples, items)
        n = drawn.sum(axis=1)
        chance = ((drawn @ table / (m * n[:, None])) ** 2).sum(axis=1)
        return np.divide(drawn @ agreed / n - chance, 1 - chance, out=np.full(len(n), np.nan), where=chance < 1)

    return _interval(kappa, np.ones(len(table), np.int64), "counts", resamples, confidence, seed)


def krippendorff_alpha(
    ratings: ArrayLike, level: str = "nominal", *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Krippendorff's α.

    Args:
        ratings: (raters, items) numbers, NaN where a rater did not rate; number the categories of a nominal level as you like.
        level: "nominal", "ordinal", "interval" or "ratio" (numbers >= 0).
        resamples, confidence, seed: of the bootstrap over the items with 2 ratings or more.

    Raises:
        InputError: another shape, infinite numbers, an unknown level, no item with 2 ratings, or ratings that are all the same.

    Example:
        >>> round(krippendorff_alpha([[0, 0, 1, 1], [0, 0, 1, 0]]).estimate, 3)
        0.533
    """
    table = np.asarray(ratings, dtype=np.float64)
    if table.ndim != 2 or np.isinf(table).any():
        raise InputError(f"The ratings have shape {table.shape} or hold infinity.", "Give numbers, (raters, items), NaN for no rating.")
    if level not in LEVELS:
        raise InputError(f"The level {level!r} is unknown.", f"Give one of {', '.join(LEVELS)}.")
    given = ~np.isnan(table)
    table, given = table[:, given.sum(axis=0) >= 2], given[:, given.sum(axis=0) >= 2]
    if table.size == 0:
        raise InputError("No item was rated twice.", "Agreement needs at least 2 ratings of some items.")
    values, place = np.unique(table[given], return_inverse=True)
    if level == "ratio" and values[0] < 0:
        raise InputError(f"A ratio scale was given {values[0]:g}.", "Give numbers of at least 0, or level='interval'.")
    item = np.nonzero(given)[1]
    counts = np.bincount(item * len(values) + place, minlength=table.shape[1] * len(values)).reshape(-1, len(values))  # (items, values)
    delta = _squared_distance(values, counts.sum(axis=0), level)
    raters = counts.sum(axis=1)
    within = np.einsum("uc,uc->u", counts @ delta, counts) / (raters - 1)  # m_u times the mean disagreement inside an item

    def alpha(drawn: np.ndarray) -> np.ndarray:  # (resamples, items)
        n, margins = drawn @ raters, drawn @ counts
        expected = np.einsum("rc,rc->r", margins @ delta, margins) / (n - 1)
        return 1 - np.divide(drawn @ within, expected, out=np.full(len(n), np.nan), where=expected > 0)

    return _interval(alpha, np.ones(len(counts), np.int64), "ratings", resamples, confidence, seed)


def _squared_distance(values: np.ndarray, margins: np.ndarray, level: str) -> np.ndarray:
    """δ² (values, values) of a level of measurement; `margins` are how often each value was given."""
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    if level == "interval":
        return np.subtract.outer(values, values) ** 2
    if level == "ratio":
        sums = np.add.outer(values, values)
        return np.divide(np.subtract.outer(values, values), sums, out=np.zeros_like(sums), where=sums > 0) ** 2
    middle = np.cumsum(margins) - margins / 2  # Σ_{g=c..k} n_g − (n_c + n_k)/2 is the distance of the middles of c and k
    return np.subtract.outer(middle, middle) ** 2


def _interval(
    coefficient: Callable[[np.ndarray], np.ndarray], weights: np.ndarray, what: str, resamples: int, confidence: float, seed: int
) -> Interval:
    """The coefficient of the whole sample, and the percentile interval of that of multinomial resamples.

    Args:
        coefficient: from counts (resamples, cells) to (resamples,), NaN where undefined.
        weights: how many items each cell stands for.
    """
    estimate = float(coefficient(weights[None].astype(np.float64))[0])
    if np.isnan(estimate):
        raise InputError(f"The {what} are all in one category: agreement is certain by chance.", "Rate items that differ.")
    total = int(weights.sum())
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK // len(weights))
    drawn = [
        coefficient(rng.multinomial(total, weights / total, size=min(block, resamples - begin)).astype(np.float64))
        for begin in range(0, resamples, block)
    ]
    found = np.concatenate(drawn)
    low, high = percentile_ends(found[~np.isnan(found)], confidence)
    return Interval(estimate, low, high)
