"""Adversarial prompting: a model that is to repeat one token for ever (divergence), and vectors that are learnt to draw passages out."""

from __future__ import annotations

import numpy as np
import polars as pl

from palimpsest.audit.divergence import STATES, frequent_words, measure_divergence
from palimpsest.audit.soft_prompt import measure_soft_prompt
from palimpsest.evaluation import blocks
from palimpsest.evaluation.blocks import count_of, percent
from palimpsest.evaluation.plan import AuditPlan
from palimpsest.evaluation.record import AuditRecord
from palimpsest.evaluation.steps import Job, StepProgress
from palimpsest.evaluation.suite.detector import Detector, Headline, Need, Shown, Task, other_passages, some_passages
from palimpsest.measurement import Measurement
from palimpsest.models import HFModel, LanguageModel
from palimpsest.stats import Interval

KNOWN, ASKED, VECTORS, STEPS = 64, 64, 20, 60
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

    key = {"words": words.tolist(), "repeats": repeats, "tokens": tokens, "continuations": CONTINUATIONS}
    read, written = len(words) * (repeats + 1), 2 * CONTINUATIONS * len(words) * tokens
    return [Task("divergence", "divergence", run, read, written, key)]


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


def soft_tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task] | str:
    """Half of the passages teach the vectors, the other half and unseen text are asked for with them."""
    if not isinstance(model, HFModel):
        return f"Vectors are learnt through the weights in this process, and {model.name} is behind the door {model.door!r}."
    drawn = some_passages(plan, KNOWN + ASKED)
    shape = (drawn[0].prefix_len, drawn[0].suffix_len)
    unseen = [sample for sample in other_passages(plan, ASKED) if (sample.prefix_len, sample.suffix_len) == shape]
    drawn = [sample for sample in drawn if (sample.prefix_len, sample.suffix_len) == shape]
    if len(drawn) < 4:
        return f"There are {len(drawn)} passages of one length; it takes 4 to learn from some and ask for others."
    if sum(shape) + VECTORS > model.room:
        return f"{model.name} sees {model.room} tokens; {VECTORS} vectors and a passage of {sum(shape)} do not fit."
    order = np.random.default_rng((plan.settings.seed, 2)).permutation(len(drawn))
    known, asked = ([drawn[i] for i in part] for part in (order[: len(order) // 2], order[len(order) // 2 :]))

    def run(progress: StepProgress) -> Measurement:
        return measure_soft_prompt(model, known, asked, unseen, vectors=VECTORS, steps=STEPS, seed=plan.settings.seed, progress=progress)

    read = (sum(shape) + VECTORS) * (3 * 8 * STEPS + 2 * (len(asked) + len(unseen)))  # a step back costs about two forward
    key = {"known": len(known), "asked": len(asked), "unseen": len(unseen), "vectors": VECTORS, "steps": STEPS}
    return [Task("soft-prompt", "a learnt prompt", run, read=read, key=key)]


def show_soft(record: AuditRecord) -> Shown:
    """Extraction with the learnt vectors and without."""
    result = record.result("soft-prompt", record.largest)
    summary = result.summary
    keys = ("estimate", "low", "high")
    members = result.table.filter("member")
    prompts = {"plain": "the prefix alone", "soft": f"{result.provenance['vectors']} learnt vectors in front"}
    rows = [{"how": name, "n": members.height, "rate": [summary[kind][key] for key in keys]} for kind, name in prompts.items()]
    columns = [("how", "Prompt", "text"), ("n", "Passages", "int"), ("rate", "Written to the letter", "interval")]
    caption = (
        f"The vectors learnt from {result.provenance['known']} other passages in {result.provenance['steps']} steps. Gain in "
        f"log-probability a token: {summary['gain']:+.2f} nat"
        + (f"; on text that was not trained on {summary['gain_unseen']:+.2f}." if summary["gain_unseen"] is not None else ".")
    )
    made = [blocks.table("soft-prompt", "A learnt prompt", columns, rows, caption)]
    hits = int(members["soft"].sum())
    answer = (
        f"With vectors that were learnt on other passages, {count_of(hits, members.height)} passages come out to the letter, without them "
        f"{percent(summary['plain']['estimate'])} (McNemar's p = {summary['test']['p_value']:.2g})."
    )
    value = Interval(*(summary["soft"][key] for key in keys))
    return Shown(answer, made, Headline(value, "percent", "with a learnt prompt", summary["plain"]["estimate"], "with the prefix alone"))


SOFT_PROMPT = Detector(
    "soft-prompt", "A learnt prompt", "prompting", "full", (20,), (Need.GRADIENTS, Need.INDEX),
    f"its share of {STEPS} training steps of {VECTORS} vectors", soft_tasks, show_soft, needs_for="Learning a prompt",
)  # fmt: skip
DIVERGENCE = Detector(
    "divergence", "Divergence: repeat a word for ever", "prompting", "standard", (20,), (Need.GENERATION, Need.INDEX),
    f"{2 * CONTINUATIONS} continuations of {NEW_TOKENS} tokens a word", tasks, show,
)  # fmt: skip
