"""What is known without the corpus: clozes that the model completes, and how they differ from those that it does not (100)."""

from __future__ import annotations

from palimpsest.audit.contrast import measure_contrast
from palimpsest.audit.contrast_items import builtin_clozes
from palimpsest.evaluation import blocks
from palimpsest.evaluation.blocks import percent
from palimpsest.evaluation.plan import AuditPlan
from palimpsest.evaluation.record import AuditRecord
from palimpsest.evaluation.steps import Job, StepProgress
from palimpsest.evaluation.suite.detector import Detector, Headline, Need, Shown, Task
from palimpsest.measurement import Measurement
from palimpsest.models import LanguageModel
from palimpsest.stats import Interval

FACTORS = {
    "prompt_tokens": "tokens of the prompt",
    "answer_tokens": "tokens of the answer",
    "answer_frequency": "log copies of the answer in the corpus",
    "entropy": "entropy at the answer's first token",
    "margin": "margin of the two likeliest tokens",
}
_TOKENS = 14  # of a cloze, about


def tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task]:
    """All built-in clozes, once."""
    clozes = builtin_clozes()

    def run(progress: StepProgress) -> Measurement:
        return measure_contrast(model, clozes, index=plan.index, seed=plan.settings.seed, progress=progress)

    return [Task("contrast", "clozes", run, read=2 * _TOKENS * len(clozes), key={"clozes": len(clozes)})]


def show(record: AuditRecord) -> Shown:
    """The share that is known, by kind, and what sets it apart."""
    summary = record.result("contrast", record.largest).summary
    rates = summary["rates"]
    rows = [{"kind": kind, "n": rate["n"], "rate": [rate["rate"], rate["low"], rate["high"]]} for kind, rate in rates.items()]
    columns = [("kind", "Clozes", "text"), ("n", "Asked", "int"), ("rate", "Completed", "interval")]
    made = [blocks.table("contrast-rates", "Idioms and facts that the model completes greedily", columns, rows)]
    if summary["comparable"]:
        tests = [row for row in summary["tests"] if row["scope"] == "all" and row["factor"] in FACTORS]
        found = [
            {"factor": FACTORS[row["factor"]], **{key: row[key] for key in ("memorized", "rest", "delta", "adjusted")}} for row in tests
        ]
        columns = [("factor", "Factor", "text"), ("memorized", "Completed", "float"), ("rest", "The rest", "float"),
                   ("delta", "Cliff's δ", "float"), ("adjusted", "p, adjusted", "float")]  # fmt: skip
        caption = "Means of both groups. Confidence differs by definition: a greedy answer is the likeliest one."
        made.append(blocks.table("contrast-factors", "What sets them apart", columns, found, caption))
    else:
        made.append(blocks.text(f"The groups are {summary['reason']}."))
    overall = rates["all"]
    value = Interval(overall["rate"], overall["low"], overall["high"])
    answer = f"{record.largest.name} completes {percent(value.estimate)} of {overall['n']} well-known idioms and facts word for word."
    return Shown(answer, made, Headline(value, "percent", "of well-known clozes completed"))


CONTRAST = Detector(
    "contrast", "Well-known idioms and facts", "knowledge", "standard", (100,), (Need.HIDDEN_STATES, Need.ENGLISH),
    "two forwards of a short cloze", tasks, show, command="palimpsest contrast", needs_for="Comparing hidden states",
)  # fmt: skip
