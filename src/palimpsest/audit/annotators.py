"""Annotators of what a model wrote: a label, what it rests on, and how sure it is.

An annotator is any callable from `Output` to `Annotation`; labels that need a reader (factual errors, fallacies) are the user's own. The
built-in ones are automatic: personal data, repetition, and drift away from the prompt, as in the labels of de Wynter et al., Natural
Language Processing Journal 2023, arXiv 2304.08637. Departure: drift compares tokens weighted by their rarity in the corpus, not
sentence embeddings, so that it needs no further model. Personal data is found by patterns: it is a floor, not a census.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from palimpsest.corpus import CorpusIndex
from palimpsest.tokenizer import Tokenizer


@dataclass(frozen=True)
class Output:
    """What a model wrote: the prompt and the text, as ids and as text."""

    prompt: np.ndarray
    ids: np.ndarray
    prompt_text: str
    text: str


@dataclass(frozen=True)
class Annotation:
    """What an annotator says of an output.

    Attributes:
        label: yes or no, or a figure.
        evidence: what it rests on, as one would show it.
        confidence: in [0, 1].
    """

    label: bool | float
    evidence: str = ""
    confidence: float = 1.0


Annotator = Callable[[Output], Annotation]

_PII = {
    "e-mail": re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b"),
    "IBAN": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
    "card": re.compile(r"\b\d(?:[ -]?\d){12,18}\b"),
    "phone": re.compile(r"(?<![\w+])(?<!\d[ .-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?|\d{2,4}[ .-])\d{3,4}[ .-]?\d{3,4}\b(?![ .-]?\d)"),
    "address": re.compile(
        r"\b(?:number )?\d{1,5}(?: in)?(?: [A-Z][\w'-]+){1,3} (?:Street|St\.|Road|Rd\.|Avenue|Ave\.|Lane|Square|Drive|Boulevard)"
    ),
}
_PII_CHECKS: dict[str, Callable[[str], bool]] = {"card": lambda text: luhn(text), "IBAN": lambda text: iban(text)}


def luhn(number: str) -> bool:
    """Whether the digits of `number` have a right check digit by Luhn's formula, as cards have.

    Example:
        >>> luhn("4111 1111 1111 1111"), luhn("4111 1111 1111 1112")
        (True, False)
    """
    digits = [int(c) for c in reversed(number) if c.isdigit()]
    doubled = [d if i % 2 == 0 else 2 * d - 9 * (d > 4) for i, d in enumerate(digits)]
    return bool(digits) and sum(doubled) % 10 == 0


def iban(number: str) -> bool:
    """Whether an account number has right check digits: moved to the end and letters as numbers, it is 1 modulo 97 (ISO 13616).

    Example:
        >>> iban("GB82 WEST 1234 5698 7654 32"), iban("GB83 WEST 1234 5698 7654 32")
        (True, False)
    """
    compact = number.replace(" ", "")
    return len(compact) >= 15 and int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def find_pii(text: str) -> list[tuple[str, str]]:
    """Personal data in a text, as (kind, text); cards and accounts only with right check digits; of overlapping finds the first kind.

    Example:
        >>> find_pii("Write to ann@example.org.")
        [('e-mail', 'ann@example.org')]
    """
    found: list[tuple[int, int, str]] = []
    for kind, pattern in _PII.items():
        for match in pattern.finditer(text):
            free = all(match.end() <= start or end <= match.start() for start, end, _ in found)
            if free and _PII_CHECKS.get(kind, lambda _: True)(match.group()):
                found.append((match.start(), match.end(), kind))
    return [(kind, text[start:end]) for start, end, kind in sorted(found)]


def pii_annotator(index: CorpusIndex, tokenizer: Tokenizer) -> Annotator:
    """Says whether an output holds personal data, and of each piece whether it stands in the corpus (leaked) or not (invented)."""

    def annotate_pii(output: Output) -> Annotation:
        found = find_pii(output.text)
        evidence = []
        for kind, text in found:
            known = any(index.count(tokenizer.encode(form)) for form in (text, f" {text}"))
            evidence.append(f"{kind}, {'leaked' if known else 'invented'}: {text}")
        return Annotation(bool(found), "; ".join(evidence))

    return annotate_pii


def degeneration(output: Output) -> Annotation:
    """How much of an output repeats itself: 1 − distinct 4-grams / 4-grams, 0 for fewer than 5 tokens."""
    if output.ids.size < 5:
        return Annotation(0.0)
    grams = np.lib.stride_tricks.sliding_window_view(output.ids, 4)
    distinct, counts = np.unique(grams, axis=0, return_counts=True)
    return Annotation(1.0 - len(distinct) / len(grams), f"one 4-gram stands {int(counts.max())} times")


def drift_annotator(index: CorpusIndex, n_words: int = 3) -> Annotator:
    """How far the last third of an output is from its prompt: 1 − cosine of their tokens' counts, each weighted by log(N / count).

    Args:
        index: the corpus, which says how rare a token is.
        n_words: outputs whose last third has fewer tokens are not judged (0, confidence 0).
    """
    values, counts = index.unigrams
    rarity = dict(zip(values.tolist(), np.log(index.n_tokens / counts).tolist(), strict=True))
    unknown = math.log(index.n_tokens + 1)

    def vector(ids: np.ndarray) -> dict[int, float]:
        tokens, times = np.unique(ids, return_counts=True)
        return {int(t): n * rarity.get(int(t), unknown) for t, n in zip(tokens, times, strict=True)}

    def annotate_drift(output: Output) -> Annotation:
        tail = output.ids[-(output.ids.size // 3) :] if output.ids.size >= 3 else output.ids[:0]
        if tail.size < n_words or output.prompt.size == 0:
            return Annotation(0.0, "too short", 0.0)
        a, b = vector(output.prompt), vector(tail)
        norms = math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
        cosine = sum(v * b.get(t, 0.0) for t, v in a.items()) / norms if norms else 0.0
        return Annotation(1.0 - cosine)

    return annotate_drift


def annotate(outputs: Sequence[Output], annotators: Mapping[str, Annotator]) -> pl.DataFrame:
    """One row an output: for every annotator its label, and its evidence and confidence as `<name>_evidence`, `<name>_confidence`."""
    rows = []
    for output in outputs:
        row: dict[str, Any] = {}
        for name, annotator in annotators.items():
            found = annotator(output)
            row |= {name: found.label, f"{name}_evidence": found.evidence, f"{name}_confidence": found.confidence}
        rows.append(row)
    return pl.DataFrame(rows)
