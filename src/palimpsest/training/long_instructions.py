"""Questions about long documents that a model asks itself, answers, and answers alike when asked again.

The instruction data of Xiong et al., *Effective Long-Context Scaling of Foundation Models*, NAACL 2024, arXiv 2309.16039, section 4.3:
question and answer are generated from a random piece of a long document, the model checks its own answer, and what is trained on is the
whole document with the question behind it, the loss being taken on that long prompt as well as on the answer.

Departure: the check is that a second, independent answer to the question is the same text; the paper's prompt for it is not published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from palimpsest.errors import InputError
from palimpsest.models.base import LanguageModel

ASK = "{piece}\n\nA question about this text, and its short answer.\nQuestion:"
ANSWER = "{piece}\n\nQuestion: {question}\nAnswer:"


@dataclass(frozen=True)
class LongInstruction:
    """A question about a long document.

    Attributes:
        prompt: the document and the question; the loss is taken on it, too.
        answer: the model's, the same when asked twice.
        piece: what of the document it was asked about.
    """

    prompt: str
    answer: str
    piece: str


def self_instruct_long(
    documents: Sequence[str], model: LanguageModel, *, piece_tokens: int = 256, new_tokens: int = 48, ask: str = ASK, seed: int = 0
) -> list[LongInstruction]:
    """Questions that a model asks itself about random pieces of long documents; kept are those that it answers alike when asked again.

    Args:
        documents: long texts.
        model: needs "text"; a chat model, its template being part of `ask`.
        piece_tokens: of a piece; new_tokens: the most written.
        ask: what the model goes on from, with {piece}; it writes "question\\nAnswer: answer".
        seed: of the pieces.

    Returns:
        At most one a document.

    Raises:
        InputError: no document.
    """
    model.require("text", "Writing questions")
    if not documents:
        raise InputError("There is no document.", "Give at least one.")
    rng, tokenizer = np.random.default_rng(seed), model.tokenizer
    pieces = []
    for document in documents:
        ids = tokenizer.encode(document)
        start = int(rng.integers(max(1, len(ids) - piece_tokens + 1)))
        pieces.append(tokenizer.decode(ids[start : start + piece_tokens]))
    written = model.generate([tokenizer.encode(ask.format(piece=piece)) for piece in pieces], new_tokens)
    asked = []
    for document, piece, (answered,) in zip(documents, pieces, written, strict=True):
        question, found, rest = tokenizer.decode(answered.tolist()).strip().partition("\nAnswer:")
        answer = rest.strip().split("\n", 1)[0].strip()
        if found and question and "\n" not in question and answer:
            asked.append((document, piece, question, answer))
    if not asked:
        return []
    again = model.generate([tokenizer.encode(ANSWER.format(piece=piece, question=q)) for _, piece, q, _ in asked], new_tokens)
    kept = []
    for (document, piece, question, answer), (answered,) in zip(asked, again, strict=True):
        second = tokenizer.decode(answered.tolist()).strip().split("\n", 1)[0].strip()
        if second.casefold().rstrip(".") == answer.casefold().rstrip("."):
            kept.append(LongInstruction(f"{document}\n\nQuestion: {question}\nAnswer:", answer, piece))
    return kept
