"""Copyright traps, planted: which trap goes into which document how often, and a manifest that undoes it (arXiv 2402.09363).

Of every 1 + M traps of the same length and bucket of perplexity one, drawn by lot, is planted and M siblings are kept back. The lot
is what makes detection exact: had the model never seen the trap, the planted one could have been any of the group.

A trap goes into one document, `n_rep` times, at random distinct places, each in front of a word. Words are what stands between spaces,
so no word is ever cut. A copy is the trap and one space:

    length(new) = length(old) + n_rep (length(trap) + 1)        in characters, where the copies are exact

The authors' script leaves the space out, so that the trap runs into the next word. Documents are chosen by lot among those of at least
`min_words` words (5,000 tokens of the paper are about 4,000 English words; words need no tokenizer). Within every length and bucket
the numbers of copies are equally frequent.

Trainers who remove repeated passages remove exact copies. With `fuzzy` = k, in every copy k words of the trap, drawn anew, give way to
words drawn from the document, so that no long stretch is repeated [ours]. What is looked for later is still the trap itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.audit.traps import Trap, TrapSet, read_json
from palimpsest.errors import CorpusError, InputError
from palimpsest.files import write_json

COPIES = (1, 10, 100, 1000)
FORMAT = "palimpsest-traps/1"


@dataclass(frozen=True)
class Planting:
    """One planted trap.

    Attributes:
        trap: what was planted.
        document: number of the document.
        spans: (start, end) in characters of every copy with its space, in the new document, ascending.
        siblings: the traps of its group that were never planted.
        variants: the text of every copy, where the copies are fuzzy; empty where all are the trap.
    """

    trap: Trap
    document: int
    spans: list[tuple[int, int]]
    siblings: list[Trap]
    variants: list[str] = field(default_factory=list)

    @property
    def copies(self) -> int:
        """How often it was planted."""
        return len(self.spans)


@dataclass(frozen=True)
class Manifest:
    """What was planted where: keep it secret, it is the proof and the key to remove the traps.

    Attributes:
        plantings: one a planted trap.
        seed: of the lots.
        traps: provenance of the set of traps.
    """

    plantings: list[Planting]
    seed: int
    traps: dict[str, Any]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the manifest as JSON, atomically."""
        write_json(path, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Manifest:
        """Reads what `save` wrote.

        Raises:
            CorpusError: no such file, or one that is not a manifest.
        """
        value = read_json(Path(path), "palimpsest traps inject")
        try:
            if value["format"] != FORMAT:
                raise ValueError(f"its format is {value['format']!r}")
            plantings = [
                Planting(
                    Trap.from_dict(row["trap"]),
                    int(row["document"]),
                    [(int(start), int(end)) for start, end in row["spans"]],
                    [Trap.from_dict(sibling) for sibling in row["siblings"]],
                    [str(variant) for variant in row["variants"]],
                )
                for row in value["plantings"]
            ]
            return cls(plantings, int(value["seed"]), value["traps"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorpusError(f"{path} is not a manifest: {error!r}.", "Give what `palimpsest traps inject` wrote.") from error


def inject(
    documents: Sequence[str],
    traps: TrapSet,
    copies: Sequence[int] = COPIES,
    *,
    siblings: int = 1,
    min_words: int = 4000,
    fuzzy: int = 0,
    seed: int = 0,
) -> tuple[list[str], Manifest]:
    """Plants traps into documents.

    Args:
        documents: texts; those that get no trap come back as they are.
        traps: of every length and bucket a multiple of (1 + siblings) · len(copies).
        copies: how often a trap may be planted.
        siblings: traps kept back for every planted one, at least 1: without them nothing can be proved later.
        min_words: a document with fewer words gets no trap.
        fuzzy: words of every copy that are replaced; 0 plants exact copies.
        seed: of all lots.

    Returns:
        The new documents, in the old order, and the manifest.

    Raises:
        InputError: numbers out of range, traps that cannot be shared out equally, fewer long documents than traps, a document with
            fewer words than copies, or a trap that has no more words than are to be replaced.

    Example:
        >>> from palimpsest.audit.traps import Trap
        >>> two = TrapSet([Trap("a", "red salt", 2, (1, 11), 5.0), Trap("b", "blue corn", 2, (1, 11), 6.0)])
        >>> new, manifest = inject(["one two three"], two, (2,), min_words=3, seed=1)
        >>> remove(new, manifest)
        ['one two three']
    """
    levels = list(copies)
    if not levels or min(levels) < 1 or len(set(levels)) != len(levels) or siblings < 1 or min_words < 1 or fuzzy < 0:
        raise InputError(
            f"copies {levels}, siblings {siblings}, min_words {min_words}, fuzzy {fuzzy}.",
            "Give distinct numbers of copies, all numbers at least 1 (fuzzy: at least 0).",
        )
    rng = np.random.default_rng((seed, 8))
    chosen: list[tuple[Trap, int, list[Trap]]] = []
    for (length, bucket), members in groupby(sorted(traps.traps, key=_kind), key=_kind):
        cell = list(members)
        groups, rest = divmod(len(cell), 1 + siblings)
        if rest or groups % len(levels):
            raise InputError(
                f"{len(cell)} traps of {length} tokens in the bucket {list(bucket)} cannot be shared out equally over {len(levels)} "
                f"numbers of copies with {siblings} siblings each.",
                f"Make a multiple of {(1 + siblings) * len(levels)}.",
            )
        order = rng.permutation(len(cell)).reshape(groups, 1 + siblings)
        repeated = rng.permutation(np.repeat(levels, groups // len(levels)))
        chosen += [(cell[row[0]], int(times), [cell[i] for i in row[1:]]) for row, times in zip(order, repeated, strict=True)]
    if not chosen:
        raise InputError("The set holds no trap.", "Make some with `palimpsest traps make`.")
    places = np.array([text.count(" ") + 1 for text in documents], dtype=np.int64)
    eligible = np.flatnonzero(places >= min_words)
    if len(chosen) > len(eligible):
        raise InputError(
            f"{len(chosen)} traps are to be planted, but only {len(eligible)} of {len(documents)} documents have {min_words} words.",
            "Give more documents, fewer traps, or a smaller min_words.",
        )
    out, plantings = list(documents), []
    for (trap, times, kept_back), document in zip(chosen, rng.permutation(eligible)[: len(chosen)].tolist(), strict=True):
        if times > places[document]:
            raise InputError(
                f"Document {document} has room for {places[document]} copies, {times} were drawn for it.",
                "Raise min_words to the greatest number of copies, or plant fewer.",
            )
        variants = _variants(trap, documents[document], times, fuzzy, rng) if fuzzy else []
        out[document], spans = _inject(documents[document], variants or [trap.text] * times, rng)
        plantings.append(Planting(trap, document, spans, kept_back, variants))
    return out, Manifest(plantings, seed, traps.provenance)


def _kind(trap: Trap) -> tuple[int, tuple[float, float]]:
    """Traps of one kind can stand for each other."""
    return trap.length, trap.bucket


def _variants(trap: Trap, text: str, times: int, fuzzy: int, rng: np.random.Generator) -> list[str]:
    """`times` texts of the trap with `fuzzy` words each replaced by other words of the document."""
    words = trap.text.split(" ")
    others = sorted(set(text.split()).difference(words))
    if len(words) <= fuzzy or not others:
        raise InputError(
            f"{trap.id} has {len(words)} words, of which {fuzzy} are to be replaced by other words of its document ({len(others)}).",
            "Make longer traps, or replace fewer words.",
        )
    out = []
    for _ in range(times):
        changed = list(words)
        for place in rng.permutation(len(words))[:fuzzy].tolist():
            changed[place] = others[int(rng.integers(len(others)))]
        out.append(" ".join(changed))
    return out


def _inject(text: str, copies: list[str], rng: np.random.Generator) -> tuple[str, list[tuple[int, int]]]:
    """The text with each copy in front of a word of its own, and the spans of the copies, the space behind them included."""
    words = text.split(" ")
    at = np.sort(rng.permutation(len(words))[: len(copies)]).tolist()
    begins = np.concatenate([[0], np.cumsum([len(word) + 1 for word in words])])
    spans, added = [], 0
    for word, copy in zip(at, copies, strict=True):
        words[word] = f"{copy} {words[word]}"
        start = int(begins[word]) + added
        added += len(copy) + 1
        spans.append((start, start + len(copy) + 1))
    return " ".join(words), spans


def remove(documents: Sequence[str], manifest: Manifest) -> list[str]:
    """The documents without their traps: exactly what was given to `inject`.

    Raises:
        InputError: a document that is missing, or that has changed where a trap should stand.
    """
    out = list(documents)
    for planting in manifest.plantings:
        text = _document(documents, planting)
        kept, last = [], 0
        written = planting.variants or [planting.trap.text] * planting.copies
        for (start, end), copy in zip(planting.spans, written, strict=True):
            if text[start:end] != f"{copy} ":
                raise InputError(
                    f"Document {planting.document} has {text[start:end]!r} where the manifest has {planting.trap.id}.",
                    "Give the documents as `inject` returned them.",
                )
            kept.append(text[last:start])
            last = end
        out[planting.document] = "".join(kept) + text[last:]
    return out


def context_of(documents: Sequence[str], planting: Planting, copy: int) -> str:
    """What stands before one copy of a trap, the other copies removed and the last space too."""
    text = _document(documents, planting)
    kept, last = [], 0
    for start, end in planting.spans[: copy + 1]:
        kept.append(text[last:start])
        last = end
    return "".join(kept).removesuffix(" ")


def _document(documents: Sequence[str], planting: Planting) -> str:
    if not 0 <= planting.document < len(documents):
        raise InputError(
            f"The manifest speaks of document {planting.document}, {len(documents)} were given.", "Give all documents in their order."
        )
    return documents[planting.document]
