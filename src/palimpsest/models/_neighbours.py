"""The nearest stored windows under the weighted overlap metric, exactly: the search behind IB1 and TRIBL2.

The distance of two windows is the sum of the weights of the features in which they differ. The nearest neighbours for k are *all*
windows at the k smallest distinct distances (Daelemans & Van den Bosch, *Memory-Based Language Processing*, 2005).

Nothing is stored for this search beside the index: where a token stands is known from `occurrences`, and so, j places later, which
windows have it as feature j. The lists of a query's tokens are read from the shortest to the longest; reading ends when a window with
none of the tokens read so far would be further away than the k-th distance (the MaxScore rule of Turtle & Flood, *Query evaluation:
strategies and optimizations*, 1995). Where the next list is longer than the stretch of all windows in question, the stretch is read.
TRIBL2 asks below the deepest node that a context reaches: no window there has the next feature, so its list is not read and its weight
counts from the beginning, which ends most readings after one list.

`nearest` lists the windows; `elect_nearest` counts the classes of each query's windows as they are found and keeps the winner alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from palimpsest.models._ragged import EQUAL, note
from palimpsest.models._window_kernels import agrees


@njit(cache=True, inline="always")
def _gap(
    tokens: np.ndarray,
    t: Any,
    features: np.ndarray,
    weights: np.ndarray,
    pad: int,
    context: np.ndarray,
    first: int,
    fixed: int,
    read: np.ndarray,
    limit: float,
) -> float:
    """The distance of the window at `t`; −1 when it is beyond `limit`, differs in a fixed feature, or has been met in another list.

    Features before `first` are known to agree.
    """
    gap = 0.0
    for i in range(first, features.size):
        if agrees(tokens, t, features[i], context[i], pad):
            if read[i]:
                return -1.0
        elif i < fixed:
            return -1.0
        else:
            gap += weights[i]
            if gap > limit:
                return -1.0
    return gap


@njit(cache=True, inline="always")
def _sort_lists(
    context: np.ndarray,
    fixed: int,
    differs: bool,
    features: np.ndarray,
    weights: np.ndarray,
    pad: int,
    class_starts: np.ndarray,
    documents: int,
    lists: np.ndarray,
    sizes: np.ndarray,
) -> tuple[int, float]:
    """The features whose values occur at all, shortest list first; returns their number and the weights of the others together.

    With `differs` the feature `fixed` is one of the others.
    """
    count, missing = 0, 0.0
    if differs and fixed < features.size:
        missing += weights[fixed]
        fixed += 1
    for i in range(fixed, features.size):
        value, size = context[i], np.int64(0)
        if value == pad:
            size = documents * features[i]
        elif 0 <= value < class_starts.size - 1:
            size = np.int64(class_starts[value + 1]) - np.int64(class_starts[value])
        if size == 0:
            missing += weights[i]
            continue
        at = count
        while at > 0 and sizes[at - 1] > size:
            sizes[at], lists[at] = sizes[at - 1], lists[at - 1]
            at -= 1
        sizes[at], lists[at] = size, i
        count += 1
    return count, missing


@njit(cache=True)
def _search(
    tokens: np.ndarray,
    order: np.ndarray,
    features: np.ndarray,
    occurrences: np.ndarray,
    class_starts: np.ndarray,
    separators: np.ndarray,
    pad: int,
    weights: np.ndarray,
    context: np.ndarray,
    fixed: int,
    lo: int,
    hi: int,
    bound: float,
    differs: bool,
    best: np.ndarray,
    scratch: tuple[np.ndarray, np.ndarray, np.ndarray],
    found: np.ndarray,
    gaps: np.ndarray,
    used: int,
) -> tuple[int, np.ndarray, np.ndarray]:
    """Puts the windows nearest to one query, and their distances, behind the first `used` of `found` and `gaps`, which may grow.

    `best` (rings,) takes the distances that are asked for; `scratch` are arrays (n,) for what is read.
    """
    lists, sizes, read = scratch
    begin = used
    best[:], read[:] = np.inf, False
    # how far a window is at least that has been met in no list yet
    count, unread = _sort_lists(context, fixed, differs, features, weights, pad, class_starts, separators.size - 1, lists, sizes)
    whole = hi - lo
    for step in range(count + 1):
        limit = min(best[-1], bound) + EQUAL
        if unread > limit:
            break
        last = step == count or sizes[step] >= whole
        size = whole if last else sizes[step]
        i = 0 if last else lists[step]
        back: Any = np.int64(0)
        value: Any = np.int64(0)
        if not last:
            back, value = features[i], context[i]
        while found.size < used + size:
            found, gaps = np.append(found, np.empty_like(found)), np.append(gaps, np.empty_like(gaps))
        for k in range(size):
            t: Any
            if last:
                t = np.int64(order[lo + k])
            elif value == pad:  # the first `back` windows of every document
                document, offset = k // back, k % back
                t = separators[document] + 1 + offset
                if t >= separators[document + 1]:
                    continue
            else:
                t = np.int64(order[occurrences[np.int64(class_starts[value]) + k]]) + back
                if t >= tokens.size or tokens[t] == pad or not agrees(tokens, t, back, value, pad):
                    continue  # the document ends before
            gap = _gap(tokens, t, features, weights, pad, context, fixed if last else 0, fixed, read, limit)
            if gap >= 0:
                found[used], gaps[used] = t, gap
                used += 1
                note(best, gap)
                limit = min(best[-1], bound) + EQUAL
        if last:
            break
        read[i] = True
        unread += weights[i]
    limit = best[-1] + EQUAL
    kept = begin
    for i in range(begin, used):
        if gaps[i] <= limit:
            found[kept], gaps[kept] = found[i], gaps[i]
            kept += 1
    return kept, found, gaps


@njit(cache=True, nogil=True)
def nearest(
    tokens: np.ndarray,
    order: np.ndarray,
    features: np.ndarray,
    occurrences: np.ndarray,
    class_starts: np.ndarray,
    separators: np.ndarray,
    pad: int,
    weights: np.ndarray,
    contexts: np.ndarray,
    fixed: np.ndarray,
    lo: np.ndarray,
    hi: np.ndarray,
    bound: np.ndarray,
    differs: bool,
    rings: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All windows at the `rings` smallest distinct distances from every query.

    Args:
        tokens, order, features, occurrences, class_starts, pad, contexts: see `_window_kernels`.
        separators: int64 (documents + 1,), where `pad` stands in `tokens`.
        weights: float64 (n,), in the order of `features`.
        fixed: int64 (Q,), how many leading features must agree: 0 for IB1, the depth of the tree for TRIBL2.
        lo, hi: int64 (Q,), the node that these features lead to.
        bound: float64 (Q,), a distance within which `rings` distinct ones are known to lie; infinity when none is known.
        differs: whether in that node no window has the feature `fixed`, as in the deepest node that a context reaches.

    Returns:
        offsets int64 (Q + 1,), places in `tokens` int64, distances float64; within a query in no particular order.
    """
    n = features.size
    offsets = np.zeros(contexts.shape[0] + 1, np.int64)
    found, gaps = np.empty(1024, np.int64), np.empty(1024, np.float64)
    best, scratch = np.empty(rings, np.float64), (np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.bool_))
    used = 0
    for q in range(contexts.shape[0]):
        used, found, gaps = _search(
            tokens, order, features, occurrences, class_starts, separators, pad, weights,
            contexts[q], fixed[q], lo[q], hi[q], bound[q], differs, best, scratch, found, gaps, used,
        )  # fmt: skip
        offsets[q + 1] = used
    return offsets, found[:used].copy(), gaps[:used].copy()


@njit(cache=True, nogil=True)
def elect_nearest(
    tokens: np.ndarray,
    order: np.ndarray,
    features: np.ndarray,
    occurrences: np.ndarray,
    class_starts: np.ndarray,
    separators: np.ndarray,
    pad: int,
    weights: np.ndarray,
    contexts: np.ndarray,
    fixed: np.ndarray,
    lo: np.ndarray,
    hi: np.ndarray,
    bound: np.ndarray,
    differs: bool,
    rings: int,
    frequency: np.ndarray,
    ids: np.ndarray,
    winner: np.ndarray,
    first: int,
    last: int,
) -> None:
    """The class with most windows among the nearest of the queries first … last − 1: winner int64 (Q,), −1 where there are none.

    A tie is put to one ring more, which without `differs` is sought among all windows; if that does not settle it, of the tied ones at
    `rings` the class that is greater in `frequency` wins, then the one with the lower of `ids`. The other arguments as for `nearest`.
    """
    n = features.size
    found, gaps = np.empty(1024, np.int64), np.empty(1024, np.float64)
    smallest, scratch = np.empty(rings + 1, np.float64), (np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.bool_))
    counts, touched = np.zeros(frequency.size, np.int64), np.empty(frequency.size, np.int64)
    for q in range(first, last):
        node, limit = (fixed[q], lo[q], hi[q]), bound[q]
        for more in range(2):
            used, found, gaps = _search(
                tokens, order, features, occurrences, class_starts, separators, pad, weights,
                contexts[q], *node, limit, differs, smallest[: rings + more], scratch, found, gaps, 0,
            )  # fmt: skip
            best, most, tied, different = np.int64(-1), np.int64(0), False, 0
            for i in range(used):
                c = np.int64(tokens[found[i]])
                if counts[c] == 0:
                    touched[different] = c
                    different += 1
                counts[c] += 1
            for i in range(different):
                c = touched[i]
                if counts[c] > most:
                    best, most, tied = c, counts[c], False
                elif counts[c] == most:
                    tied = True
                    if frequency[c] > frequency[best] or (frequency[c] == frequency[best] and ids[c] < ids[best]):
                        best = c
                counts[c] = 0
            if not more or not tied:
                winner[q] = best
            if not tied:
                break
            if not differs:
                node = (np.int64(0), np.int64(0), np.int64(order.size))
            limit = np.inf
