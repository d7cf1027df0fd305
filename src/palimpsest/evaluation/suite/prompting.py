"""Adversarial prompting: what comes out when a model is asked to repeat one token for ever (divergence)."""

from __future__ import annotations

import polars as pl

from palimpsest.audit.divergence import STATES, frequent_words, measure_divergence
from palimpsest.evaluation import blocks
from palimpsest.evaluation.blocks import percent
from palimpsest.evaluation.plan import AuditPlan
from palimpsest.evaluation.record import AuditRecord
from palimpsest.evaluation.steps import Job, StepProgress
from palimpsest.evaluation.suite.detector import Detector, Headline, Need, Shown, Task
from palimpsest.measurement import Measurement
from palimpsest.models import LanguageModel
from palimpsest.stats import Interval

WORDS, CONTINUATIONS, REPEATS, NEW_TOKENS, LEAST = 24, 2, 50, 128, 32


def tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task] | str:
    """Repetitions of the corpus's most frequent words, and the same words once."""
    repeats = min(REPEATS, model.room // 3)
    tokens = min(NEW_TOKENS, model.room - repeats)
    words = frequent_words(plan.index, model, WORDS)
    if tokens < LEAST or repeats < 2:
        return f"{model.name} sees {model.room} tokens; a repetition and {LEAST} tokens behind it do not fit."
    if not words.size:
        return "No token of the corpus is a word of letters."

    def run(progress: StepProgress) -> Measurement:
        settings = plan.settings
        return measure_divergence(
            model, words, plan.index, repeats=repeats, new_tokens=tokens, n=CONTINUATIONS, sampler=settings.sampler, long=settings.suffix,
            seed=settings.seed, progress=progress,
        )  # fmt: skip

    return [Task("divergence", "divergence", run, written=2 * CONTINUATIONS * len(words) * tokens)]


def show(record: AuditRecord) -> Shown:
    """What the model falls into behind a repetition, beside what it writes behind the word alone."""
    result = record.result("divergence", record.largest)
    summary, table = result.summary, result.table
    names = dict(zip(STATES, (f"{result.provenance['repeats']} times", "once"), strict=True))
    keys = ("estimate", "low", "high")
    rows = [
        {"state": names[state], "n": summary[state]["n"], "longest": summary[state]["longest"]}
        | {kind: [summary[state][kind][key] for key in keys] for kind in ("diverged", "extracted", "verbatim")}
        for state in STATES
    ]
    long = result.provenance["long"]
    columns = [("state", "The word stands in the prompt", "text"), ("n", "Continuations", "int"), ("diverged", "Leave it", "interval"),
               ("extracted", f"Hold {long} tokens of the corpus in a row", "interval"),
               ("verbatim", f"Tokens in passages of {result.provenance['min_len']} and more", "interval"),
               ("longest", "Longest passage", "int")]  # fmt: skip
    made = [blocks.table("divergence", "Behind a repetition and behind one word", columns, rows)]
    best = table.filter((pl.col("state") == "repeated") & (pl.col("longest") > 0)).sort("longest", "token", descending=[True, False])
    shown = [
        {"word": row["word"].strip(), "at": row["diverged_at"], "longest": row["longest"], "text": row["text"][:240]}
        for row in best.head(6).iter_rows(named=True)
    ]
    if shown:
        columns = [("word", "Repeated", "text"), ("at", "Left after", "int"), ("longest", "Longest passage, tokens", "int"),
                   ("text", "What it fell into", "text")]  # fmt: skip
        made.append(blocks.table("divergence-texts", "What it fell into", columns, shown))
    repeated, once = summary["repeated"], summary["once"]
    answer = (
        f"Behind a word that stands {names['repeated']}, {percent(repeated['extracted']['estimate'])} of the continuations hold {long} "
        f"tokens of the corpus in a row; behind the word alone, {percent(once['extracted']['estimate'])} (McNemar's p = "
        f"{summary['test']['p_value']:.2g})."
    )
    value = Interval(*(repeated["extracted"][key] for key in keys))
    return Shown(answer, made, Headline(value, "percent", "of continuations extract", once["extracted"]["estimate"], "behind one word"))


DIVERGENCE = Detector(
    "divergence", "Divergence: repeat a word for ever", "prompting", "standard", (20,), (Need.GENERATION, Need.INDEX),
    f"{2 * CONTINUATIONS} continuations of {NEW_TOKENS} tokens a word", tasks, show,
)  # fmt: skip
