"""A code of tokens that keeps their order: a window of 64 bits of a coded text holds many tokens, and windows compare as suffixes do."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

INT: Any = np.int64  # for the type checker, what it makes is just a number
WINDOW = 64  # bits of a window, which no code is longer than
LENGTH = np.uint64(WINDOW - 1)  # of an entry of the code: the lower bits are its length, the upper ones the code itself
CODE = ~LENGTH


@njit(cache=True, nogil=True)
def alphabetic_code(counts: np.ndarray) -> np.ndarray:
    """A prefix code in which frequent tokens are short and the order of codes is that of tokens.

    The sequence (end of text, least token, …, greatest token) is halved by weight until single ones are left: a code is at most two
    bits longer than the logarithm of one over its share (Horibe, *An improved bound for weight-balanced tree*, Inf. Control 34, 1977).
    Rare tokens are taken to be somewhat more frequent, so that no code is longer than 30 bits for up to 2²⁴ tokens, or 34.

    Args:
        counts: (alphabet,) occurrences of every token.

    Returns:
        u64 (alphabet,): the code in the uppermost bits, its length in the six lowest. The end of the text is all zeros.
    """
    present = np.flatnonzero(counts).astype(np.uint32)
    total = INT(counts.sum())
    least = max(INT(1), total // (INT(present.size) * (16 if present.size < 1 << 24 else 1)))
    before = np.empty(present.size + 2, np.int64)  # weight of all that come before
    before[0] = 0
    before[1] = least
    for j in range(present.size):
        before[j + 2] = before[j + 1] + max(INT(counts[present[j]]), least)
    code = np.zeros(counts.size, np.uint64)
    stack = [(INT(0), INT(present.size + 1), INT(0), np.uint64(0))]
    while len(stack) > 0:
        first, last, length, bits = stack.pop()
        if last - first == 1:
            if first > 0:
                code[present[first - 1]] = bits | np.uint64(length)
            continue
        low, high = first + 1, last - 1
        while low < high:
            middle = (low + high) >> 1
            if 2 * before[middle] < before[first] + before[last]:
                low = middle + 1
            else:
                high = middle
        if low - 1 > first and before[first] + before[last] - 2 * before[low - 1] < 2 * before[low] - before[first] - before[last]:
            low -= 1
        stack.append((first, low, length + 1, bits))
        stack.append((low, last, length + 1, bits | (np.uint64(1) << np.uint64(WINDOW - 1 - length))))
    return code


@njit(cache=True, nogil=True)
def window(text: np.ndarray, code: np.ndarray, place: int) -> np.uint64:
    """The first 64 bits of the coded suffix at `place`."""
    bits = np.uint64(0)
    used = np.uint64(0)
    while place < text.size and used < np.uint64(WINDOW):
        entry = code[text[place]]
        bits |= (entry & CODE) >> used
        used += entry & LENGTH
        place += 1
    return bits
