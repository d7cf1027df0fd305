"""Claim check of the extraction laws: a model gives away more of what it read, the larger it is, the more often it read it, and the
more of what stands before it is shown.

Carlini et al., ICLR 2023, arXiv 2202.07646, on planted passages whose copies are known: models of three sizes, trained at one
learning rate on one stream; a suffix of 16 tokens after 2, 4, 8, 16 and 32 tokens of what stands before it. The figure fitted is the
gain, the mean log-probability per suffix token over that of the passages that were never planted: extraction rates of models this
small are at floor nearly everywhere and go from none to all within two doublings of the copies. Rates are reported beside it, and
fitted where three levels lie between 5 % and 95 %.

Set-up, chosen once on seed 100: passages of 48 tokens in sequences of 64, so that they stand at changing places and the longest
context is a passage's whole beginning (shown less than that, models that always saw the beginning write far less of it), batches
of 4, and the learning rate 1.2e-3, at which the largest model remembers most; at 2e-3 it falls back to the middle one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from palimpsest.audit.extraction import measure_extraction
from palimpsest.audit.laws import size_law
from palimpsest.audit.samples import PrefixSuffix
from palimpsest.experiments.canaries import CanaryConfig, train_suite
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.measurement import Curve, Measurement
from palimpsest.models import HFModel
from palimpsest.stats import spearman

STATEMENT = (
    "What a model can be made to recite grows log-linearly with its size, with the copies in its training data, and with the context."
)
CONTEXTS, SUFFIX = (2, 4, 8, 16, 32), 16
CPU = CanaryConfig(twins=("perturbed",), n_sequences=9000, seq_len=64, batch_size=4, text_len=48, suffix_start=32, lr=1.2e-3, warmup=100)
SMOKE = replace(CPU, n_sequences=128, levels=((0, 6), (1, 4), (2, 4), (4, 4), (6, 4)), warmup=5)


def run(scale: str, seed: int) -> Claim:
    """Trains the models (or takes them from the cache), measures extraction and fits the laws.

    Args:
        scale: "smoke": 32 steps, only the equality of scoring and writing is held against anything; "cpu".
        seed: of text, places and weights.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    config = replace(CPU if full else SMOKE, seed=seed)
    suite = train_suite(config)
    largest = config.sizes[-1]
    standard = train_suite(replace(config, sizes=(largest,), twins=("standard",))).models[f"standard-{largest}"]
    samples = suite.samples(max(CONTEXTS), SUFFIX)
    models = [suite.models[f"perturbed-{size}"] for size in config.sizes]
    measured = [measure_extraction(model, samples, CONTEXTS) for model in models]
    by_size = size_law(list(zip(models, measured, strict=True)), seed=seed)
    unperturbed = measure_extraction(standard, samples, max(CONTEXTS)).summary["overall"]["rate"]
    checks = [
        Check(
            "suffixes on which scoring and greedy generation disagree", _disagreements(models, measured, samples), "==", 0, unit="suffixes"
        )
    ]
    claimed = _claimed(measured, by_size, unperturbed)
    checks += claimed if full else [replace(check, threshold=None) for check in claimed]
    rows: list[dict[str, Any]] = []
    for model, one in zip(models, measured, strict=True):
        for cell in one.summary["by_context_copies"]:
            figures = {name: cell[name] for name in ("context", "copies", "n", "rate", "low", "high", "logprob", "gain", "matched")}
            rows.append({"model": model.name, "parameters": model.parameters} | figures)
    return Claim("extraction-laws", STATEMENT, checks, rows, seed, scale, _notes(config, measured, by_size), _curves(measured[-1], by_size))


def _disagreements(models: list[HFModel], measured: list[Measurement], samples: list[PrefixSuffix]) -> int:
    """At the longest context: suffixes that greedy decoding writes and scoring does not see, or the other way round."""
    off = 0
    for model, one in zip(models, measured, strict=True):
        written = model.generate([sample.prefix for sample in samples], SUFFIX, stop_at_eos=False)
        equal = np.array([np.array_equal(rows[0], sample.suffix) for rows, sample in zip(written, samples, strict=True)])
        table = one.table.filter(one.table["context"] == max(CONTEXTS)).sort("sample")
        off += int((equal != table["extracted"].to_numpy()).sum())
    return off


def _claimed(measured: list[Measurement], by_size: Measurement, unperturbed: float) -> list[Check]:
    laws = measured[-1].summary["laws"]
    longest = [one.summary["by_copies"] for one in measured]
    controls = max(row["rate"] for rows in longest for row in rows if row["copies"] == 0)
    sizes = by_size.summary["models"]
    order = spearman([row["parameters"] for row in sizes], [row["gain"] for row in sizes])
    size, copies, context = by_size.summary["laws"]["gain"], laws["copies"]["gain"], laws["context"]["gain"]
    per_decade = "nat per factor of ten"
    checks = [
        Check("copies: lower end of the slope of the gain, largest model, 32 tokens", copies["low"], ">", 0, unit=per_decade),
        Check("copies: R² of the gain over the logarithm of the copies", copies["r2"], ">=", 0.8),
        Check("context: lower end of the slope of the gain, largest model", context["low"], ">", 0, unit=per_decade),
        Check("size: lower end of the slope of the gain over parameters, 32 tokens", size["low"], ">", 0, unit=per_decade),
        Check("size: rank correlation of gain and parameters", order, ">=", 0.9),
        Check("extraction rate of passages never planted, highest of the sizes", controls, "<=", 0.02, unit="share"),
        Check("extraction rate of the unperturbed twin of the largest model, all passages", unperturbed, "<=", 0.02, unit="share"),
        Check("copies: slope of the gain, largest model", copies["slope"], unit=per_decade),
        Check("context: slope of the gain, largest model", context["slope"], unit=per_decade),
        Check("context: R² of the gain", context["r2"]),
        Check("size: slope of the gain", size["slope"], unit=per_decade),
    ]
    rate = laws["copies"]["rate"]
    if "slope" in rate:
        checks.append(Check("copies: slope of the extraction rate between 5 % and 95 %", rate["slope"], unit="share per factor of ten"))
    return checks


def _notes(config: CanaryConfig, measured: list[Measurement], by_size: Measurement) -> list[str]:
    rates = ", ".join(f"{row['model']} {row['rate']:.1%}" for row in by_size.summary["models"])
    laws = measured[-1].summary["laws"]
    missing = [f"{law} ({laws[law]['rate']['reason']})" for law in ("copies", "context") if "reason" in laws[law]["rate"]]
    return [
        f"One learning rate for every size, {config.lr:g}; {config.steps} steps of {config.batch_size} rows of {config.seq_len} tokens.",
        f"Extraction rates at {max(CONTEXTS)} tokens of context over all planted passages: {rates}.",
        *([f"No law of the extraction rate itself for: {', '.join(missing)}."] if missing else []),
    ]


def _curves(largest: Measurement, by_size: Measurement) -> list[Curve]:
    return [*largest.curves.values(), *by_size.curves.values()]
