"""The compiled loops behind `WindowIndex`: sorting windows, walking down the tree that the sorted windows are, counting classes.

All functions speak of one index and take some of these arrays:

    tokens       u16|u32 (length,)   codes of the tokens; `pad`, the greatest value of the type, before every document and at the end
    order        u32 (N,)            where in `tokens` the N instances stand, sorted by their features, then by class, then by place
    features     int64 (n,)          how far before its class each feature of an instance stands, in the order of the sorting
    starts       int64 (kinds + 2,)  borders of the stretches of `order` with the same first feature, padding last
    occurrences  u32 (N,)            for each class the places of its instances in `order`, ascending
    class_starts int64 (kinds + 1,)  borders of the classes in `occurrences`
    contexts     int64 (Q, n)        queries, in the order of `features`; `pad` before a document, −1 for what no document holds

The instance at place t has the class tokens[t] and the features tokens[t − features[i]], which are `pad` where the document begins
later. A node at level j of the tree is the stretch order[lo : hi] of all instances with the same first j features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

SMALL = 8  # nodes with fewer instances are counted when they are asked for, not stored


@njit(cache=True, inline="always")
def feature(tokens: np.ndarray, t: Any, back: int, pad: int) -> Any:
    """The token `back` places before `t`, `pad` when the document begins later; the class itself for `back` 0."""
    for step in range(1, back):
        if tokens[t - step] == pad:
            return pad
    return np.int64(tokens[t - back])


@njit(cache=True, inline="always")
def agrees(tokens: np.ndarray, t: Any, back: int, value: int, pad: int) -> bool:
    """Whether `feature(tokens, t, back, pad) == value`; most often one look tells."""
    if value != pad and (t < back or tokens[t - back] != value):
        return False
    return feature(tokens, t, back, pad) == value


@njit(cache=True, nogil=True)
def sort_by(tokens: np.ndarray, order: np.ndarray, back: int, kinds: int, pad: int, out: np.ndarray) -> np.ndarray:
    """Writes `order` to `out`, sorted by one feature (by class for `back` 0), equal ones as they were: one pass of a radix sort.

    Returns:
        int64 (kinds + 2,): instances with value v are out[starts[v] : starts[v + 1]], those with padding have v = kinds.
    """
    values = np.empty(order.size, np.uint32)
    starts = np.zeros(kinds + 2, np.int64)
    for i in range(order.size):
        values[i] = min(feature(tokens, np.int64(order[i]), back, pad), kinds)
        starts[values[i] + 1] += 1
    for value in range(kinds + 1):
        starts[value + 1] += starts[value]
    place = starts.copy()
    for i in range(order.size):
        out[place[values[i]]] = order[i]
        place[values[i]] += 1
    return starts


@njit(cache=True, nogil=True)
def sum_over_pairs(tokens: np.ndarray, order: np.ndarray, starts: np.ndarray, kinds: int) -> float:
    """Σ m log₂ m over the counts m of all pairs of a feature's value and a class; `order` and `starts` as `sort_by` leaves them."""
    counts, touched = np.zeros(kinds, np.int64), np.empty(kinds, np.int64)
    total = 0.0
    for value in range(starts.size - 1):
        different = _count(tokens, order, starts[value], starts[value + 1], counts, touched)
        for i in range(different):
            total += counts[touched[i]] * np.log2(counts[touched[i]])
            counts[touched[i]] = 0
    return total


@njit(cache=True, inline="always")
def _count(tokens: np.ndarray, order: np.ndarray, lo: int, hi: int, counts: np.ndarray, touched: np.ndarray) -> int:
    """Adds the classes of order[lo:hi] to `counts`, lists in `touched` those that had none, and returns their number."""
    different = 0
    for i in range(lo, hi):
        c = np.int64(tokens[order[i]])
        if counts[c] == 0:
            touched[different] = c
            different += 1
        counts[c] += 1
    return different


@njit(cache=True, nogil=True)
def shared_features(tokens: np.ndarray, order: np.ndarray, features: np.ndarray, pad: int) -> np.ndarray:
    """How many leading features instance i has in common with i − 1: u8 (N,), 0 at the first."""
    shared = np.zeros(order.size, np.uint8)
    for i in range(1, order.size):
        before, here = np.int64(order[i - 1]), np.int64(order[i])
        j = 0
        while j < features.size and feature(tokens, before, features[j], pad) == feature(tokens, here, features[j], pad):
            j += 1
        shared[i] = j
    return shared


@njit(cache=True, nogil=True)
def store_nodes(
    tokens: np.ndarray, order: np.ndarray, shared: np.ndarray, n: int, kinds: int, pad: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The nodes of levels 1 … n with `SMALL` instances or more, fewer than the node above has.

    Returns:
        lo u32 (M,): where each begins, ascending within a level; top (M,): its most frequent class, `pad` when several are;
        classes (M,): how many different ones it has; borders int64 (n + 2,): level j is borders[j] : borders[j + 1].
    """
    borders = np.zeros(n + 2, np.int64)
    lo, top, classes = np.empty(0, np.uint32), np.empty(0, tokens.dtype), np.empty(0, tokens.dtype)
    counts, touched = np.zeros(kinds, np.int64), np.empty(kinds, np.int64)
    for filling in range(2):  # once to know how many there are
        if filling:
            lo = np.empty(borders[n + 1], np.uint32)
            top, classes = np.empty(lo.size, tokens.dtype), np.empty(lo.size, tokens.dtype)
        used = 0
        for level in range(1, n + 1):
            begin = 0
            while begin < order.size:
                end = begin + 1
                while end < order.size and shared[end] >= level:
                    end += 1
                as_above = (begin == 0 or shared[begin] < level - 1) and (end == order.size or shared[end] < level - 1)
                if end - begin >= SMALL and not as_above:
                    if filling:
                        lo[used] = begin
                        classes[used], top[used] = _summary(tokens, order, begin, end, counts, touched, pad)
                    used += 1
                begin = end
            borders[level + 1] = used
    return lo, top, classes, borders


@njit(cache=True)
def _summary(tokens: np.ndarray, order: np.ndarray, lo: int, hi: int, counts: np.ndarray, touched: np.ndarray, pad: int) -> tuple[int, int]:
    """How many different classes order[lo:hi] has, and the most frequent one or `pad`; leaves `counts` as it was, all 0."""
    different = _count(tokens, order, lo, hi, counts, touched)
    best, most = pad, 0
    for i in range(different):
        c = touched[i]
        if counts[c] > most:
            best, most = c, counts[c]
        elif counts[c] == most:
            best = pad
        counts[c] = 0
    return different, best


@njit(cache=True, nogil=True)
def descend(
    tokens: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    features: np.ndarray,
    pad: int,
    contexts: np.ndarray,
    lo: np.ndarray,
    hi: np.ndarray,
    first: int,
    last: int,
) -> None:
    """For the queries first … last − 1 their node at every level: lo and hi (Q, n + 1), both 0 where there is none."""
    kinds = starts.size - 2
    for q in range(first, last):
        lo[q, :], hi[q, :] = 0, 0
        left: Any = 0
        right: Any = order.size
        hi[q, 0] = right
        for level in range(features.size):
            value = contexts[q, level]
            if level == 0:
                if value == pad:
                    value = kinds
                elif value < 0 or value >= kinds:  # learnt after this index was sorted
                    break
                left, right = np.int64(starts[value]), np.int64(starts[value + 1])
            else:
                back = features[level]
                low, high = left, right
                while low < high:  # to the first instance whose feature is not less
                    middle = (low + high) >> 1
                    if feature(tokens, np.int64(order[middle]), back, pad) < value:
                        low = middle + 1
                    else:
                        high = middle
                left, step = low, 1
                while low + step < right and feature(tokens, np.int64(order[low + step]), back, pad) <= value:
                    low += step  # most nodes are small: rather double the step than halve the rest
                    step *= 2
                high = min(low + step, right)
                while low < high:
                    middle = (low + high) >> 1
                    if feature(tokens, np.int64(order[middle]), back, pad) <= value:
                        low = middle + 1
                    else:
                        high = middle
                right = low
            if left == right:
                break
            lo[q, level + 1], hi[q, level + 1] = left, right


@njit(cache=True, nogil=True)
def summaries(
    tokens: np.ndarray,
    order: np.ndarray,
    node_lo: np.ndarray,
    node_top: np.ndarray,
    node_classes: np.ndarray,
    borders: np.ndarray,
    root: tuple[int, int],
    pad: int,
    lo: np.ndarray,
    hi: np.ndarray,
    level: np.ndarray,
    top: np.ndarray,
    classes: np.ndarray,
) -> None:
    """For the node lo[q, level[q]] : hi[q, level[q]] of every query the most frequent class (`pad` for a tie) and how many it has.

    An empty node has −1 and 0. `root` is the answer for the whole index.
    """
    for q in range(level.size):
        j = level[q]
        size = hi[q, j] - lo[q, j]
        while j > 0 and lo[q, j] == lo[q, j - 1] and hi[q, j] == hi[q, j - 1]:
            j -= 1  # the node was stored where it first appeared
        if size == 0:
            top[q], classes[q] = -1, 0
        elif j == 0:
            top[q], classes[q] = root
        elif size < SMALL:
            top[q], classes[q] = _small(tokens, order, lo[q, j], hi[q, j], pad)
        else:
            at = lower_bound(node_lo, borders[j], borders[j + 1], lo[q, j])
            top[q], classes[q] = node_top[at], node_classes[at]


@njit(cache=True, inline="always")
def _small(tokens: np.ndarray, order: np.ndarray, lo: int, hi: int, pad: int) -> tuple[int, int]:
    """The most frequent class of a few instances, `pad` for a tie, and how many they have."""
    best, most, different = pad, 0, 0
    for i in range(lo, hi):
        c: Any = np.int64(tokens[order[i]])
        count, new = 1, True
        for other in range(lo, i):
            if tokens[order[other]] == c:
                new = False
                break
        if not new:
            continue
        different += 1
        for other in range(i + 1, hi):
            count += tokens[order[other]] == c
        if count > most:
            best, most = c, count
        elif count == most:
            best = pad
    return best, different


@njit(cache=True, inline="always")
def lower_bound(values: np.ndarray, left: int, right: int, wanted: int) -> int:
    """The first place in left … right − 1 whose value is not less than `wanted`, `right` if there is none."""
    while left < right:
        middle = (left + right) >> 1
        if values[middle] < wanted:
            left = middle + 1
        else:
            right = middle
    return left


@njit(cache=True, nogil=True)
def occurrences_between(
    occurrences: np.ndarray, class_starts: np.ndarray, classes: np.ndarray, lo: np.ndarray, hi: np.ndarray, out: np.ndarray
) -> None:
    """How often the class of every query (Q,) occurs in its nodes lo, hi (Q, J), each inside the one before: out (Q, J).

    What a rank query does in a compressed text index: two binary searches a node, whatever the size of the node.
    """
    for q in range(classes.size):
        c = classes[q]
        out[q, :] = 0
        if c < 0 or c >= class_starts.size - 1:
            continue
        left: Any = np.int64(class_starts[c])  # starts may be unsigned, and must not turn the sum into a float
        right: Any = np.int64(class_starts[c + 1])
        for j in range(lo.shape[1]):
            left = lower_bound(occurrences, left, right, lo[q, j])
            right = lower_bound(occurrences, left, right, hi[q, j])
            if left == right:
                break
            out[q, j] = right - left
