"""Recite, reconstruct or recollect: three ways in which a model can have a passage memorized.

Prashanth et al. (ICLR 2025, arXiv 2406.17746). The rule, in this order, decides by corpus and sequence alone, never by the model, so that
passages that are *not* memorized have a class too:

* **recitation**: the passage is highly duplicated, `duplicates` >= 6 (that is, more than 5; its own occurrence counts);
* **reconstruction**: it follows a template, incrementing or repeating (see `palimpsest.audit.templating`);
* **recollection**: neither.

A share of memorized passages says the more about a leak, the more of it is recollection: what is recited stands in many places, what
is reconstructed could have been written by who never read it. (The kinds of memory of system 104 are another taxonomy,
`palimpsest.taxonomy`.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from palimpsest.audit.memorization_factors import Embedder, memorization_factors
from palimpsest.audit.samples import PrefixSuffix
from palimpsest.errors import InputError
from palimpsest.measurement import Measurement, environment
from palimpsest.models.base import LanguageModel, Progress
from palimpsest.stats import wilson_interval

if TYPE_CHECKING:
    from palimpsest.corpus import CorpusIndex

CLASSES = ("recitation", "reconstruction", "recollection")
DUPLICATED = 6  # occurrences from which on a passage is recited


def classify(frame: pl.DataFrame, dup_threshold: int = DUPLICATED) -> pl.Series:
    """The class of every passage.

    Args:
        frame: what `memorization_factors` returned; the columns duplicates and templating are read.
        dup_threshold: least number of occurrences of a recited passage.

    Returns:
        One of `CLASSES` a row, named "class".

    Raises:
        InputError: a missing column or value, or a threshold below 1.

    Example:
        >>> frame = pl.DataFrame({"duplicates": [9, 9, 1, 1], "templating": [False, True, True, False]})
        >>> classify(frame).to_list()
        ['recitation', 'recitation', 'reconstruction', 'recollection']
    """
    if dup_threshold < 1:
        raise InputError(f"dup_threshold is {dup_threshold}.", "Give at least 1; the paper's is 6.")
    for name in ("duplicates", "templating"):
        if name not in frame.columns or frame[name].null_count():
            raise InputError(f"The factors {frame.columns} lack {name}, or some of it.", "Give what memorization_factors() returned.")
    rule = (
        pl.when(pl.col("duplicates") >= dup_threshold)
        .then(pl.lit(CLASSES[0]))
        .when(pl.col("templating"))
        .then(pl.lit(CLASSES[1]))
        .otherwise(pl.lit(CLASSES[2]))
    )
    return frame.select(rule.alias("class"))["class"]


def measure_memorization_classes(
    model: LanguageModel,
    samples: Sequence[PrefixSuffix],
    index: CorpusIndex,
    *,
    dup_threshold: int = DUPLICATED,
    window: str = "suffix",
    pool: Sequence[PrefixSuffix] | None = None,
    embedder: Embedder | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Sorts passages into recitation, reconstruction and recollection, and says how many of each the model has memorized.

    Args:
        model: needs "logprobs".
        samples: passages.
        index: the training corpus, of the model's tokenizer.
        dup_threshold: see `classify`.
        window, pool, embedder: see `memorization_factors`.
        progress: called with (passages done, passages in all).

    Returns:
        The table of `memorization_factors` with the column class; the summary holds for every class and for all: n, memorized, rate
        with its Wilson interval, the share of the memorized that is of this class, and medians of the factors.

    Raises:
        InputError, CapabilityError, TokenizerMismatchError: as `memorization_factors` and `classify` say.

    Example:
        >>> measure_memorization_classes(model, samples, index).summary["classes"]   # doctest: +SKIP
    """
    factors = memorization_factors(model, samples, index, window=window, pool=pool, embedder=embedder, progress=progress)
    table = factors.insert_column(4, classify(factors, dup_threshold))
    memorized = int(table["memorized"].sum())
    classes = [class_figures(name, table.filter(pl.col("class") == name), memorized) for name in CLASSES]
    summary = {
        "dup_threshold": dup_threshold,
        "window": window,
        "classes": classes,
        "overall": class_figures("all", table, memorized),
    }
    provenance = {
        "model": model.describe(),
        "corpus": index.fingerprint,
        "decoding": "greedy, teacher-forced",
        "samples": len(samples),
        "pool": None if pool is None else len(pool),
        "environment": environment(),
    }
    return Measurement("memorization-classes", table, summary, provenance)


def class_figures(name: str, rows: pl.DataFrame, memorized: int) -> dict[str, Any]:
    """What is known of the passages of one class; `memorized` is the number in all classes. Where there is nothing, None."""
    hits = int(rows["memorized"].sum())
    rate = wilson_interval(hits, len(rows)) if len(rows) else None
    figures: dict[str, Any] = {"class": name, "n": len(rows), "memorized": hits, "rate": None, "low": None, "high": None}
    if rate is not None:
        figures |= {"rate": rate.estimate, "low": rate.low, "high": rate.high}
    figures["share_of_memorized"] = hits / memorized if memorized else None
    for factor in ("duplicates", "perplexity_prompt", "perplexity_continuation", "frequency_min", "code_length", "templates"):
        median = rows[factor].median()
        figures[f"median_{factor}"] = float(median) if isinstance(median, int | float) else None
    return figures
