"""Suffix arrays in two stages, with several threads: a third of the suffixes is sorted, the others follow from these.

Itoh & Tanaka, *An Efficient Method for in Memory Construction of Suffix Arrays*, SPIRE 1999, sort only some suffixes by comparison;
what is induced from them, and how, is Nong, Zhang & Chan's (see `suffix_array`), mirrored: here the *peaks* are sorted, the falling
suffixes whose predecessor rises, then all rising suffixes are induced from right to left and all falling ones from left to right.
So the suffix array is finished from its beginning on, and can be written while the rest is made.

The peaks are sorted in this way, all of it in parallel but the induction:

1. An alphabetic code of the tokens, by their frequency, packs about eight tokens of a natural text into 64 bits, whose order as
   numbers is that of the suffixes. One pass over the text finds the peaks and these windows.
2. The first bits of a window choose one of many small buckets; the next ones, with the peak's number below them, are a key of
   64 bits, and NumPy sorts such keys with the processor's vectors.
3. What is still alike is sorted by the rank of a later peak, as Larsson & Sadakane, *Faster suffix sorting*, Theor. Comput. Sci. 387,
   2007, do with positions: how many tokens are compared doubles from round to round, so repeats of any length take O(n log n).
   In a round all ranks are read before one is written; therefore threads do not depend on each other, nor does the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from palimpsest.corpus.alphabetic_code import WINDOW, alphabetic_code
from palimpsest.corpus.two_stage_groups import HELD, first_groups, gather_keys, rank_groups, split_groups
from palimpsest.corpus.two_stage_loops import (
    count_tokens,
    deal_peaks,
    find_peaks,
    first_token_borders,
    induce_falling,
    induce_rising,
    take,
)

Finished = Callable[[np.ndarray], None]
_PARTS = 4  # of a loop for every thread, so that one that is held up does not hold up the others
_BUCKET = 4096  # peaks in a bucket, on average
_MOST_BUCKET_BITS = 12
_FINISHED = 1 << 20  # entries that are reported at once
_NARROW = 1 << 16  # up to so many ids serve as symbols as they are
_TABLE = 1 << 22  # up to so many ids are looked up in a table, more by searching


def two_stage_memory(length: int, top: int, itemsize: int) -> int:
    """Bytes that `two_stage` takes at most for `length` tokens, these included; a natural text takes about three quarters."""
    if itemsize < 4 or top + 2 <= _NARROW:
        return length * (20 if itemsize == 2 else 20 + itemsize) + 64 * _NARROW
    return length * (22 + itemsize) + 30 * min(length, top + 2) + 64 * _NARROW + (5 * _TABLE if top < _TABLE else 0)


def two_stage(tokens: np.ndarray, top: int, threads: int = 1, finished: Finished = lambda piece: None) -> np.ndarray:
    """The suffix array of `tokens`.

    Args:
        tokens: u8, u16 or u32 (length,), length >= 1.
        top: the greatest value beside the type's maximum (which stands for the separator).
        threads: how many may compute at once.
        finished: is told the pieces of the array, from left to right, as soon as they are final.

    Returns:
        u32 (length,): start positions of the suffixes in ascending order.
    """
    text, alphabet = _symbols(tokens, top)
    with ThreadPoolExecutor(threads) as pool:
        sort = _PeakSort(text, alphabet, threads, pool)
        heads = np.zeros(alphabet + 1, np.uint32)
        np.cumsum(sort.counts, out=heads[1:])
        peaks = sort.peaks()
        sa = sort.buffer
        del sort
    borders = first_token_borders(text, peaks, alphabet)
    begins = induce_rising(text, heads, peaks, borders, sa)
    del peaks, borders
    ends = heads[:-1].copy()
    token = 0
    while token < alphabet:
        start = heads[token]
        token = induce_falling(text, heads, begins, ends, sa, token, _FINISHED)
        finished(sa[start : heads[token]])
    return sa


def _symbols(tokens: np.ndarray, top: int) -> tuple[np.ndarray, int]:
    """The text as u16 or u32 numbers in the order of the tokens, and what they lie below; narrow ones have two bytes, to compile once."""
    if tokens.itemsize < 4:
        return tokens.astype(np.uint16, copy=False), 1 << (8 * tokens.itemsize)
    if top + 2 <= _NARROW:
        return np.minimum(tokens, np.uint32(top + 1), dtype=np.uint32).astype(np.uint16), top + 2
    if top < _TABLE:
        small = np.minimum(tokens, np.uint32(top + 1))
        present = np.zeros(top + 2, np.bool_)
        present[small] = True
        names = (np.cumsum(present, dtype=np.uint32) - np.uint32(1)).astype(np.uint32)
        return names[small], int(names[-1]) + 1
    values = np.unique(tokens)
    return np.searchsorted(values, tokens).astype(np.uint32), values.size


class _PeakSort:
    """The sorted peaks of a text; and the memory that they are sorted in, which is that of the suffix array.

    Attributes:
        counts: u32 (alphabet,): occurrences of every symbol.
        buffer: u32 (n,).
    """

    def __init__(self, text: np.ndarray, alphabet: int, threads: int, pool: ThreadPoolExecutor) -> None:
        self._text, self._pool = text, pool
        self._parts = threads * _PARTS if threads > 1 else 1
        counters = threads if 8 * threads * alphabet <= text.size else 1
        tables = np.zeros((counters, 2 if 8 * alphabet <= text.size else 1, alphabet), np.uint32)
        self._each(count_tokens, ((text, *cut, table) for cut, table in zip(self._cut(text.size, counters), tables, strict=False)))
        self.counts = tables.sum(axis=(0, 1), dtype=np.uint32)
        del tables
        self._room = np.empty(text.size // 2 + 3 * self._parts, np.uint64)  # pages that are touched once serve to the end
        self.buffer = self._room.view(np.uint32)[: text.size]

    def peaks(self) -> np.ndarray:
        """The places u32 (m,) of all peaks, in the order of their suffixes."""
        keys, peaks, steps, ranks, borders, bits, code = self._dealt()
        m = peaks.size
        number_bits = max(1, m.bit_length())
        cuts = np.unique(np.searchsorted(borders, [m * part // self._parts for part in range(1, self._parts)]))
        shares = list(pairwise(sorted({0, *cuts.tolist(), borders.size - 1})))
        self._each(_sort_buckets, ((keys, borders[first : last + 1]) for first, last in shares))
        order, depths = self.buffer[:m], self.buffer[m : 2 * m]
        lists = []
        for first, last in shares:
            most = int(borders[last] - borders[first]) // 2
            lists.append((borders[first : last + 1], np.empty(most, np.uint32), np.empty(most, np.uint32)))
        counts = self._each(
            first_groups,
            (
                (self._text, code, peaks, steps, keys, cut, bits, number_bits, order, ranks, depths, starts, sizes)
                for cut, starts, sizes in lists
            ),
        )
        groups = [(starts[:count], sizes[:count]) for (_, starts, sizes), count in zip(lists, counts, strict=True) if count]
        del lists, steps, code
        while groups:
            groups = self._refined(groups, order, ranks, depths, number_bits, keys)
        out = keys.view(np.uint32)[:m]
        self._each(take, ((peaks, order, start, stop, out) for start, stop in self._cut(m, self._parts)))
        return out

    def _dealt(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, int, np.ndarray]:
        """Keys in buckets, peaks, steps, room for ranks, borders of the buckets, bits of their numbers, code."""
        text, n = self._text, self._text.size
        code = alphabetic_code(self.counts)
        bits = min(max(1, (n // (3 * _BUCKET)).bit_length()), _MOST_BUCKET_BITS)
        width = WINDOW - (n // 2).bit_length() + bits
        cuts = list(self._cut(n, self._parts))
        room = [start // 2 + 3 * part for part, (start, _) in enumerate(cuts)] + [n // 2 + 3 * len(cuts)]
        ranks, steps = np.empty(room[-1], np.uint32), np.empty(room[-1], np.uint8)
        histograms = np.zeros((len(cuts), 1 << bits), np.int64)
        found = [tuple(array[first:last] for array in (self._room, ranks, steps)) for first, last in pairwise(room)]
        counts = self._each(
            find_peaks,
            ((text, *cut, code, bits, width, *arrays, table) for cut, arrays, table in zip(cuts, found, histograms, strict=True)),
        )
        m = sum(counts)
        keys, peaks, peak_steps = (np.empty(m, kind) for kind in (np.uint64, np.uint32, np.uint8))
        borders = np.concatenate([[0], np.cumsum(histograms.sum(axis=0))])
        begins = borders[:-1] + np.cumsum(histograms, axis=0) - histograms
        firsts = np.cumsum([0, *counts[:-1]]).tolist()
        self._each(
            deal_peaks,
            (
                (*(array[:count] for array in arrays), first, bits, max(1, m.bit_length()), begin, keys, peaks, peak_steps)
                for arrays, count, first, begin in zip(found, counts, firsts, begins, strict=True)
            ),
        )
        return keys, peaks, peak_steps, ranks[:m], borders, bits, code

    def _refined(
        self,
        groups: list[tuple[np.ndarray, np.ndarray]],
        order: np.ndarray,
        ranks: np.ndarray,
        depths: np.ndarray,
        number_bits: int,
        keys: np.ndarray,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """One round: the groups that are left of `groups`."""
        lists = [tuple(np.empty(int(sizes.sum(dtype=np.int64)) // 2, np.uint32) for _ in range(3)) for _, sizes in groups]
        counts = self._each(
            _refine, ((*part, order, ranks, depths, number_bits, keys, new) for part, new in zip(groups, lists, strict=True))
        )
        self._each(rank_groups, ((*part, new, count, order, ranks, depths) for part, new, count in zip(groups, lists, counts, strict=True)))
        return [(starts[:count], sizes[:count]) for (starts, sizes, _), count in zip(lists, counts, strict=True) if count]

    def _each(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
        """The function's results for each of several parts, which are computed side by side."""
        return list(self._pool.map(lambda given: function(*given), arguments))

    @staticmethod
    def _cut(size: int, parts: int) -> Iterable[tuple[int, int]]:
        """Nearly equal parts [start, stop), none of them empty."""
        return pairwise(sorted({size * part // parts for part in range(parts + 1)}))


def _sort_buckets(keys: np.ndarray, borders: np.ndarray) -> None:
    for start, stop in pairwise(borders.tolist()):
        keys[start:stop].sort()


def _refine(
    starts: np.ndarray,
    sizes: np.ndarray,
    order: np.ndarray,
    ranks: np.ndarray,
    depths: np.ndarray,
    number_bits: int,
    keys: np.ndarray,
    new: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> int:
    """Sorts the groups by the ranks at their depths, as many at once as fit a chunk; returns how many groups are left, listed in `new`."""
    held = np.empty(HELD, np.uint32)
    group = used = 0
    while group < starts.size:
        stop, count = gather_keys(starts, sizes, group, order, ranks, depths, number_bits, keys, held)
        first = int(starts[group])
        keys[first : first + count].sort()
        used = split_groups(starts, sizes, group, stop, order, depths, number_bits, keys, held, new, used)
        group = stop
    return used
