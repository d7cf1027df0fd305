"""Memory of the context: is a fact in a long prompt found (015), and is the order of a text known, with it and without (008)?"""

from __future__ import annotations

from palimpsest.errors import InputError
from palimpsest.evaluation import blocks
from palimpsest.evaluation.blocks import percent
from palimpsest.evaluation.haystack import Haystack
from palimpsest.evaluation.needle import NeedleTest, measure_needles
from palimpsest.evaluation.order_recall import PROMPTS, measure_order
from palimpsest.evaluation.order_trials import OrderTrial, book_words, build_trials
from palimpsest.evaluation.plan import AuditPlan
from palimpsest.evaluation.record import AuditRecord
from palimpsest.evaluation.steps import Job, StepProgress
from palimpsest.evaluation.suite.detector import Detector, Headline, Need, Shown, Task
from palimpsest.evaluation.suite.texts import long_documents
from palimpsest.measurement import Measurement
from palimpsest.models import LanguageModel
from palimpsest.stats import Interval, wilson_interval

DOCUMENTS, TOKENS = 20, 20_000
NEEDLES = (
    NeedleTest(
        "town", "The capital of Hollowmere is Arlby. ", ("\nThe capital of Hollowmere is", "\nHollowmere has its capital in"), ("Arlby",)
    ),
    NeedleTest("code", "The code of the vault is 4719. ", ("\nThe code of the vault is", "\nThe vault opens with the code"), ("4719",)),
)
LENGTHS, DEPTHS, SEEDS, ANSWER = (1024, 512, 256), (0.0, 0.5, 1.0), (0, 1), 12
EXCERPTS, SEGMENT, TRIALS = (250, 120), 15, 40
_MARGIN = 16  # tokens by which a prompt with its segments in the other order, or its sentences shuffled, may be longer


def needle_tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task] | str:
    """Every needle at two lengths and three depths, and once each without it."""
    lengths = [length for length in LENGTHS if length + ANSWER <= model.room][:2]
    if not lengths:
        return f"{model.name} sees {model.room} tokens; the shortest context has {min(LENGTHS)} and its answer {ANSWER}."
    texts = list(long_documents(plan, DOCUMENTS, TOKENS).values())

    def run(progress: StepProgress) -> Measurement:
        haystack = Haystack(model.tokenizer, texts, cycle=True)
        return measure_needles(model, haystack, NEEDLES, lengths, DEPTHS, SEEDS, answer_tokens=ANSWER, progress=progress)

    prompts = sum(len(test.questions) for test in NEEDLES) * (len(DEPTHS) + 1) * len(SEEDS)
    key = {"lengths": lengths, "depths": DEPTHS, "seeds": SEEDS, "answer": ANSWER}
    return [Task("needle", "needles", run, prompts * sum(lengths), prompts * len(lengths) * ANSWER, key=key)]


def show_needle(record: AuditRecord) -> Shown:
    """Recall by wording, and how much it depends on it."""
    result = record.result("needle", record.largest)
    summary = result.summary
    rows = [{"needle": row["test"], "wording": row["wording"] + 1, "n": row["n"], "found": [row["estimate"], row["low"], row["high"]]}
            for row in summary["by_prompt"]]  # fmt: skip
    columns = [("needle", "Needle", "text"), ("wording", "Wording", "int"), ("n", "Asked", "int"), ("found", "Found", "interval")]
    lengths = ", ".join(map(str, sorted(result.provenance["lengths"])))
    caption = f"Made-up facts in text of the corpus, in prompts of {lengths} tokens at three depths; greedy answers."
    made = [blocks.table("needle", "Facts that stand in the prompt", columns, rows, caption)]
    asked = result.table.drop_nulls("depth")
    value = wilson_interval(int(asked["right"].sum()), asked.height)
    control = summary["control"]["estimate"]
    answer = (
        f"{record.largest.name} finds {percent(value.estimate)} of the facts that stand in its prompt; without them it says "
        f"{percent(control)}. Between the best and the worst wording lie {100 * summary['prompt_dependence']['estimate']:.0f} points."
    )
    return Shown(answer, made, Headline(value, "percent", "of facts in the prompt found", control, "without the fact"))


def order_tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task] | str:
    """Trials with the longest excerpt that fits, in the prompt, from memory, and with its sentences shuffled."""
    documents = long_documents(plan, DOCUMENTS, TOKENS)
    reason = ""
    for words in EXCERPTS:
        texts = {name: text for name, text in documents.items() if len(book_words(text)) > words}
        if not texts:
            reason = f"None of the longest documents has more than the {words} words of an excerpt."
            continue
        try:
            trials = build_trials(texts, words, SEGMENT, TRIALS, seed=plan.settings.seed)
        except InputError as error:  # documents that repeat themselves, or are barely longer than an excerpt: the data cannot do it
            reason = error.problem
            continue
        prompts = [PROMPTS[0].fill(trial, trial.excerpt, True, "first") for trial in trials]
        tokens = max(map(len, model.tokenizer.encode_batch(prompts)))
        if tokens + _MARGIN <= model.room:
            return [_order_task(plan, model, trials, tokens)]
        reason = f"{model.name} sees {model.room} tokens; an excerpt of {words} words with its question has {tokens}."
    return reason


def _order_task(plan: AuditPlan, model: LanguageModel, trials: list[OrderTrial], tokens: int) -> Task:
    def run(progress: StepProgress) -> Measurement:
        conditions = ("in_context", "from_memory", "shuffled")
        return measure_order(model, trials, conditions, seed=plan.settings.seed, progress=progress)

    read = 2 * 2.3 * len(trials) * tokens  # from memory, most of a prompt is left out
    key = {"trials": len(trials), "excerpt": len(trials[0].words), "segment": trials[0].segment_words}
    return Task("order-recall", "order of segments", run, read, key=key)


def show_order(record: AuditRecord) -> Shown:
    """Accuracy by condition."""
    summary = record.result("order-recall", record.largest).summary
    names = {"in_context": "the text in the prompt", "from_memory": "without the text", "shuffled": "its sentences shuffled"}
    by = {row["condition"]: row for row in summary["conditions"]}
    rows = [
        {"condition": names[name], "n": row["n"], "right": list(row["debiased"].values()), "said_a": row["said_a"]["estimate"]}
        for name, row in by.items()
    ]
    columns = [("condition", "Asked with", "text"), ("n", "Trials", "int"), ("right", "Right, label prior removed", "interval"),
               ("said_a", "Says A", "percent")]  # fmt: skip
    caption = "Which of two segments of a document came first? Every trial is asked in both orders; 50 % is chance."
    made = [blocks.table("order-recall", "The order of a text", columns, rows, caption)]
    value = Interval(**by["in_context"]["debiased"])
    without = by["from_memory"]["debiased"]["estimate"]
    answer = (
        f"With the text in its prompt {record.largest.name} says which of two segments came first in {percent(value.estimate)} of the "
        f"trials, without it in {percent(without)}; half is chance."
    )
    return Shown(answer, made, Headline(value, "percent", "of orders right with the text", without, "without it"))


NEEDLE = Detector(
    "needle", "A fact in the prompt", "context", "standard", (15,), (Need.GENERATION, Need.ENGLISH),
    "one prompt of up to 1,024 tokens", needle_tasks, show_needle, command="palimpsest needle",
)  # fmt: skip
ORDER = Detector(
    "order-recall", "The order of a text", "context", "standard", (8,), (Need.LOGPROBS, Need.ENGLISH),
    "six forwards of up to 500 tokens", order_tasks, show_order, command="palimpsest order-recall", needs_for="Comparing answers",
)  # fmt: skip
