"""Is it more than frequency? Features at as many occurrences of function as of content tokens.

Ours, beside `function_tokens`: frequent tokens have more occurrences to be active at, whatever they are. Of N occurrences of which n_f have
feature f, m drawn without replacement have

    E(m) = Σ_f 1 − C(N − n_f, m) / C(N, m)

features (rarefaction). The hypothesis beyond frequency counts as supported when E of function over E of content occurrences exceeds 1 with
its whole interval. Where both kinds have all features long before m, the ratio is 1 and says nothing: look at the curve.
"""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln

from palimpsest.audit.function_tokens import Occurrences
from palimpsest.errors import InputError
from palimpsest.stats import Interval


def rarefied(total: float | np.ndarray, counts: np.ndarray, m: float | np.ndarray) -> np.ndarray:
    """E(m) of the docstring: features expected in m of `total` occurrences, when `counts` (…, F) of these have each.

    Example:
        >>> float(rarefied(4, np.array([4, 1, 0]), 2).round(6))
        1.5
    """
    total, m = np.asarray(total, dtype=np.float64)[..., None], np.asarray(m, dtype=np.float64)[..., None]
    left = total - counts
    with np.errstate(invalid="ignore"):
        missing = gammaln(left + 1) - gammaln(left - m + 1) - gammaln(total + 1) + gammaln(total - m + 1)
    return np.where(left >= m, -np.expm1(np.minimum(missing, 0.0)), 1.0).sum(-1)


def frequency_control(found: Occurrences, function: np.ndarray, *, halves: int = 500, seed: int = 0) -> dict[str, float]:
    """Features at as many function as content occurrences, and their ratio with an interval over rows.

    The interval has the percentiles of the ratio in random halves of the rows (the delete-half jackknife: Shao and Wu, Annals of Statistics
    1989): a bootstrap repeats rows, and repeated rows show fewer features than new ones would.

    Args:
        found: occurrences.
        function: (V,) bool.
        halves, seed: of the interval.

    Returns:
        occurrences (m, two fifths of those of the rarer kind, so that a half has so many too), function, content (features expected at m),
        and their ratio as estimate, low, high.

    Raises:
        InputError: fewer than 5 occurrences of one kind, or fewer than 4 rows.
    """
    inside = function[found.tokens]
    m = 2 * int(min(inside.sum(), (~inside).sum())) // 5
    parts = [found.by_row(chosen) for chosen in (inside, ~inside)] if m else []
    if not parts or len(parts[0][0]) < 4:
        raise InputError(
            f"{int(inside.sum())} of {len(inside)} occurrences are of function tokens.", "Change the share, or give more rows."
        )
    rows = len(parts[0][0])

    def expected(weights: np.ndarray) -> np.ndarray:  # (draws, rows) -> (draws, 2)
        totals = [weights @ sizes for sizes, _ in parts]
        drawn = np.minimum(m, np.minimum(*totals))  # a half may have fewer of one kind
        return np.stack([rarefied(total, weights @ table, drawn) for total, (_, table) in zip(totals, parts, strict=True)], axis=-1)

    whole = expected(np.ones((1, rows)))[0]
    rng = np.random.default_rng(seed)
    ratios = []
    for begin in range(0, halves, 50):
        half = np.zeros((min(50, halves - begin), rows))
        half[:, : rows // 2] = 1.0
        both = expected(rng.permuted(half, axis=1))
        ratios.append(both[:, 0] / both[:, 1])
    low, high = np.percentile(np.concatenate(ratios), [2.5, 97.5])
    return {
        "occurrences": m,
        "function": float(whole[0]),
        "content": float(whole[1]),
        **Interval(float(whole[0] / whole[1]), float(low), float(high))._asdict(),
    }


def rarefaction(found: Occurrences, chosen: np.ndarray, points: int = 20) -> list[tuple[int, float]]:
    """(m, E(m)) for occurrences of the tokens in `chosen` (V,) bool, at numbers m that are even on a log scale up to all of them.

    Raises:
        InputError: these tokens do not occur.
    """
    inside = chosen[found.tokens]
    total = int(inside.sum())
    if not total:
        raise InputError(f"None of {len(inside)} occurrences is of the tokens that are asked for.", "Choose tokens that occur.")
    counts = np.bincount(found.features[inside[found.positions]], minlength=found.width)
    sizes = np.unique(np.geomspace(1, total, points).round().astype(np.int64))
    return [(int(m), float(rarefied(total, counts, m))) for m in sizes]
