"""Lempel-Ziv dictionaries: LZ78 and LZW, what chunking models are compared with.

LZ78 is Ziv & Lempel, *Compression of individual sequences via variable-rate coding*, IEEE Trans. Inf. Theory 24(5), 1978: the
sequence is cut from left to right into phrases, each the longest phrase that is known and one symbol more; the phrase becomes an
entry. LZW is Welch, *A technique for high-performance data compression*, Computer 17(6), 1984: the dictionary begins with the
symbols, each phrase is the longest that is known, and the phrase with the next symbol becomes an entry.

Both decode without a dictionary on the side. Phrase j = 1, 2, … costs log2(j) bits for one of the phrases known by then, the empty
one included, and log2(A) for its symbol in LZ78, and log2(A + j − 1) bits in LZW, A being the size of the alphabet; `total` is
their sum. Complexity and storage are those of `code_length`, over the frequencies of the phrases in the parse.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from palimpsest.models.code_length import CodeLengths, sequence_complexity, storage_cost
from palimpsest.models.symbols import SymbolTable


@dataclass(frozen=True)
class LempelZivCode:
    """A parsed sequence.

    Attributes:
        phrases: int64 (parse_length,): LZ78: the known phrase that each phrase extends, 0 being the empty one and j the j-th phrase
            of the parse; LZW: the entry that each phrase is, the symbols being the first entries.
        last: LZ78: int64 (parse_length,): the id of the symbol that is added; −1 for a last phrase that was known; LZW: empty.
        table: the alphabet.
        length: symbols in the sequence.
        entries: entries of the dictionary at the end.
    """

    phrases: np.ndarray
    last: np.ndarray
    table: SymbolTable
    length: int
    entries: int

    def symbols(self, ids: np.ndarray) -> Any:
        """Ids as the sequence that they stand for: a string for text, else a list."""
        decoded = self.table.decode(ids.tolist())
        return "".join(map(str, decoded)) if self.table.is_text else decoded


class LZ78:
    """Ziv and Lempel's dictionary of 1978.

    Example:
        >>> code = LZ78().encode("aababcab")
        >>> code.phrases.tolist(), code.last.tolist()
        ([0, 1, 2, 2], [0, 1, 2, -1])
        >>> LZ78().decode(code)
        'aababcab'
    """

    def encode(self, sequence: Iterable[Hashable]) -> LempelZivCode:
        """Cuts a sequence into phrases.

        Raises:
            SymbolTypeError: a symbol that cannot be hashed.
        """
        table = SymbolTable()
        ids = table.add(sequence)
        phrases, last = _parse(ids, len(table), 1, carries=False)
        return LempelZivCode(phrases, last, table, ids.size, int((last >= 0).sum()))

    def decode(self, code: LempelZivCode) -> Any:
        """The sequence of a code: a string for text, else a list."""
        return code.symbols(_expand_78(code.phrases, code.last, code.length))

    def code_lengths(self, sequence: Iterable[Hashable]) -> CodeLengths:
        """What a sequence costs.

        Example:
            >>> LZ78().code_lengths("aababcab").parse_length
            4
        """
        code = self.encode(sequence)
        # every phrase is new but perhaps the last, which then repeats the phrase it points to
        counts = np.bincount(np.where(code.last >= 0, np.arange(1, code.phrases.size + 1), code.phrases))
        pointers = np.log2(np.arange(1, code.phrases.size + 1)).sum()
        total = pointers + code.entries * np.log2(max(len(code.table), 1))
        return _lengths(code, counts, float(total))


class LZW:
    """Welch's dictionary of 1984.

    Example:
        >>> code = LZW().encode("abababa")
        >>> code.phrases.tolist()
        [0, 1, 2, 4]
        >>> LZW().decode(code)
        'abababa'
    """

    def encode(self, sequence: Iterable[Hashable]) -> LempelZivCode:
        """Cuts a sequence into phrases.

        Raises:
            SymbolTypeError: a symbol that cannot be hashed.
        """
        table = SymbolTable()
        ids = table.add(sequence)
        phrases, _ = _parse(ids, len(table), len(table), carries=True)
        return LempelZivCode(phrases, np.empty(0, np.int64), table, ids.size, len(table) + max(phrases.size - 1, 0))

    def decode(self, code: LempelZivCode) -> Any:
        """The sequence of a code: a string for text, else a list."""
        return code.symbols(_expand_lzw(code.phrases, len(code.table), code.length))

    def code_lengths(self, sequence: Iterable[Hashable]) -> CodeLengths:
        """What a sequence costs."""
        code = self.encode(sequence)
        total = np.log2(len(code.table) + np.arange(code.phrases.size)).sum()
        return _lengths(code, np.bincount(code.phrases), float(total))


def _lengths(code: LempelZivCode, counts: np.ndarray, total: float) -> CodeLengths:
    return CodeLengths(
        symbols=code.length,
        parse_length=code.phrases.size,
        entries=code.entries,
        complexity=sequence_complexity(counts),
        resolution=0.0,
        storage=storage_cost(counts),
        total=total,
    )


@njit(cache=True, inline="always")
def _slot(keys: np.ndarray, key: int) -> int:
    """Where `key` stands, or where it would stand, in a table of a power of two; −1 marks a free place."""
    mask = keys.size - 1
    place = ((key * 0x5851F42D4C957F2D) >> 20) & mask
    while keys[place] >= 0 and keys[place] != key:
        place = (place + 1) & mask
    return place


@njit(cache=True)
def _table(entries: int) -> np.ndarray:
    size = 4
    while size < 2 * entries:
        size *= 2
    return np.full(size, -1, np.int64)


@njit(cache=True)
def _parse(ids: np.ndarray, alphabet: int, entries: int, carries: bool) -> tuple[np.ndarray, np.ndarray]:
    """Cuts ids into the longest known phrases; a phrase and the symbol after it become the next entry.

    Args:
        ids: int64 (time,), below `alphabet`.
        alphabet: symbols.
        entries: entries that are known at the beginning: 1 in LZ78, the empty phrase; `alphabet` in LZW.
        carries: whether that symbol begins the next phrase (LZW), or ends this one (LZ78).

    Returns:
        the entry of every phrase and the symbol after it, −1 at the end of the sequence: int64 (parse_length,) each.
    """
    keys = _table(ids.size + 1)  # phrase · alphabet + symbol: there are at most as many phrases as symbols
    children = np.empty(keys.size, np.int64)
    phrases = np.empty(ids.size, np.int64)
    last = np.empty(ids.size, np.int64)
    used = 0
    begins = min(ids.size, 1) if carries else 0
    phrase = ids[0] if begins else 0
    for i in range(begins, ids.size):
        key = phrase * alphabet + ids[i]
        place = _slot(keys, key)
        if keys[place] == key:
            phrase = children[place]
            continue
        phrases[used] = phrase
        last[used] = ids[i]
        used += 1
        keys[place] = key
        children[place] = entries
        entries += 1
        phrase = ids[i] if carries else 0
    if begins or phrase > 0:  # LZ78 ends without a rest when the last symbol ended a phrase
        phrases[used] = phrase
        last[used] = -1
        used += 1
    return phrases[:used].copy(), last[:used].copy()


@njit(cache=True)
def _expand_78(phrases: np.ndarray, last: np.ndarray, length: int) -> np.ndarray:
    ids = np.empty(length, np.int64)
    sizes = np.zeros(phrases.size + 1, np.int64)
    end = 0
    for j in range(phrases.size):
        size = sizes[phrases[j]] + (last[j] >= 0)
        sizes[j + 1] = size
        end += size
        place = end - 1
        if last[j] >= 0:
            ids[place] = last[j]
            place -= 1
        phrase = phrases[j]
        while phrase > 0:
            ids[place] = last[phrase - 1]
            place -= 1
            phrase = phrases[phrase - 1]
    return ids


@njit(cache=True)
def _expand_lzw(phrases: np.ndarray, alphabet: int, length: int) -> np.ndarray:
    ids = np.empty(length, np.int64)
    starts = np.empty(phrases.size + 1, np.int64)  # entry alphabet + j is ids[starts[j] : starts[j + 1] + 1]
    end = 0
    for j in range(phrases.size):
        starts[j] = end
        if phrases[j] < alphabet:
            ids[end] = phrases[j]
            end += 1
            continue
        entry = phrases[j] - alphabet
        begin = starts[entry]
        size = starts[entry + 1] + 1 - begin
        for step in range(size):  # left to right: the entry of the phrase before ends with the symbol that is written first
            ids[end] = ids[begin + step]
            end += 1
    return ids
