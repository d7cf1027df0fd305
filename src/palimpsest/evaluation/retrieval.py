"""Dated documents, the interface of a retriever with a clock, and a small exact one: BM25 over documents in memory.

A retriever is anything with `search(query, k, as_of)`; what it returns must have been published by `as_of`, and whoever calls it checks
that. `Snapshot` is one: a frozen set of documents with a content hash, ranked by BM25 (Robertson and Zaragoza, *The Probabilistic Relevance
Framework*, 2009): Σ_t q(t) · ln(1 + (N − n(t) + ½) / (n(t) + ½)) · f(t) (k₁ + 1) / (f(t) + k₁ (1 − b + b · length / mean length)) with
k₁ = 1.2 and b = 0.75, over normalised words. The weights of all (document, word) pairs are computed once, as a sparse matrix; a search is a
sum of columns. The collection's statistics are those of the whole snapshot, whatever `as_of` is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Protocol, runtime_checkable

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from palimpsest.corpus.word_ngrams import words
from palimpsest.errors import InputError
from palimpsest.evaluation.fields import text
from palimpsest.evaluation.temporal import day
from palimpsest.files import sha256_json

_K1, _B = 1.2, 0.75  # of BM25, the usual ones


@dataclass(frozen=True)
class Doc:
    """A dated document.

    Attributes:
        id: its name.
        text: its text.
        published_at: the day since which it can be known; a datetime must have a zone.
        source: who published it.

    Raises:
        InputError: no id or text, a field that is no text, or a datetime without a zone.
    """

    id: str
    text: str
    published_at: date
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("id", "text", "source"):
            text(getattr(self, name), f"{name} of the document {self.id!a}")
        if not self.id or not self.text.strip():
            raise InputError(f"The document {self.id!r} has no name or no text.", "Give both.")
        object.__setattr__(self, "published_at", day(self.published_at, f"published_at of {self.id!r}"))

    @property
    def hash(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Passage:
    """A document that was found, and its score; higher is nearer."""

    doc: Doc
    score: float


@runtime_checkable
class Retriever(Protocol):
    """Finds documents as of a day."""

    def search(self, query: str, k: int, as_of: date | None = None) -> list[Passage]:
        """At most `k` documents that were published by `as_of` (None: at any time), the nearest first."""


class Snapshot:
    """A frozen collection of documents, searched by BM25.

    Args:
        docs: documents with distinct ids.

    Attributes:
        docs: the documents, by id.
        hash: SHA-256 over ids, texts, days and sources; the order of the documents does not count.

    Raises:
        InputError: no documents, or two of one id.

    Example:
        >>> snapshot = Snapshot([Doc("a", "Rome is old", date(2001, 1, 1)), Doc("b", "Rome is new", date(2020, 1, 1))])
        >>> [found.doc.id for found in snapshot.search("new Rome", 5)], [f.doc.id for f in snapshot.search("new Rome", 5, date(2010, 1, 1))]
        (['b', 'a'], ['a'])
    """

    def __init__(self, docs: Sequence[Doc]) -> None:
        self.docs = tuple(sorted(docs, key=lambda doc: doc.id))
        names = [doc.id for doc in self.docs]
        if not names or len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})[:3] if len(names) < 10_000 else []
            raise InputError(f"There are {len(names)} documents, {len(set(names))} names {twice}.", "Give documents with distinct ids.")
        self.hash = self._content()
        self._days = np.array([doc.published_at.toordinal() for doc in self.docs])
        counter = CountVectorizer(analyzer=words)
        try:
            counts = sparse.csr_matrix(counter.fit_transform([doc.text for doc in self.docs]), dtype=np.float64)
        except ValueError as error:
            raise InputError("The documents hold no words.", "Give texts with letters or digits.") from error
        self._terms = counter.vocabulary_
        length = np.asarray(counts.sum(axis=1)).ravel()
        holding = np.bincount(counts.indices, minlength=counts.shape[1])
        inverse = np.log1p((len(self.docs) - holding + 0.5) / (holding + 0.5))
        row = np.repeat(np.arange(len(self.docs)), np.diff(counts.indptr))
        damped = counts.data + _K1 * (1 - _B + _B * length[row] / length.mean())
        weights = inverse[counts.indices] * counts.data * (_K1 + 1) / damped
        self._weights = sparse.csc_matrix((weights, (row, counts.indices)), shape=counts.shape)  # (documents, words)

    def __len__(self) -> int:
        return len(self.docs)

    @property
    def unchanged(self) -> bool:
        """Whether the documents are still those that were hashed and indexed."""
        return self._content() == self.hash

    def _content(self) -> str:
        return sha256_json([[doc.id, doc.hash, doc.published_at.isoformat(), doc.source] for doc in self.docs])

    def search(self, query: str, k: int, as_of: date | None = None) -> list[Passage]:
        """See `Retriever.search`; documents that share no word with the query are not found, of equal scores the newest comes first.

        Raises:
            InputError: k < 1.
        """
        if k < 1:
            raise InputError(f"{k} documents were asked for.", "Ask for at least 1.")
        known = [self._terms[word] for word in words(query) if word in self._terms]
        scores = np.zeros(len(self.docs))
        for term in known:
            begin, end = self._weights.indptr[term : term + 2]
            scores[self._weights.indices[begin:end]] += self._weights.data[begin:end]
        if as_of is not None:
            scores[self._days > day(as_of, "as_of").toordinal()] = 0.0
        found = np.flatnonzero(scores)
        best = found[np.lexsort((-self._days[found], -scores[found]))[:k]]  # and of one day, the first id
        return [Passage(self.docs[i], float(scores[i])) for i in best.tolist()]
