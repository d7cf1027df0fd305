"""Near-verbatim search for many short queries at once: where the windows of the corpus within a few edits of each of them end.

The method is that of `near`: a query is cut into k + 1 pieces, the suffix array gives all places of each, and Sellers' dynamic
programming looks at what stands around. Here the whole of it is compiled, every end is reported, no occurrence of a seed is left out,
and the intervals of the suffix array for the pieces are narrowed token by token: one that is empty ends the search for all pieces that
begin alike. It is made for a guard that asks at every step of decoding.

The arrays and the order of the arguments are those of `search`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from palimpsest.corpus.continuations import first_from
from palimpsest.corpus.near import REACH, fewest, near_ends
from palimpsest.corpus.search import bucket
from palimpsest.corpus.shard import Shard
from palimpsest.errors import InputError


def near_positions(shards: list[Shard], separator: int, queries: np.ndarray, max_edits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where windows of the corpus within `max_edits` edits of the queries end.

    Args:
        shards, separator: the corpus.
        queries: int64 (rows, m), m > max_edits. An id that no document can contain is like no token of the corpus.
        max_edits: k >= 0.

    Returns:
        row, distance and the token that comes after the window, −1 at the end of a document: int64 (ends,) each.

    Raises:
        InputError: k below 0, or queries of k tokens or fewer (every window would do).
    """
    if max_edits < 0:
        raise InputError(f"max_edits is {max_edits}.", "Give at least 0.")
    m = queries.shape[1]
    if m <= max_edits:
        raise InputError(f"Every passage is within {max_edits} edits of {m} tokens.", "Give more tokens or allow fewer edits.")
    parts = [_near_rows(*shard.arrays, shard.docs, shard.after, queries, max_edits, separator) for shard in shards]
    rows, distances, following = np.concatenate(parts, axis=1)
    return rows, distances, following


@njit(cache=True, nogil=True)
def _near_rows(
    tokens: np.ndarray,
    sa: np.ndarray,
    firsts: np.ndarray,
    starts: np.ndarray,
    docs: np.ndarray,
    after: np.ndarray,
    queries: np.ndarray,
    k: int,
    separator: int,
) -> np.ndarray:
    """Row, distance and next token of every end of a shard: int64 (3, ends)."""
    rows, m = queries.shape
    out = np.empty((3, 64), np.int64)
    used = 0
    for row in range(rows):
        query = queries[row]
        lo, hi = _intervals(tokens, sa, firsts, starts, query, k + 1)
        cuts = fewest((hi - lo).astype(np.float64), k + 1)
        diagonals = _diagonals(sa, lo, hi, cuts)
        i = 0
        while i < diagonals.size:
            j = i  # the stretches around diagonals[i : j + 1] overlap
            while j + 1 < diagonals.size and diagonals[j + 1] - diagonals[j] <= m + 2 * k:
                j += 1
            start, end = max(diagonals[i] - k, 0), min(diagonals[j] + m + k, tokens.size)
            ends = near_ends(tokens, start, end, query, k, separator)
            if used + len(ends) > out.shape[1]:
                more = np.empty((3, 2 * (used + len(ends))), np.int64)
                more[:, :used] = out[:, :used]
                out = more
            for e in range(len(ends)):
                local = np.searchsorted(docs, ends[e, 2], side="right") - 1
                if local < 0 or ends[e, 2] >= after[local]:
                    continue  # in a document that was deleted, beside one that was not
                at = ends[e, 0]
                following = np.int64(tokens[at]) if at < tokens.size else separator
                out[:, used] = (row, ends[e, 1], -1 if following == separator else following)
                used += 1
            i = j + 1
    return out[:, :used]


@njit(cache=True)
def _intervals(
    tokens: np.ndarray, sa: np.ndarray, firsts: np.ndarray, starts: np.ndarray, query: np.ndarray, pieces: int
) -> tuple[np.ndarray, np.ndarray]:
    """lo[s, n] and hi[s, n] int64: the suffixes that start with query[s : s + n], for every piece that a cut may have.

    A single suffix is kept for all longer pieces, whether it starts with them or not: to look around one place costs less than to ask.
    """
    m = query.size
    longest = min(m - pieces + 1, REACH * -(-m // pieces))
    lo, hi = np.zeros((m, longest + 1), np.int64), np.zeros((m, longest + 1), np.int64)
    for s in range(m):
        place = bucket(firsts, query[s])
        if place < 0 or place == firsts.size - 1:  # the last is the separator
            continue
        left, right = starts[place], starts[place + 1]
        lo[s, 1], hi[s, 1] = left, right
        for n in range(2, min(longest, m - s) + 1):
            if right - left > 1:
                if np.int64(sa[left]) + n - 1 == tokens.size:
                    left += 1  # ends with the corpus
                left = first_from(tokens, sa, left, right, n - 1, query[s + n - 1])
                right = first_from(tokens, sa, left, right, n - 1, query[s + n - 1] + 1)
                if left == right:
                    break
            lo[s, n], hi[s, n] = left, right
    return lo, hi


@njit(cache=True)
def _diagonals(sa: np.ndarray, lo: np.ndarray, hi: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Where the query would begin if it stood there unchanged around a piece: int64, ascending."""
    total = 0
    for piece in range(cuts.size - 1):
        s, n = cuts[piece], cuts[piece + 1] - cuts[piece]
        total += hi[s, n] - lo[s, n]
    diagonals = np.empty(total, np.int64)
    used = 0
    for piece in range(cuts.size - 1):
        s, n = cuts[piece], cuts[piece + 1] - cuts[piece]
        for i in range(lo[s, n], hi[s, n]):
            diagonals[used] = np.int64(sa[i]) - s
            used += 1
    return np.sort(diagonals)
