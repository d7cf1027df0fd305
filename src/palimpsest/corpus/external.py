"""Suffix arrays larger than the memory: sorted block by block, merged at the end.

The method is that of Gonnet, Baeza-Yates & Snider (1992) as Kärkkäinen & Kempa, *Engineering a Lightweight External Memory Suffix
Array Construction Algorithm*, Math. Comput. Sci. 11, 2017 (SAscan) and, with Puglisi, *Parallel External Memory Suffix Sorting*, CPM
2015, carry it out; the bit vector is Ferragina, Gagie & Manzini's, *Lightweight Data Indexing and Compression in External Memory*,
Algorithmica 63, 2012. A text T of n tokens is cut into k blocks, which are taken from right to left. For a block T[b : e) of m tokens

1. `greater` of the tail, u8: whether T[i : n) > T[e : n), is there for all i >= e; a Z algorithm extends it to the block itself,
2. with it the block is renamed so that its suffixes *alone* sort as they do in the whole text, and one of the in-memory builders
   sorts them: `order`, u32 (m,),
3. backward search takes the tail through the block from its last token to its first: how many of the block's suffixes are less than
   T[i : n) follows from that of T[i + 1 : n). This gives `gaps`, u32 (m + 1,): how many suffixes of the tail fall between two
   neighbours of the order, and `greater` for the next block.

Then one pass merges the k orders as their gaps say. Nothing compares suffixes with each other beyond a block, so repeats of any length
cost nothing more: the time is that of the in-memory builder, and about n (k − 1) / 2 steps of backward search. The rank that such a
step asks for is looked up in lists of positions rather than in bits or a wavelet tree as in the papers: with many thousands of
symbols they are smaller and faster. Everything is read and written in strips; only a block is held in memory.

Every block is noted in the journal when its three files are on the disk, and is not sorted again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from palimpsest.corpus import manifest as layout
from palimpsest.corpus.external_loops import (
    Lists,
    close_block,
    count_into_gaps,
    greater_than_tail,
    mark_greater,
    merge_blocks,
    predecessor_lists,
    rank_of_suffix,
)
from palimpsest.corpus.suffix_array import choose_builder, sorting_memory, suffix_array
from palimpsest.corpus.tokens import DTYPES, dtype_name
from palimpsest.corpus.workspace import Journal
from palimpsest.files import atomic_path

_STRETCHES = 16  # of the tail that are moved by turns
_STRIP = 1 << 16  # tokens of a stretch that are held at once
_MERGED = 1 << 20  # suffixes that are merged at once
_TABLE = 1 << 22  # up to so many ids serve as symbols as they are; of more only those that a block has
_AROUND = 48 << 20  # bytes for strips and buffers
_LEAST_BLOCK = 1 << 20  # tokens: with less, the passes over the tail would never end


def block_memory(length: int, top: int, lean: bool = True) -> int:
    """Bytes that sorting a block of `length` tokens takes at most, what is held around it included; `top`, `lean`: see `suffix_array`."""
    if top + 3 < _TABLE:
        width = DTYPES[dtype_name(top + 3)].itemsize
        return max(_sorting(length, top + 3, width, lean), length * (2 * width + 9)) + 24 * (top + 4) + _AROUND
    return max(_sorting(length, 2 * length + 3, 4, lean), length * 52) + _AROUND


def _sorting(length: int, top: int, width: int, lean: bool) -> int:
    return sorting_memory(choose_builder("auto", length, top, lean), length, top, width)


def count_blocks(length: int, top: int, memory: int) -> int:
    """Into how few blocks a shard of `length` tokens is to be cut, for one to fit `memory` bytes; 0 when the least does not fit."""
    low, high = 1, max(1, -(-length // _LEAST_BLOCK))
    if block_memory(-(-length // high), top) > memory:
        return 0
    while low < high:
        middle = (low + high) // 2
        if block_memory(-(-length // middle), top) > memory:
            low = middle + 1
        else:
            high = middle
    return low


def least_memory(length: int, top: int) -> int:
    """The least bound that `count_blocks` accepts."""
    return block_memory(-(-length // max(1, -(-length // _LEAST_BLOCK))), top)


def block_space(length: int) -> int:
    """Bytes that the blocks of a shard take on the disk until they are merged."""
    return 10 * length + (1 << 20)


class BlockSort:
    """The suffix array of one shard, sorted in blocks.

    Args:
        tokens: the file of the shard's tokens.
        dtype, length: their type and number.
        top: the greatest token, separators aside.
        blocks: how many blocks, of nearly equal length; at most `length`.
        folder: where the blocks are kept until they are merged.
        journal, shard: finished blocks are noted there, as those of this shard.
        lean: whether blocks are sorted by the builder that takes the least memory.
        threads: how many may compute at once while a block is sorted.

    Example:
        >>> sort = BlockSort(path, np.dtype("<u2"), length, top, blocks, folder, journal, shard)   # doctest: +SKIP
        >>> sort.sort_blocks()   # doctest: +SKIP
        >>> write_pieces(target, sort.merged())   # doctest: +SKIP
    """

    def __init__(
        self,
        tokens: Path,
        dtype: np.dtype,
        length: int,
        top: int,
        blocks: int,
        folder: Path,
        journal: Journal,
        shard: int,
        lean: bool = True,
        threads: int = 1,
    ) -> None:
        self._tokens, self._dtype, self._length, self._top = tokens, dtype, length, top
        self._borders = [length * block // blocks for block in range(blocks + 1)]
        self._folder, self._journal = folder, journal
        self._lean, self._threads = lean, threads
        self._stage = {"stage": "block", "shard": shard, "blocks": blocks}

    def sort_blocks(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Sorts all blocks that are not yet on the disk, from the last to the first; tells `progress` of each."""
        self._folder.mkdir(exist_ok=True)
        count = len(self._borders) - 1
        for block in range(self._finished() - 1, -1, -1):
            parts = self._sort_block(block)
            self._journal.append({**self._stage, "block": block, "parts": parts})
            progress(count - block, count)
            (self._folder / f"greater.{block + 1}").unlink(missing_ok=True)

    def merged(self) -> Iterator[np.ndarray]:
        """The suffix array, u32, in pieces."""
        sizes = np.diff(self._borders)
        strip = max(1 << 10, _MERGED // sizes.size)
        orders, gaps = np.empty((sizes.size, strip), np.uint32), np.empty((sizes.size, strip), np.uint32)
        at, held, left = np.zeros_like(sizes), np.zeros_like(sizes), sizes.copy()
        begins = np.array(self._borders[:-1])
        ahead = np.array([self._read(f"gaps.{block}", "<u4", 0, 1)[0] for block in range(sizes.size)], np.int64)
        while left.any():
            out = np.empty(min(_MERGED, int(left.sum())), np.uint32)
            taken, starved = merge_blocks(orders, gaps, at, held, ahead, begins, left, out)
            if taken:
                yield out[:taken]
            if starved >= 0:
                place = int(sizes[starved] - left[starved])
                order = self._read(f"order.{starved}", "<u4", place, strip)
                orders[starved, : order.size] = order
                gaps[starved, : order.size] = self._read(f"gaps.{starved}", "<u4", place + 1, strip)
                at[starved], held[starved] = 0, order.size

    def remove(self) -> None:
        """Removes the blocks."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _finished(self) -> int:
        """The first of the blocks that are whole on the disk, which are the last ones of the text."""
        entries = {entry["block"]: entry["parts"] for entry in self._journal.entries if self._stage.items() <= entry.items()}
        first = len(self._borders) - 1
        while first > 0 and first - 1 in entries and self._is_whole(entries[first - 1], ("order", "gaps")):
            first -= 1
        if 0 < first < len(self._borders) - 1 and not self._is_whole(entries[first], ("greater",)):
            return len(self._borders) - 1  # the next block needs it, and it is made from that of the block behind, which is gone
        return first

    def _is_whole(self, parts: dict[str, Any], kinds: tuple[str, ...]) -> bool:
        names = [name for name in parts if name.split(".")[0] in kinds]
        return all((self._folder / name).exists() and layout.describe_file(self._folder / name) == parts[name] for name in names)

    def _sort_block(self, block: int) -> dict[str, Any]:
        """Writes order, gaps and greater of a block; what the journal says of them."""
        begin, end = self._borders[block], self._borders[block + 1]
        greater = self._greater(block, begin, end) if end < self._length else None
        text = self._text(begin, end)
        symbols = _Symbols(text, self._top)
        text = symbols(text)
        top = symbols.top
        if greater is not None:
            top += 3  # with the separator and the two that closing adds
            closed = np.empty(text.size, DTYPES[dtype_name(top)])
            close_block(text, greater, closed)
            text = closed
            del closed, greater
        order = suffix_array(text, top, choose_builder("auto", text.size, top, self._lean), self._threads)
        del text
        self._write(f"order.{block}", [order])
        del order
        with atomic_path(self._folder / f"greater.{block}") as temporary:
            self._count(block, begin, end, symbols, temporary)
        names = [f"{part}.{block}" for part in ("order", "gaps", "greater")]
        return {name: layout.describe_file(self._folder / name) for name in names}

    def _greater(self, block: int, begin: int, end: int) -> np.ndarray:
        """Which suffixes of the block are greater than its tail, u8 (m,)."""
        head = self._text(end, min(2 * end - begin, self._length))
        return greater_than_tail(self._text(begin, end), head, self._read(f"greater.{block + 1}", "u1", 0, head.size + 1))

    def _count(self, block: int, begin: int, end: int, symbols: _Symbols, greater_file: Path) -> None:
        """Writes the gaps of a sorted block, and into `greater_file` which suffixes from it on are greater than its first."""
        order = self._read(f"order.{block}", "<u4", 0, end - begin)
        greater = np.empty(order.size, np.uint8)
        first_rank = mark_greater(order, greater)
        gaps = np.zeros(order.size + 1, np.uint32)
        with open(greater_file, "r+b") as stream:
            stream.write(greater.data)
            del greater
            if end < self._length:
                text = self._text(begin, end)
                count = min(_STRETCHES, self._length - end)
                cuts = end + (self._length - end) * np.arange(count + 1) // count
                ranks = np.array([self._rank(block, end, int(cut), text, order) for cut in cuts[1:]])
                text = symbols(text)
                last = int(text[-1])
                tables = predecessor_lists(text, order, symbols.top + 2)
                del text, order
                self._pass_tail(block, end, cuts, ranks, symbols, tables, last, first_rank, gaps, stream)
            stream.seek(self._length - begin)
            stream.write(b"\0")  # the empty suffix is the least
        self._write(f"gaps.{block}", [gaps])

    def _rank(self, block: int, end: int, cut: int, text: np.ndarray, order: np.ndarray) -> int:
        """How many suffixes of the block are less than the one at `cut`."""
        size = min(text.size, self._length - cut)
        if size == 0:
            return 0
        suffix = np.memmap(self._tokens, self._dtype, "r", cut * self._dtype.itemsize, (size,)).view(np.ndarray)
        greater = np.memmap(self._folder / f"greater.{block + 1}", "u1", "r", cut - end, (size + 1,)).view(np.ndarray)
        return rank_of_suffix(text, order, suffix, greater)  # mapped: seldom are more than a few pages touched

    def _pass_tail(
        self,
        block: int,
        end: int,
        cuts: np.ndarray,
        ranks: np.ndarray,
        symbols: _Symbols,
        tables: Lists,
        last: int,
        first_rank: int,
        gaps: np.ndarray,
        stream: BinaryIO,
    ) -> None:
        """Counts the tail, the stretches between `cuts` of it by turns, into `gaps`, and writes its part of `greater` to `stream`."""
        size, width = min(_STRIP, int(np.diff(cuts).max())), self._dtype.itemsize
        strips, greater, out = (np.empty((ranks.size, size), kind) for kind in (symbols.dtype(self._dtype), np.uint8, np.uint8))
        at, filled = cuts[1:].copy(), np.zeros(ranks.size, np.int64)
        with open(self._tokens, "rb") as tokens, open(self._folder / f"greater.{block + 1}", "rb") as known:
            while (at > cuts[:-1]).any():
                for w, (stop, start) in enumerate(zip(at.tolist(), np.maximum(at - size, cuts[:-1]).tolist(), strict=True)):
                    filled[w] = stop - start
                    tokens.seek(start * width)
                    strips[w, : stop - start] = symbols(np.fromfile(tokens, self._dtype, stop - start))
                    known.seek(start + 1 - end)
                    greater[w, : stop - start] = np.fromfile(known, np.uint8, stop - start)
                count_into_gaps(strips, greater, filled, ranks, tables, last, first_rank, gaps, out)
                at -= filled
                for w, start in enumerate(at.tolist()):
                    stream.seek(start - self._borders[block])
                    stream.write(out[w, : filled[w]].data)

    def _text(self, start: int, end: int) -> np.ndarray:
        return np.fromfile(self._tokens, self._dtype, end - start, offset=start * self._dtype.itemsize)

    def _read(self, name: str, kind: str, start: int, count: int) -> np.ndarray:
        return np.fromfile(self._folder / name, kind, count, offset=start * np.dtype(kind).itemsize)

    def _write(self, name: str, pieces: list[np.ndarray]) -> None:
        with atomic_path(self._folder / name) as temporary, open(temporary, "wb") as stream:
            for piece in pieces:
                stream.write(piece.data)


class _Symbols:
    """Tokens as small numbers in their order: the ids themselves, or, where a table of all ids is too large, those of one block.

    Of u distinct tokens in a block the j-th is 2 j + 1, and 2 j stands for all that lie between it and the one before.

    Attributes:
        top: the greatest symbol is this or, for a separator, one more.
    """

    def __init__(self, text: np.ndarray, top: int) -> None:
        self._values = None if top + 3 < _TABLE else np.unique(text)
        self.top = top if self._values is None else 2 * self._values.size - 1

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        if self._values is None:
            return np.minimum(tokens, self.top + 1)
        place = np.searchsorted(self._values, tokens)
        known = self._values[np.minimum(place, self._values.size - 1)] == tokens
        return (2 * place + known).astype(np.uint32)

    def dtype(self, tokens: np.dtype) -> np.dtype:
        """The type of the symbols of tokens of this type."""
        return tokens if self._values is None else np.dtype(np.uint32)
