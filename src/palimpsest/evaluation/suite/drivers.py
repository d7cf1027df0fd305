"""What drives memorization, as far as this corpus and these models show it: repetition of the corpus, and size (006)."""

from __future__ import annotations

from functools import partial

import polars as pl

from palimpsest.audit.forecast import forecast
from palimpsest.evaluation import blocks
from palimpsest.evaluation.blocks import count_of, percent
from palimpsest.evaluation.plan import AuditPlan
from palimpsest.evaluation.record import AuditRecord, slug
from palimpsest.evaluation.steps import Job, StepProgress
from palimpsest.evaluation.suite.detector import Detector, Headline, Need, Shown, Task
from palimpsest.measurement import Measurement, environment
from palimpsest.models import LanguageModel
from palimpsest.stats import Interval

MOST_TOKENS = 200_000_000  # of a corpus whose repetitions are looked for on the way: 9 bytes each in memory


def duplication_tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task] | str:
    """One pass over the index; no model is asked."""
    if plan.index.n_tokens > MOST_TOKENS:
        return (
            f"The corpus has {plan.index.n_tokens:,} tokens, more than the {MOST_TOKENS:,} that are searched on the way; "
            "palimpsest index duplicates does it."
        )
    return [Task("duplication", "repetitions", partial(_duplication, plan))]


def _duplication(plan: AuditPlan, progress: StepProgress) -> Measurement:
    length = plan.settings.suffix
    found = plan.index.duplicates(length)
    rows = pl.DataFrame(found.ranges, schema={"document": pl.Int64, "start": pl.Int64, "end": pl.Int64}, orient="row")
    lost = rows.with_columns(tokens=pl.col("end") - pl.col("start")).group_by("document").agg(pl.col("tokens").sum())
    table = lost.sort("tokens", "document", descending=[True, False]).head(50)
    table = table.with_columns(name=pl.Series([str(plan.index.document(i)[0]) for i in table["document"].to_list()], dtype=pl.String))
    summary = {
        "length": length,
        "dropped": found.dropped,
        "tokens": found.n_tokens,
        "share": found.share,
        "documents": len(found.documents),
    }
    return Measurement("duplication", table, summary, {"corpus": plan.index.fingerprint, "environment": environment()})


def show_duplication(record: AuditRecord) -> Shown:
    """How much of the corpus repeats itself, and where."""
    result = record.result("duplication", record.largest)
    summary = result.summary
    rows = [{"document": row["name"], "tokens": row["tokens"]} for row in result.table.head(10).iter_rows(named=True)]
    columns = [("document", "Document", "text"), ("tokens", "Tokens that stand earlier too", "int")]
    caption = f"Passages of {summary['length']} tokens and more; of each the first occurrence is kept."
    made = [blocks.table("duplication", "Where the corpus repeats itself", columns, rows, caption)] if rows else []
    answer = (
        f"{percent(summary['share'])} of the corpus ({summary['dropped']:,} of {summary['tokens']:,} tokens, in {summary['documents']:,} "
        f"documents) repeats a passage of {summary['length']} tokens or more that stands earlier. palimpsest index duplicates lists it."
    )
    return Shown(answer, made, Headline(float(summary["share"]), "percent", "of the corpus repeats an earlier passage"))


def forecast_tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task]:
    """No further pass: what each smaller model extracted, against what the largest did."""
    return [Task("forecast", "forecast by smaller models", partial(_forecast, plan, model, job))]


def _forecast(plan: AuditPlan, target: LanguageModel, job: Job, progress: StepProgress) -> Measurement:
    def scores(model: LanguageModel) -> pl.DataFrame:
        table = job.results[f"extraction.{slug(model.name)}"].table
        here = table.filter(pl.col("context") == table["context"].max()).sort("sample")
        return here.select(index="sample", score=pl.col("extracted").cast(pl.Float64))

    made = forecast({model.name: scores(model) for model in plan.models if model is not target}, scores(target), target_name=target.name)
    return Measurement(made.name, made.table.filter(pl.col("scope") == "all"), made.summary, made.provenance)


def show_forecast(record: AuditRecord) -> Shown:
    """Precision and recall of the smaller models' extractions."""
    result = record.result("forecast", record.largest)
    rows = []
    for row in result.table.iter_rows(named=True):
        cells = {
            kind: None if row[kind] is None else [row[kind], row[f"{kind}_low"], row[f"{kind}_high"]] for kind in ("precision", "recall")
        }
        rows.append({"model": row["predictor"], "n": row["positives"], **cells})
    columns = [("model", "Forecast by", "text"), ("n", "Passages it wrote", "int"), ("precision", "Of them also the largest", "interval"),
               ("recall", "Of the largest's, forecast", "interval")]  # fmt: skip
    made = [blocks.table("forecast", f"What {record.largest.name} writes, forecast by smaller models", columns, rows)]
    base = result.summary["base_rate"]["all"]["rate"]
    best = max(rows, key=lambda row: -1.0 if row["recall"] is None else row["recall"][0])
    if best["recall"] is None:
        return Shown(f"{record.largest.name} wrote no passage to the letter: there is nothing to forecast.", made)
    positives = int(result.table["target_positives"][0])
    found = round(best["recall"][0] * positives)
    answer = (
        f"Of the {positives} passages that {record.largest.name} writes to the letter, {best['model']} already wrote "
        f"{count_of(found, positives)}. A forecast that finds nothing is no promise."
    )
    value = Interval(*best["recall"])
    return Shown(answer, made, Headline(value, "percent", "of its leaks foretold by a smaller model", base, "by a random choice"))


DUPLICATION = Detector(
    "duplication", "Repetition in the corpus", "drivers", "standard", (67,), (Need.INDEX,), "none: one pass over the index",
    duplication_tasks, show_duplication, command="palimpsest index duplicates",
)  # fmt: skip
FORECAST = Detector(
    "forecast", "Foretold by smaller models", "drivers", "standard", (6,), (Need.SIZES, Need.GENERATION), "none: from extraction",
    forecast_tasks, show_forecast, command="palimpsest forecast",
)  # fmt: skip
