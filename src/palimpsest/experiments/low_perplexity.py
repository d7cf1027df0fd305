"""Claim check of low-perplexity spans: near-certain text is more often in the corpus than other text, but not always.

Wuhrmann et al., ACL 2025 Student Research Workshop, arXiv 2507.01844, on the largest planted model of the extraction laws, whose whole
training stream is indexed: 100 prompts of 12 tokens from planted passages, 100 from held-out chapters, 64 new tokens at T = 0.7 and
top-p 0.95, not stopped at EOS. Checks, as the specification has them:

* tokens inside low spans lie in a 6-gram of the corpus at least twice as often as tokens outside;
* at least 5 % of the low windows stand nowhere in the corpus, but at most 10 % after prompts from passages with 32 copies and more;
* windows of the class memorization that belong to a planted passage are attributed to a sequence into which it was planted: recall
  of at least 95 %.

What a *handful of documents* is depends on the copies: passages here have up to 64, so the class memorization ends at 80 occurrences
instead of 5, and segmental replication at 400 instead of 50. Reported besides: the shares of the classes, the base rate of all
windows, and the match with an index of text that the model never saw.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from palimpsest.audit.low_perplexity import CLASSES, MAX_LOG2_PPL, measure_low_perplexity
from palimpsest.corpus import CorpusIndex
from palimpsest.experiments import extraction_laws
from palimpsest.experiments.canaries import train_suite
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.experiments.suite import Suite
from palimpsest.measurement import Measurement
from palimpsest.models.base import Sampler

STATEMENT = (
    "Runs of near-certain tokens in generated text can be traced to training documents, but a part of them occurs nowhere in the corpus."
)
PROMPT, NEW, WINDOW, CUTS, MANY = 12, 64, 6, (80, 400), 32
TRIED = (
    "On seed 100 none of 974 low windows was missing from the corpus: what a model of this size is near certain of, it recites. Prompts "
    "from invented texts with a pattern that can be filled anew were tried on the largest of the shipped twins, 40 each: of the low "
    "windows 0 % after books, 0.2 % after biographies, 0 % after letters with passwords and 1.9 % after quiz questions stand nowhere. "
    "Synthetic coherence at the paper's rate (30 to 60 %) needs a model that generalises; the threshold stays, and the set-up is the "
    "specification's.",
)
CPU = replace(extraction_laws.CPU, sizes=("l",))
SMOKE = replace(extraction_laws.SMOKE, sizes=("s",))


def run(scale: str, seed: int) -> Claim:
    """Trains the model (or takes it from the cache), samples, traces and checks.

    Args:
        scale: "smoke": 32 steps of the smallest model; only what holds whatever a model has learnt is held against anything; "cpu".
        seed: of text, places, weights and samples.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    suite = train_suite(replace(CPU if full else SMOKE, seed=seed))
    model = suite.models[f"perturbed-{suite.config.sizes[0]}"]
    prompts, copies = draw_prompts(suite, 100 if full else 8, seed)
    limit = MAX_LOG2_PPL if full else 16.0  # what has hardly learnt anything is certain of nothing
    how: dict[str, Any] = {"new_tokens": NEW, "cuts": CUTS, "sampler": Sampler(0.7, top_p=0.95), "stop_at_eos": False, "seed": seed}
    result = measure_low_perplexity(model, prompts, suite.index, window=WINDOW, max_log2_ppl=limit, **how)
    with tempfile.TemporaryDirectory() as folder:
        unseen = CorpusIndex.build(list(suite.validation.astype(np.int64)), suite.tokenizer, Path(folder) / "unseen")
        windows = result.table["ids"].to_list()
        elsewhere = float(np.mean(unseen.count_batch(np.array(windows)) > 0)) if windows else None
    checks = _guaranteed(result, limit)
    claimed = _claimed(result, suite, copies)
    checks += claimed if full else [replace(check, threshold=None) for check in claimed]
    checks += [Check(f"low windows of the class {name}", count, unit="windows") for name, count in result.summary["classes"].items()]
    checks.append(Check("low windows that stand in text that the model never saw", elsewhere, unit="share"))
    return Claim("low-perplexity", STATEMENT, checks, _rows(result, copies), seed, scale, _notes(result))


def draw_prompts(suite: Suite, each: int, seed: int) -> tuple[list[np.ndarray], list[int | None]]:
    """`each` beginnings of planted passages and as many of held-out rows, and the copies of each (None: held out)."""
    rng = np.random.default_rng((seed, 50))
    planted = [suite.ledger.row(int(i), named=True) for i in rng.permutation(len(suite.ledger))[:each]]
    held_out = suite.validation[rng.permutation(len(suite.validation))[:each], :PROMPT].astype(np.int64)
    return [np.array(row["ids"][:PROMPT]) for row in planted] + list(held_out), [row["copies"] for row in planted] + [None] * len(held_out)


def _guaranteed(result: Measurement, limit: float) -> list[Check]:
    """What holds for every model: windows are near certain, and a window with a count has a document and an extent."""
    table = result.table
    attributed = (table["documents"].list.len() > 0) & (table["extent"] >= WINDOW)
    return [
        Check(f"low windows with a mean log2 perplexity above {limit:g}", int((table["log2_ppl"] > limit).sum()), "==", 0, unit="windows"),
        Check(
            "low windows whose count, documents and extent disagree",
            int(((table["count"] > 0) != attributed).sum()),
            "==",
            0,
            unit="windows",
        ),
    ]


def _claimed(result: Measurement, suite: Suite, copies: list[int | None]) -> list[Check]:
    """The paper's findings."""
    summary = result.summary
    inside, outside = summary["matched_inside"], summary["matched_outside"]
    often = [prompt for prompt, count in enumerate(copies) if count is not None and count >= MANY]
    many = result.table.filter(pl.col("prompt").is_in(often))
    found, of = planted_recall(result.table, suite)
    return [
        Check(
            "tokens in a 6-gram of the corpus, inside low spans over outside",
            inside / outside if inside is not None and outside else None,
            ">=",
            2.0,
            unit="ratio",
        ),
        Check("low windows that stand nowhere in the corpus", summary["unmatched"], ">=", 0.05, unit="share"),
        Check(
            f"low windows that stand in the corpus, prompts from passages with {MANY} copies and more",
            float((many["count"] > 0).mean()) if len(many) else None,  # type: ignore[arg-type]
            ">=",
            0.9,
            unit="share",
        ),
        Check(
            "memorization windows of planted passages attributed to a planted copy", found / of if of else None, ">=", 0.95, unit="share"
        ),
        Check("the same, windows", of, unit="windows"),
        Check("tokens in a 6-gram of the corpus, inside low spans", inside, baseline=outside, unit="share"),
        Check("all windows of the outputs that stand in the corpus", summary["matched_windows"], unit="share"),
    ]


def planted_recall(table: pl.DataFrame, suite: Suite) -> tuple[int, int]:
    """Of the windows of the class memorization that a planted passage holds: attributed to one of its sequences, and all."""
    places: dict[str, set[str]] = {}
    for name, idx in suite.stream.planted.insertions.select("id", "idx").iter_rows():
        places.setdefault(name, set()).add(f"sequence-{idx:05d}")
    sources: dict[tuple[int, ...], set[str]] = {}
    for row in suite.ledger.filter(pl.col("copies") > 0).iter_rows(named=True):
        for i in range(len(row["ids"]) - WINDOW + 1):
            sources.setdefault(tuple(row["ids"][i : i + WINDOW]), set()).update(places[row["id"]])
    found = of = 0
    for ids, documents in table.filter(pl.col("label") == CLASSES[1]).select("ids", "documents").iter_rows():
        source = sources.get(tuple(ids))
        if source is not None:
            of += 1
            found += not source.isdisjoint(documents)
    return found, of


def _rows(result: Measurement, copies: list[int | None]) -> list[dict[str, Any]]:
    """By copies of the prompt's passage (None: held-out prompts): windows, how many stand in the corpus, and perplexities."""
    table = result.table.with_columns(copies=pl.col("prompt").replace_strict(dict(enumerate(copies)), return_dtype=pl.Int64))
    frame = table.group_by("copies", "label").agg(
        pl.len().alias("windows"),
        pl.col("count").median(),
        pl.col("standalone_log2_ppl").mean(),
        pl.col("extent").mean(),
        pl.col("characters").mean(),
    )
    return frame.sort("copies", "label").to_dicts()


def _notes(result: Measurement) -> list[str]:
    summary = result.summary
    return [
        f"{summary['spans']} spans of {summary['mean_span'] or 0:.1f} tokens on average, {summary['low_tokens']} of "
        f"{summary['tokens']} tokens low; dropped: {', '.join(f'{count} {name}' for name, count in summary['dropped'].items())}.",
        "Standalone perplexity begins with the second token of a window: the models have no BOS.",
        *TRIED,
    ]
