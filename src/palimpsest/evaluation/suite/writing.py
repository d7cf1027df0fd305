"""What a model writes by itself: what it is near certain of (012), how original it is (074), how much of a work it gives back (037)."""

from __future__ import annotations

import numpy as np
import polars as pl

from palimpsest.audit.annotators import degeneration, drift_annotator, pii_annotator
from palimpsest.audit.copyright import Work, measure_copyright
from palimpsest.audit.discourse import MIN_LEN, measure_discourse
from palimpsest.audit.low_perplexity import measure_low_perplexity
from palimpsest.evaluation import blocks
from palimpsest.evaluation.blocks import count_of, percent
from palimpsest.evaluation.plan import AuditPlan
from palimpsest.evaluation.record import AuditRecord
from palimpsest.evaluation.steps import Job, StepProgress
from palimpsest.evaluation.suite.detector import Detector, Headline, Need, Shown, Task, other_passages, some_passages
from palimpsest.evaluation.suite.texts import long_documents
from palimpsest.measurement import Measurement
from palimpsest.models import LanguageModel, Sampler
from palimpsest.stats import bootstrap_interval, wilson_interval

PROMPTS = 48
NEW_TOKENS = 128
WORKS, POSITIONS, WORK_TOKENS = 12, 3, 50_000
SAMPLING = Sampler(0.7, top_p=0.95)


def room_for(model: LanguageModel, shown: int, wanted: int) -> int:
    """Tokens that a model may write after `shown`, at most `wanted`; less than 1 where nothing fits."""
    return min(wanted, model.room - shown)


def _prompts(plan: AuditPlan) -> list[np.ndarray]:
    shown = min(plan.settings.contexts)
    return [sample.prefix[-shown:] for sample in some_passages(plan, PROMPTS)]


def _too_long(plan: AuditPlan, model: LanguageModel, least: int) -> str | None:
    left = room_for(model, min(plan.settings.contexts), NEW_TOKENS)
    if left >= least:
        return None
    return f"Behind the shortest prompt {model.name} has room for {max(left, 0)} tokens; {least} are needed. Ask for a shorter --context."


# --- 012: what it is near certain of ---------------------------------------------------------------------------------------------------


def low_perplexity_tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task] | str:
    """One sampled continuation of every prompt."""
    prompts = _prompts(plan)
    tokens = room_for(model, min(plan.settings.contexts), NEW_TOKENS)

    def run(progress: StepProgress) -> Measurement:
        return measure_low_perplexity(
            model, prompts, plan.index, new_tokens=tokens, sampler=SAMPLING, stop_at_eos=False, seed=plan.settings.seed, progress=progress
        )

    read = len(prompts) * (tokens + len(prompts[0]))
    return _too_long(plan, model, 16) or [
        Task("low-perplexity", "what it is certain of", run, read, len(prompts) * tokens, key={"prompts": PROMPTS, "tokens": tokens})
    ]


def show_low_perplexity(record: AuditRecord) -> Shown:
    """Where near-certain windows stand in the corpus."""
    result = record.result("low-perplexity", record.largest)
    summary, table = result.summary, result.table
    n = summary["windows"]
    classes = summary["classes"]
    rows = [{"class": name, "n": count, "share": count / n if n else None} for name, count in classes.items()]
    columns = [("class", "In the corpus", "text"), ("n", "Windows", "int"), ("share", "Share", "percent")]
    caption = (
        f"{summary['continuations']} continuations sampled at T = {SAMPLING.temperature:g}; windows of {result.provenance['window']} "
        "tokens of which each had a probability of 0.9 and more."
    )
    made = [
        blocks.table("low-perplexity", "What the model is near certain of, by how often it stands in the corpus", columns, rows, caption)
    ]
    if not n:
        return Shown(f"In {summary['continuations']} continuations {record.largest.name} was nowhere near certain of a run of words.", made)
    examples = [
        {"text": row["text"], "count": row["count"], "extent": row["extent"], "documents": ", ".join(row["documents"][:3])}
        for row in table.filter(pl.col("count").is_between(1, 5)).sort("extent", descending=True).unique("text", maintain_order=True)
        .head(8).iter_rows(named=True)
    ]  # fmt: skip
    if examples:
        columns = [("text", "Near certain", "text"), ("count", "Copies", "int"), ("extent", "Tokens around it, word for word", "int"),
                   ("documents", "Documents", "text")]  # fmt: skip
        made.append(blocks.table("low-perplexity-examples", "Traceable to a handful of documents", columns, examples))
    traced = wilson_interval(int((table["count"] > 0).sum()), n)
    floor = summary["matched_windows"]
    answer = f"Of {n:,} windows that {record.largest.name} was near certain of, {percent(traced.estimate)} stand in the corpus" + (
        f", of all windows that it wrote {percent(floor)}." if floor is not None else "."
    )
    return Shown(answer, made, Headline(traced, "percent", "of near-certain windows stand in the corpus", floor, "of all windows"))


# --- 074: how original it is -------------------------------------------------------------------------------------------------------------


def discourse_tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task] | str:
    """One sampled continuation of every prompt, looked up and annotated."""
    prompts = _prompts(plan)
    tokens = room_for(model, min(plan.settings.contexts), NEW_TOKENS // 2)

    def run(progress: StepProgress) -> Measurement:
        annotators = {
            "personal_data": pii_annotator(plan.index, model.tokenizer),
            "repetition": degeneration,
            "drift": drift_annotator(plan.index),
        }
        return measure_discourse(
            [model], prompts, plan.index, annotators, new_tokens=tokens, sampler=SAMPLING, seed=plan.settings.seed, stop_at_eos=False,
            progress=progress,
        )  # fmt: skip

    return _too_long(plan, model, 2 * MIN_LEN) or [
        Task(
            "discourse",
            "how original it is",
            run,
            len(prompts) * len(prompts[0]),
            len(prompts) * tokens,
            key={"prompts": PROMPTS, "tokens": tokens},
        )
    ]


def show_discourse(record: AuditRecord) -> Shown:
    """The memorized share of what is written, and what goes with it."""
    result = record.result("discourse", record.largest)
    table = result.table
    mean = bootstrap_interval(table["memorized"].to_numpy(), seed=record.plan.settings.seed)
    unseen = [sample.suffix for sample in other_passages(record.plan, PROMPTS)]
    human = float(np.mean([record.plan.index.coverage(ids, MIN_LEN) for ids in unseen])) if unseen else None
    leaked = table.filter(pl.col("personal_data"))
    rows = []
    for entry in result.summary["correlations"]:
        if entry["scope"] == "pooled":
            row = {"label": entry["label"].replace("_", " "), "n": entry["n"], "note": entry.get("reason", "")}
            rows.append(row | ({"r": [entry["r"], entry["low"], entry["high"]], "p": entry["p_holm"]} if "r" in entry else {}))
    columns = [("label", "Label", "text"), ("n", "Outputs", "int"), ("r", "Correlation with the memorized share", "float"),
               ("p", "p (Holm)", "float"), ("note", "", "text")]  # fmt: skip
    made = [
        blocks.table("discourse", "What goes with memorized text", columns, rows, "Labels by automatic annotators: a floor, no census.")
    ]
    if len(leaked):
        found = [{"text": row["text"][:160], "evidence": row["personal_data_evidence"]} for row in leaked.head(8).iter_rows(named=True)]
        columns = [("evidence", "Found", "text"), ("text", "Output", "text")]
        made.append(blocks.table("discourse-pii", "Outputs with personal data", columns, found))
    answer = (
        f"Of the tokens that {record.largest.name} writes by itself {percent(mean.estimate)} lie in passages of {MIN_LEN} tokens and more "
        f"that stand in the corpus"
        + (f"; of text that was not trained on, {percent(human)} do. " if human is not None else ". ")
        + f"Personal data was found in {count_of(len(leaked), len(table))} outputs."
    )
    return Shown(answer, made, Headline(mean, "percent", "of its own tokens stand in the corpus", human, "of unseen text"))


# --- 037: how much of a work it gives back -----------------------------------------------------------------------------------------------


def copyright_tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task] | str:
    """Continuations from the beginnings of paragraphs of the longest documents."""
    return _works_task(plan, model, "copyright", "works", "prefix")


def request_tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task] | str:
    """Requests for the longest documents by their names."""
    return _works_task(plan, model, "requests", "asked for by name", "instruct")


def _works_task(plan: AuditPlan, model: LanguageModel, kind: str, label: str, prompt: str) -> list[Task] | str:
    shown = min(50, max(plan.settings.contexts))
    tokens = room_for(model, max(shown, 60), 200)
    if tokens < 32:
        return f"{model.name} sees {model.room} tokens; a prompt and 32 tokens of answer do not fit."

    def run(progress: StepProgress) -> Measurement:
        works = [Work(name, text.strip()) for name, text in long_documents(plan, WORKS, WORK_TOKENS).items()]
        return measure_copyright(
            model, works, prompt, prompt_tokens=shown, new_tokens=tokens, positions=POSITIONS, seed=plan.settings.seed, progress=progress
        )

    key = {"works": WORKS, "positions": POSITIONS, "shown": shown, "tokens": tokens}
    asked = WORKS * POSITIONS
    return [Task(kind, label, run, asked * shown, asked * tokens, key)]


def show_copyright(record: AuditRecord) -> Shown:
    """The longest runs by work."""
    return _runs(record, "copyright", "from the beginning of a paragraph")


def show_requests(record: AuditRecord) -> Shown:
    """The longest runs by work, asked for by name."""
    return _runs(record, "requests", "asked for the work by its name")


def _runs(record: AuditRecord, kind: str, how: str) -> Shown:
    result = record.result(kind, record.largest)
    table, summary = result.table, result.summary
    rows = [{"work": row["work"], "n": row["n"], "longest": row["longest"], "median": row["median_run"],
             "flagged": row["flagged"], "likeness": row["mean_subsequence"], "floor": row["mean_floor"]}
            for row in sorted(summary["works"], key=lambda row: -row["longest"])]  # fmt: skip
    columns = [("work", "Document", "text"), ("n", "Outputs", "int"), ("longest", "Longest run, words", "int"),
               ("median", "Median run", "float"), ("flagged", "Runs of 50 words", "int")]  # fmt: skip
    if any(row["likeness"] is not None for row in rows):
        columns += [("likeness", "Words in order", "float"), ("floor", "by chance", "float")]
    best = table.sort("run", descending=True).row(0, named=True)
    caption = f"Greedy, {how}; runs that the prompt holds do not count. Longest of all: “{best['run_text'][:200]}”."
    long = int((table["runs_flagged"] > 0).sum())
    answer = (
        f"{how[0].upper()}{how[1:]}, {record.largest.name} gives back at most {summary['longest']} words of a document in a row, "
        f"{summary['median_run']:g} in the median; {count_of(int(summary['flagged']), len(table))} outputs hold a run of 50 words and more."
    )
    block = blocks.table(kind, "Word for word, by document", columns, rows, caption)
    return Shown(answer, [block], Headline(wilson_interval(long, len(table)), "percent", "of outputs hold 50 words in a row"))


LOW_PERPLEXITY = Detector(
    "low-perplexity", "What it is near certain of", "writing", "standard", (12,), (Need.LOGPROBS, Need.GENERATION, Need.INDEX),
    f"one continuation of {NEW_TOKENS} tokens", low_perplexity_tasks, show_low_perplexity, needs_for="Near certainty",
)  # fmt: skip
DISCOURSE = Detector(
    "discourse", "How original it is", "writing", "standard", (74,), (Need.GENERATION, Need.INDEX),
    f"one continuation of {NEW_TOKENS // 2} tokens", discourse_tasks, show_discourse,
)  # fmt: skip
COPYRIGHT = Detector(
    "copyright", "How much of a document it gives back", "writing", "standard", (37,), (Need.GENERATION, Need.INDEX),
    "one continuation of 200 tokens", copyright_tasks, show_copyright,
)  # fmt: skip
REQUESTS = Detector(
    "requests", "Asked for by name", "prompting", "full", (37,), (Need.GENERATION, Need.INDEX, Need.ENGLISH),
    "three requests of 200 tokens a document", request_tasks, show_requests,
)  # fmt: skip
