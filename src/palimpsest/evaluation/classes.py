"""The section on why passages are remembered: recited, reconstructed or recollected (system 003), and what foretells it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from palimpsest.audit.memorization_classes import CLASSES, measure_memorization_classes
from palimpsest.audit.memorization_comparison import compare_predictors
from palimpsest.audit.memorization_factors import LEAKING
from palimpsest.audit.memorization_predictor import TaxonomyPredictor, available
from palimpsest.audit.samples import PrefixSuffix
from palimpsest.corpus import CorpusIndex
from palimpsest.evaluation import blocks
from palimpsest.evaluation.blocks import Block, count_of, percent
from palimpsest.evaluation.record import AuditRecord
from palimpsest.measurement import Measurement
from palimpsest.models import LanguageModel
from palimpsest.models.base import Progress
from palimpsest.stats import adjusted

LEAST = 10  # memorized and other passages of a class, from which on its factors are looked at
SHOWN = 3  # memorized passages of each class
Z = 1.959964  # of a 95 % interval
LONGEST = 160  # characters of a passage that a table shows
WORDS = {
    "recitation": "many copies in the corpus",
    "reconstruction": "counts or repeats",
    "recollection": "neither: few readings were enough",
}
FACTORS = {
    "duplicates": "copies in the corpus",
    "frequency_max": "frequency of its commonest token",
    "frequency_mean": "mean frequency of its tokens",
    "frequency_min": "frequency of its rarest token",
    "frequency_median": "median frequency of its tokens",
    "frequency_p25": "first quartile of the frequencies",
    "frequency_p75": "third quartile of the frequencies",
    "perplexity_prompt": "perplexity of the prompt",
    "templates": "passages with nearly the same prompt",
    "code_length": "code length of its characters",
    "templating": "counts or repeats",
}


def measure_classes(model: LanguageModel, samples: Sequence[PrefixSuffix], index: CorpusIndex, *, progress: Progress) -> Measurement:
    """`measure_memorization_classes` on the passages that may stand in the corpus, and in its summary what `predictability` says."""
    planted = [sample for sample in samples if sample.meta.get("copies") != 0]
    result = measure_memorization_classes(model, planted, index, progress=progress)
    result.summary["prediction"] = predictability(result.table)
    return result


def predictability(table: pl.DataFrame) -> dict[str, Any]:
    """Which factors foretell memorization, in the classes that have passages enough of both kinds; or `{"reason": …}`.

    The perplexities of continuation and whole are left out: they nearly say whether a passage is memorized.

    Returns:
        The classes, features and coefficients of a `TaxonomyPredictor` on all their passages; with two classes and more also the
        held-out log_loss and the likelihood_ratio of `compare_predictors`.
    """
    counts = table.group_by("class").agg(memorized=pl.col("memorized").sum(), others=(~pl.col("memorized")).sum())
    kept = counts.filter((pl.col("memorized") >= LEAST) & (pl.col("others") >= LEAST))["class"].to_list()
    if not kept:
        return {"reason": f"It takes a class with {LEAST} passages that came out and {LEAST} that did not."}
    frame = table.filter(pl.col("class").is_in(kept))
    # a prompt of one token has no perplexity, and a text that a model holds for impossible an infinite one
    names = tuple(name for name in available(frame, LEAKING) if frame[name].cast(pl.Float64).is_finite().fill_null(False).all())
    found = {
        "classes": [name for name in CLASSES if name in kept],
        "features": list(names),
        "coefficients": TaxonomyPredictor(features=names).fit(frame, frame["memorized"]).coefficients().to_dicts(),
    }
    if len(kept) > 1:
        compared = compare_predictors(frame, frame["memorized"], features=names, search=False).summary
        found |= {name: compared[name] for name in ("log_loss", "likelihood_ratio", "train", "test")}
    return found


def classes(record: AuditRecord) -> dict[str, Any]:
    """Memorization by class: table, examples, and what predicts it."""
    best = record.result("classes", record.largest)
    rows = []
    for model in record.plan.models:
        result = record.of("classes", model)
        for row in result.summary["classes"] if result else []:
            interval = [row["rate"], row["low"], row["high"]] if row["n"] else None
            hits = result.summary["overall"]["memorized"] if result else 0
            share = blocks.wilson(row["memorized"], hits) if hits else None
            rows.append({"model": model.name, "class": row["class"], "meaning": WORDS[row["class"]], "n": row["n"], "rate": interval,
                         "share": share, "prompt": row["median_perplexity_prompt"],
                         "rarest": row["median_frequency_min"]})  # fmt: skip
    columns = [("model", "Model", "text"), ("class", "Class", "text"), ("meaning", "The passage", "text"), ("n", "Passages", "int"),
               ("rate", "Written to the letter", "interval"), ("share", "Of all that came out", "interval"),
               ("prompt", "Perplexity of the prompt", "float"), ("rarest", "Copies of its rarest token", "int")]  # fmt: skip
    threshold = best.summary["dup_threshold"]
    caption = (
        f"Many copies: the suffix stands in the corpus at least {threshold} times, whatever surrounds it. Perplexity and rarest token are "
        "medians of the class."
    )
    made: list[Block] = [blocks.table("classes-table", "By model and class", columns, rows, caption), *_examples(best)]
    made += _predictors(best.summary["prediction"])
    figures = {row["class"]: row for row in best.summary["classes"]}
    hits = best.summary["overall"]["memorized"]
    if hits == 0:
        answer = f"{record.largest.name} wrote none of the passages to the letter: there is nothing to sort."
    else:
        shares = ", ".join(f"{percent(figures[name]['share_of_memorized'])} {word}" for name, word in zip(
            CLASSES, ("stand in many places", "count or repeat", "were recollected from few readings"), strict=True))  # fmt: skip
        recollected = figures["recollection"]
        answer = (
            f"Of the {hits:,} passages that {record.largest.name} wrote to the letter, {shares}. Of the passages with few copies and no "
            f"rule it knows {count_of(recollected['memorized'], recollected['n'])}: leaks that deduplication does not explain."
        )
    return blocks.section("", "", "", answer, made)


def _examples(result: Measurement) -> list[Block]:
    """A few memorized passages of each class, the rarest first."""
    ordered = result.table.filter(pl.col("memorized")).sort("duplicates", "sample")
    rows = []
    for name in CLASSES:
        for row in ordered.filter(pl.col("class") == name).head(SHOWN).iter_rows(named=True):
            text = row["text"] if len(row["text"]) <= LONGEST else row["text"][:LONGEST] + "…"
            rows.append({"class": name, "duplicates": row["duplicates"], "prompt": row["perplexity_prompt"], "text": text})
    if not rows:
        return []
    columns = [("class", "Class", "text"), ("duplicates", "Copies", "int"), ("prompt", "Perplexity of the prompt", "float"),
               ("text", "Prompt and continuation", "text")]  # fmt: skip
    return [blocks.table("classes-examples", "Passages that came out", columns, rows, "Of each class those with the fewest copies.")]


def _predictors(prediction: dict[str, Any]) -> list[Block]:
    """The coefficients of the class models and how well they predict; or why there are none."""
    if "reason" in prediction:
        return [blocks.text(f"What foretells that a passage is remembered was not fitted. {prediction['reason']}")]
    rows = [
        {**row, "factor": FACTORS.get(row["factor"], row["factor"])}
        for row in prediction["coefficients"]
        if row["coefficient"] is not None and row["factor"] != "intercept"
    ]
    tested = [row for row in rows if row["p"] is not None]
    correction = "none"
    if tested:
        corrected, correction = adjusted([row["p"] for row in tested])
        for row, p in zip(tested, corrected.tolist(), strict=True):
            ends = [row["coefficient"] + side * Z * row["error"] for side in (-1, 1)]
            row |= {"p": blocks.p_value(p), "coefficient": [row["coefficient"], *ends]}
    columns = [("class", "Class", "text"), ("factor", "Factor", "text"), ("coefficient", "Coefficient", "float"),
               ("z", "z", "float"), ("p", "p, corrected", "text")]  # fmt: skip
    caption = (
        "Logistic models, one a class, on factors in units of their deviation over all passages: a positive coefficient makes it likelier "
        f"that a passage comes out. A class needs {LEAST} passages that did and {LEAST} that did not. "
        f"95 % intervals and p are Wald's; p is corrected for all rows ({correction})."
    )
    if "log_loss" in prediction:
        loss, ratio = prediction["log_loss"], prediction["likelihood_ratio"]
        caption += (
            f" Log-loss on held-out passages {loss['taxonomy']:.3f} nat, with one model for all {loss['baseline']:.3f}; that the classes "
            f"are alike has p = {ratio['p']:.2g} (likelihood ratio, {ratio['degrees']} degrees of freedom)."
        )
    return [blocks.table("classes-factors", "What foretells it", columns, rows, caption)]
