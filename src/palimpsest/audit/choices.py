"""Questions with given answers, put to a language model by the log-probability of each answer.

As in the language model evaluation harness (Gao et al.) that Li & Lee, 2024, arXiv 2401.03129, use for ARC, HellaSwag, MMLU and TruthfulQA:

    score(o) = Σ_t log p(o_t | question, o_<t),   chosen = argmax_o score(o)  or, "per byte", argmax_o score(o) / bytes(o).

Several answers may be right (TruthfulQA). mc1 is then whether the best is one of them; mc2 is the share of probability that all right
ones have among all answers, Σ_right exp score / Σ exp score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from palimpsest.errors import InputError
from palimpsest.models.base import LanguageModel


@dataclass(frozen=True)
class Choice:
    """A question.

    Attributes:
        question: what stands before the answer, examples of the few-shot setting included.
        options: the answers, with the blank before them where there is one.
        right: the numbers of the right ones, at least one and not all.
    """

    question: str
    options: tuple[str, ...]
    right: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        known = set(self.right) & set(range(len(self.options)))
        if not len(known) == len(self.right) > 0 or len(known) == len(self.options) or not all(self.options):
            raise InputError(
                f"{len(self.options)} answers, of which {list(self.right)} are right, make no choice.",
                "Give answers that are not empty, at least one right and one wrong.",
            )


def answer_choices(model: LanguageModel, items: Sequence[Choice], ask: Callable[[str], Sequence[int]] | None = None) -> pl.DataFrame:
    """How a model answers.

    Args:
        model: with log-probabilities.
        items: at least one.
        ask: question -> ids, for a chat model its template; by default the tokenizer's encoding.

    Returns:
        One row an item: item, chosen, chosen_per_byte, correct (mc1), correct_per_byte, mc2.

    Raises:
        InputError: no items, or an answer that has no token.
        CapabilityError: a door without log-probabilities.

    Example:
        >>> answer_choices(model, [Choice("The sea is", (" wet", " dry"))])["correct"].mean()   # doctest: +SKIP
    """
    if not items:
        raise InputError("There are no questions.", "Give at least one Choice.")
    encode = model.tokenizer.encode
    rows, starts, places = [], [], []
    for number, item in enumerate(items):
        question = list((ask or encode)(item.question))
        for option in item.options:
            answer = list(encode(option))
            if not answer or not question:
                raise InputError(f"Question {number} or its answer {option!r} has no token.", "Give text that the tokenizer knows.")
            rows.append(np.array([*question, *answer], np.int64))
            starts.append(len(question))
            places.append(number)
    found = model.score(rows, start=starts).logprobs
    totals = np.array([float(np.sum(logprobs, dtype=np.float64)) for logprobs in found])
    ends = np.searchsorted(places, np.arange(len(items) + 1))
    table = []
    for number, item in enumerate(items):
        scores = totals[ends[number] : ends[number + 1]]
        per_byte = scores / [len(option.encode()) for option in item.options]
        shares = np.exp(scores - scores.max())
        chosen, normed = int(scores.argmax()), int(per_byte.argmax())
        table.append(
            {"item": number, "chosen": chosen, "chosen_per_byte": normed, "correct": chosen in item.right}
            | {"correct_per_byte": normed in item.right, "mc2": float(shares[list(item.right)].sum() / shares.sum())}
        )
    return pl.DataFrame(table)
