"""The blind baseline of membership inference: telling members from non-members without asking the model.

Das, Zhang and Tramèr, "Blind baselines beat membership inference attacks for foundation models" (2024, arXiv 2406.16201); Duan et
al., COLM 2024, arXiv 2402.07841. Where a bag-of-tokens classifier tells the sides apart, they differ in what they are about or when
they were written, and no AUC of that split says anything of memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from palimpsest.stats import Interval, auc_interval


def blind_baseline(members: Sequence[np.ndarray], nonmembers: Sequence[np.ndarray], *, seed: int = 0) -> Interval | None:
    """AUC of `blind_scores`, None where there are none.

    Example:
        >>> texts = [np.random.default_rng(i).integers(0, 9, 30) for i in range(40)]
        >>> blind_baseline([t + 9 for t in texts[:20]], texts[20:]).estimate
        1.0
    """
    scores = blind_scores(members, nonmembers, seed=seed)
    return None if scores is None else auc_interval(scores[: len(members)], scores[len(members) :], seed=seed)


def blind_scores(members: Sequence[np.ndarray], nonmembers: Sequence[np.ndarray], *, seed: int = 0) -> np.ndarray | None:
    """How much a classifier that sees the texts but not the model takes each for a member: TF-IDF of token uni- and bigrams, logistic
    regression.

    Every text is judged by a classifier that was fitted to others: five-fold cross-validation (fewer where a side has fewer texts), equal
    texts in one fold.

    Returns:
        float64 (members + non-members,), higher = more likely a member; None with fewer than 2 different texts a side.
    """
    rows = [*members, *nonmembers]
    labels = np.repeat([1, 0], [len(members), len(nonmembers)])
    _, groups = np.unique([row.tobytes().hex() for row in rows], return_inverse=True)
    folds = min(5, *(len(np.unique(groups[labels == side])) for side in (0, 1)))
    if folds < 2:
        return None
    documents = [" ".join(map(str, row.tolist())) for row in rows]
    classifier = make_pipeline(
        TfidfVectorizer(token_pattern=r"\d+", ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(max_iter=1000, class_weight="balanced"),
    )
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    scores: np.ndarray = cross_val_predict(classifier, documents, labels, groups=groups, cv=split, method="decision_function")
    return scores
