"""Claim check of sequence order recall: the text in the context says which segment came first, training alone hardly does.

Pink et al. 2024, arXiv 2410.08133, L_E = 250 and L_S = 20 words. Checked:

* the harness: a reader of the excerpt is always right, on shuffled excerpts in 45 to 55 % of 400 trials, and one who always says A in
  exactly half (of 400 throws of a fair coin 4.6 % lie outside that band, so one run in twenty fails there by chance alone);
* SmolLM2-135M-Instruct on 100 trials of the benchmark's own books ($PALIMPSEST_DATA/booksort-gutenberg; without them, of the shipped
  novels' held-out chapters): debiased accuracy in context less that from memory is above 0; McNemar's p is reported. A model of 135
  million parameters may be at chance in context, and then, as the specification has it, this is reported and the next part decides;
* a small model that was trained on the task (`book_sort_lab`): it recites at least 90 % of 40 sequences, tells the order of segments of
  fresh sequences in its context in at least 85 % of trials, and that of the recited ones from memory in at most 65 %.

The thresholds are those of the specification, written down before any run. The prompt is the first of `PROMPTS`: on 200 trials of seed 100
the model says A whatever it is asked, and is at chance in context with all three (debiased .515, .46, .465; from memory .525, .585, .555).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.evaluation.order_recall import measure_order
from palimpsest.evaluation.order_trials import OrderTrial, build_trials
from palimpsest.experiments.book_sort_lab import SortLabConfig, laboratory
from palimpsest.experiments.claim import Check, Claim, decides
from palimpsest.experiments.planted_texts import base_text, train_tokenizer
from palimpsest.measurement import Measurement
from palimpsest.models import LanguageModel, load_model
from palimpsest.models.base import Scores
from palimpsest.tokenizer import Tokenizer

STATEMENT = (
    "Models tell which of two passages came first when the text is in the context, but stay near chance when they have only been trained "
    "on it."
)
MODEL = "smollm2-135m"
EXCERPT, SEGMENT = 250, 20
HARNESS, TRIALS = 400, 100
CPU, SMOKE = SortLabConfig(), SortLabConfig(recited=4, steps=2, width=16, layers=1, heads=2, trials=40)


class OrderReader(LanguageModel):
    """Prefers the label of the segment that stands first in what precedes "Here are two segments" (last, if asked for the last).

    Args:
        tokenizer: its tokenizer.
        reads: whether it looks; one that does not has no preference but `prior`.
        prior: log-odds added to A.
    """

    name, door, capabilities, parameters, prepends_bos = "order reader", "scripted", frozenset({"logprobs"}), None, False
    context_length, fingerprint = 1 << 20, "0" * 64

    def __init__(self, tokenizer: Tokenizer, *, reads: bool = True, prior: float = 0.0) -> None:
        self.tokenizer, self.reads, self.prior = tokenizer, reads, prior

    def generate(self, *arguments: Any, **options: Any) -> Any:
        """It writes nothing."""
        raise self.lacks("text", "Writing")

    def score(self, batch_ids: Any, **options: Any) -> Scores:
        """Of every row the log-probability of its last id alone."""
        values = [self.prefers(self.tokenizer.decode(ids)) for ids in batch_ids]
        return Scores([np.array([value], np.float32) for value in values], [np.array([value > -1.5]) for value in values])

    def prefers(self, text: str) -> float:
        """Log-probability of the label that ends a prompt."""
        label = text[-1]
        excerpt, _, asked = text.partition("Here are two segments")
        a, b = (excerpt.find(asked.split(f"Segment {name}: ")[1].split("\n")[0]) for name in "AB")
        wanted = None
        if self.reads and a >= 0 and b >= 0:
            wanted = "A" if (a < b) == ("appears first" in asked) else "B"
        return -2.0 + (label == wanted) + self.prior * (label == "A")


def run(scale: str, seed: int) -> Claim:
    """Builds the trials, asks the scripted readers, the laboratory and the model (both made or fetched at first use).

    Args:
        scale: "smoke": the scripted readers on 80 trials, their accuracy on shuffled excerpts only reported, and a laboratory that has
            learnt next to nothing; "cpu".
        seed: of the trials and of the laboratory.

    Raises:
        InputError: the scale "gpu", which this experiment does not have.
    """
    full = decides(scale)
    source, texts = books()
    harness = build_trials(texts, EXCERPT, SEGMENT, HARNESS if full else 80, seed=seed)
    checks = harness_checks(train_tokenizer(1024), harness, held=full)
    notes = [f"Trials from {len({trial.book for trial in harness})} books: {source}."]
    held, rows = laboratory(replace(CPU if full else SMOKE, seed=seed))
    checks += held if full else [replace(check, threshold=None) for check in held]
    if full:
        measured = measure_order(load_model(MODEL), build_trials(texts, EXCERPT, SEGMENT, TRIALS, seed=seed + 1000), seed=seed)
        asked = model_checks(measured)
        checks += asked
        rows = [*measured.summary["conditions"], *rows]
        notes.append(f"McNemar, from memory against in context: {measured.summary['comparisons'][0]}.")
        if asked[0].threshold is None:
            notes.append("SmolLM2 is at chance in context (its interval holds 0.5): the laboratory's model decides.")
    return Claim("book-sort", STATEMENT, checks, rows, seed, scale, notes)


def books() -> tuple[str, dict[str, str]]:
    """Where the books are from, and title -> text: the benchmark's own, or the shipped novels' held-out chapters."""
    folder = Path(os.environ.get("PALIMPSEST_DATA") or "") / "booksort-gutenberg"
    paths = sorted(folder.glob("*-0.txt")) if os.environ.get("PALIMPSEST_DATA") else []
    if paths:
        return "the benchmark's own", {path.name.removesuffix("-0.txt"): path.read_text(encoding="utf-8") for path in paths}
    return "the shipped novels", {"Novels": "\n\n".join(base_text().held_out)}


def harness_checks(tokenizer: Tokenizer, trials: Sequence[OrderTrial], *, held: bool) -> list[Check]:
    """The scripted readers' accuracies; `held`: whether that on shuffled excerpts is held against its band."""
    reader = measure_order(OrderReader(tokenizer), trials, ("in_context", "shuffled"))
    constant = measure_order(OrderReader(tokenizer, reads=False, prior=1.0), trials, ("in_context",))
    read, shuffled = (row["raw"]["estimate"] for row in reader.summary["conditions"])
    said_a = constant.summary["conditions"][0]["raw"]["estimate"]
    low, high = (0.45, 0.55) if held else (None, None)
    return [
        Check("accuracy of a reader of the excerpt", read, "==", 1.0, unit="share"),
        Check("its accuracy on shuffled excerpts, at least", shuffled, ">=", low, unit="share"),
        Check("its accuracy on shuffled excerpts, at most", shuffled, "<=", high, unit="share"),
        Check("accuracy of one who always says A", said_a, "==", 0.5, unit="share"),
    ]


def model_checks(measured: Measurement) -> list[Check]:
    """The model's gain by the context, held against 0 unless it is at chance in context, and what is reported beside it."""
    context, memory = measured.summary["conditions"]
    gain = context["debiased"]["estimate"] - memory["debiased"]["estimate"]
    at_chance = context["debiased"]["low"] <= 0.5 <= context["debiased"]["high"]
    return [
        Check("debiased accuracy in context less that from memory", gain, ">", None if at_chance else 0, unit="share"),
        Check("debiased accuracy in context", context["debiased"]["estimate"], baseline=0.5, unit="share"),
        Check("debiased accuracy from memory", memory["debiased"]["estimate"], baseline=0.5, unit="share"),
        Check("raw accuracy in context", context["raw"]["estimate"], baseline=0.5, unit="share"),
        Check("share of the answer A in context", context["said_a"]["estimate"], baseline=0.5, unit="share"),
        Check("p of McNemar's test", measured.summary["comparisons"][0]["p_value"], unit="p"),
    ]
