"""Searching a suffix array: the compiled loops behind `CorpusIndex`.

Suffix arrays and the search whose comparisons start at the common prefix of both ends are Manber & Myers, *Suffix arrays: a new
method for on-line string searches*, SIAM J. Comput. 22(5), 1993. Matching statistics are Chang & Lawler, *Sublinear approximate
string matching and biological applications*, Algorithmica 12, 1994.

All functions speak of one shard and take the same four arrays first:

    tokens  u8|u16|u32 (length,)   documents one after the other, a separator (the greatest value of the type) before each
    sa      u32 (length,)          start positions of all suffixes in lexicographic order; a suffix that is a prefix of another is less
    firsts  int64 (k,)             the distinct tokens, ascending, the separator last
    starts  int64 (k + 1,)         suffixes that start with firsts[j] are sa[starts[j] : starts[j + 1]]

Queries are int64. A query never contains the separator, so a comparison that meets one ends there: no match crosses a document.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numba import njit

ANYWHERE = -1  # in the place of a separator: a match counts wherever it stands
_ROWS_PER_THREAD = 1024  # searches of some microseconds that outweigh the start of a thread


@njit(cache=True, inline="always")
def bucket(firsts: np.ndarray, token: int) -> int:
    """Index of `token` in `firsts`, or -1."""
    left, right = 0, firsts.size
    while left < right:
        middle = (left + right) >> 1
        if firsts[middle] < token:
            left = middle + 1
        else:
            right = middle
    if left < firsts.size and firsts[left] == token:
        return left
    return -1


@njit(cache=True)
def _lower_bound(
    tokens: np.ndarray, sa: np.ndarray, lo: int, hi: int, query: np.ndarray, begin: int, end: int
) -> tuple[int, int, int, int]:
    """First index in [lo, hi) whose suffix is not less than query[begin:end].

    [lo, hi) is the bucket of query[begin], so every suffix in it shares at least one token with the query.

    Returns:
        the index, the longest prefix of the query that occurs, the least index known to lie above every match,
        and the prefix that the suffix there shares with the query.
    """
    length = end - begin
    below, above = 1, 1  # tokens that the query shares with the suffixes just outside [left, right)
    ceiling, ceiling_shares = hi, 1
    left, right = lo, hi
    while left < right:
        middle = (left + right) >> 1
        position: Any = np.int64(sa[middle])
        shares = min(below, above)  # all suffixes in between share at least as much
        room = min(length, tokens.size - position)
        while shares < room and tokens[position + shares] == query[begin + shares]:
            shares += 1
        if shares == length:
            right, above = middle, shares
        elif shares == room or tokens[position + shares] < query[begin + shares]:
            left, below = middle + 1, shares
        else:
            right, above = middle, shares
            ceiling, ceiling_shares = middle, shares
    return left, max(below, above), ceiling, ceiling_shares


@njit(cache=True)
def interval(
    tokens: np.ndarray, sa: np.ndarray, firsts: np.ndarray, starts: np.ndarray, query: np.ndarray, begin: int, end: int
) -> tuple[int, int]:
    """The suffixes that start with query[begin:end], as a half-open range of `sa`; (0, 0) when there are none."""
    place = bucket(firsts, query[begin])
    if place < 0:
        return 0, 0
    lo, hi = starts[place], starts[place + 1]
    length = end - begin
    if length == 1:
        return lo, hi
    first, longest, right, above = _lower_bound(tokens, sa, lo, hi, query, begin, end)
    if longest < length:
        return 0, 0
    left = first + 1
    while left < right:  # everything from `first` up to the last match shares all of the query
        middle = (left + right) >> 1
        position: Any = np.int64(sa[middle])
        shares = above
        room = min(length, tokens.size - position)
        while shares < room and tokens[position + shares] == query[begin + shares]:
            shares += 1
        if shares == length:
            left = middle + 1
        else:
            right, above = middle, shares
    return first, left


@njit(cache=True)
def find(tokens: np.ndarray, sa: np.ndarray, firsts: np.ndarray, starts: np.ndarray, query: np.ndarray, separator: int) -> tuple[int, int]:
    """The range of suffixes that start with `query` (m >= 1 ids); (-1, i) when query[i] is not an id below `separator`."""
    for i in range(query.size):
        if query[i] < 0 or query[i] >= separator:
            return -1, i
    return interval(tokens, sa, firsts, starts, query, 0, query.size)


@njit(cache=True, nogil=True)
def count_rows(
    tokens: np.ndarray,
    sa: np.ndarray,
    firsts: np.ndarray,
    starts: np.ndarray,
    flat: np.ndarray,
    offsets: np.ndarray,
    order: np.ndarray,
    out: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Adds to out[i] the number of occurrences of flat[offsets[i] : offsets[i + 1]], for all i in order[first:last]."""
    for j in range(first, last):
        i = order[j]
        lo, hi = interval(tokens, sa, firsts, starts, flat, offsets[i], offsets[i + 1])
        out[i] += hi - lo


@njit(cache=True)
def goes_on(tokens: np.ndarray, sa: np.ndarray, lo: int, hi: int, depth: int, separator: int) -> bool:
    """Whether one of the suffixes sa[lo:hi], which share their first `depth` tokens, has another token of its document after them."""
    if lo < hi and np.int64(sa[lo]) + depth == tokens.size:
        lo += 1  # the end of the last document, less than everything that goes on
    return lo < hi and tokens[np.int64(sa[lo]) + depth] != separator  # the separator is the greatest: it comes first only alone


@njit(cache=True)
def longest_match(
    tokens: np.ndarray, sa: np.ndarray, firsts: np.ndarray, starts: np.ndarray, query: np.ndarray, separator: int, begin: int
) -> int:
    """Length of the longest prefix of query[begin:] that occurs, with any token of its document after it when `separator` >= 0."""
    place = bucket(firsts, query[begin])
    if place < 0:
        return 0
    _, longest, _, _ = _lower_bound(tokens, sa, starts[place], starts[place + 1], query, begin, query.size)
    if separator >= 0:
        lo, hi = interval(tokens, sa, firsts, starts, query, begin, begin + longest)
        if not goes_on(tokens, sa, lo, hi, longest, separator):
            return longest - 1  # its last token follows the rest
    return longest


@njit(cache=True, nogil=True)
def match_rows(
    tokens: np.ndarray,
    sa: np.ndarray,
    firsts: np.ndarray,
    starts: np.ndarray,
    query: np.ndarray,
    separator: int,
    out: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Raises out[i] to `longest_match` at i, for first <= i < last: the matching statistics of `query`.

    The ends i + ms[i] never decrease. So where two starts have the same end, all starts between them have it too, and a passage of
    any length costs a handful of searches; halving the stretches in between, no start is ever searched twice.
    """
    ends = np.empty(last - first, np.int64)
    for i in (first, last - 1):
        ends[i - first] = i + longest_match(tokens, sa, firsts, starts, query, separator, i)
    lefts = np.empty(64, np.int64)  # of the stretches still to be halved, at most one for every halving
    rights = np.empty(64, np.int64)
    lefts[0], rights[0] = first, last - 1
    waiting = 1
    while waiting > 0:
        waiting -= 1
        left, right = lefts[waiting], rights[waiting]
        if ends[left - first] == ends[right - first]:
            ends[left - first : right - first] = ends[left - first]
        elif right - left > 1:
            middle = (left + right) >> 1
            ends[middle - first] = middle + longest_match(tokens, sa, firsts, starts, query, separator, middle)
            lefts[waiting], rights[waiting] = left, middle
            lefts[waiting + 1], rights[waiting + 1] = middle, right
            waiting += 2
    for i in range(first, last):
        out[i] = max(out[i], ends[i - first] - i)


def in_threads(rows: Callable[..., None], arguments: tuple[Any, ...], count: int) -> None:
    """Calls `rows(*arguments, first, last)` over 0 … count, on all cores when there is enough to do.

    Plain threads around loops that release the interpreter, rather than numba's own pool: they may be started from any thread and
    after a fork, where an OpenMP pool ends the process.
    """
    workers = min(os.cpu_count() or 1, count // _ROWS_PER_THREAD)
    if workers < 2:
        rows(*arguments, 0, count)
        return
    borders = np.linspace(0, count, 4 * workers + 1, dtype=np.int64).tolist()  # more blocks than threads: none waits long for the last
    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(rows, *arguments, first, last) for first, last in pairwise(borders)]:
            done.result()


@njit(cache=True)
def branches(tokens: np.ndarray, sa: np.ndarray, lo: int, hi: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct tokens at `depth` of the suffixes sa[lo:hi], which share their first `depth` tokens.

    Equal tokens lie side by side: from each token one jumps to the next by doubling steps and a binary search, O(k log(hi - lo))
    for k distinct tokens. A suffix that ends at `depth` has no token there and is left out.

    Returns:
        values int64 (k,), ascending, and borders int64 (k + 1,): values[j] stands in sa[borders[j] : borders[j + 1]].
    """
    values = np.empty(8, np.int64)
    borders = np.empty(9, np.int64)
    k = 0
    if lo < hi and np.int64(sa[lo]) + depth == tokens.size:
        lo += 1
    borders[0] = lo
    while lo < hi:
        token = tokens[np.int64(sa[lo]) + depth]
        left, step = lo, 1
        while left + step < hi and tokens[np.int64(sa[left + step]) + depth] == token:
            left += step
            step *= 2
        right = min(left + step, hi)
        left += 1
        while left < right:
            middle = (left + right) >> 1
            if tokens[np.int64(sa[middle]) + depth] == token:
                left = middle + 1
            else:
                right = middle
        if k == values.size:
            more_values = np.empty(2 * k, np.int64)
            more_values[:k] = values
            more_borders = np.empty(2 * k + 1, np.int64)
            more_borders[: k + 1] = borders
            values, borders = more_values, more_borders
        values[k] = token
        k += 1
        borders[k] = left
        lo = left
    return values[:k], borders[: k + 1]
