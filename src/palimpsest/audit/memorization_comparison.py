"""Does the taxonomy predict memorization better than one model for all, and better than a partition that was searched for?

The evaluation of Prashanth et al. (ICLR 2025, arXiv 2406.17746): 80 % of the passages train, 20 % test, split alike in label and class;
the homogeneous baseline, the taxonomy and the best of all partitions by quantiles of two factors,

    class 1 = f1 >= q1,  else class 2 = f2 >= q2,  else class 3      (q of the memorized passages: quartiles, f1 and f2 different),

are compared by precision, recall, areas under the curves, expected calibration error and log-loss, in all and by class of the taxonomy;
deviations come from leaving out one of 100 folds at a time. A likelihood-ratio test asks whether the classes differ at all.

Departures: the log-loss is that of probabilities with the label ratio put back (see `memorization_predictor`). The test is the one
for nested models: unweighted maximum likelihood on all rows, 2 (log L_classes - log L_one) ~ chi² with the difference of the designs'
ranks as its degrees of freedom; the published code compares hard decisions with one degree. The search chooses by log-loss on a fifth of
the training rows; the choice is then fitted on all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, train_test_split

from palimpsest.audit.memorization_classes import classify
from palimpsest.audit.memorization_predictor import SEED, Partition, TaxonomyPredictor, as_labels, available, homogeneous
from palimpsest.errors import InputError
from palimpsest.measurement import Measurement, environment
from palimpsest.stats import auc

SEARCHED = (
    "frequency_max",
    "frequency_mean",
    "frequency_min",
    "frequency_median",
    "templates",
    "snowclones",
    "duplicates",
    "code_length",
    "templating",
    "perplexity_continuation",
)
QUANTILES = (0.25, 0.5, 0.75)
TEST = 0.2
FOLDS = 100
BINS = 10
Labels = Sequence[bool] | pl.Series | np.ndarray


@dataclass(frozen=True)
class QuantilePartition:
    """Three classes by thresholds on two factors; callable as a partition.

    Example:
        >>> QuantilePartition("a", 2.0, "b", 1.0)(pl.DataFrame({"a": [3, 0, 0], "b": [0, 1, 0]})).to_list()
        ['class 1', 'class 2', 'class 3']
    """

    first: str
    at_first: float
    second: str
    at_second: float

    def __call__(self, frame: pl.DataFrame) -> pl.Series:
        """The class of every row."""
        one, two = (pl.col(name).cast(pl.Float64) >= at for name, at in ((self.first, self.at_first), (self.second, self.at_second)))
        rule = pl.when(one).then(pl.lit("class 1")).when(two).then(pl.lit("class 2")).otherwise(pl.lit("class 3"))
        return frame.select(rule.alias("class"))["class"]

    def __str__(self) -> str:
        return f"{self.first} >= {self.at_first:.4g}, else {self.second} >= {self.at_second:.4g}"


def search_partition(
    frame: pl.DataFrame,
    y: Labels,
    *,
    factors: Sequence[str] = SEARCHED,
    features: tuple[str, ...] | None = None,
    quantiles: Sequence[float] = QUANTILES,
    seed: int = SEED,
) -> tuple[QuantilePartition, pl.DataFrame]:
    """The partition by two factors whose predictor has the least log-loss on held-out rows.

    Args:
        frame, y: factors and labels of the training passages.
        factors: which are cut; those that the frame lacks are passed over.
        features: what the predictors use; by default all factors that the frame has.
        quantiles: of the memorized passages, where the factors are cut.
        seed: of the split.

    Returns:
        The best partition, and every one that was tried with its validation log-loss (first, at_first, second, at_second,
        log_loss), best first. A partition with a class of one kind of label on the training part is not tried.

    Raises:
        InputError: labels of another length, or no partition that can be fitted.
    """
    labels = as_labels(y, len(frame))
    train, validation = _split(labels.astype(str), seed)
    parts, kept = frame[train], frame[validation]
    cut = [name for name in factors if name in frame.columns]
    at = {name: np.unique(np.quantile(frame[name].cast(pl.Float64).to_numpy()[labels], quantiles)) for name in cut} if labels.any() else {}
    tried: dict[bytes, tuple[QuantilePartition, float]] = {}  # by the classes it makes: different thresholds may make the same
    for first, second in itertools.permutations(at, 2):
        for a, b in itertools.product(at[first], at[second]):
            partition = QuantilePartition(first, float(a), second, float(b))
            classes = partition(frame).to_numpy()
            key = "".join(classes).encode()
            if key in tried or not _fittable(classes[train], labels[train], classes[validation]):
                continue
            predictor = TaxonomyPredictor(partition, features).fit(parts, labels[train])
            tried[key] = (partition, _log_loss(labels[validation], predictor.predict(kept)))
    if not tried:
        raise InputError(
            f"None of the partitions by {', '.join(cut) or 'no factor'} leaves both kinds of label in all three classes.",
            "Give more passages, or other factors.",
        )
    ranked = sorted(tried.values(), key=lambda entry: entry[1])
    rows = [(p.first, p.at_first, p.second, p.at_second, loss) for p, loss in ranked]
    return ranked[0][0], pl.DataFrame(rows, schema=["first", "at_first", "second", "at_second", "log_loss"], orient="row")


def _fittable(train: np.ndarray, labels: np.ndarray, validation: np.ndarray) -> bool:
    """Whether there are three classes, each with both labels in training, and none that only validation has."""
    names = np.unique(train)
    return len(names) == 3 and set(validation) <= set(names) and all(0 < labels[train == name].mean() < 1 for name in names)


def _split(strata: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that train and rows that test, each ascending, split alike in `strata`; a stratum of one row trains."""
    names, counts = np.unique(strata, return_counts=True)
    alone = np.isin(strata, names[counts < 2])
    rows = np.flatnonzero(~alone)
    try:
        train, test = train_test_split(rows, test_size=TEST, random_state=seed, stratify=strata[rows])
    except ValueError as error:
        raise InputError(f"{len(strata)} passages cannot be split into training and test: {error}", "Give more passages.") from error
    return np.sort(np.concatenate([train, np.flatnonzero(alone)])), np.sort(test)


def _log_loss(labels: np.ndarray, p: np.ndarray) -> float:
    return -float(np.log(np.clip(np.where(labels, p, 1 - p), np.finfo(np.float64).eps, None)).mean())


@dataclass(frozen=True)
class LikelihoodRatio:
    """The likelihood-ratio test of one model against one a class: 2 (log L1 - log L0), degrees of freedom, p."""

    statistic: float
    degrees: int
    p: float


def likelihood_ratio(
    frame: pl.DataFrame, y: Labels, partition: Partition = classify, features: tuple[str, ...] | None = None
) -> LikelihoodRatio:
    """Tests whether the classes of a partition follow different logistic models.

    Args:
        frame, y: factors and labels; all rows are fitted.
        partition: the classes.
        features: factors of the models; by default all that the frame has.

    Raises:
        InputError: labels of another length or of one kind only, or missing factors.
    """
    labels = as_labels(y, len(frame))
    names = features or available(frame)
    raw = frame.select(pl.col(name).cast(pl.Float64) for name in names).to_numpy()
    if not labels.any() or labels.all() or not np.isfinite(raw).all():
        raise InputError(f"{int(labels.sum())} of {len(labels)} are memorized, in {raw.shape} factors.", "Give both kinds, and no null.")
    deviation = raw.std(axis=0)
    z = (raw - raw.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    classes = partition(frame).to_numpy()
    one, rank = _maximum(z, labels)
    parts = [_maximum(z[classes == name], labels[classes == name]) for name in np.unique(classes)]
    statistic = max(0.0, 2 * (sum(value for value, _ in parts) - one))
    degrees = sum(value for _, value in parts) - rank
    return LikelihoodRatio(statistic, degrees, float(stats.chi2.sf(statistic, degrees)) if degrees else 1.0)


def _maximum(z: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
    """The greatest log-likelihood of a logistic model with intercept, and the rank of its design."""
    rank = int(np.linalg.matrix_rank(np.column_stack([np.ones(len(z)), z])))
    if labels.all() or not labels.any():
        return 0.0, rank
    # a trace of ridge keeps separable classes finite; their likelihood is 1 to many digits all the same
    model = LogisticRegression(C=1e5, max_iter=10_000, solver="newton-cholesky").fit(z, labels)
    return -len(labels) * _log_loss(labels, model.predict_proba(z)[:, 1]), rank


def calibration_error(labels: np.ndarray, p: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: how far the confidence max(p, 1 - p) of decisions is from their accuracy, over equal bins.

    Example:
        >>> round(calibration_error(np.array([True, False]), np.array([0.95, 0.05])), 9)
        0.05
    """
    confidence, right = np.maximum(p, 1 - p), (p > 0.5) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # bins are open at their lower ends
    gaps = [abs(confidence[place == b].mean() - right[place == b].mean()) * (place == b).mean() for b in np.unique(place)]
    return float(np.sum(gaps))


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the curve of precision over recall, as steps; equal scores are one threshold.

    Written out because the jackknife asks for it a thousand times, and scikit-learn's checks cost more than the sum.
    """
    order = np.argsort(-scores, kind="stable")
    hits, ranked = np.cumsum(labels[order]), scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # of each run of equal scores
    gained = np.diff(hits[last], prepend=0)
    return float((gained * hits[last] / (np.flatnonzero(last) + 1)).sum() / hits[-1])


def prediction_figures(labels: np.ndarray, probability: np.ndarray, balanced: np.ndarray) -> dict[str, float | None]:
    """Precision, recall, areas and calibration of the balanced score, log-loss of the probability; None where there is no such figure."""
    said = balanced > 0.5
    two = labels.any() and not labels.all()
    return {
        "precision": float(labels[said].mean()) if said.any() else None,
        "recall": float(said[labels].mean()) if labels.any() else None,
        "roc_auc": auc(balanced[labels], balanced[~labels]) if two else None,
        "pr_auc": average_precision(labels, balanced) if labels.any() else None,
        "ece": calibration_error(labels, balanced),
        "log_loss": _log_loss(labels, probability),
    }


def compare_predictors(
    frame: pl.DataFrame,
    y: Labels,
    *,
    taxonomy: Partition = classify,
    features: tuple[str, ...] | None = None,
    search: bool = True,
    seed: int = SEED,
) -> Measurement:
    """Baseline, taxonomy and searched partition on one split.

    Args:
        frame, y: factors and labels of all passages.
        taxonomy: the partition that is held against the others.
        features: factors of the predictors; by default all that the frame has.
        search: also search for a partition, which fits some thousand models.
        seed: of the split.

    Returns:
        One row per predictor and class of the taxonomy ("all" too) on the test rows: n, memorized, the figures of
        `prediction_figures` and, as `<figure>_sd`, their jackknife deviations; the summary holds the test-set log-loss of every
        predictor, the likelihood-ratio test on all rows, the coefficients of the taxonomy and the searched partition.

    Raises:
        InputError: too few passages to split, or a class in which all or none are memorized.
    """
    labels = as_labels(y, len(frame))
    classes = taxonomy(frame).to_numpy()
    train, test = _split(np.char.add(classes.astype(str), labels.astype(str)), seed)
    partitions: dict[str, Partition] = {"baseline": homogeneous, "taxonomy": taxonomy}
    tried = None
    if search:
        used = features or available(frame)  # what the models may not see, the partition may not either
        cut = [name for name in SEARCHED if name in used]
        partitions["searched"], tried = search_partition(frame[train], labels[train], factors=cut, features=features, seed=seed)
    rows: list[dict[str, Any]] = []
    losses: dict[str, float] = {}
    coefficients: list[dict[str, Any]] = []
    for name, partition in partitions.items():
        predictor = TaxonomyPredictor(partition, features).fit(frame[train], labels[train])
        probability, balanced = predictor.predict(frame[test]), predictor.predict(frame[test], balanced=True)
        losses[name] = _log_loss(labels[test], probability)
        if name == "taxonomy":
            coefficients = predictor.coefficients().to_dicts()
        for part in ("all", *np.unique(classes[test]).tolist()):
            chosen = np.flatnonzero((classes[test] == part) | (part == "all"))
            figures = prediction_figures(labels[test][chosen], probability[chosen], balanced[chosen])
            spread = _jackknife(labels[test][chosen], probability[chosen], balanced[chosen], seed)
            rows.append(
                {"predictor": name, "class": part, "n": len(chosen), "memorized": int(labels[test][chosen].sum())} | figures | spread
            )
    test_result = likelihood_ratio(frame, labels, taxonomy, features)
    summary = {
        "train": len(train),
        "test": len(test),
        "features": list(features or available(frame)),
        "log_loss": losses,
        "likelihood_ratio": {"statistic": test_result.statistic, "degrees": test_result.degrees, "p": test_result.p},
        "coefficients": coefficients,
        "searched": str(partitions["searched"]) if search else None,
        "partitions_tried": len(tried) if tried is not None else 0,
    }
    return Measurement(
        "memorization-predictors", pl.DataFrame(rows, infer_schema_length=None), summary, {"seed": seed, "environment": environment()}
    )


def _jackknife(labels: np.ndarray, probability: np.ndarray, balanced: np.ndarray, seed: int) -> dict[str, float | None]:
    """Jackknife deviations of the figures: one of 100 folds left out at a time (of n, where there are fewer rows)."""
    folds = min(FOLDS, len(labels))
    if folds < 2:
        return dict.fromkeys(f"{name}_sd" for name in prediction_figures(labels, probability, balanced))
    split = KFold(folds, shuffle=True, random_state=seed)
    drawn = [prediction_figures(labels[rest], probability[rest], balanced[rest]) for rest, _ in split.split(labels)]
    made: dict[str, float | None] = {}
    for name in drawn[0]:
        values = np.array([figures[name] for figures in drawn if figures[name] is not None], dtype=np.float64)
        made[f"{name}_sd"] = float(np.sqrt((folds - 1) / folds * ((values - values.mean()) ** 2).sum())) if len(values) == folds else None
    return made
