"""Two groups of items compared: effect sizes with their tests, length-matched again, and how far hidden states tell the groups apart.

* Cliff's δ = P(a > b) − P(a < b) of a memorized and a not memorized item drawn at random, with the Mann–Whitney test (two-sided,
  tie-corrected). Cliff, Psychological Bulletin 1993.
* Matched: within every prompt length as many memorized as not memorized items are kept, drawn at random; the groups' lengths are then
  equally distributed, and what still differs is not the length's doing.
* A linear probe: standardised vectors, logistic regression with a strong L2 penalty, the mean AUC of the held-out folds; beside it the
  same with the labels shuffled, which is what the probe finds where there is nothing. The silhouette needs no probe.
* Concepts that are asked for in several contexts: the mean cosine of the answers' vectors between them.

A comparison that a group is too small for is None, never NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import silhouette_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from palimpsest.errors import InputError
from palimpsest.stats import auc

LEAST = 2  # items that a group must have
FOLDS = 5
PENALTY = 0.01  # scikit-learn's C: there are more hidden dimensions than items
SHUFFLES = 5


def compare_groups(values: np.ndarray, memorized: np.ndarray) -> dict[str, Any] | None:
    """How a figure differs between the groups; None where one has fewer than `LEAST` items.

    Args:
        values: float (N,), finite.
        memorized: bool (N,).

    Returns:
        `memorized`, `rest`: the groups' means; `delta`: Cliff's δ, above 0 where memorized items have more of it; `p`.

    Raises:
        InputError: different lengths, NaN or infinity.

    Example:
        >>> found = compare_groups(np.array([3.0, 4.0, 1.0, 3.0]), np.array([True, True, False, False]))
        >>> found["delta"], found["memorized"], found["rest"]
        (0.75, 3.5, 2.0)
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape != memorized.shape or values.ndim != 1 or not np.isfinite(values).all():
        raise InputError(f"The figures have shape {values.shape} for {memorized.shape} items, or are not finite.", "Give one an item.")
    a, b = values[memorized], values[~memorized]
    if not comparable(memorized):
        return None
    p = 1.0 if np.ptp(values) == 0 else float(stats.mannwhitneyu(a, b, method="asymptotic").pvalue)
    return {"memorized": float(a.mean()), "rest": float(b.mean()), "delta": 2 * auc(a, b) - 1, "p": p}


def comparable(memorized: np.ndarray) -> bool:
    """Whether both groups have at least `LEAST` items."""
    return min(int(memorized.sum()), int((~memorized).sum())) >= LEAST


def matched(memorized: np.ndarray, lengths: np.ndarray, seed: int) -> np.ndarray:
    """Numbers of items, in order, of which as many are memorized as not at every length.

    Example:
        >>> matched(np.array([True, False, False, True]), np.array([3, 3, 3, 5]), 0).size
        2
    """
    rng = np.random.default_rng(seed)
    kept: list[np.ndarray] = []
    for length in np.unique(lengths):
        sides = [np.flatnonzero((lengths == length) & (memorized == side)) for side in (True, False)]
        count = min(len(side) for side in sides)
        kept += [rng.permutation(side)[:count] for side in sides]
    return np.sort(np.concatenate(kept)).astype(np.int64)


def independence(labels: Sequence[str], memorized: np.ndarray) -> dict[str, Any] | None:
    """Pearson's χ² of a label and being memorized, with Cramér's V; None where either takes one value only.

    Example:
        >>> independence(["a", "a", "b", "b"], np.array([True, True, False, False]))["v"]
        1.0
    """
    names, codes = np.unique(np.asarray(labels), return_inverse=True)
    counts = np.stack([np.bincount(codes[memorized == side], minlength=len(names)) for side in (True, False)])
    if len(names) < 2 or not counts.sum(axis=1).all():
        return None
    found = stats.chi2_contingency(counts, correction=False)
    return {
        "statistic": float(found.statistic),
        "degrees": int(found.dof),
        "p": float(found.pvalue),
        "v": float(np.sqrt(found.statistic / counts.sum())),  # a table of two rows
        "least_expected": float(found.expected_freq.min()),
        "shares": {str(name): float(share) for name, share in zip(names, counts[0] / counts.sum(axis=0), strict=True)},
    }


def separation(vectors: np.ndarray, memorized: np.ndarray, seed: int, shuffles: int = SHUFFLES) -> dict[str, float] | None:
    """How far hidden states tell the groups apart; None where a group has fewer than `LEAST` items.

    Args:
        vectors: float (N, hidden).
        memorized: bool (N,).
        seed: of the folds and of the shuffled labels.
        shuffles: of the labels.

    Returns:
        `auc` of the probe, `shuffled_auc`, the mean over the shuffles, and `silhouette` in [-1, 1].
    """
    if not comparable(memorized):
        return None
    rng = np.random.default_rng(seed)
    drawn = [_probe(vectors, rng.permutation(memorized), seed) for _ in range(shuffles)]
    return {
        "auc": _probe(vectors, memorized, seed),
        "shuffled_auc": float(np.mean(drawn)),
        "silhouette": float(silhouette_score(vectors, memorized)),
    }


def _probe(vectors: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """Mean AUC on the held-out folds, of which each holds items of both groups."""
    folds = min(FOLDS, int(labels.sum()), int((~labels).sum()))
    areas = []
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(vectors, labels):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=1000, class_weight="balanced"))
        scores = probe.fit(vectors[train], labels[train]).decision_function(vectors[test])
        areas.append(auc(scores[labels[test]], scores[~labels[test]]))
    return float(np.mean(areas))


def concept_cosines(
    vectors: np.ndarray, memorized: np.ndarray, concepts: Sequence[str | None]
) -> tuple[list[str], np.ndarray, list[bool | None]]:
    """For every concept with at least two items: the mean cosine between its items, and whether it is memorized.

    Args:
        vectors: float (N, hidden).
        memorized: bool (N,).
        concepts: one an item.

    Returns:
        The concepts in the order of their first items, float64 cosines, and True where all items are memorized, False where none is,
        None where some are.

    Raises:
        InputError: a vector of length 0.
    """
    places: dict[str, list[int]] = {}
    for place, concept in enumerate(concepts):
        if concept is not None:
            places.setdefault(concept, []).append(place)
    several = {concept: own for concept, own in places.items() if len(own) > 1}
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not norms.all():
        raise InputError(f"{int((norms == 0).sum())} hidden states are zero.", "A cosine needs vectors that are not zero.")
    unit = (vectors / norms).astype(np.float64)
    cosines, labels = [], []
    for own in several.values():
        n = len(own)
        total = np.square(unit[own].sum(axis=0)).sum()  # Σ_ij cos(i, j), the n diagonal ones included
        cosines.append((total - n) / (n * (n - 1)))
        labels.append(bool(memorized[own][0]) if len(set(memorized[own].tolist())) == 1 else None)
    return list(several), np.array(cosines, dtype=np.float64), labels
