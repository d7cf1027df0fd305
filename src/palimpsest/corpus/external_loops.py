"""The compiled loops of `external`: sorting one block among all suffixes, and counting the suffixes behind it into its gaps.

A *block* is T[b : e) of the text T[0 : n), its *tail* T[e : n). Symbols are numbers below some limit; the separator is the greatest.
An array `greater` says of positions p, as u8, whether the suffix at p is greater than the one at a fixed position.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_SHORT = 16  # a list of so many entries is searched as it is
_PER_JUMP = 8  # entries of a longer list between two entries of its table, on average
_SCANNED = 8  # entries that are passed one by one

Lists = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@njit(cache=True, nogil=True)
def greater_than_tail(block: np.ndarray, head: np.ndarray, tail_greater: np.ndarray) -> np.ndarray:
    """Which suffixes that begin in a block are greater than its tail.

    Comparing two suffixes ends at the latest where the first one reaches the tail; what is left is then one of the tail's own suffixes
    against the tail. The lengths up to there are those of Gusfield's Z algorithm with the tail's head as its pattern.

    Args:
        block: the symbols T[b : e), m of them.
        head: T[e : min(e + m, n)), h > 0 symbols.
        tail_greater: u8 (h + 1,): whether the suffix at e + k is greater than the one at e; 0 for the empty one at n.

    Returns:
        u8 (m,).
    """
    m, h = block.size, head.size
    common = np.zeros(h, np.int32)  # of the head and its suffix at k
    left, right = 0, 0
    length: Any
    for k in range(1, h):
        length = min(np.int64(common[k - left]), right - k) if k < right else np.int64(0)
        while k + length < h and head[k + length] == head[length]:
            length += 1
        if k + length > right:
            left, right = k, k + length
        common[k] = length
    greater = np.empty(m, np.uint8)
    left, right = 0, 0
    for p in range(m):
        length = np.int64(0)
        if p < right:
            known = np.int64(common[p - left]) if p > left else np.int64(h)
            length = min(known, right - p)
        while p + length < m and length < h and block[p + length] == head[length]:
            length += 1
        if p + length > right:
            left, right = p, p + length
        if p + length == m:
            greater[p] = 1 - tail_greater[length]
        elif length == h:
            greater[p] = 1
        else:
            greater[p] = block[p + length] > head[length]
    return greater


@njit(cache=True, nogil=True)
def close_block(block: np.ndarray, greater: np.ndarray, closed: np.ndarray) -> None:
    """Renames symbols so that the suffixes of the block alone have the order that they have in the text.

    Where a suffix of the block ends, one that goes on is decided by `greater` of the position behind. So the last symbol, x, becomes
    a symbol of its own; an x before something greater than the tail becomes one above it, and any other stays below.

    Args:
        block: (m,); greater: u8 (m,), against the tail.
        closed: (m,), to be filled; its symbols are up to 2 greater than the block's.
    """
    m = block.size
    last = block[m - 1]
    for p in range(m - 1):
        above = block[p] > last or (block[p] == last and greater[p + 1])
        closed[p] = block[p] + 2 if above else block[p]
    closed[m - 1] = last + 1


@njit(cache=True, nogil=True)
def mark_greater(order: np.ndarray, greater: np.ndarray) -> int:
    """Sets greater[p] for the suffixes at p of a block, given in ascending order, against its first; returns the rank of that one."""
    first = -1
    for r in range(order.size):
        if order[r] == 0:
            first = r
        greater[order[r]] = first >= 0 and order[r] != 0
    return first


@njit(cache=True, nogil=True)
def predecessor_lists(block: np.ndarray, order: np.ndarray, slots: int) -> Lists:
    """For every symbol the ranks of the suffixes of the block that it stands before: what backward search asks.

    To count the ranks below r in a list of some length, a table says how many there are up to the last multiple of a power of two,
    which leaves a handful; where a list is crowded, halving decides.

    Args:
        block: the symbols int (m,), below `slots`.
        order: u32 (m,): the suffixes of the block in ascending order.

    Returns:
        lists u32 (m - 1,), one after the other; starts u32 (slots + 1,) of each; shifts u8 (slots,), 255 for none; places u32 (slots,)
        of their tables; jumps u32, the tables.
    """
    m = block.size
    starts = np.zeros(slots + 1, np.uint32)
    p: Any
    s: Any
    for p in range(m - 1):
        starts[np.int64(block[p]) + 1] += 1
    shifts = np.full(slots, 255, np.uint8)
    places = np.zeros(slots, np.uint32)
    size = 0
    for s in range(slots):
        count = np.int64(starts[s + 1])
        if count > _SHORT:
            shift = 0
            while (m >> shift) > count // _PER_JUMP:
                shift += 1
            shifts[s] = shift
            places[s] = size
            size += (m >> shift) + 2
        starts[s + 1] += starts[s]
    lists = np.empty(m - 1, np.uint32)
    free = starts[:-1].copy()
    for r in range(m):
        p = np.int64(order[r])
        if p > 0:
            s = np.int64(block[p - 1])
            lists[free[s]] = r
            free[s] += 1
    jumps = np.empty(size, np.uint32)
    for s in range(slots):
        if shifts[s] != 255:
            at: Any = np.int64(starts[s])
            for q in range((m >> shifts[s]) + 2):
                while at < starts[s + 1] and (np.int64(lists[at]) >> shifts[s]) < q:
                    at += 1
                jumps[np.int64(places[s]) + q] = at
    return lists, starts, shifts, places, jumps


@njit(cache=True, nogil=True)
def rank_of_suffix(block: np.ndarray, order: np.ndarray, suffix: np.ndarray, tail_greater: np.ndarray) -> int:
    """How many suffixes that begin in a block are less than one of the tail.

    Args:
        block, order: as in `predecessor_lists`.
        suffix: the first min(m, n - q) symbols of the suffix at q, as the block has them.
        tail_greater: u8 (suffix.size + 1,): whether the suffixes from q on are greater than the tail.
    """
    m = block.size
    left, right = 0, m
    below, above = np.int64(0), np.int64(0)
    while left < right:
        middle = (left + right) >> 1
        p: Any = np.int64(order[middle])
        room = min(m - p, suffix.size)
        shared = min(below, above, room)
        while shared < room and block[p + shared] == suffix[shared]:
            shared += 1
        if p + shared == m:
            less = tail_greater[shared] == 1
        elif shared == suffix.size:
            less = False
        else:
            less = block[p + shared] < suffix[shared]
        if less:
            left, below = middle + 1, shared
        else:
            right, above = middle, shared
    return left


@njit(cache=True, nogil=True)
def count_into_gaps(
    symbols: np.ndarray,
    greater: np.ndarray,
    filled: np.ndarray,
    ranks: np.ndarray,
    tables: Lists,
    last: int,
    first_rank: int,
    gaps: np.ndarray,
    out: np.ndarray,
) -> None:
    """Moves several stretches of the tail on to the left: every suffix is counted into the gap of the block's order that it falls in.

    One step of a stretch waits for the one before it, and each for the memory; so the stretches are moved by turns.

    Args:
        symbols: (stretches, strip): the tail at the stretches; of row w the first filled[w] count.
        greater: u8 (stretches, strip): whether the suffix one to the right is greater than the tail.
        ranks: int64 (stretches,): how many suffixes of the block are less than the suffix to the right of each; moved along.
        tables: what `predecessor_lists` returned.
        last: the last symbol of the block.
        first_rank: the rank of the block's first suffix.
        gaps: u32 (m + 1,): counts of the suffixes of the tail before each of the block's, and behind all.
        out: u8 (stretches, strip), to be filled: whether the suffix is greater than the one at the block's begin.
    """
    lists, starts, shifts, places, jumps = tables
    for step in range(symbols.shape[1]):
        for w in range(symbols.shape[0]):
            i = filled[w] - 1 - step
            if i < 0:
                continue
            s: Any = np.int64(symbols[w, i])
            rank = ranks[w]
            left, right = np.int64(starts[s]), np.int64(starts[s + 1])
            if shifts[s] != 255:
                jump = np.int64(places[s]) + (rank >> shifts[s])
                left, right = np.int64(jumps[jump]), np.int64(jumps[jump + 1])
            while right - left > _SCANNED:
                middle = (left + right) >> 1
                if lists[middle] < rank:
                    left = middle + 1
                else:
                    right = middle
            while left < right and lists[left] < rank:
                left += 1
            # The block's last position is in no list, for the tail stands behind it: before the lists of greater symbols, and
            # among its own where the suffix to the right is greater than the tail.
            if s > last or (s == last and greater[w, i]):
                left += 1
            ranks[w] = left
            gaps[left] += np.uint32(1)
            out[w, i] = left > first_rank


@njit(cache=True, nogil=True)
def merge_blocks(
    orders: np.ndarray,
    gaps: np.ndarray,
    at: np.ndarray,
    held: np.ndarray,
    ahead: np.ndarray,
    begins: np.ndarray,
    left: np.ndarray,
    out: np.ndarray,
) -> tuple[int, int]:
    """Takes suffixes from the blocks in ascending order, until `out` is full or a block has none at hand.

    The next suffix is that of the first block whose gap has been filled; one is then missing less in the gaps of the blocks before.

    Args:
        orders: u32 (blocks, strip): the next suffixes of every block; gaps: u32, how many from later blocks follow each of them.
        at, held: int64 (blocks,): the next entry of each row, and how many are valid.
        ahead: int64 (blocks,): suffixes of later blocks that come before the next one.
        begins: int64 (blocks,): where each block begins.
        left: int64 (blocks,): suffixes that have not been taken.
        out: u32, to be filled.

    Returns:
        how many were taken, and the block that has none at hand, or -1.
    """
    taken = 0
    while taken < out.size:
        block = 0
        while block < ahead.size and (ahead[block] > 0 or left[block] == 0):
            block += 1
        if block == ahead.size:
            break
        if at[block] == held[block]:
            return taken, block
        for before in range(block):
            ahead[before] -= 1
        out[taken] = begins[block] + orders[block, at[block]]
        ahead[block] = gaps[block, at[block]]
        at[block] += 1
        left[block] -= 1
        taken += 1
    return taken, -1
