"""The nearest stored windows under the weighted overlap metric, exactly: the search behind IB1 and TRIBL2.

The distance of two windows is the sum of the weights of the features in which they differ. The nearest neighbours for k are *all*
windows at the k smallest distinct distances (Daelemans & Van den Bosch, *Memory-Based Language Processing*, 2005).

Nothing is stored for this search beside the index: where a token stands is known from `occurrences`, and so, j places later, which
windows have it as feature j. The lists of a query's tokens are read from the shortest to the longest; reading ends when a window with
none of the tokens read so far would be further away than the k-th distance (the MaxScore rule of Turtle & Flood, *Query evaluation:
strategies and optimizations*, 1995). Where the next list is longer than the stretch of all windows in question, the stretch is read.
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
    features: np.ndarray,
    weights: np.ndarray,
    pad: int,
    class_starts: np.ndarray,
    documents: int,
    lists: np.ndarray,
    sizes: np.ndarray,
) -> tuple[int, float]:
    """The features whose values occur at all, shortest list first; returns their number and the weights of the others together."""
    count, missing = 0, 0.0
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

    Returns:
        offsets int64 (Q + 1,), places in `tokens` int64, distances float64; within a query in no particular order.
    """
    n = features.size
    offsets = np.zeros(contexts.shape[0] + 1, np.int64)
    found, gaps = np.empty(1024, np.int64), np.empty(1024, np.float64)
    used = 0
    best, read = np.empty(rings, np.float64), np.empty(n, np.bool_)
    lists, sizes = np.empty(n, np.int64), np.empty(n, np.int64)
    for q in range(contexts.shape[0]):
        context: Any = contexts[q]
        begin = used
        best[:], read[:] = np.inf, False
        # how far a window is at least that has been met in no list yet
        count, unread = _sort_lists(context, fixed[q], features, weights, pad, class_starts, separators.size - 1, lists, sizes)
        whole = hi[q] - lo[q]
        for step in range(count + 1):
            limit = min(best[rings - 1], bound[q]) + EQUAL
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
                    t = np.int64(order[lo[q] + k])
                elif value == pad:  # the first `back` windows of every document
                    document, offset = k // back, k % back
                    t = separators[document] + 1 + offset
                    if t >= separators[document + 1]:
                        continue
                else:
                    t = np.int64(order[occurrences[np.int64(class_starts[value]) + k]]) + back
                    if t >= tokens.size or tokens[t] == pad or not agrees(tokens, t, back, value, pad):
                        continue  # the document ends before
                gap = _gap(tokens, t, features, weights, pad, context, fixed[q] if last else 0, fixed[q], read, limit)
                if gap >= 0:
                    found[used], gaps[used] = t, gap
                    used += 1
                    note(best, gap)
                    limit = min(best[rings - 1], bound[q]) + EQUAL
            if last:
                break
            read[i] = True
            unread += weights[i]
        limit = best[rings - 1] + EQUAL
        kept = begin
        for i in range(begin, used):
            if gaps[i] <= limit:
                found[kept], gaps[kept] = found[i], gaps[i]
                kept += 1
        used = kept
        offsets[q + 1] = used
    return offsets, found[:used].copy(), gaps[:used].copy()
