"""Suffix arrays of token sequences: three builders that agree to the last entry.

`two-stage` is the quick one for many tokens: ours, with several threads (see `two_stage`).
`divsufsort` (Yuta Mori's library, through pydivsufsort) sorts the suffixes of *bytes*. Written big-endian, tokens compare as their
bytes do, so the suffixes that begin at a whole token, in the order of all byte suffixes, are the suffix array of the tokens.
`sais` is the induced sorting of Nong, Zhang & Chan, *Two efficient algorithms for linear time suffix array construction*, IEEE
Trans. Computers 60(10), 2011, compiled here; it needs no package and works for every token width alike.

Order: token by token; a suffix that is a prefix of another is less.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit

from palimpsest.corpus.two_stage import two_stage, two_stage_memory
from palimpsest.errors import InputError

BUILDERS = ("auto", "two-stage", "divsufsort", "sais", "external")
MAX_TOKENS = (1 << 31) - 1  # positions are 31 bits while sorting
_STRIP = 1 << 22  # byte suffixes that are filtered at once
_MANY = 1 << 20  # tokens from which on compiling and starting the threads of two-stage is worth it


def choose_builder(builder: str, length: int, top: int, lean: bool = False) -> str:
    """The builder that "auto" stands for: two-stage from a million tokens on; of fewer, or where memory is short, the leaner ones.

    These are divsufsort while the tokens' bytes fit its 32-bit variant, else sais. "external" is not of this module (see `external`):
    it sorts parts with one of the others.

    Args:
        builder: one of `BUILDERS`.
        length: tokens in the shard, separators included.
        top: the greatest token, separators aside.
        lean: whether "auto" stands for the one that takes the least memory.

    Raises:
        InputError: an unknown builder, or a shard that is too long for any.
    """
    if builder not in BUILDERS:
        raise InputError(f"The builder {builder!r} is unknown.", f"Choose one of {', '.join(BUILDERS)}.")
    if length > MAX_TOKENS:
        raise InputError(
            f"A shard of {length:,} tokens is too long to sort.", f"Use at least {-(-length // MAX_TOKENS)} times as many shards."
        )
    fits = length * _width(top + 1) < 1 << 31
    if builder == "divsufsort" and not fits:
        raise InputError(
            f"divsufsort cannot sort {length:,} tokens of {_width(top + 1)} bytes.", 'Use more shards, or builder "two-stage" or "sais".'
        )
    if builder != "auto":
        return builder
    if length >= _MANY and not lean:
        return "two-stage"
    return "divsufsort" if fits else "sais"


def sorting_memory(builder: str, length: int, top: int, itemsize: int = 4) -> int:
    """Bytes that sorting a shard of `length` tokens, of `itemsize` bytes each, takes at most, the tokens included."""
    if builder == "two-stage":
        return two_stage_memory(length, top, itemsize)
    return length * (itemsize + 5 * _width(top + 1)) if builder == "divsufsort" else length * (2 * itemsize + 16)


def suffix_array(
    tokens: np.ndarray,
    top: int,
    builder: str,
    threads: int = 1,
    finished: Callable[[np.ndarray], None] = lambda piece: None,
) -> np.ndarray:
    """The suffix array of `tokens`.

    Args:
        tokens: u8, u16 or u32 (length,).
        top: the greatest value beside the type's maximum (which stands for the separator).
        builder: "two-stage", "divsufsort" or "sais".
        threads: how many may compute at once; only two-stage makes use of more than one.
        finished: is told the array in pieces, from left to right, each as soon as it is final.

    Returns:
        u32 (length,): start positions of the suffixes in ascending order.

    Raises:
        InputError: another builder.

    Example:
        >>> import numpy as np
        >>> suffix_array(np.array([1, 0, 1, 0], np.uint8), 1, "sais")
        array([3, 1, 2, 0], dtype=uint32)
    """
    if builder not in ("two-stage", "divsufsort", "sais"):
        raise InputError(f"The builder {builder!r} sorts nothing in memory.", "Choose two-stage, divsufsort or sais.")
    if tokens.size == 0:
        return np.empty(0, np.uint32)
    if builder == "two-stage":
        return two_stage(tokens, top, threads, finished)
    sa = _divsufsort(tokens, top) if builder == "divsufsort" else _sais_tokens(tokens, top)
    finished(sa)
    return sa


def _width(value: int) -> int:
    """Bytes that hold `value`."""
    return max(1, (int(value).bit_length() + 7) // 8)


def _divsufsort(tokens: np.ndarray, top: int) -> np.ndarray:
    from pydivsufsort import divsufsort

    width = _width(top + 1)  # the separator becomes top + 1: fewer bytes to sort, same order
    data = np.empty((tokens.size, width), np.uint8)
    for start in range(0, tokens.size, _STRIP):
        strip = tokens[start : start + _STRIP].astype(np.int64)
        strip[strip > top] = top + 1
        data[start : start + _STRIP] = strip.astype(">u4").view(np.uint8).reshape(-1, 4)[:, 4 - width :]
    suffixes = divsufsort(data.reshape(-1))
    del data
    if width > 1:
        _keep_whole(suffixes, width)
    return suffixes[: tokens.size].view(np.uint32)


@njit(cache=True, nogil=True)
def _keep_whole(suffixes: np.ndarray, width: int) -> None:
    """Moves the byte suffixes that begin at a token to the front, as token positions."""
    used = 0
    for i in range(suffixes.size):
        position = suffixes[i] // width
        if position * width == suffixes[i]:
            suffixes[used] = position
            used += 1


def _sais_tokens(tokens: np.ndarray, top: int) -> np.ndarray:
    if top < 1 << 22:  # a table of all ids is small: ids serve as they are
        return _sais(np.minimum(tokens, top + 1), top + 2).view(np.uint32)
    values = np.unique(tokens)
    return _sais(np.searchsorted(values, tokens).astype(np.int32), values.size).view(np.uint32)


def _sais(text: np.ndarray, alphabet: int) -> np.ndarray:
    """The suffix array int32 (n,) of `text`, whose values lie below `alphabet`."""
    n = text.size
    heads = np.zeros(alphabet + 1, np.int32)  # suffixes that start with c stand in sa[heads[c] : heads[c + 1]]
    rises = np.empty(n, np.bool_)
    borders = _classify(text, rises, heads)
    sa = np.empty(n, np.int32)
    _induce(text, rises, heads, borders, sa)
    if borders.size > 1:
        order, names, distinct = _name(text, rises, borders, sa)
        if distinct < borders.size:
            order = borders[_sais(names, distinct)]
        del names
        _induce(text, rises, heads, order, sa)
    return sa


@njit(cache=True, nogil=True)
def _classify(text: np.ndarray, rises: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """Fills `rises` (suffix i is less than suffix i + 1: type S) and `heads`; returns the leftmost S of every run (LMS), ascending."""
    n = text.size
    rises[n - 1] = False  # the empty suffix is the least
    heads[np.int64(text[n - 1]) + 1] += 1
    count = 0
    for i in range(n - 2, -1, -1):
        rises[i] = text[i] < text[i + 1] or (text[i] == text[i + 1] and rises[i + 1])
        heads[np.int64(text[i]) + 1] += 1
        count += rises[i + 1] and not rises[i]
    for c in range(1, heads.size):
        heads[c] += heads[c - 1]
    borders = np.empty(count, np.int32)
    used = 0
    for i in range(1, n):
        if rises[i] and not rises[i - 1]:
            borders[used] = i
            used += 1
    return borders


@njit(cache=True, nogil=True)
def _induce(text: np.ndarray, rises: np.ndarray, heads: np.ndarray, order: np.ndarray, sa: np.ndarray) -> None:
    """Sorts all suffixes by what the LMS suffixes in `order` say: falling ones from the left, then rising ones from the right."""
    n = text.size
    sa[:] = -1
    place = heads[1:].copy()
    for j in range(order.size - 1, -1, -1):
        c = text[order[j]]
        place[c] -= 1
        sa[place[c]] = order[j]
    place[:] = heads[:-1]
    c = text[n - 1]
    sa[place[c]] = n - 1
    place[c] += 1
    for i in range(n):
        p = sa[i] - 1
        if p >= 0 and not rises[p]:
            c = text[p]
            sa[place[c]] = p
            place[c] += 1
    # Every rising suffix is written before the scan reads its place, so the LMS entries above need not be cleared.
    place[:] = heads[1:]
    for i in range(n - 1, -1, -1):
        p = sa[i] - 1
        if p >= 0 and rises[p]:
            c = text[p]
            place[c] -= 1
            sa[place[c]] = p


@njit(cache=True, nogil=True)
def _name(text: np.ndarray, rises: np.ndarray, borders: np.ndarray, sa: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Numbers the sorted LMS substrings: equal ones alike.

    Returns:
        the LMS positions as sorted, the names in text order int32 (m,), the number of names.
    """
    n, m = text.size, borders.size
    number = np.empty(n // 2 + 1, np.int32)  # LMS positions are at least 2 apart
    for j in range(m):
        number[borders[j] >> 1] = j
    order = np.empty(m, np.int32)
    used = 0
    for i in range(n):
        p = sa[i]
        if p > 0 and rises[p] and not rises[p - 1]:
            order[used] = p
            used += 1
    names = np.empty(m, np.int32)
    name = 0
    for i in range(m):
        j = number[order[i] >> 1]
        if i > 0:
            k = number[order[i - 1] >> 1]
            same = j < m - 1 and k < m - 1  # the last substring ends with the text and is like no other
            if same:
                length = borders[j + 1] - borders[j]
                same = length == borders[k + 1] - borders[k]
                step = 0
                while same and step <= length:
                    same = text[borders[j] + step] == text[borders[k] + step]
                    step += 1
            if not same:
                name += 1
        names[j] = name
    return order, names, name + 1
