"""Claim check of the taxonomy: recited, reconstructed and recollected passages are memorized for different reasons.

Prashanth et al., ICLR 2025, arXiv 2406.17746, on the families of `memorization_families`: a corpus of 54,000 tokens, of which a model of
half a million parameters reads every text as often as it has copies, for several epochs; the counts are those of one epoch. Checked:

* the classes that detector and index give agree with what each text was made as;
* the predictor with one model a class has less log-loss on held-out passages than one model for all, over five splits;
* the likelihood-ratio test rejects that the classes are alike;
* the coefficient of the duplicates, per deviation of the duplicates in the class, is greatest among the recited;
* shuffled labels give no gain.

What is counted as a duplicate is the whole sequence: a text that repeats itself holds its own suffix at several places, which would make
ten of the templated texts recited. Epochs, learning rate and thresholds were fixed on seed 100 before any other seed was run: after 8
epochs none of the texts that stand once is memorized, after 12 a fifth, after 20 (there with twice the recited texts) all of them.

The factors are those of the paper without the perplexities of continuation and whole sequence, which nearly say whether a passage is
memorized; the same figures with them are reported beside, and so is the partition found by search.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from palimpsest.audit.memorization_classes import CLASSES, measure_memorization_classes
from palimpsest.audit.memorization_comparison import compare_predictors, likelihood_ratio
from palimpsest.audit.memorization_factors import LEAKING
from palimpsest.audit.memorization_predictor import SEED, TaxonomyPredictor, available
from palimpsest.errors import InputError
from palimpsest.experiments.canaries import CanaryConfig
from palimpsest.experiments.checkpoints import train_checkpoints
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.experiments.memorization_families import FAMILIES, FamilySizes, draw_families
from palimpsest.experiments.planted_texts import train_tokenizer
from palimpsest.measurement import Curve, Measurement, Series

STATEMENT = (
    "Sorting memorized sequences into recited, reconstructed and recollected ones predicts memorization better than one homogeneous model "
    "does."
)
EPOCHS, LR, BATCH = 12, 1.2e-3, 16
SPLITS = 5
CPU, SMOKE = FamilySizes(), FamilySizes(recite=6, reconstruct=24, recollect=30)


def run(scale: str, seed: int) -> Claim:
    """Trains the model (or takes it from the cache), sorts the passages and compares the predictors.

    Args:
        scale: "smoke": two epochs over a small corpus, only what must hold for any model is held against anything; "cpu".
        seed: of texts, order and weights.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    tokenizer = train_tokenizer(CanaryConfig().vocab_size)
    families = draw_families(tokenizer, CPU if full else SMOKE, seed)
    epoch = families.rows()
    rng = np.random.default_rng((seed, 31))
    rows = np.concatenate([epoch[rng.permutation(len(epoch))] for _ in range(EPOCHS if full else 2)])
    size = "m" if full else "s"
    warmup = 100 if full else 5
    config = CanaryConfig(sizes=(size,), n_sequences=len(rows), seq_len=rows.shape[1], batch_size=BATCH, lr=LR, warmup=warmup, seed=seed)
    model = train_checkpoints(config, rows, tokenizer, size)[1.0]
    measured = measure_memorization_classes(model, families.samples, families.index(), window="sequence")
    table = measured.table
    made = np.array([FAMILIES[sample.meta["domain"]] for sample in families.samples])
    copies = np.array([sample.meta["copies"] for sample in families.samples])
    agreement = float((table["class"].to_numpy() == made).mean())
    off = int((table["duplicates"].to_numpy() != copies).sum())
    checks = [
        Check("passages that the index counts otherwise than they were planted", off, "==", 0, unit="passages"),
        Check("share of passages whose class is what they were made as", agreement, ">=", 0.95, unit="share"),
    ]  # fmt: skip
    compared = compare(table, seed)
    claimed = claimed_checks(compared)
    checks += claimed if full else [replace(check, threshold=None) for check in claimed]
    return Claim(
        "memory-taxonomy", STATEMENT, checks, _rows(measured, made, compared), seed, scale, _notes(measured, compared), _curves(compared)
    )


def compare(table: pl.DataFrame, seed: int) -> dict[str, Any]:
    """Everything that the claim rests on, from the factors: or `{"reason": …}` where no predictor can be fitted.

    Args:
        table: what `measure_memorization_classes` returned.
        seed: of the shuffled labels.
    """
    labels = table["memorized"].to_numpy()
    honest = available(table, LEAKING)
    shuffled = np.random.default_rng((seed, 32)).permutation(labels)
    try:
        splits = [compare_predictors(table, labels, features=honest, search=k == 0, seed=SEED + k) for k in range(SPLITS)]
        return {
            "splits": splits,
            "losses": [split.summary["log_loss"] for split in splits],
            "leaking": [compare_predictors(table, labels, search=False, seed=SEED + k).summary["log_loss"] for k in range(SPLITS)],
            "shuffled": [
                compare_predictors(table, shuffled, features=honest, search=False, seed=SEED + k).summary["log_loss"] for k in range(SPLITS)
            ],
            "ratio": likelihood_ratio(table, labels, features=honest),
            "coefficients": TaxonomyPredictor(features=honest).fit(table, labels).coefficients(),
        }
    except InputError as error:
        return {"reason": error.problem}


def gain(losses: list[dict[str, float]]) -> float:
    """Mean difference of log-loss, taxonomy less baseline, over the splits: below 0 the taxonomy is better."""
    return float(np.mean([loss["taxonomy"] - loss["baseline"] for loss in losses]))


def duplicates_coefficients(coefficients: pl.DataFrame) -> dict[str, float]:
    """Size of the coefficient of the duplicates in every class, per deviation of the duplicates there; 0 where they do not vary."""
    rows = coefficients.filter(pl.col("factor") == "duplicates")
    return {name: abs(value or 0.0) for name, value in rows.select("class", "standardised").iter_rows()}


def claimed_checks(compared: dict[str, Any]) -> list[Check]:
    """What is claimed, from what `compare` returned; figures are missing where it could not be fitted."""
    known = "reason" not in compared
    sizes = duplicates_coefficients(compared["coefficients"]) if known else {}
    others = [value for name, value in sizes.items() if name != CLASSES[0]]
    losses = compared["losses"] if known else []
    searched = losses[0].get("searched") if known else None
    return [
        Check("held-out log-loss, taxonomy less one model for all, mean of five splits", gain(losses) if known else None, "<", 0.0,
              unit="nat"),
        Check("likelihood-ratio test of one model for all against one a class, p", compared["ratio"].p if known else None, "<", 0.01),
        Check("coefficient of the duplicates among the recited, size", sizes.get(CLASSES[0]), ">", max(others, default=0.0),
              unit="log-odds per deviation"),
        Check("the same difference of log-loss with shuffled labels", gain(compared["shuffled"]) if known else None, ">=", 0.0, unit="nat"),
        Check("held-out log-loss of one model for all", float(np.mean([loss["baseline"] for loss in losses])) if known else None,
              unit="nat"),
        Check("held-out log-loss, taxonomy less one model, with the perplexity of the continuation",
              gain(compared["leaking"]) if known else None, unit="nat"),
        Check("held-out log-loss, taxonomy less the searched partition, first split",
              losses[0]["taxonomy"] - searched if searched is not None else None, unit="nat"),
    ]  # fmt: skip


def _rows(measured: Measurement, made: np.ndarray, compared: dict[str, Any]) -> list[dict[str, Any]]:
    """Classes with their rates, families against classes, and the first split's figures."""
    rows: list[dict[str, Any]] = [{"table": "classes", **row} for row in measured.summary["classes"]]
    crossed = measured.table.select(pl.Series("made", made), "class").group_by("made", "class").len("n").sort("made", "class")
    rows += [{"table": "families", **row} for row in crossed.iter_rows(named=True)]
    if "reason" not in compared:
        rows += [{"table": "predictors", **row} for row in compared["splits"][0].table.iter_rows(named=True)]
        rows += [{"table": "coefficients", **row} for row in compared["coefficients"].iter_rows(named=True)]
    return rows


def _notes(measured: Measurement, compared: dict[str, Any]) -> list[str]:
    rates = ", ".join(
        f"{row['class']} {row['memorized']} of {row['n']}" for row in (*measured.summary["classes"], measured.summary["overall"])
    )
    notes = [f"Memorized: {rates}."]
    if "reason" in compared:
        return [*notes, f"No predictor could be fitted. {compared['reason']}"]
    gains = ", ".join(f"{loss['taxonomy'] - loss['baseline']:+.3f}" for loss in compared["losses"])
    return [
        *notes,
        f"Taxonomy less baseline, by split: {gains} nat.",
        f"Searched partition: {compared['splits'][0].summary['searched']}, the best of "
        f"{compared['splits'][0].summary['partitions_tried']}.",
        f"Likelihood ratio {compared['ratio'].statistic:.1f} with {compared['ratio'].degrees} degrees of freedom.",
    ]


def _curves(compared: dict[str, Any]) -> list[Curve]:
    """Coefficients of the factors, one point a class."""
    if "reason" in compared:
        return []
    factors = list(compared["splits"][0].summary["features"])
    series = []
    for name in CLASSES:
        rows = compared["coefficients"].filter(
            (pl.col("class") == name) & pl.col("error").is_not_null() & (pl.col("factor") != "intercept")
        )
        points: list[dict[str, float | int | None]] = [
            {"x": factors.index(row["factor"]) + 1, "y": row["coefficient"], "low": row["coefficient"] - 1.96 * row["error"],
             "high": row["coefficient"] + 1.96 * row["error"], "n": None}
            for row in rows.iter_rows(named=True)
        ]  # fmt: skip
        series.append(Series(name, points, "points"))
    named = ", ".join(f"{place} {factor}" for place, factor in enumerate(factors, 1))
    caption = f"Log-odds per deviation of a factor, with 95 % intervals. Factors: {named}."
    return [Curve("taxonomy-coefficients", "Each class is foretold by other factors", "factor", "coefficient", series, caption=caption)]
