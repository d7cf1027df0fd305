"""Forecasting memorization: which sequences will the finished model recite, judged by a smaller model or by an early checkpoint?

Biderman, Prashanth, Sutawika, Schoelkopf, Anthony, Purohit and Raff, NeurIPS 2023, arXiv 2304.11158. The *memorization score* of a
sequence S, prompted with its first k tokens, is the share of the next m tokens that greedy decoding G writes at their place,

    score(S) = 1/m * sum_{i=1..m} [G_{k+i} = S_{k+i}],

and S is memorized when it is 1. A predictor's memorized sequences are its forecast, the target's are the truth: precision says how
many of the forecast come true, recall how many of the truth were forecast. A sequence that was not forecast is the expensive error.

The run is free: after a first error the model goes on from what it wrote itself, so the score is not the share of teacher-forced
hits. The two agree on who has score 1 (see `palimpsest.audit.extraction`), so one forced pass finds these and the others are written.

An early checkpoint can be asked only about what it has read, so every figure is given in three scopes: "seen", the sequences that this
predictor has read; "common", those that every predictor of the comparison has read, which puts all on one footing (the paper takes the
sequences of its earliest checkpoint); and "all", where what a predictor could not know counts against it.
Beyond the paper: Wilson intervals, the rank correlation of the scores, and the AUC of score and suffix log-probability as soft forecasts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from palimpsest.audit.extraction import matched_tokens
from palimpsest.audit.progress import stages
from palimpsest.audit.samples import PrefixSuffix, require_samples
from palimpsest.errors import InputError
from palimpsest.measurement import Curve, Measurement, Series, environment
from palimpsest.models.base import LanguageModel, Progress
from palimpsest.stats import auc, spearman, wilson_interval

SCOPES = ("seen", "common", "all")
Frame = Measurement | pl.DataFrame
_SCHEMA = {"index": pl.Int64, "id": pl.String, "copies": pl.Int64, "score": pl.Float64, "logprob": pl.Float64, "seen": pl.Boolean}


def memorization_scores(
    model: LanguageModel,
    samples: Sequence[PrefixSuffix],
    *,
    seen: int | Sequence[bool] | np.ndarray | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Scores how much of every sequence a model writes on its own.

    Args:
        model: needs "text"; with "logprobs" one pass finds the memorized ones, and only the others are written.
        samples: sequences cut after k tokens, all with a suffix of the same m tokens (32 and 32 in the paper). meta "index" is the
            sequence's number in the order of training; without it, its position in `samples`.
        seen: what the model has read: so many sequences of the order of training, or one truth value a sample; None: all.
        progress: called with (rows done, rows in all).

    Returns:
        One row a sample: index, id, copies, score (0, 1/m, …, 1), logprob (mean per suffix token, null without "logprobs") and seen;
        the summary holds n, memorized with its Wilson interval, and the histogram of the scores.

    Raises:
        InputError: no samples, suffixes of different length, an index that occurs twice, or `seen` of another length.
        CapabilityError: the door cannot write.

    Example:
        >>> memorization_scores(model, samples).summary["memorized"]["rate"]   # doctest: +SKIP
    """
    require_samples(samples)
    model.require("text", "The memorization score")
    lengths = sorted({sample.suffix_len for sample in samples})
    if len(lengths) > 1:
        raise InputError(f"The suffixes have {lengths} tokens.", "Scores are compared: give all suffixes the same length.")
    m = lengths[0]
    index = np.array([int(sample.meta.get("index", i)) for i, sample in enumerate(samples)], dtype=np.int64)
    if len(np.unique(index)) < len(index):
        raise InputError(
            f"{len(index)} samples have only {len(np.unique(index))} different indices.", "Give every sequence its own number."
        )
    scored = "logprobs" in model.capabilities
    stage = stages(progress, len(samples) * (1 + scored))
    score = np.ones(len(samples))
    logprob: list[float | None] = [None] * len(samples)
    missed = np.arange(len(samples))
    if scored:
        forced = model.score(
            [sample.ids for sample in samples], start=[sample.prefix_len for sample in samples], progress=stage(len(samples))
        )
        logprob = [float(lp.mean(dtype=np.float64)) for lp in forced.logprobs]
        missed = np.flatnonzero([not hits.all() for hits in forced.greedy_hits])
    if len(missed):
        stop = "weights" not in model.capabilities  # a server ends at EOS, whether one wants it or not
        chosen = [samples[i] for i in missed.tolist()]
        written = model.generate([sample.prefix for sample in chosen], m, stop_at_eos=stop, progress=stage(len(chosen)))
        score[missed] = [_agreement(model, rows[0], sample.suffix) for rows, sample in zip(written, chosen, strict=True)]
    if progress:
        progress(len(samples) * (1 + scored), len(samples) * (1 + scored))
    table = pl.DataFrame(
        {
            "index": index,
            "id": [str(sample.meta.get("id", i)) for i, sample in enumerate(samples)],
            "copies": [sample.meta.get("copies") for sample in samples],
            "score": score,
            "logprob": logprob,
            "seen": _seen(seen, index),
        },
        schema=_SCHEMA,
    )
    provenance = {
        "model": model.describe(),
        "decoding": "greedy, free-running",
        "prefix": sorted({sample.prefix_len for sample in samples}),
        "suffix": m,
        "environment": environment(),
    }
    return Measurement("memorization-scores", table, score_summary(table, m), provenance)


def _agreement(model: LanguageModel, written: np.ndarray, suffix: np.ndarray) -> float:
    """Share of the suffix's tokens that stand at their place; what was not written is wrong.

    A server's text is cut into tokens again, perhaps elsewhere: where the text is the suffix's, all of it is right.
    """
    if matched_tokens(model, written, suffix) == len(suffix):
        return 1.0
    common = min(len(written), len(suffix))
    return float((written[:common] == suffix[:common]).sum() / len(suffix))


def _seen(seen: int | Sequence[bool] | np.ndarray | None, index: np.ndarray) -> np.ndarray:
    if seen is None:
        return np.ones(len(index), dtype=bool)
    if isinstance(seen, int | np.integer):
        return index < seen
    given = np.asarray(seen)
    if given.shape != index.shape or given.dtype != bool:
        raise InputError(f"`seen` has shape {given.shape} and type {given.dtype}.", f"Give a number, or {len(index)} truth values.")
    return given


def score_summary(table: pl.DataFrame, m: int) -> dict[str, Any]:
    """Figures of a table of scores: n, memorized (count, rate, low, high), mean, and how many sequences have each score j/m."""
    hits = int((table["score"] == 1.0).sum())
    rate = wilson_interval(hits, len(table))
    counts = np.bincount(np.rint(table["score"].to_numpy() * m).astype(np.int64), minlength=m + 1)
    return {
        "n": len(table),
        "memorized": {"count": hits, "rate": rate.estimate, "low": rate.low, "high": rate.high},
        "mean_score": float(table["score"].to_numpy().mean()),
        "histogram": [{"score": j / m, "sequences": int(count)} for j, count in enumerate(counts)],
    }


def training_compute(parameters: int, tokens: int) -> float:
    """Floating-point operations that training took, 6 · parameters · tokens read.

    Raises:
        InputError: a number below 1.

    Example:
        >>> f"{training_compute(70_000_000, 300_000_000_000):.3g}"
        '1.26e+20'
    """
    if parameters < 1 or tokens < 1:
        raise InputError(f"{parameters} parameters and {tokens} tokens take no compute.", "Both must be at least 1.")
    return 6.0 * parameters * tokens


def forecast(
    predictors: Mapping[str, Frame],
    target: Frame,
    compute: Mapping[str, float] | None = None,
    threshold: float = 1.0,
    *,
    families: Mapping[str, str] | None = None,
    target_name: str = "target",
) -> Measurement:
    """Compares forecasts of what a target model memorizes.

    Args:
        predictors: name -> scores (what `memorization_scores` returned, or its table: index, score, and logprob and seen if known).
        target: the scores of the model that is forecast, on the same sequences.
        compute: name -> floating-point operations (`training_compute`), of `target_name` too; what is missing stays unknown.
        threshold: sequences with at least this score are memorized (1 in the paper).
        families: name -> kind of predictor, "smaller models" or "checkpoints" say: the lines of the figure.
        target_name: what the target is called in `compute`.

    Returns:
        Three rows a predictor, one a scope: n, positives of target and predictor, true and false positives, false negatives,
        precision, recall and f1 with Wilson intervals of the first two, spearman, auc_score, auc_logprob, compute,
        compute_share, and `reason`: why a figure is None. The summary holds the target's rate in the scopes "common" and "all";
        the curves recall over compute (common) and the histogram of the scores.

    Raises:
        InputError: no predictor, sequences that are not the same for all, a threshold outside (0, 1], or unknown or equal names.

    Example:
        >>> scores = pl.DataFrame({"index": [0, 1, 2], "score": [1.0, 0.5, 1.0]})
        >>> forecast({"itself": scores}, scores).table["recall"].to_list()
        [1.0, 1.0, 1.0]
    """
    if not predictors or not 0 < threshold <= 1:
        raise InputError(f"{len(predictors)} predictors and the threshold {threshold} forecast nothing.", "Give one at least, and (0, 1].")
    if target_name in predictors:
        raise InputError(f"A predictor is called {target_name!r}, as the target is.", "Give the target another target_name.")
    costs = dict(compute or {})
    unknown = (set(costs) | set(families or {})) - {*predictors, target_name}
    if unknown:
        raise InputError(f"{', '.join(sorted(unknown))} is no predictor.", f"There are {', '.join([*predictors, target_name])}.")
    goal = _scores(target, "the target")
    frames = {name: _joined(_scores(frame, name), goal, name) for name, frame in predictors.items()}
    everywhere = np.ones(len(goal), dtype=bool)
    common = np.logical_and.reduce([frame["seen"].to_numpy() for frame in frames.values()])
    truth = goal["score"].to_numpy() >= threshold
    rows: list[dict[str, Any]] = []
    for name, frame in frames.items():
        cost, of = costs.get(name), costs.get(target_name)
        for scope, inside in zip(SCOPES, (frame["seen"].to_numpy(), common, everywhere), strict=True):
            rows.append(
                {"predictor": name, "family": (families or {}).get(name), "scope": scope}
                | _figures(frame.filter(inside), goal["score"].to_numpy()[inside], truth[inside], threshold)
                | {"compute": cost, "compute_share": cost / of if cost is not None and of else None}
            )
    table = pl.DataFrame(rows, infer_schema_length=None)
    base = {scope: _rate(int(truth[chosen].sum()), int(chosen.sum())) for scope, chosen in (("common", common), ("all", everywhere))}
    summary = {"threshold": threshold, "base_rate": base, "target": target_name}
    own = {"target": target.provenance if isinstance(target, Measurement) else None}
    own |= {name: frame.provenance if isinstance(frame, Measurement) else None for name, frame in predictors.items()}
    curves = {curve.id: curve for curve in (*_recall_curves(table), _histogram({target_name: goal, **frames}))}
    return Measurement("forecast", table, summary, {"scores": own, "environment": environment()}, curves)


def _scores(frame: Frame, whose: str) -> pl.DataFrame:
    """Index, score, logprob and seen, ordered by index."""
    table = frame.table if isinstance(frame, Measurement) else frame
    if not {"index", "score"} <= set(table.columns) or table.is_empty():
        raise InputError(f"The scores of {whose} have {len(table)} rows and columns {table.columns}.", "Give index and score, and rows.")
    scores = table["score"].cast(pl.Float64)
    if table["index"].is_duplicated().any() or scores.is_null().any() or not scores.is_between(0, 1).all():
        raise InputError(f"The scores of {whose} repeat an index, or leave [0, 1].", "Give one score in [0, 1] for every sequence.")
    return table.select(
        pl.col("index").cast(pl.Int64),
        scores,
        (pl.col("logprob") if "logprob" in table.columns else pl.lit(None)).cast(pl.Float64).alias("logprob"),
        (pl.col("seen") if "seen" in table.columns else pl.lit(True)).alias("seen"),
    ).sort("index")


def _joined(scores: pl.DataFrame, goal: pl.DataFrame, name: str) -> pl.DataFrame:
    """The scores, if they are of the same sequences as the target's."""
    if not scores["index"].equals(goal["index"]):
        own, others = set(scores["index"]), set(goal["index"])
        raise InputError(
            f"{name} was scored on {len(own)} sequences, the target on {len(others)}; {len(own & others)} are the same.",
            "Score both on the same sequences; duplicated and deduplicated corpora number theirs differently.",
        )
    return scores


def _rate(hits: int, n: int) -> dict[str, Any]:
    """A rate with its Wilson interval; None where nothing was counted."""
    if n == 0:
        return {"n": 0, "rate": None, "low": None, "high": None}
    interval = wilson_interval(hits, n)
    return {"n": n, "rate": interval.estimate, "low": interval.low, "high": interval.high}


def _figures(scores: pl.DataFrame, goal: np.ndarray, truth: np.ndarray, threshold: float) -> dict[str, Any]:
    own = scores["score"].to_numpy()
    said = own >= threshold
    hits, called, real = int((said & truth).sum()), int(said.sum()), int(truth.sum())
    precision, recall = _rate(hits, called), _rate(hits, real)
    reasons = []
    if called == 0:
        reasons.append("the predictor memorized nothing: no precision")
    if real == 0:
        reasons.append("the target memorized nothing: no recall")
    ordered = len(own) > 1 and np.ptp(own) > 0 and np.ptp(goal) > 0
    two = 0 < real < len(truth)
    if not ordered:
        reasons.append("all scores of one side are equal: no rank correlation")
    if not two:
        reasons.append("the target has one kind of sequence only: no AUC")
    known = not scores["logprob"].is_null().any()
    soft = scores["logprob"].to_numpy()
    return {
        "n": len(truth),
        "target_positives": real,
        "positives": called,
        "true_positives": hits,
        "false_positives": called - hits,
        "false_negatives": real - hits,
        "precision": precision["rate"],
        "precision_low": precision["low"],
        "precision_high": precision["high"],
        "recall": recall["rate"],
        "recall_low": recall["low"],
        "recall_high": recall["high"],
        "f1": 2 * hits / (called + real) if called + real else None,
        "spearman": spearman(own, goal) if ordered else None,
        "auc_score": auc(own[truth], own[~truth]) if two else None,
        "auc_logprob": auc(soft[truth], soft[~truth]) if two and known else None,
        "reason": "; ".join(reasons) or None,
    }


def _recall_curves(table: pl.DataFrame) -> list[Curve]:
    """Recall over the share of the target's compute, one line a family; none where fewer than two costs are known."""
    known = table.filter(pl.col("compute_share").is_not_null() & pl.col("recall").is_not_null() & (pl.col("scope") == "common"))
    if len(known) < 2:
        return []
    series = []
    for family in known["family"].fill_null("predictors").unique(maintain_order=True):
        members = known.filter(pl.col("family").fill_null("predictors") == family).sort("compute_share")
        points = [
            {
                "x": row["compute_share"],
                "y": row["recall"],
                "low": row["recall_low"],
                "high": row["recall_high"],
                "n": row["target_positives"],
            }
            for row in members.iter_rows(named=True)
        ]
        series.append(Series(family, points))
    caption = "Of the sequences that the target memorized, those that the predictor memorized too. Bands are 95 % Wilson intervals."
    return [
        Curve("forecast-recall", "What a forecast finds for its compute", "share of the target's compute", "recall", series,
              x_scale="log", y_domain=(0, 1), y_format="percent", caption=caption)
    ]  # fmt: skip


def _histogram(frames: Mapping[str, pl.DataFrame]) -> Curve:
    """Share of the sequences at every score, one line a model."""
    series = []
    for name, frame in frames.items():
        values, counts = np.unique(frame["score"].to_numpy(), return_counts=True)
        points: list[dict[str, float | int | None]] = [
            {"x": float(x), "y": float(count / len(frame)), "low": None, "high": None, "n": int(count)}
            for x, count in zip(values, counts, strict=True)
        ]
        series.append(Series(name, points))
    caption = "Most sequences have a low score, and the memorized ones stand apart at 1."
    return Curve("forecast-scores", "The scores lie at both ends", "memorization score", "share of sequences", series,
                 y_format="percent", caption=caption)  # fmt: skip


@dataclass(frozen=True)
class Recommendation:
    """What to forecast with.

    Attributes:
        predictor: its name, None when none is good enough.
        row: its row of the table, None likewise.
        reason: why, in words.
    """

    predictor: str | None
    row: dict[str, Any] | None
    reason: str


def recommend(result: Measurement, budget: float | None = None, min_recall: float = 0.5, *, scope: str = "common") -> Recommendation:
    """The cheapest predictor that finds enough; of equally cheap ones the most precise.

    Recall is the condition, not the aim of a trade: what a forecast misses is trained into the model.

    Args:
        result: what `forecast` returned.
        budget: the most floating-point operations; None for any.
        min_recall: least share of the memorized sequences that must be forecast.
        scope: "seen", "common" or "all".

    Raises:
        InputError: a share outside [0, 1], or an unknown scope.
    """
    if not 0 <= min_recall <= 1 or scope not in SCOPES:
        raise InputError(f"min_recall {min_recall} and scope {scope!r}.", f"Give a share in [0, 1], and one of {', '.join(SCOPES)}.")
    rows = result.table.filter(pl.col("scope") == scope).to_dicts()
    priced = [row for row in rows if row["compute"] is not None]
    if not priced:
        return Recommendation(None, None, "The compute of no predictor is known.")
    paid = [row for row in priced if budget is None or row["compute"] <= budget]
    if not paid:
        cheapest = min(row["compute"] for row in priced)
        return Recommendation(None, None, f"No predictor costs at most {budget:.3g} operations; the cheapest costs {cheapest:.3g}.")
    asked = [row for row in paid if row["recall"] is not None]
    if not asked:
        return Recommendation(None, None, f"No recall can be given: {paid[0]['reason']}.")
    fitting = [row for row in asked if row["recall"] >= min_recall]
    if not fitting:
        best = max(asked, key=lambda row: row["recall"])
        return Recommendation(
            None, None, f"None reaches a recall of {min_recall:.0%}; the best, {best['predictor']}, has {best['recall']:.0%}."
        )
    chosen = min(fitting, key=lambda row: (row["compute"], -(row["precision"] or 0.0)))
    return Recommendation(
        chosen["predictor"], chosen, f"The cheapest of {len(fitting)} that find at least {min_recall:.0%} of what will be memorized."
    )
