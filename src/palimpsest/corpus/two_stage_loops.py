"""The compiled loops of `two_stage` over the text: its peaks, and how all suffixes are induced from the sorted peaks.

Suffix i *rises* when it is less than suffix i + 1, else it *falls*; the last one falls, for the empty suffix is the least. A *peak* is
a falling suffix whose predecessor rises. Of all suffixes that begin with c the falling ones come first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from palimpsest.corpus.alphabetic_code import CODE, INT, LENGTH, WINDOW
from palimpsest.corpus.prefetch import prefetch

_MARK = np.uint32(1 << 31)
_PLACE = np.uint32((1 << 31) - 1)
_AHEAD = 32  # entries between a hint and its use
_FAR = np.int64(1 << 60)


@njit(cache=True, nogil=True)
def count_tokens(text: np.ndarray, start: int, stop: int, counts: np.ndarray) -> None:
    """Adds the tokens text[start:stop] to `counts` u32 (1 or 2, alphabet); two by turns: a token that repeats does not wait for itself."""
    other = counts.shape[0] - 1
    half = (stop - start) // 2
    for i in range(start, start + half):
        counts[0, text[i]] += 1
        counts[other, text[i + half]] += 1
    for i in range(start + 2 * half, stop):
        counts[0, text[i]] += 1


@njit(cache=True, nogil=True)
def find_peaks(
    text: np.ndarray,
    start: int,
    stop: int,
    code: np.ndarray,
    bits: int,
    width: int,
    windows: np.ndarray,
    places: np.ndarray,
    steps: np.ndarray,
    histogram: np.ndarray,
) -> int:
    """The peaks in (start, stop], from right to left, with their windows.

    How many of the next peaks lie within the first `width` bits of a peak's window, for certain, is counted on the way: a peak is
    certain as soon as the first token is seen that differs from its own. Near `stop` fewer may be counted, and never more than four.

    Args:
        text: (n,).
        start, stop: 0 <= start < stop <= n.
        code: of `alphabetic_code`.
        bits: how many bits of a window number its bucket.
        width: see above.
        windows: u64, places: u32, steps: u8 (at least (stop - start) // 2 + 2,), to be filled.
        histogram: int64 (2 ** bits,): peaks in every bucket, to be added to.

    Returns:
        the number of peaks.
    """
    n = text.size
    view = np.uint64(0)
    for i in range(min(n, stop + WINDOW) - 1, stop - 1, -1):
        entry = code[text[i]]
        view = (view >> (entry & LENGTH)) | (entry & CODE)
    after: Any = INT(-1)  # the token behind
    rises = False
    if stop < n:
        after = INT(text[stop])
        i = stop + 1
        while i < n and text[i] == text[stop]:
            i += 1
        rises = i < n and text[i] > text[stop]
    seen = INT(0)  # bits from the position behind to `stop`
    seen_before = end = end1 = end2 = end3 = end4 = -_FAR  # what was seen when the position behind, or a peak, became certain
    shift = np.uint64(WINDOW - bits)
    used = np.uint64(0)
    for i in range(stop - 1, start - 1, -1):
        token = INT(text[np.uint64(i)])
        rose = rises
        rises = (token < after) | ((token == after) & rose)
        peak = rises & (not rose)
        # No branches: whether a token is a peak cannot be foreseen. What is written for one that is not is written over.
        windows[used] = view
        places[used] = i + 1
        reach = seen - width
        steps[used] = np.uint8(end1 >= reach) + np.uint8(end2 >= reach) + np.uint8(end3 >= reach) + np.uint8(end4 >= reach)
        histogram[view >> shift] += INT(peak)
        used += np.uint64(peak)
        end4 = end3 if peak else end4
        end3 = end2 if peak else end3
        end2 = end1 if peak else end2
        end1 = end if peak else end1
        end = seen_before if token != after else end
        seen_before = seen
        entry = code[np.uint64(token)]
        seen += INT(entry & LENGTH)
        view = (view >> (entry & LENGTH)) | (entry & CODE)
        after = token
    return INT(used)


@njit(cache=True, nogil=True)
def deal_peaks(
    windows: np.ndarray,
    places: np.ndarray,
    steps: np.ndarray,
    first: int,
    bits: int,
    number_bits: int,
    begins: np.ndarray,
    keys: np.ndarray,
    peaks: np.ndarray,
    peak_steps: np.ndarray,
) -> None:
    """Puts what `find_peaks` found into buckets, each peak as the bits of its window that follow the bucket's, and its number.

    Args:
        windows, places, steps: (count,) from right to left.
        first: number of the leftmost of these peaks.
        bits, number_bits: bits of a bucket's number and of a peak's.
        begins: int64 (2 ** bits,): where in each bucket these peaks go; changed.
        keys: u64 (m,), peaks: u32 (m,) places of all peaks, peak_steps: u8 (m,): to be filled.
    """
    upper, lower, shift = np.uint64(bits), np.uint64(number_bits), np.uint64(WINDOW - bits)
    for i in range(places.size):
        number = first + places.size - 1 - i
        peaks[number] = places[i]
        peak_steps[number] = steps[i]
        bucket = windows[i] >> shift
        to = begins[bucket]
        begins[bucket] = to + 1
        keys[to] = (((windows[i] << upper) >> lower) << lower) | np.uint64(number)


@njit(cache=True, nogil=True)
def take(values: np.ndarray, order: np.ndarray, start: int, stop: int, out: np.ndarray) -> None:
    """out[start:stop] = values[order[start:stop]]."""
    for i in range(start, stop):
        prefetch(values, INT(order[min(i + _AHEAD, stop - 1)]))
        out[i] = values[order[i]]


@njit(cache=True, nogil=True)
def first_token_borders(text: np.ndarray, peaks: np.ndarray, alphabet: int) -> np.ndarray:
    """Which of the sorted `peaks` begin with c: those from [c] to [c + 1] of the result, u32 (alphabet + 1,)."""
    borders = np.empty(alphabet + 1, np.uint32)
    m = peaks.size
    begin = 0
    for c in range(alphabet):
        borders[c] = begin
        step = 1
        while begin + step <= m and text[peaks[begin + step - 1]] == c:
            begin += step
            step *= 2
        while step > 1:
            step >>= 1
            if begin + step <= m and text[peaks[begin + step - 1]] == c:
                begin += step
    borders[alphabet] = m
    return borders


@njit(cache=True, nogil=True)
def induce_rising(text: np.ndarray, heads: np.ndarray, peaks: np.ndarray, borders: np.ndarray, sa: np.ndarray) -> np.ndarray:
    """Writes all rising suffixes to their places: from right to left, every one is found by the one behind it, which is greater.

    Args:
        text: (n,).
        heads: u32 (alphabet + 1,): suffixes that begin with c stand in sa[heads[c] : heads[c + 1]].
        peaks: u32 (m,), sorted; borders: of `first_token_borders`.
        sa: u32 (at least n,); an entry is marked when its predecessor falls or there is none.

    Returns:
        u32 (alphabet,): where the rising suffixes that begin with c begin.
    """
    begins = heads[1:].copy()
    for c in range(begins.size - 1, -1, -1):
        i = INT(heads[c + 1]) - 1
        while i >= INT(begins[c]):
            prefetch(text, max(INT(sa[max(i - _AHEAD, 0)] & _PLACE), 2) - 2)
            if sa[i] < _MARK:
                place = INT(sa[i]) - 1
                token = text[np.uint64(place)]
                begins[token] -= np.uint32(1)
                last = place == 0 or text[np.uint64(place - 1)] > token
                sa[begins[token]] = np.uint32(place) | (np.uint32(last) << np.uint32(31))
            i -= 1
        for j in range(INT(borders[c + 1]) - 1, INT(borders[c]) - 1, -1):
            prefetch(text, max(INT(peaks[max(j - _AHEAD, 0)]), 2) - 2)
            place = INT(peaks[j]) - 1
            token = text[np.uint64(place)]
            begins[token] -= np.uint32(1)
            last = place == 0 or text[np.uint64(place - 1)] > token
            sa[begins[token]] = np.uint32(place) | (np.uint32(last) << np.uint32(31))
    return begins


@njit(cache=True, nogil=True)
def induce_falling(
    text: np.ndarray, heads: np.ndarray, begins: np.ndarray, ends: np.ndarray, sa: np.ndarray, first: int, count: int
) -> int:
    """Writes the falling suffixes to their places, from left to right, and removes the marks: what is passed is finished.

    Args:
        text: (n,).
        heads, begins: as above.
        ends: u32 (alphabet,): heads[:-1] at first; where the falling suffixes found so far that begin with c end. Changed.
        sa: u32 (at least n,), with the rising suffixes.
        first: the token to go on with; 0 at first.
        count: it stops after the bucket in which so many entries are passed.

    Returns:
        the token to go on with.
    """
    if first == 0:  # the last suffix is found by the empty one
        place = text.size - 1
        token = text[place]
        last = place == 0 or text[place - 1] < token
        sa[ends[token]] = np.uint32(place) | (np.uint32(last) << np.uint32(31))
        ends[token] += np.uint32(1)
    for c in range(first, begins.size):
        i = INT(heads[c])
        falling = INT(begins[c])
        while i < falling:
            prefetch(text, max(INT(sa[min(i + _AHEAD, sa.size - 1)] & _PLACE), 2) - 2)
            value = sa[i]
            i += 1
            if value < _MARK:
                place = INT(value) - 1
                token = text[np.uint64(place)]
                last = place == 0 or text[np.uint64(place - 1)] < token
                sa[ends[token]] = np.uint32(place) | (np.uint32(last) << np.uint32(31))
                ends[token] += np.uint32(1)
            else:
                sa[i - 1] = value & _PLACE
        while i < INT(heads[c + 1]):
            prefetch(text, max(INT(sa[min(i + _AHEAD, sa.size - 1)] & _PLACE), 2) - 2)
            value = sa[i]
            if value > _MARK:
                sa[i] = value & _PLACE
                place = INT(value & _PLACE) - 1
                token = text[np.uint64(place)]
                last = place == 0 or text[np.uint64(place - 1)] < token
                sa[ends[token]] = np.uint32(place) | (np.uint32(last) << np.uint32(31))
                ends[token] += np.uint32(1)
            elif value == _MARK:
                sa[i] = 0
            i += 1
        count -= INT(heads[c + 1]) - INT(heads[c])
        if count <= 0:
            return c + 1
    return begins.size
