"""Ragged tables of votes: rows of (class, vote) one after the other, with the borders of the rows beside them.

`offsets` int64 (Q + 1,): row q is the stretch offsets[q] : offsets[q + 1] of every other array.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

EQUAL = 1e-12  # sums of the same numbers in another order differ by less


Votes = tuple[np.ndarray, np.ndarray, np.ndarray]  # offsets, classes int64, votes float64


@njit(cache=True, nogil=True)
def count_stretches(tokens: np.ndarray, order: np.ndarray, lo: np.ndarray, hi: np.ndarray, kinds: int) -> Votes:
    """How often each class occurs among order[lo[q] : hi[q]], for every row; classes ascend within a row."""
    counts = np.zeros(kinds, np.int64)
    offsets = np.zeros(lo.size + 1, np.int64)
    found, votes = np.empty(1024, np.int64), np.empty(1024, np.float64)
    used = 0
    for q in range(lo.size):
        begin = used
        while found.size < used + min(hi[q] - lo[q], kinds):
            found, votes = np.append(found, np.empty_like(found)), np.append(votes, np.empty_like(votes))
        for i in range(lo[q], hi[q]):
            c = np.int64(tokens[order[i]])
            if counts[c] == 0:
                found[used] = c
                used += 1
            counts[c] += 1
        found[begin:used].sort()
        for i in range(begin, used):
            votes[i] = counts[found[i]]
            counts[found[i]] = 0
        offsets[q + 1] = used
    return offsets, found[:used].copy(), votes[:used].copy()


@njit(cache=True, nogil=True)
def stretches(order: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The entries order[lo[q] : hi[q]] of every row as a ragged table: offsets and entries int64."""
    offsets = np.zeros(lo.size + 1, np.int64)
    for q in range(lo.size):
        offsets[q + 1] = offsets[q] + hi[q] - lo[q]
    entries = np.empty(offsets[lo.size], np.int64)
    for q in range(lo.size):
        for i in range(hi[q] - lo[q]):
            entries[offsets[q] + i] = order[lo[q] + i]
    return offsets, entries


@njit(cache=True, nogil=True)
def are_stretches(offsets: np.ndarray, entries: np.ndarray, order: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
    """Whether each row holds just the entries order[lo[q] : hi[q]], in whatever order: bool (Q,)."""
    same = np.zeros(lo.size, np.bool_)
    for q in range(lo.size):
        if offsets[q + 1] - offsets[q] == hi[q] - lo[q]:
            same[q] = np.array_equal(np.sort(entries[offsets[q] : offsets[q + 1]]), np.sort(order[lo[q] : hi[q]].astype(np.int64)))
    return same


def stack(parts: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """Ragged tables with equally many rows as one, whose row q holds the entries of row q of all of them, (offsets, values, …) each."""
    if len(parts) == 1:
        return parts[0]
    lengths = [np.diff(part[0]) for part in parts]
    rows = np.concatenate([np.repeat(np.arange(length.size), length) for length in lengths])
    order = np.argsort(rows, kind="stable")
    columns = zip(*(part[1:] for part in parts), strict=True)
    return np.concatenate([[0], np.cumsum(np.sum(lengths, axis=0))]), *(np.concatenate(column)[order] for column in columns)


def take_rows(table: Votes, rows: np.ndarray) -> Votes:
    """Some `rows`, ascending, of a table."""
    length = np.diff(table[0])
    chosen = np.zeros(length.size, np.bool_)
    chosen[rows] = True
    inside = np.repeat(chosen, length)
    return np.concatenate([[0], np.cumsum(length[rows])]), table[1][inside], table[2][inside]


def replace_rows(table: Votes, rows: np.ndarray, by: Votes) -> Votes:
    """`table` with its `rows`, ascending, replaced by those of another."""
    length = np.diff(table[0])
    kept = np.ones(length.size, np.bool_)
    kept[rows] = False
    inside = np.repeat(kept, length)
    there, here = np.where(kept, length, 0), np.zeros_like(length)
    here[rows] = np.diff(by[0])
    offsets = [np.concatenate([[0], np.cumsum(lengths)]) for lengths in (there, here)]
    return stack([(offsets[0], table[1][inside], table[2][inside]), (offsets[1], *by[1:])])  # type: ignore[return-value]


@njit(cache=True, nogil=True)
def add_equal(offsets: np.ndarray, classes: np.ndarray, votes: np.ndarray, kinds: int, ascending: bool) -> Votes:
    """Adds up the votes for equal classes (below `kinds`) of a row; classes then ascend within a row, if that is wanted."""
    sums, seen = np.zeros(kinds, np.float64), np.zeros(kinds, np.bool_)
    borders = np.zeros(offsets.size, np.int64)
    found, total = np.empty(classes.size, np.int64), np.empty(classes.size, np.float64)
    used = 0
    for q in range(offsets.size - 1):
        begin = used
        for i in range(offsets[q], offsets[q + 1]):
            c = classes[i]
            if not seen[c]:
                seen[c] = True
                found[used] = c
                used += 1
            sums[c] += votes[i]
        if ascending:
            found[begin:used].sort()
        for i in range(begin, used):
            total[i] = sums[found[i]]
            sums[found[i]], seen[found[i]] = 0.0, False
        borders[q + 1] = used
    return borders, found[:used].copy(), total[:used].copy()


@njit(cache=True, nogil=True)
def elect(
    offsets: np.ndarray, classes: np.ndarray, votes: np.ndarray, frequency: np.ndarray, ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The class with most votes in every row, of several such the more frequent one in all, of these the one with the lower id.

    Returns:
        classes int64 (Q,), −1 for an empty row, and whether several had most votes, bool (Q,).
    """
    winner, tied = np.full(offsets.size - 1, -1, np.int64), np.zeros(offsets.size - 1, np.bool_)
    for q in range(offsets.size - 1):
        best, most = -1, -np.inf
        for i in range(offsets[q], offsets[q + 1]):
            c = classes[i]
            if votes[i] > most + EQUAL * abs(votes[i]):
                best, most = c, votes[i]
                tied[q] = False
            elif votes[i] >= most - EQUAL * abs(votes[i]):
                tied[q] = True
                if frequency[c] > frequency[best] or (frequency[c] == frequency[best] and ids[c] < ids[best]):
                    best = c
        winner[q] = best
    return winner, tied


@njit(cache=True, nogil=True)
def smallest_distinct(offsets: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """The `count` smallest distinct values of every row, ascending, infinity where there are fewer: float64 (Q, count)."""
    out = np.full((offsets.size - 1, count), np.inf)
    for q in range(offsets.size - 1):
        for i in range(offsets[q], offsets[q + 1]):
            note(out[q], values[i])
    return out


@njit(cache=True, inline="always")
def note(smallest: np.ndarray, value: float) -> None:
    """Puts `value` among the smallest distinct ones, which ascend."""
    for r in range(smallest.size):
        if abs(value - smallest[r]) <= EQUAL:
            return
        if value < smallest[r]:
            for s in range(smallest.size - 1, r, -1):
                smallest[s] = smallest[s - 1]
            smallest[r] = value
            return


@njit(cache=True, nogil=True)
def discount_rows(p: np.ndarray, offsets: np.ndarray, ids: np.ndarray, votes: np.ndarray, discount: float) -> None:
    """Puts every row's votes, each less `discount`, over the distribution p (Q, V) that was there, which gets what they left.

    p(c) ← max(v_c − D, 0) / Σv + λ p(c), λ = 1 − Σ_c max(v_c − D, 0) / Σv. A row without votes stays as it is.
    """
    for q in range(offsets.size - 1):
        total, kept = 0.0, 0.0
        for i in range(offsets[q], offsets[q + 1]):
            total += votes[i]
            kept += max(votes[i] - discount, 0.0)
        if total > 0:
            p[q] *= (total - kept) / total
            for i in range(offsets[q], offsets[q + 1]):
                p[q, ids[i]] += max(votes[i] - discount, 0.0) / total


@njit(cache=True, nogil=True)
def discount_targets(
    p: np.ndarray, offsets: np.ndarray, classes: np.ndarray, votes: np.ndarray, target: np.ndarray, discount: float
) -> None:
    """`discount_rows` for one class a row alone, the `target` (Q,), whose probability is p (Q,)."""
    for q in range(offsets.size - 1):
        total, kept, own = 0.0, 0.0, 0.0
        for i in range(offsets[q], offsets[q + 1]):
            total += votes[i]
            kept += max(votes[i] - discount, 0.0)
            if classes[i] == target[q]:
                own = max(votes[i] - discount, 0.0)
        if total > 0:
            p[q] = p[q] * (total - kept) / total + own / total
