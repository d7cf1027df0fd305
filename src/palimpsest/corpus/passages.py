"""A few documents, indexed in memory within a millisecond: what may follow a passage of them, and where it stands.

The suffix array of `CorpusIndex` without its folder, for documents that are chosen for one question and forgotten after it. The
answers to `count` and `next_tokens` are those of a `CorpusIndex` over the same documents.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from palimpsest.corpus.search import branches, interval
from palimpsest.corpus.suffix_array import suffix_array
from palimpsest.errors import InputError


class PassageIndex:
    """Documents of token ids that can be asked where a passage stands and what follows it.

    Args:
        rows: token ids of each document, one or more.

    Raises:
        InputError: no document, an empty one, or ids that are no integers from 0 on.

    Example:
        >>> index = PassageIndex([[1, 2, 3, 1, 2], [2, 3, 4]])
        >>> index.count([1, 2]), index.next_tokens([2, 3]), index.locate([2, 3])
        (2, (array([1, 4]), array([1, 1])), [(0, 1), (1, 0)])
        >>> index.locate([1, 2], at_end=True)
        [(0, 3)]
    """

    def __init__(self, rows: Sequence[Sequence[int] | np.ndarray]) -> None:
        documents = [np.asarray(row) for row in rows]
        for number, row in enumerate(documents):
            if row.ndim != 1 or not row.size or not np.issubdtype(row.dtype, np.integer) or row.min() < 0 or row.max() >= 2**32 - 1:
                raise InputError(f"Document {number} holds {row!r}.", "Give a flat list of one token id or more, each from 0 on.")
        if not documents:
            raise InputError("There are no documents.", "Give at least one.")
        self._separator = 2**32 - 1
        lengths = np.array([len(row) for row in documents])
        self._begins = np.cumsum(lengths + 1) - lengths  # of the documents in `_tokens`, each behind its separator
        self._tokens = np.full(int(lengths.sum()) + len(lengths), self._separator, np.uint32)
        for begin, row in zip(self._begins, documents, strict=True):
            self._tokens[begin : begin + len(row)] = row
        self._ends = self._begins + lengths
        self._sa = suffix_array(self._tokens, max(int(row.max()) for row in documents), "divsufsort")
        firsts, counts = np.unique(self._tokens, return_counts=True)
        self._firsts, self._starts = firsts.astype(np.int64), np.concatenate([[0], np.cumsum(counts)])

    def count(self, ids: Sequence[int] | np.ndarray) -> int:
        """How often `ids` occurs; of no ids, how many tokens there are."""
        lo, hi = self._find(ids)
        return hi - lo

    def next_tokens(self, ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which tokens follow `ids`, and how often; of no ids, all tokens. An occurrence at the end of a document is followed by none.

        Returns:
            ids int64 (k,), ascending, and counts int64 (k,), all positive.
        """
        lo, hi = self._find(ids)
        values, borders = branches(self._tokens, self._sa, lo, hi, len(ids))
        inside = values != self._separator
        return values[inside], np.diff(borders)[inside]

    def locate(self, ids: Sequence[int] | np.ndarray, *, at_end: bool = False) -> list[tuple[int, int]]:
        """Where `ids` (one or more) stands: (document, offset), ascending.

        Args:
            ids: token ids.
            at_end: only where a document ends with them.
        """
        if not len(ids):
            raise InputError("No ids stand everywhere.", "Give at least one.")
        lo, hi = self._find(ids)
        positions = np.sort(self._sa[lo:hi].astype(np.int64))
        documents = np.searchsorted(self._begins, positions, side="right") - 1
        if at_end:
            kept = positions + len(ids) == self._ends[documents]
            positions, documents = positions[kept], documents[kept]
        return list(zip(documents.tolist(), (positions - self._begins[documents]).tolist(), strict=True))

    def _find(self, ids: Sequence[int] | np.ndarray) -> tuple[int, int]:
        """The stretch of the suffix array whose suffixes begin with `ids`; the separators' own suffixes are in none."""
        query = np.asarray(ids, np.int64)
        if not query.size:
            return 0, int(self._starts[-2])
        if query.min() < 0 or query.max() >= self._separator:
            return 0, 0
        lo, hi = interval(self._tokens, self._sa, self._firsts, self._starts, query, 0, query.size)
        return int(lo), int(hi)
