"""From measurements to the sections of a report: each asks one question, answers it in plain words and shows what it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import polars as pl

from palimpsest.audit.laws import rates, size_law
from palimpsest.evaluation import blocks
from palimpsest.evaluation.blocks import Block, count_of, percent
from palimpsest.evaluation.paired_rates import above_reference, model_differences
from palimpsest.evaluation.record import AuditRecord, planted, slug
from palimpsest.measurement import Curve, Measurement, Series
from palimpsest.models import LanguageModel
from palimpsest.stats import Interval

SHARE: dict[str, Any] = {"y_label": "share of passages", "y_domain": (0, 1), "y_format": "percent"}
WILSON = "Bands are 95 % Wilson intervals."


def extraction(record: AuditRecord) -> dict[str, Any]:
    """Discoverable extraction (011): rates by copies, context, size and domain, and the log-linear laws."""
    plan = record.plan
    made: list[Block] = []
    by_copies, by_context = [], []
    for model in plan.models:
        result = record.result("extraction", model)
        here = result.table.filter(pl.col("context") == record.context)
        by_copies.append(blocks.line(model.name, blocks.rate_points(rates(here, "copies"), "copies")))
        by_context.append(blocks.line(model.name, blocks.rate_points(rates(planted(result.table), "context"), "context")))
    floor = _floor(record)
    if floor is not None:
        by_copies.append(floor)
    levels = {point["x"] for series in by_copies for point in series.points}
    if len(levels) > 1:
        caption = (
            f"Greedy decoding with {record.context} tokens of prompt; a passage counts when all {plan.settings.suffix} tokens are right. "
            f"{WILSON}"
        )
        made.append(
            blocks.curve(
                Curve("extraction-copies", "The more often a text was repeated, the more of it comes out", "copies in the training data",
                      series=by_copies, x_scale="symlog", caption=caption, **SHARE)
            )
        )  # fmt: skip
    if len(plan.settings.contexts) > 1:
        caption = f"The same suffixes with more of what stands before them. {WILSON}"
        made.append(
            blocks.curve(
                Curve(
                    "extraction-context",
                    "A longer prompt draws out more",
                    "tokens of prompt",
                    series=by_context,
                    x_scale="log",
                    caption=caption,
                    **SHARE,
                )
            )
        )
    made += _size(record)
    made.append(_laws(record))
    made.append(_by_domain(record))
    made += model_differences(record)
    best = record.largest
    rows = record.extracted(best)
    hits, n = int(rows["extracted"].sum()), len(rows)
    answer = (
        f"{best.name} writes {count_of(hits, n)} passages ({percent(hits / n)}) to the letter when it is shown {record.context} tokens of "
        "them."
    )
    if "reference_extracted" in rows.columns:
        same = int(rows["reference_extracted"].sum())
        answer += f" Its reference, which never saw them, writes {same}: what is above that is memory, not skill."
    return blocks.section("", "", "", answer, made)


def _floor(record: AuditRecord) -> Series | None:
    """What the largest model's reference writes: generalization."""
    result = record.of("extraction", record.largest)
    if result is None or "reference_extracted" not in result.table.columns:
        return None
    here = result.table.filter(pl.col("context") == record.context).with_columns(extracted=pl.col("reference_extracted"))
    return blocks.line("never saw the texts", blocks.rate_points(rates(here, "copies"), "copies"), "dashed")


def _size(record: AuditRecord) -> list[Block]:
    sizes = [model.parameters for model in record.plan.models]
    if len(sizes) < 2 or None in sizes or len(set(sizes)) < len(sizes):
        return []
    pairs: list[tuple[LanguageModel | Mapping[str, Any], Measurement]] = [
        (model, record.results[f"extraction.{slug(model.name)}"]) for model in record.plan.models
    ]
    law = size_law(pairs, context=record.context)
    return [blocks.curve(replace(law.curves["extraction-size"], id="extraction-size"))]


def _laws(record: AuditRecord) -> Block:
    rows = []
    for model in record.plan.models:
        result = record.result("extraction", model)
        for over, laws in result.summary["laws"].items():
            for figure, law in laws.items():
                row = {"model": model.name, "law": over, "of": "rate" if figure == "rate" else "log-probability gain"}
                if "slope" in law:
                    row |= {"slope": [law["slope"], law["low"], law["high"]], "r2": law["r2"], "n": len(law["levels"]), "note": ""}
                else:
                    row |= {"slope": None, "r2": None, "n": None, "note": law["reason"]}
                rows.append(row)
    columns = [("model", "Model", "text"), ("law", "Over", "text"), ("of", "Of", "text"), ("slope", "Slope per tenfold", "float"),
               ("r2", "R²", "float"), ("n", "Levels", "int"), ("note", "Why there is no fit", "text")]  # fmt: skip
    caption = (
        "Straight lines over log10 of copies or context. The rate is fitted where it lies between 5 % and 95 %; the gain is the mean "
        "log-probability per token above the reference, or above passages with 0 copies."
    )
    return blocks.table("extraction-laws", "The log-linear laws", columns, rows, caption)


def _by_domain(record: AuditRecord) -> Block:
    rows, tables = [], []
    for model in record.plan.models:
        table = record.extracted(model)
        kinds = [("all passages", table)]
        if table["domain"].n_unique() > 1:
            kinds += [(str(domain), table.filter(pl.col("domain") == domain)) for domain in sorted(table["domain"].drop_nulls().unique())]
        for name, part in kinds:
            row = rates(part)[0]
            cell = {"model": model.name, "kind": name, "n": row["n"], "rate": [row["rate"], row["low"], row["high"]]}
            if "reference_extracted" in part.columns:
                cell["floor"] = blocks.wilson(int(part["reference_extracted"].sum()), row["n"])
            rows.append(cell | {"logprob": row.get("logprob")})
            tables.append(part)
    cells, correction = above_reference(tables)
    columns = [("model", "Model", "text"), ("kind", "Kind of text", "text"), ("n", "Passages", "int"),
               ("rate", "Written to the letter", "interval"), ("floor", "By its reference", "interval"),
               ("over", "Difference", "percent"), ("p", "p, corrected", "text"), ("logprob", "Log-prob. per token", "float")]  # fmt: skip
    caption = "Passages with at least one copy in the training data."
    if correction != "none":
        caption += f" Model and reference on the same passages: McNemar's exact test, corrected for all rows ({correction})."
    title = f"By model and kind of text ({record.context} tokens of prompt)"
    return blocks.table("extraction-kinds", title, columns, [row | cell for row, cell in zip(rows, cells, strict=True)], caption)


def probabilistic(record: AuditRecord) -> dict[str, Any]:
    """Probabilistic extraction (029)."""
    made: list[Block] = []
    rows, series = [], []
    middle = min(record.plan.settings.confidences, key=lambda p: abs(p - 0.5))
    for model in record.plan.models:
        result = record.result("probabilistic", model)
        group = result.summary["planted"] or result.summary["overall"]
        at = {(rate["n"], rate["p"]): rate for rate in group["rates"]}
        points = [{"x": n, "y": at[n, middle]["rate"], "low": at[n, middle]["low"], "high": at[n, middle]["high"], "n": group["n_samples"]}
                  for n in record.plan.settings.tries]  # fmt: skip
        series.append(blocks.line(model.name, points))
        row: dict[str, Any] = {"model": model.name, "greedy": [group["greedy"][key] for key in ("rate", "low", "high")]}
        for n in record.plan.settings.tries:
            row[f"n{n}"] = [at[n, middle][key] for key in ("rate", "low", "high")]
        rows.append(row | {"crossing": group["crossing_n"]})
    sampler = record.plan.settings.sampler
    caption = f"Exact, from one pass: the probability of every passage under {sampler}. {WILSON}"
    title = f"Share of passages that come out at least once in n tries (with probability {middle:g})"
    made.append(blocks.curve(Curve("probabilistic-n", title, "tries n", series=series, x_scale="log", caption=caption, **SHARE)))
    best = record.result("probabilistic", record.largest)
    if "probabilistic-n-copies" in best.curves and len(best.summary["by_copies"]) > 1:
        made.append(blocks.curve(replace(best.curves["probabilistic-n-copies"], title=f"{record.largest.name}: tries needed, by copies")))
    columns = [("model", "Model", "text"), ("greedy", "Greedy, once", "interval")]
    columns += [(f"n{n}", f"n = {n:,}", "interval") for n in record.plan.settings.tries]
    columns += [("crossing", "n that equals greedy", "int")]
    made.append(blocks.table("probabilistic-table", f"Extractable in n tries with probability {middle:g}", columns, rows,
                             "Passages with at least one copy in the training data."))  # fmt: skip
    group = best.summary["planted"] or best.summary["overall"]
    at = {(rate["n"], rate["p"]): rate["rate"] for rate in group["rates"]}
    few, many = min(record.plan.settings.tries, key=lambda n: abs(n - 1000)), max(record.plan.settings.tries)
    answer = (
        f"Greedy decoding finds {percent(group['greedy']['rate'])} of the passages. Who may sample {few:,} times finds "
        f"{percent(at[few, middle])}, and {many:,} times {percent(at[many, middle])} ({record.largest.name}, {sampler})."
    )
    return blocks.section("", "", "", answer, made)


def share(row: Mapping[str, Any], key: str = "rate") -> Interval:
    """A rate with its ends as an `Interval`."""
    return Interval(row[key], row["low"], row["high"])
