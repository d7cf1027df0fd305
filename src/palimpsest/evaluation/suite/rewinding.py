"""Is a model taken back in time by a prompt that declares an earlier end of its knowledge? (099)"""

from __future__ import annotations

from datetime import UTC, datetime

from palimpsest.evaluation import blocks
from palimpsest.evaluation.blocks import percent
from palimpsest.evaluation.plan import AuditPlan
from palimpsest.evaluation.record import AuditRecord
from palimpsest.evaluation.rewind import measure_rewind
from palimpsest.evaluation.rewind_items import read_prompts, read_rewind_items
from palimpsest.evaluation.steps import Job, StepProgress
from palimpsest.evaluation.suite.detector import Detector, Headline, Need, Shown, Task
from palimpsest.measurement import Measurement
from palimpsest.models import LanguageModel
from palimpsest.stats import Interval

ANSWER, ITEMS = 32, 60
_PROMPT = 120  # tokens of a prompt with its question, about


def tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task] | str:
    """The built-in questions, plainly and with every prompt and its placebo; definitions, which need an embedder, are left out."""
    items = [item for item in read_rewind_items() if item.form != "definition"][:ITEMS]
    prompts = list(read_prompts().values())
    this_year = datetime.now(UTC).year
    if model.room < 3 * _PROMPT:
        return f"{model.name} sees {model.room} tokens; a prompt that declares a year, with its question, takes up to {3 * _PROMPT}."

    def run(progress: StepProgress) -> Measurement:
        return measure_rewind(model, items, prompts, this_year=this_year, max_new_tokens=ANSWER, seed=plan.settings.seed, progress=progress)

    asked = len(items) * (1 + 2 * len(prompts))
    key = {"items": [item.id for item in items], "prompts": len(prompts), "year": this_year, "answer": ANSWER}
    return [Task("rewind", "taken back by prompts", run, asked * _PROMPT, asked * ANSWER, key=key)]


def show(record: AuditRecord) -> Shown:
    """Success by prompt, what it is made of, and how often a year to come changes the answer as well."""
    summary = record.result("rewind", record.largest).summary
    rates = [row for row in summary["rates"] if row["subset"] == "all"]
    rows = [
        {"prompt": row["prompt"], "n": row["n"], "then": row["then"], "now": row["now"], "other": row["other"], "na": row["na"]}
        | {name: row[name] and [row[name][key] for key in ("estimate", "low", "high")] for name in ("success", "placebo_change")}
        for row in rates
    ]
    columns = [("prompt", "Prompt", "text"), ("n", "Asked", "int"), ("success", "Not today's answer", "interval"),
               ("then", "that of then", "percent"), ("now", "today's", "percent"), ("other", "another", "percent"),
               ("na", "none", "percent"), ("placebo_change", "Changed by a year to come", "interval")]  # fmt: skip
    caption = "Success counts whatever is not today's answer; the last column is a placebo, on what the model knows."
    made = [blocks.table("rewind", "Answers as of an earlier year", columns, rows, caption)]
    best = max((row for row in rates if row["success"]), key=lambda row: row["success"]["estimate"], default=None)
    if best is None:
        return Shown(f"{record.largest.name} gave no answer that can be read.", made)
    value = Interval(**best["success"])
    control = best["placebo_change"]["estimate"] if best["placebo_change"] else None
    answer = (
        f"Told that its knowledge ends earlier, {record.largest.name} does not give today's answer to {percent(value.estimate)} of the "
        f"questions, and gives that of then to {percent(best['then'])}."
    )
    return Shown(answer, made, Headline(value, "percent", "not today's answer", control, "for a year to come"))


REWIND = Detector(
    "rewind", "Taken back in time by a prompt", "knowledge", "full", (99,), (Need.GENERATION, Need.ENGLISH),
    f"five answers of {ANSWER} tokens a question", tasks, show, command="palimpsest rewind",
)  # fmt: skip
