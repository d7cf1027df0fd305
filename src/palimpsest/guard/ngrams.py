"""The sets of n-grams that a guard protects, behind one small interface.

`NgramSource` is what the guard asks: which tokens would end a protected n-gram after this context, is this n-gram protected, and
which of its continuations is the rarest. Four things answer:

* a `CorpusIndex` (exact: the banned tokens are the tokens that follow the context in the corpus, one query of the suffix array);
* a `BloomFilter` (small; its false positives only block too much);
* an `NgramSet` (exact, in memory: for a handful of protected texts);
* the passages *close* to an index, in the approximate mode (`guard.approximate`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import numba
import numpy as np

from palimpsest.corpus import BloomFilter, CorpusIndex
from palimpsest.errors import InputError, TokenizerMismatchError
from palimpsest.guard.approximate import NearPassages

DEFAULT_N = 10  # the paper's n


class NgramSource(Protocol):
    """A set of n-grams of token ids.

    Attributes:
        n: tokens of an n-gram.
        shortest: tokens of the shortest context after which anything is banned, at most n - 1.
        tokenizer_fingerprint: of the tokenizer that made the ids; None when it is not known.
    """

    n: int
    shortest: int
    tokenizer_fingerprint: str | None

    def contains(self, ngrams: np.ndarray) -> np.ndarray:
        """Which n-grams int64 (M, n) are in the set: bool (M,)."""

    def next_tokens_batch(self, contexts: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Every id that is banned after contexts int64 (B, length): offsets int64 (B + 1,) and ids int64, those of a row ascending.

        The length is n - 1 or, at the beginning of a text, less, down to `shortest`. `vocab_size` bounds the ids that a source must
        try out one by one; a source that knows its n-grams may return others.
        """

    def rarest_next(self, context: np.ndarray) -> int | None:
        """The id that follows `context` least often (the lowest among ties); None where counts are not known or nothing follows."""


class NgramSet:
    """An exact set of n-grams in memory, sorted, with the number of times that each was given.

    Args:
        ngrams: int (M, n), duplicates allowed.
        tokenizer_fingerprint: of the tokenizer that made the ids.

    Raises:
        InputError: not a table of non-negative integers, or n < 1.

    Example:
        >>> protected = NgramSet.from_documents([[1, 2, 3, 4]], n=3)
        >>> protected.contains([[2, 3, 4], [3, 4, 1]]).tolist()
        [True, False]
    """

    def __init__(self, ngrams: np.ndarray | Sequence[Sequence[int]], *, tokenizer_fingerprint: str | None = None) -> None:
        table = np.asarray(ngrams)
        if table.ndim != 2 or table.shape[1] < 1 or not (np.issubdtype(table.dtype, np.integer) or table.size == 0):
            raise InputError(f"The n-grams have shape {table.shape} and type {table.dtype}.", "Give a table (M, n) of token ids.")
        if table.size and int(table.min()) < 0:
            raise InputError(f"The n-grams hold the id {table.min()}.", "Token ids are not negative.")
        table = table.astype(np.int64, copy=False)
        table = table[np.lexsort(table.T[::-1])]
        first = np.ones(len(table), dtype=bool)
        first[1:] = (table[1:] != table[:-1]).any(axis=1)
        self.n = int(table.shape[1])
        self.shortest = self.n - 1
        self.ngrams = np.ascontiguousarray(table[first])
        self.counts = np.diff(np.append(np.flatnonzero(first), len(table)))
        self.tokenizer_fingerprint = tokenizer_fingerprint

    @classmethod
    def from_documents(
        cls, docs: Iterable[Sequence[int] | np.ndarray], n: int = DEFAULT_N, *, tokenizer_fingerprint: str | None = None
    ) -> NgramSet:
        """Every n-gram of every document; documents shorter than n add none, and no n-gram crosses from one into the next.

        Raises:
            InputError: n < 1, or a document that is not a row of ids.
        """
        if n < 1:
            raise InputError(f"n is {n}.", "An n-gram has at least one token.")
        parts = [np.zeros((0, n), dtype=np.int64)]
        parts += [windows(row, n) for row in (np.asarray(doc) for doc in docs) if row.size]
        return cls(np.concatenate(parts), tokenizer_fingerprint=tokenizer_fingerprint)

    def __len__(self) -> int:
        return len(self.ngrams)

    def contains(self, ngrams: np.ndarray | Sequence[Sequence[int]]) -> np.ndarray:
        """Which of `ngrams` (M, n) are in the set: bool (M,)."""
        low, high = _ranges(self.ngrams, _rows_of(ngrams, self.n))
        return low < high

    def next_tokens_batch(self, contexts: np.ndarray | Sequence[Sequence[int]], vocab_size: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """See `NgramSource`; the ids of a row ascend. `vocab_size` is not needed here."""
        low, high = _ranges(self.ngrams, _rows_of(contexts, self.n - 1))
        offsets = np.concatenate([[0], np.cumsum(high - low)])
        rows = np.arange(offsets[-1]) + np.repeat(low - offsets[:-1], high - low)
        return offsets, self.ngrams[rows, -1]

    def rarest_next(self, context: np.ndarray) -> int | None:
        """See `NgramSource`."""
        low, high = (int(end[0]) for end in _ranges(self.ngrams, _rows_of(context[None], self.n - 1)))
        return int(self.ngrams[low + int(np.argmin(self.counts[low:high])), -1]) if low < high else None


class IndexNgrams:
    """The n-grams of a `CorpusIndex`.

    Args:
        index: the corpus.
        n: tokens of an n-gram.
    """

    def __init__(self, index: CorpusIndex, n: int) -> None:
        self.index, self.n, self.shortest = index, n, n - 1
        self.tokenizer_fingerprint = index.tokenizer_fingerprint

    def contains(self, ngrams: np.ndarray) -> np.ndarray:
        """See `NgramSource`."""
        table = _rows_of(ngrams, self.n)
        known = np.flatnonzero(np.isin(table, self.index.unigrams[0]).all(axis=1))  # an index refuses ids that it cannot hold
        found = np.zeros(len(table), dtype=bool)
        found[known] = self.index.count_batch(table[known]) > 0
        return found

    def next_tokens_batch(self, contexts: np.ndarray, vocab_size: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """See `NgramSource`; `vocab_size` is not needed here."""
        if self.n == 1:
            vocabulary = self.index.unigrams[0]
            return np.arange(len(contexts) + 1) * len(vocabulary), np.tile(vocabulary, len(contexts))
        return self.index.next_tokens_batch(contexts)

    def rarest_next(self, context: np.ndarray) -> int | None:
        """See `NgramSource`."""
        ids, counts = self.index.next_tokens(context)
        return int(ids[np.argmin(counts)]) if len(ids) else None


class BloomNgrams:
    """The n-grams of a `BloomFilter`; it keeps no counts, so it does not know which continuation is the rarest."""

    def __init__(self, bloom: BloomFilter) -> None:
        self.bloom, self.n, self.shortest = bloom, bloom.n, bloom.n - 1
        self.tokenizer_fingerprint = bloom.tokenizer_fingerprint
        self.contains = bloom.contains
        self.next_tokens_batch = bloom.next_tokens_batch

    def rarest_next(self, context: np.ndarray) -> int | None:
        """See `NgramSource`."""
        return None


Protected = CorpusIndex | BloomFilter | NgramSet | Collection[tuple[int, ...]]


def as_source(protected: Protected, n: int | None = None, approximate: int = 0) -> NgramSource:
    """What the guard asks, from anything that holds n-grams.

    Args:
        protected: an index, a Bloom filter, an `NgramSet`, or a set of tuples of ids.
        n: tokens of an n-gram; None takes the filter's own, and for an index `DEFAULT_N`, or three for every part into which an
            approximate guard cuts its context where that is more.
        approximate: token edits by which an n-gram may differ and is still protected; more than 0 only with an index.

    Raises:
        InputError: n < 1, n that is not the filter's own, something that holds no n-grams, or edits that it cannot allow for.
    """
    if n is not None and (isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1):
        raise InputError(f"n is {n!r}.", "An n-gram has an integer number of tokens, at least 1.")
    if isinstance(approximate, bool) or not isinstance(approximate, int | np.integer) or approximate < 0:
        raise InputError(f"approximate is {approximate!r}.", "Give an integer number of edits, at least 0.")
    if isinstance(protected, CorpusIndex):
        length = max(DEFAULT_N, 3 * (approximate + 1)) if n is None else int(n)
        return NearPassages(protected, length, int(approximate)) if approximate else IndexNgrams(protected, length)
    if approximate:
        raise InputError(
            f"A {type(protected).__name__} holds no passages: what is {approximate} edits away cannot be found.",
            "Protect an index of the corpus (`palimpsest index build`), or leave --approximate out.",
        )
    if isinstance(protected, set | frozenset):
        rows = sorted(protected)
        if len({len(row) for row in rows}) > 1:
            raise InputError("The protected n-grams have different lengths.", "Give tuples of n ids each.")
        protected = NgramSet(np.array(rows, dtype=np.int64) if rows else np.zeros((0, n or DEFAULT_N), dtype=np.int64))
    if not isinstance(protected, BloomFilter | NgramSet):
        raise InputError(
            f"A {type(protected).__name__} holds no n-grams.", "Give a CorpusIndex, a BloomFilter, an NgramSet or a set of tuples of ids."
        )
    if n is not None and n != protected.n:
        raise InputError(
            f"The guard was asked for n={n}, but its {type(protected).__name__} holds {protected.n}-grams.",
            f"Leave n out, or build the {type(protected).__name__} with n={n}.",
        )
    return BloomNgrams(protected) if isinstance(protected, BloomFilter) else protected


def banned_tokens(source: NgramSource, contexts: np.ndarray, available: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """What is banned after each of many contexts.

    Args:
        source: what is protected.
        contexts: int64 (rows, at most n - 1), the last tokens of every text.
        available: int64 (rows,): how many tokens of a text there are; the rest of its row, on the left, is padding.
        vocab_size: ids that the model can write.

    Returns:
        rows and banned ids, int64 (pairs,) each; the rows ascend.

    Raises:
        TokenizerMismatchError: the source holds ids that the model does not know.
    """
    lengths = np.minimum(available, source.n - 1)
    owners, banned = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for length in np.unique(lengths[lengths >= source.shortest]).tolist():
        rows = np.flatnonzero(lengths == length)
        offsets, ids = source.next_tokens_batch(contexts[rows, contexts.shape[1] - length :], vocab_size)
        owners.append(np.repeat(rows, np.diff(offsets)))
        banned.append(ids)
    row_of, ids = np.concatenate(owners), np.concatenate(banned)
    if len(ids) and int(ids.max()) >= vocab_size:
        raise TokenizerMismatchError(
            f"The protected n-grams hold the id {int(ids.max())}, but the model knows the ids 0 to {vocab_size - 1}.",
            "Build the index or filter again with this model's tokenizer.",
        )
    order = np.argsort(row_of, kind="stable")
    return row_of[order], ids[order]


def windows(ids: np.ndarray, n: int) -> np.ndarray:
    """All n-grams of one row of ids, (max(0, T - n + 1), n); a view.

    Raises:
        InputError: not one row of integers.
    """
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"A document has shape {ids.shape} and type {ids.dtype}.", "Give a row of token ids.")
    if len(ids) < n:
        return np.zeros((0, n), dtype=np.int64)
    return np.lib.stride_tricks.sliding_window_view(ids, n)


def _rows_of(ids: np.ndarray | Sequence[Sequence[int]], columns: int) -> np.ndarray:
    table = np.asarray(ids)
    if table.size == 0 and table.ndim == 1:
        table = np.zeros((len(table), columns), dtype=np.int64)
    if table.ndim != 2 or table.shape[1] != columns or not (np.issubdtype(table.dtype, np.integer) or table.size == 0):
        raise InputError(f"A table of ids has shape {table.shape} and type {table.dtype}.", f"Give rows of {columns} integers.")
    return np.ascontiguousarray(table, dtype=np.int64)


@numba.njit(cache=True)
def _ranges(ngrams: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every query (M, m <= n) the rows of the sorted table that begin with it: two binary searches."""
    low = np.zeros(len(queries), dtype=np.int64)
    high = np.zeros(len(queries), dtype=np.int64)
    for q in range(len(queries)):
        low[q] = _bound(ngrams, queries[q], False)
        high[q] = _bound(ngrams, queries[q], True)
    return low, high


@numba.njit(cache=True)
def _bound(ngrams: np.ndarray, query: np.ndarray, above: bool) -> int:
    """Number of rows that sort before `query`, those that begin with it included when `above`."""
    low, high = 0, len(ngrams)
    while low < high:
        middle = (low + high) // 2
        before = above
        for i in range(len(query)):
            if ngrams[middle, i] != query[i]:
                before = ngrams[middle, i] < query[i]
                break
        if before:
            low = middle + 1
        else:
            high = middle
    return low
