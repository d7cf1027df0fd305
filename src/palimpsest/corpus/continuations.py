"""What follows a context, in compiled loops: the part of `search` behind the next-token distributions.

All suffixes that share their first `depth` tokens are one stretch sa[lo:hi], sorted by the token that comes next: those that a token
w follows are again a stretch, found by two binary searches that look at one token each. First in the stretch stands the end of the
last document, if it ends there; last stand the ends of the other documents, where the separator comes next. A context of no tokens is
the whole array, at depth 0.

The arrays and the order of the arguments are those of `search`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from palimpsest.corpus.search import branches, goes_on, interval


@njit(cache=True)
def first_from(tokens: np.ndarray, sa: np.ndarray, lo: int, hi: int, depth: int, token: int) -> int:
    """First index in [lo, hi) at which the token at `depth` is not less than `token`; every suffix there has one."""
    while lo < hi:
        middle = (lo + hi) >> 1
        if tokens[np.int64(sa[middle]) + depth] < token:
            lo = middle + 1
        else:
            hi = middle
    return lo


@njit(cache=True)
def followed(tokens: np.ndarray, sa: np.ndarray, lo: int, hi: int, depth: int, separator: int) -> tuple[int, int]:
    """The stretch of sa[lo:hi] in which another token of the document comes at `depth`: all but the ends of documents."""
    if lo < hi and np.int64(sa[lo]) + depth == tokens.size:
        lo += 1
    return lo, first_from(tokens, sa, lo, hi, depth, separator)


@njit(cache=True)
def narrow(tokens: np.ndarray, sa: np.ndarray, lo: int, hi: int, depth: int, token: int, separator: int) -> tuple[int, int, int]:
    """The stretch of sa[lo:hi] in which `token` comes at `depth`, and in how many suffixes of sa[lo:hi] any token of the document does."""
    begin, end = followed(tokens, sa, lo, hi, depth, separator)
    first = first_from(tokens, sa, begin, end, depth, token)
    return first, first_from(tokens, sa, first, end, depth, token + 1), end - begin


@njit(cache=True)
def longest_suffix(
    tokens: np.ndarray, sa: np.ndarray, firsts: np.ndarray, starts: np.ndarray, prompt: np.ndarray, min_count: int, separator: int
) -> tuple[int, int, int]:
    """The longest suffix of `prompt` that occurs at least `min_count` times and has a token after it at least once.

    A longer suffix occurs, and goes on, no more often than a shorter one: the length is doubled until it is too long, then halved in.

    Returns:
        its length n and its stretch sa[lo:hi], the whole array when n is 0; (-1, i, 0) when prompt[i] is not an id below `separator`.
    """
    for i in range(prompt.size):
        if prompt[i] < 0 or prompt[i] >= separator:
            return -1, i, 0
    known, too_long = 0, prompt.size + 1
    lo, hi = 0, sa.size
    while too_long - known > 1:
        n = (known + too_long) >> 1
        if too_long > prompt.size:
            n = min(n, max(2 * known, 1))
        left, right = interval(tokens, sa, firsts, starts, prompt, prompt.size - n, prompt.size)
        if right - left >= min_count and goes_on(tokens, sa, left, right, n, separator):
            known, lo, hi = n, left, right
        else:
            too_long = n
    return known, lo, hi


@njit(cache=True, nogil=True)
def next_rows(
    tokens: np.ndarray,
    sa: np.ndarray,
    firsts: np.ndarray,
    starts: np.ndarray,
    text: np.ndarray,
    begins: np.ndarray,
    separator: int,
    counts: np.ndarray,
    totals: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Adds to counts[t] how often text[t] follows text[begins[t]:t], and to totals[t] how often any token does, for first <= t < last.

    Where two neighbours begin at the same place, the stretch of the second lies in that of the first and is not searched again.
    """
    begin, lo, hi = -1, 0, 0
    for t in range(first, last):
        depth = t - begins[t]
        if depth == 0:
            lo, hi = 0, sa.size
        elif begins[t] != begin:
            lo, hi = interval(tokens, sa, firsts, starts, text, begins[t], t)
        begin = begins[t]
        lo, hi, total = narrow(tokens, sa, lo, hi, depth, text[t], separator)
        counts[t] += hi - lo
        totals[t] += total


@njit(cache=True)
def next_tokens_batch(
    tokens: np.ndarray, sa: np.ndarray, firsts: np.ndarray, starts: np.ndarray, contexts: np.ndarray, separator: int
) -> tuple[np.ndarray, np.ndarray]:
    """The distinct tokens that follow each row of contexts (rows, m); a row with an id outside [0, separator) occurs nowhere.

    Returns:
        offsets int64 (rows + 1,) and ids int64: ids[offsets[i] : offsets[i + 1]] follow contexts[i], ascending.
    """
    rows, m = contexts.shape
    offsets = np.zeros(rows + 1, np.int64)
    ids = np.empty(16, np.int64)
    used = 0
    for i in range(rows):
        known = True
        for j in range(m):
            if contexts[i, j] < 0 or contexts[i, j] >= separator:
                known = False
                break
        if known:
            lo, hi = 0, sa.size
            if m > 0:
                lo, hi = interval(tokens, sa, firsts, starts, contexts[i], 0, m)
            if lo < hi:
                values, _ = branches(tokens, sa, lo, hi, m)
                k = values.size
                if k > 0 and values[k - 1] == separator:
                    k -= 1
                if used + k > ids.size:
                    more = np.empty(max(2 * ids.size, used + k), np.int64)
                    more[:used] = ids[:used]
                    ids = more
                ids[used : used + k] = values[:k]
                used += k
        offsets[i + 1] = used
    return offsets, ids[:used]


@njit(cache=True)
def merge_rows(offsets_a: np.ndarray, ids_a: np.ndarray, offsets_b: np.ndarray, ids_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The union, row by row, of two ragged tables of ascending ids (what two shards answered)."""
    rows = offsets_a.size - 1
    offsets = np.zeros(rows + 1, np.int64)
    ids = np.empty(ids_a.size + ids_b.size, np.int64)
    used = 0
    for i in range(rows):
        a, a_end = offsets_a[i], offsets_a[i + 1]
        b, b_end = offsets_b[i], offsets_b[i + 1]
        while a < a_end or b < b_end:
            if b == b_end or (a < a_end and ids_a[a] <= ids_b[b]):
                token = ids_a[a]
            else:
                token = ids_b[b]
            if a < a_end and ids_a[a] == token:
                a += 1
            if b < b_end and ids_b[b] == token:
                b += 1
            ids[used] = token
            used += 1
        offsets[i + 1] = used
    return offsets, ids[:used]
