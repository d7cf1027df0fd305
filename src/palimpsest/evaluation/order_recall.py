"""Which of two segments of a text came first? Order memory of a model, with the text before it or from its training alone.

Pink, Vo, Wu et al., SORT (2024, arXiv 2410.08133), on the trials of `order_trials`. A prompt is head, excerpt, the two segments labelled A
and B, and "Answer: Segment"; the answer is the label with more log-probability behind it. Conditions:

* ``in_context``   the excerpt stands in the prompt;
* ``from_memory``  the excerpt and the words around it are left out: right is who has it from training, or guesses;
* ``shuffled``     the excerpt's sentences stand in an order by lot: right is who does not need the excerpt's order;
* ``retrieved``    what a retriever gives for the trial stands in the excerpt's place.

**Label prior.** A small model prefers a label whatever it is asked. Every trial is asked in both orders and scored

    s = ½ [ℓ(A | earlier is A) − ℓ(B | earlier is A) + ℓ(B | earlier is B) − ℓ(A | earlier is B)],

right when s > 0; a preference for a label cancels out of it, and who does nothing else has s = 0, a tie, which counts half in the accuracy
and not as right where conditions are compared. The raw accuracy is that of the order in which the trial is shown (ours; the paper has it
alone). The labels' ids are what the tokenizer makes of "Segment A" and "Segment B" behind what both have in common, found once, so that it
does not matter whether the space is a token of its own. Nothing is cut: a prompt that does not fit is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from palimpsest.errors import ContextOverflowError, InputError
from palimpsest.evaluation.order_trials import OrderTrial
from palimpsest.measurement import Measurement, environment, plain
from palimpsest.models import LanguageModel
from palimpsest.models.base import Progress
from palimpsest.models.shared_prefix import score_choices
from palimpsest.stats import bootstrap_interval, holm, mcnemar, wilson_interval

CONDITIONS = ("in_context", "from_memory", "shuffled", "retrieved")
LABELS = ("A", "B")


@dataclass(frozen=True)
class OrderPrompt:
    """The wording around a trial.

    Attributes:
        head: in front of all.
        excerpt: around the text; has {book} and {excerpt}; left out in the condition "from_memory".
        segments: has {book}, {a}, {b} and {task}, which becomes "first" or "last".
        answer: what the label follows, without a space behind it.
    """

    head: str = "You will be shown two segments of a book and asked about their order.\n\n"
    excerpt: str = "Here is an excerpt of the book {book}:\n\n{excerpt}\n\n"
    segments: str = (
        "Here are two segments of the book {book}.\n\nSegment A: {a}\n\nSegment B: {b}\n\n"
        "Which segment appears {task} in the book, A or B?\n"
    )
    answer: str = "Answer: Segment"

    def fill(self, trial: OrderTrial, text: str | None, earlier_is_a: bool, task: str) -> str:
        """The prompt of a trial; `text` is what stands in the excerpt's place, None for nothing."""
        earlier, later = trial.segments
        a, b = (earlier, later) if earlier_is_a else (later, earlier)
        around = "" if text is None else self.excerpt.format(book=trial.book, excerpt=text)
        return self.head + around + self.segments.format(book=trial.book, a=a, b=b, task=task) + self.answer


PROMPTS = (
    OrderPrompt(),
    OrderPrompt(
        head="",
        excerpt="Read this part of {book}.\n\n{excerpt}\n\n",
        segments="A: {a}\n\nB: {b}\n\nOne of these two segments of {book} comes {task}. Which one, A or B?\n",
    ),
    OrderPrompt(
        head="A test of memory for the order of events in books.\n\n",
        excerpt='From "{book}":\n{excerpt}\n\n',
        segments="Two passages from {book}:\nSegment A: {a}\nSegment B: {b}\nQuestion: Which of them do we read {task}?\n",
    ),
)


def measure_order(
    model: LanguageModel,
    trials: Sequence[OrderTrial],
    conditions: Sequence[str] = ("in_context", "from_memory"),
    *,
    prompt: OrderPrompt = PROMPTS[0],
    task: str = "first",
    retrieve: Callable[[OrderTrial], str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Asks for the order of every trial's segments, in both orders of presentation, under every condition.

    Args:
        model: needs "logprobs".
        trials: what `build_trials` drew, 2 at least.
        conditions: of the module's docstring; the others are compared with the first.
        prompt: the wording; choose it with `choose_prompt` on other books than those of the trials.
        task: which segment is asked for, "first" or "last".
        retrieve: trial -> text, for the condition "retrieved".
        seed: of the condition "shuffled" and of the bootstrap.
        progress: called with (rows scored, rows in all).

    Returns:
        One row a trial and condition: id, book, condition, distance, bin, earlier_is_a, chosen ("A" or "B", in the order shown), right,
        s (above 0 is right), debiased (1, ½ or 0) and in_reach (the chosen label is the likeliest token of all). The summary has these by
        condition, the share of "A", accuracy by bin, and McNemar's test of the other conditions against the first.

    Raises:
        InputError: an unknown condition or task, fewer than 2 trials, no retriever, or labels that the tokenizer does not tell apart.
        ContextOverflowError: a prompt does not fit the model; nothing is ever cut.

    Example:
        >>> trials = build_trials({"Emma": text}, 250, 20, 100)                                   # doctest: +SKIP
        >>> m = measure_order(palimpsest.load_model("smollm2-135m"), trials)                      # doctest: +SKIP
        >>> m.summary["conditions"][0]["debiased"]["estimate"], m.summary["comparisons"][0]["p_value"]  # doctest: +SKIP
    """
    model.require("logprobs", "Comparing labels")
    if not conditions or len(set(conditions)) < len(conditions) or not set(conditions) <= set(CONDITIONS):
        raise InputError(f"The conditions are {list(conditions)}.", f"Give some of {', '.join(CONDITIONS)}, each once.")
    if task not in ("first", "last"):
        raise InputError(f"The task {task!r} is unknown.", "Ask for 'first' or 'last'.")
    if len({trial.id for trial in trials}) < max(2, len(trials)):
        raise InputError(f"{len(trials)} trials are too few, or share an id.", "Give 2 or more with distinct ids.")
    if "retrieved" in conditions and retrieve is None:
        raise InputError("The condition 'retrieved' has no retriever.", "Give retrieve=, a function from a trial to a text.")
    texts: dict[str, Callable[[OrderTrial], str | None]] = {
        "in_context": lambda trial: trial.excerpt,
        "from_memory": lambda trial: None,
        "shuffled": lambda trial: trial.shuffled(seed),
        "retrieved": lambda trial: retrieve(trial) if retrieve else None,
    }
    asked = [(condition, trial) for condition in conditions for trial in trials]
    prompts = [
        prompt.fill(trial, text, earlier_is_a, task)
        for condition, trial in asked
        for text in (texts[condition](trial),)
        for earlier_is_a in (True, False)
    ]
    logprobs, hits = label_logprobs(model, prompts, prompt.answer, together=2, progress=progress)
    margins = np.diff(logprobs, axis=1)[:, 0].reshape(-1, 2)  # ℓ(B) − ℓ(A), one column an order of presentation
    sign = 1.0 if task == "first" else -1.0
    rows = []
    for (condition, trial), margin, hit in zip(asked, margins, hits.reshape(-1, 2, 2), strict=True):
        s = sign * float(margin[1] - margin[0]) / 2
        shown = 0 if trial.earlier_is_a else 1
        chosen = int(margin[shown] > 0)
        right = (chosen == 0) == (trial.earlier_is_a == (task == "first"))
        rows.append(
            {"id": trial.id, "book": trial.book, "condition": condition, "distance": trial.at[1] - trial.at[0]}
            | {"bin_low": float(trial.bin[0]), "bin_high": float(trial.bin[1]), "earlier_is_a": trial.earlier_is_a}
            | {"chosen": LABELS[chosen], "right": right, "s": s, "debiased": 0.5 + 0.5 * float(np.sign(s))}
            | {"in_reach": bool(hit[shown, chosen])}
        )
    table = pl.DataFrame(rows, infer_schema_length=None)
    provenance = {
        "model": model.describe(),
        "trials": len(trials),
        "books": sorted({trial.book for trial in trials}),
        "excerpt_words": sorted({len(trial.words) for trial in trials}),
        "segment_words": sorted({trial.segment_words for trial in trials}),
        "prompt": asdict(prompt),
        "task": task,
        "seed": seed,
        "environment": environment(),
    }
    return Measurement("order_recall", table, order_summary(table, seed=seed), plain(provenance))


def order_summary(table: pl.DataFrame, *, seed: int = 0) -> dict[str, Any]:
    """The figures of a table of `measure_order`, as plain JSON types."""
    conditions, right = [], {}
    for (condition,), rows in table.group_by("condition", maintain_order=True):
        said_a = int((rows["chosen"] == "A").sum())
        right[str(condition)] = (rows.sort("id")["s"] > 0).to_numpy()
        conditions.append(
            {
                "condition": condition,
                "n": rows.height,
                "raw": wilson_interval(int(rows["right"].sum()), rows.height)._asdict(),
                "debiased": bootstrap_interval(rows["debiased"].to_numpy(), seed=seed)._asdict(),
                "ties": int((rows["s"] == 0).sum()),
                "said_a": wilson_interval(said_a, rows.height)._asdict(),
                "in_reach": float(rows["in_reach"].to_numpy().mean()),
                "by_bin": rows.group_by("bin_low", "bin_high")
                .agg(n=pl.len(), raw=pl.col("right").mean(), debiased=pl.col("debiased").mean())
                .sort("bin_low")
                .to_dicts(),
            }
        )
    first, *others = right
    tests = [replace(mcnemar(right[first], right[other]), first=first, second=other) for other in others]
    corrected: list[float] = holm([test.p_value for test in tests]).tolist() if tests else []
    comparisons = [replace(test, adjusted=p).to_dict() for test, p in zip(tests, corrected, strict=True)]
    return dict(plain({"conditions": conditions, "comparisons": comparisons}))


def choose_prompt(
    model: LanguageModel, trials: Sequence[OrderTrial], prompts: Sequence[OrderPrompt] = PROMPTS, *, task: str = "first"
) -> OrderPrompt:
    """The wording with the best debiased accuracy in context; the first of equally good ones. The trials are spent: measure on others.

    Raises:
        InputError: no prompts; and what `measure_order` raises.
    """
    if not prompts:
        raise InputError("There is no prompt to choose from.", "Give at least one.")
    found = [
        measure_order(model, trials, ("in_context",), prompt=prompt, task=task).table["debiased"].to_numpy().mean() for prompt in prompts
    ]
    return prompts[int(np.argmax(found))]


def label_logprobs(
    model: LanguageModel, prompts: Sequence[str], answer: str, *, together: int = 1, progress: Progress | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each label behind each prompt, float64 (prompts, 2), and whether it is the likeliest token, bool.

    Args:
        model: needs "logprobs".
        prompts: each ends with `answer`.
        answer: what the label follows, without a space behind it.
        together: so many prompts after one another begin alike, and are read once up to where they part.
        progress: called with (rows scored, rows in all).

    Raises:
        InputError: the labels are not one token each behind what they have in common.
        ContextOverflowError: a prompt with its label does not fit.
    """
    encode = model.tokenizer.encode_batch
    a, b = ([list(ids) for ids in encode([f"{prompt} {label}" for prompt in prompts])] for label in LABELS)
    for prompt, one, other in zip(prompts, a, b, strict=True):
        if len(one) != len(other) or one[:-1] != other[:-1] or one[-1] == other[-1] or not prompt.endswith(answer):
            raise InputError(
                f"Behind {answer!r} this tokenizer does not make one token of each of the labels {LABELS}.", "Give another answer prefix."
            )
    longest = max(map(len, a))
    if longest > model.room:
        raise ContextOverflowError(
            f"A prompt of {longest} tokens does not fit the {model.room} tokens of {model.name!r}.", "Build trials with shorter excerpts."
        )
    groups = [slice(begin, begin + together) for begin in range(0, len(prompts), together)]
    labels = [[one[-1], other[-1]] for one, other in zip(a, b, strict=True)]
    found = score_choices(model, [[ids[:-1] for ids in a[part]] for part in groups], [labels[part] for part in groups], progress=progress)
    return np.concatenate([logprobs for logprobs, _ in found]), np.concatenate([hits for _, hits in found])
