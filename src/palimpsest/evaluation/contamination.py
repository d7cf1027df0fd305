"""Where answers leak: looked for before anything is scored (system 104, section B).

Three kinds of leak, each an item and a document:

* **time**: the declared evidence was published after the day on which the item is asked, or training documents were (named by the last);
* **text**: a document of the snapshot that is not declared evidence holds the whole question, or 13 words in a row of the question with
  its answer;
* **duplicate**: a training document is nearly the item (question with answer): Jaccard similarity of their 5-word shingles at least 0.8,
  candidates by MinHash (`palimpsest.corpus.minhash`), all of them verified exactly.

What happens then is a policy: ``raise`` (a `LeakError` that names them), ``exclude`` the items, or ``flag`` them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from palimpsest.corpus.minhash import band_keys, jaccard, sign_rows
from palimpsest.corpus.near_duplicates import banding
from palimpsest.corpus.word_ngrams import word_ngrams, words
from palimpsest.errors import InputError, LeakError
from palimpsest.evaluation.items import Item, require_items
from palimpsest.evaluation.retrieval import Doc

POLICIES = ("raise", "exclude", "flag")
_SHINGLE, _PERMUTATIONS = 5, 128


@dataclass(frozen=True)
class Leak:
    """One leak: its kind ("time", "text" or "duplicate"), the item, the document, and what was seen."""

    kind: str
    item: str
    doc: str
    detail: str


@dataclass(frozen=True)
class LeakReport:
    """The leaks of a run.

    Attributes:
        leaks: all of them, by kind, item and document.
        items, docs, training: how many were looked at.
        policy: what is done about them.
    """

    leaks: tuple[Leak, ...]
    items: int
    docs: int
    training: int
    policy: str

    @property
    def excluded(self) -> tuple[str, ...]:
        """Ids of the items that the policy takes out."""
        return tuple(sorted({leak.item for leak in self.leaks})) if self.policy == "exclude" else ()

    @property
    def counts(self) -> dict[str, int]:
        """How many leaks of each kind."""
        return {"time": 0, "text": 0, "duplicate": 0} | Counter(leak.kind for leak in self.leaks)

    def to_dict(self) -> dict[str, object]:
        """The report as plain JSON types."""
        return {
            "policy": self.policy,
            "counts": self.counts,
            "excluded": list(self.excluded),
            "looked_at": {"items": self.items, "docs": self.docs, "training": self.training},
            "leaks": [[leak.kind, leak.item, leak.doc, leak.detail] for leak in self.leaks],
        }


def audit_contamination(
    items: Sequence[Item],
    docs: Iterable[Doc] = (),
    training: Iterable[Doc] = (),
    *,
    policy: str = "raise",
    ngram: int = 13,
    similarity: float = 0.8,
    seed: int = 0,
) -> LeakReport:
    """Looks for the three kinds of leak.

    Args:
        items: the questions.
        docs: what a retriever may show.
        training: what the model was trained on, where that is known.
        policy: "raise", "exclude" or "flag".
        ngram: words in a row that a document may not share with an item.
        similarity: Jaccard similarity from which a training document is nearly the item.
        seed: of MinHash.

    Raises:
        LeakError: there are leaks and the policy is to raise.
        InputError: no items, an unknown policy, or numbers out of range.

    Example:
        >>> from datetime import date
        >>> item = Item("q", "Who leads Rome?", ("Ann",), date(2020, 1, 1), evidence_ids=frozenset({"d"}))
        >>> later = Doc("d", "Ann leads Rome", date(2021, 1, 1))
        >>> audit_contamination([item], [later], policy="flag").leaks[0].kind
        'time'
    """
    require_items(items)
    if policy not in POLICIES or ngram < 1 or not 0 < similarity <= 1:
        raise InputError(
            f"The policy is {policy!r}, the n-gram {ngram}, the similarity {similarity}.",
            f"Give one of {', '.join(POLICIES)}, at least 1 word, and a similarity in (0, 1].",
        )
    shown, learned = tuple(docs), tuple(training)
    leaks = [
        *_time_leaks(items, shown, learned),
        *_text_leaks(items, shown, ngram),
        *_duplicates(items, learned, similarity, seed),
    ]
    report = LeakReport(
        tuple(sorted(leaks, key=lambda leak: (leak.kind, leak.item, leak.doc))), len(items), len(shown), len(learned), policy
    )
    if leaks and policy == "raise":
        first = report.leaks[0]
        raise LeakError(
            f"{len(report.leaks)} leaks ({', '.join(f'{n} {kind}' for kind, n in report.counts.items())}), such as item {first.item!r} "
            f"and document {first.doc!r}: {first.detail}.",
            "Remove the documents or the items, or give policy='exclude' or 'flag'.",
        )
    return report


def _time_leaks(items: Sequence[Item], docs: Sequence[Doc], training: Sequence[Doc]) -> list[Leak]:
    by_id = {doc.id: doc for doc in docs}
    found = []
    for item in items:
        for name in item.evidence_ids & by_id.keys():
            if by_id[name].published_at > item.asked_at:
                found.append(Leak("time", item.id, name, f"evidence of {by_id[name].published_at}, asked on {item.asked_at}"))
    if training:
        days = np.sort([doc.published_at.toordinal() for doc in training])
        last = max(training, key=lambda doc: doc.published_at)
        for item in items:
            later = len(days) - int(np.searchsorted(days, item.asked_at.toordinal(), "right"))
            if later:
                detail = f"{later} training documents after {item.asked_at}, the last of {last.published_at}"
                found.append(Leak("time", item.id, last.id, detail))
    return found


def _text_leaks(items: Sequence[Item], docs: Sequence[Doc], ngram: int) -> list[Leak]:
    if not docs:
        return []
    texts = [words(doc.text) for doc in docs]
    wanted: dict[int, list[tuple[int, list[str]]]] = {}  # by length: item, words that must not stand together
    for number, item in enumerate(items):
        question = words(item.question)
        wanted.setdefault(len(question), []).append((number, question))
        for form in item.golds or ("",):
            whole = question + words(form)
            if len(whole) >= ngram:
                wanted.setdefault(ngram, []).append((number, whole))
    found: dict[tuple[str, str], Leak] = {}
    for length, entries in sorted(wanted.items()):
        if length == 0:
            continue
        offsets, numbers, distinct = word_ngrams([text for _, text in entries] + texts, length)
        holders: dict[int, list[int]] = {}
        for entry, (number, _) in enumerate(entries):
            for gram in set(numbers[offsets[entry] : offsets[entry + 1]].tolist()):
                holders.setdefault(gram, []).append(number)
        asked = np.zeros(distinct, bool)
        asked[list(holders)] = True
        begin = offsets[len(entries)]
        hits = np.flatnonzero(asked[numbers[begin:]])
        of_doc = np.searchsorted(offsets[len(entries) :] - begin, hits, side="right") - 1
        for place, doc_number in zip(hits.tolist(), of_doc.tolist(), strict=True):
            doc = docs[doc_number]
            for number in holders[int(numbers[begin + place])]:
                item = items[number]
                if doc.id not in item.evidence_ids:
                    found.setdefault(
                        (item.id, doc.id), Leak("text", item.id, doc.id, f"{length} words in a row of the question or its answer")
                    )
    return list(found.values())


def _duplicates(items: Sequence[Item], training: Sequence[Doc], similarity: float, seed: int) -> list[Leak]:
    if not training:
        return []
    texts = [words(f"{item.question} {item.golds[0] if item.golds else ''}") for item in items] + [words(doc.text) for doc in training]
    offsets, ids, _ = word_ngrams(texts, 1)
    lengths = np.diff(offsets)
    a, b = np.random.default_rng(seed).integers(0, 1 << 64, (2, _PERMUTATIONS), np.uint64)
    signatures = np.zeros((len(texts), _PERMUTATIONS), np.uint32)
    sign_rows(ids, offsets[:-1], offsets[1:] + 1, _SHINGLE, a | np.uint64(1), b, signatures, 0, len(texts))
    bands, rows = banding(similarity, _PERMUTATIONS)
    candidates: set[tuple[int, int]] = set()
    for band in range(bands):
        keys = band_keys(signatures, band * rows, (band + 1) * rows)
        mine, theirs = keys[: len(items)], keys[len(items) :]
        order = np.argsort(theirs, kind="stable")
        low, high = np.searchsorted(theirs[order], mine, "left"), np.searchsorted(theirs[order], mine, "right")
        for number in np.flatnonzero(high > low).tolist():
            candidates |= {(number, int(other)) for other in order[low[number] : high[number]]}
    found = []
    for number, other in sorted(candidates):
        place = len(items) + other
        if min(lengths[number], lengths[place]) == 0:
            continue
        likeness = float(jaccard(ids[offsets[number] : offsets[number + 1]], ids[offsets[place] : offsets[place + 1]], _SHINGLE))
        if likeness >= similarity:
            found.append(Leak("duplicate", items[number].id, training[other].id, f"Jaccard similarity {likeness:.2f}"))
    return found
