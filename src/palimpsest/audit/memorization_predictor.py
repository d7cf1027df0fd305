"""Who is memorized, predicted from factors: one logistic model for all passages, or one for every class of them.

Prashanth et al. (ICLR 2025, arXiv 2406.17746). A *partition* gives every passage a class by its factors alone; the predictor fits one
logistic regression a class,

    P(memorized | x, class c) = sigmoid(b_c + w_c . z(x)),

on factors z scaled to mean 0 and deviation 1 (templating stays 0 or 1), with ridge C = 1 and balanced label weights, and asks each
passage of the model of its class. The partition `homogeneous` is the paper's baseline; `classify` its taxonomy.

Departures: the scaler sees the training rows only (the published code scales before it splits), one for all classes, so that the
coefficients of two classes are in the same units. Balanced weights answer as if half of the passages were memorized; `predict` takes
that back where a probability is wanted (King and Zeng, Political Analysis 2001: the log-odds move by the log of the label ratio), because
otherwise the log-loss of many small models measures their label ratios. The Wald tests use the sandwich covariance, which stays right
under weights and ridge; the published code's has neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from scipy import special, stats
from sklearn.linear_model import LogisticRegression

from palimpsest.audit.memorization_classes import classify
from palimpsest.audit.memorization_factors import CATEGORICAL, CONTINUOUS
from palimpsest.errors import InputError

Partition = Callable[[pl.DataFrame], pl.Series]
SEED = 1024  # the published code's


def homogeneous(frame: pl.DataFrame) -> pl.Series:
    """The partition into one class, "all": the baseline."""
    return pl.Series("class", ["all"] * len(frame), dtype=pl.String)


def available(frame: pl.DataFrame, without: Sequence[str] = ()) -> tuple[str, ...]:
    """The factors of the paper that `frame` has, less those in `without`."""
    return tuple(name for name in (*CONTINUOUS, *CATEGORICAL) if name in frame.columns and name not in without)


@dataclass(frozen=True)
class _ClassModel:
    """The logistic model of one class: w (k,), b, the rows and memorized rows it was fitted on, the Wald errors (k + 1,), the intercept's
    first, and the deviation of every scaled factor in the class (k,)."""

    coefficients: np.ndarray
    intercept: float
    n: int
    memorized: int
    errors: np.ndarray
    deviation: np.ndarray

    @property
    def shift(self) -> float:
        """What balanced weights took from the log-odds: log of memorized to not memorized."""
        return float(np.log(self.memorized / (self.n - self.memorized)))


@dataclass
class TaxonomyPredictor:
    """Predicts memorization with one logistic model a class.

    Attributes:
        partition: factors -> class of every row; `classify` (the paper's taxonomy), `homogeneous` (its baseline), or your own.
        features: factors that are used; by default all of the paper's that the frame has.
        C: inverse strength of the ridge.
        log_duplicates: take the logarithm of the duplicates before scaling, which the paper does not.

    Example:
        >>> predictor = TaxonomyPredictor().fit(frame, frame["memorized"])   # doctest: +SKIP
        >>> predictor.predict(frame).mean(), predictor.coefficients()        # doctest: +SKIP
    """

    partition: Partition = classify
    features: tuple[str, ...] | None = None
    C: float = 1.0
    log_duplicates: bool = False
    models: dict[str, _ClassModel] = field(default_factory=dict, init=False, repr=False)
    names: tuple[str, ...] = field(default=(), init=False, repr=False)
    _mean: np.ndarray = field(default_factory=lambda: np.zeros(0), init=False, repr=False)
    _scale: np.ndarray = field(default_factory=lambda: np.ones(0), init=False, repr=False)

    def fit(self, frame: pl.DataFrame, y: Sequence[bool] | pl.Series | np.ndarray) -> TaxonomyPredictor:
        """Fits the models.

        Args:
            frame: factors, one row a passage (`memorization_factors`).
            y: whether each is memorized.

        Raises:
            InputError: y of another length, a missing factor or value, or a class in which all or none are memorized.
        """
        labels = as_labels(y, len(frame))
        self.names = self.features or available(frame)
        raw = self._raw(frame)
        deviation = raw.std(axis=0)
        continuous = np.array([name not in CATEGORICAL for name in self.names])
        self._mean = np.where(continuous, raw.mean(axis=0), 0.0)
        self._scale = np.where(continuous & (deviation > 0), deviation, 1.0)
        z = self._scaled(raw)
        classes = self.partition(frame).to_numpy()
        self.models = {str(name): _fit_class(z[classes == name], labels[classes == name], self.C, str(name)) for name in np.unique(classes)}
        return self

    def predict(self, frame: pl.DataFrame, *, balanced: bool = False) -> np.ndarray:
        """The probability that each passage is memorized, float64 (n,).

        Args:
            frame: factors of passages.
            balanced: as if half of every class were memorized: the paper's score, for ranking and for the threshold 1/2.

        Raises:
            InputError: not fitted yet, a missing factor or value, or a passage of a class that was not there in `fit`.
        """
        if not self.models:
            raise InputError("The predictor has no models.", "Call fit() first.")
        z = self._scaled(self._raw(frame))
        classes = self.partition(frame).to_numpy()
        unknown = sorted({str(name) for name in np.unique(classes)} - set(self.models))
        if unknown:
            raise InputError(f"No model was fitted for {', '.join(unknown)}.", f"There are {', '.join(self.models)}.")
        logits = np.empty(len(z))
        for name, model in self.models.items():
            chosen = classes == name
            logits[chosen] = z[chosen] @ model.coefficients + model.intercept + (0.0 if balanced else model.shift)
        return special.expit(logits)

    def coefficients(self) -> pl.DataFrame:
        """Coefficients in units of a factor's deviation over all passages, with Wald tests; none where a factor does not vary.

        Returns:
            One row per class and factor, and one for the intercept: class, factor, coefficient, error, z, p, and standardised (the
            coefficient in units of the factor's deviation *in the class*: what the factor does to the passages that there are).
        """
        rows = []
        for name, model in self.models.items():
            factors = ("intercept", *self.names)
            values = [model.intercept, *model.coefficients]
            for factor, value, error, deviation in zip(factors, values, model.errors, (1.0, *model.deviation), strict=True):
                varies = deviation > 0
                z = float(value / error) if varies and error > 0 else None
                p = float(2 * stats.norm.sf(abs(z))) if z is not None else None
                shown = (float(value), float(error), z, p) if varies else (None, None, None, None)
                rows.append((name, factor, *shown, float(value * deviation) if varies and factor != "intercept" else None))
        schema = {"class": pl.String, "factor": pl.String} | dict.fromkeys(("coefficient", "error", "z", "p", "standardised"), pl.Float64)
        return pl.DataFrame(rows, schema=schema, orient="row")

    def _raw(self, frame: pl.DataFrame) -> np.ndarray:
        """The factors as numbers, (n, k)."""
        absent = [name for name in self.names if name not in frame.columns or frame[name].null_count()]
        if absent or not self.names or frame.is_empty():
            raise InputError(f"Of {len(frame)} rows these factors are missing, or some of them: {absent}.", "Leave them out of `features`.")
        raw = frame.select(pl.col(name).cast(pl.Float64) for name in self.names).to_numpy()
        if self.log_duplicates and "duplicates" in self.names:
            column = self.names.index("duplicates")
            raw[:, column] = np.log1p(raw[:, column])
        if not np.isfinite(raw).all():
            raise InputError(f"{int((~np.isfinite(raw)).sum())} factors are infinite or NaN.", "Leave these passages out.")
        return raw

    def _scaled(self, raw: np.ndarray) -> np.ndarray:
        return (raw - self._mean) / self._scale


def as_labels(y: Sequence[bool] | pl.Series | np.ndarray, n: int) -> np.ndarray:
    """Whether each passage is memorized, bool (n,).

    Raises:
        InputError: another length, or other values than truth values, 0 and 1.
    """
    given = np.asarray(y)
    if given.shape != (n,) or not np.isin(given, (0, 1)).all():
        raise InputError(f"The labels have shape {given.shape}; there are {n} passages.", "Give one truth value a passage.")
    return given.astype(bool)


def _fit_class(z: np.ndarray, labels: np.ndarray, C: float, name: str) -> _ClassModel:
    n, memorized = len(labels), int(labels.sum())
    if memorized in (0, n):
        raise InputError(
            f"Of the {n} passages of the class {name!r}, {memorized} are memorized: there is nothing to tell apart.",
            "Give passages of both kinds in every class, or a coarser partition.",
        )
    model = LogisticRegression(C=C, class_weight="balanced", max_iter=10_000, solver="newton-cholesky").fit(z, labels)
    weights = np.where(labels, n / (2 * memorized), n / (2 * (n - memorized)))
    design = np.column_stack([np.ones(n), z])
    p = special.expit(design @ np.concatenate([model.intercept_, model.coef_[0]]))
    ridge = np.diag(np.concatenate([[0.0], np.full(z.shape[1], 1 / C)]))
    bread = np.linalg.pinv(design.T @ (design * (weights * p * (1 - p))[:, None]) + ridge)
    score = design * (weights * (labels - p))[:, None]
    variances = np.diag(bread @ (score.T @ score) @ bread)
    deviation = np.where(np.ptp(z, axis=0) > 0, z.std(axis=0), 0.0)
    return _ClassModel(model.coef_[0], float(model.intercept_[0]), n, memorized, np.sqrt(np.maximum(variances, 0.0)), deviation)
