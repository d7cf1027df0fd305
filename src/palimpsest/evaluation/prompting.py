"""The one prompt of a protocol run: a template with an evidence slot that always has the same number of tokens.

A model's answers depend on the length and the shape of the prompt. So that settings differ in the evidence and in nothing else, the slot is
filled *token-exactly*: passages in the order of their rank, whole ones only, the rest with a fixed neutral filler; without evidence, filler
alone. A passage that does not fit is left out, and said so. The parts are encoded one by one and joined as ids, so that no
token spans a join, and no special token stands in the middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from palimpsest.errors import ContextOverflowError, InputError
from palimpsest.evaluation.retrieval import Passage
from palimpsest.files import sha256_json
from palimpsest.models import Sampler
from palimpsest.models.base import GREEDY
from palimpsest.tokenizer import Tokenizer

_FILLER = "This line says nothing about the question.\n"


@dataclass(frozen=True)
class Budget:
    """What every setting may use.

    Attributes:
        evidence_tokens: the evidence slot, exactly.
        answer_tokens: the most tokens of an answer.
        k: documents that are asked of a retriever.

    Raises:
        InputError: a number below 1.
    """

    evidence_tokens: int = 256
    answer_tokens: int = 16
    k: int = 4

    def __post_init__(self) -> None:
        for name in ("evidence_tokens", "answer_tokens", "k"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}.", "Give at least 1.")


@dataclass(frozen=True)
class Template:
    """The prompt, and how answers are read.

    Attributes:
        text: with `{evidence}` and, after it, `{question}`, once each.
        filler: neutral text for what the evidence leaves of its slot.
        separator: between passages.
        stop: an answer ends before the first of these.
        answer_prefix: what stands between the prompt and an answer when an answer is scored.
        sampler: how answers are decoded.
        rule: when an answer is right, see `palimpsest.evaluation.answers`.

    Raises:
        InputError: a slot that is missing, doubled or in the wrong order, or no filler.
    """

    text: str = "{evidence}\nQuestion: {question}\nAnswer:"
    filler: str = _FILLER
    separator: str = "\n"
    stop: tuple[str, ...] = ("\n",)
    answer_prefix: str = " "
    sampler: Sampler = GREEDY
    rule: str = "exact"

    def __post_init__(self) -> None:
        counts = [self.text.count(slot) for slot in ("{evidence}", "{question}")]
        if counts != [1, 1] or self.text.index("{evidence}") > self.text.index("{question}"):
            raise InputError(
                f"The template {self.text!r} has these slots: {counts}.", "Give {evidence} once and, after it, {question} once."
            )
        if not self.filler:
            raise InputError("The filler is empty.", "Give a neutral text.")

    @property
    def hash(self) -> str:
        """SHA-256 of all that it says."""
        return sha256_json([self.text, self.filler, self.separator, list(self.stop), self.answer_prefix, str(self.sampler), self.rule])

    def cut(self, answer: str) -> str:
        """An answer up to the first stop, without space around it."""
        kept = answer.lstrip()  # a model may open with the separator
        for stop in self.stop:
            kept = kept.split(stop, 1)[0]
        return kept.strip()


@dataclass(frozen=True)
class Prompt:
    """A prompt as ids int64 (T,), the ids of the documents shown and of those that did not fit, and the tokens of evidence in the slot."""

    ids: np.ndarray
    shown: tuple[str, ...]
    dropped: tuple[str, ...]
    evidence_tokens: int


class PromptMaker:
    """Makes prompts of one template for one tokenizer.

    Args:
        tokenizer: the model's.
        template, budget: see there.
        room: the most tokens that the model can see, None where it is not known.

    Raises:
        InputError: a filler without tokens.
        ContextOverflowError: an evidence slot that leaves no room for an answer.

    Example:
        >>> maker = PromptMaker(model.tokenizer, Template(), Budget())          # doctest: +SKIP
        >>> len(maker.make("Who?", [])) == len(maker.make("Who?", passages))    # doctest: +SKIP
        True
    """

    def __init__(self, tokenizer: Tokenizer, template: Template, budget: Budget, room: int | None = None) -> None:
        if room is not None and budget.evidence_tokens + budget.answer_tokens > room:  # before a slot of that size is filled
            raise ContextOverflowError(
                f"{budget.evidence_tokens:,} tokens of evidence and {budget.answer_tokens:,} of an answer; the model sees {room:,}.",
                "Lower evidence_tokens or answer_tokens.",
            )
        self.tokenizer, self.template, self.budget = tokenizer, template, budget
        before, after = template.text.split("{evidence}")
        self._before = tokenizer.encode(before) if before else []
        self._after = after
        self._separator = tokenizer.encode(template.separator) if template.separator else []
        filler = tokenizer.encode(template.filler)
        if not filler:
            raise InputError(f"The filler {template.filler!r} has no tokens.", "Give a text that this tokenizer knows.")
        self._filler = np.resize(np.array(filler, np.int64), budget.evidence_tokens)

    def make(self, question: str, passages: Sequence[Passage]) -> Prompt:
        """The prompt for a question with the passages that fit, in their order."""
        room = self.budget.evidence_tokens
        slot: list[int] = []
        shown, dropped = [], []
        for passage in passages:
            piece = self.tokenizer.encode(passage.doc.text) + self._separator
            if len(slot) + len(piece) <= room:
                slot += piece
                shown.append(passage.doc.id)
            else:
                dropped.append(passage.doc.id)
        rest = self.tokenizer.encode(self._after.replace("{question}", question))
        filler = self._filler[: room - len(slot)]
        ids = np.concatenate([np.array(part, np.int64) for part in (self._before, slot, filler, rest)])
        return Prompt(ids, tuple(shown), tuple(dropped), len(slot))
