"""The compiled loops of `two_stage` that sort the peaks: groups of peaks that begin alike, refined until every peak is alone.

The peaks are numbered from left to right. `order` lists their numbers; peaks that are not told apart yet stand side by side there and
are a *group*. The *rank* of a peak is where its group begins. A group has a *depth* k: up to their k-th peak behind, and it included,
its members are alike and equally far from it; so two members compare as the ranks of their k-th peaks behind do.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from palimpsest.corpus.alphabetic_code import INT, LENGTH, WINDOW, window
from palimpsest.corpus.prefetch import prefetch

RANK_BITS = 31
CHUNK_BITS = 14
CHUNK = 1 << CHUNK_BITS  # elements of groups that are sorted at once: their keys fit into the processor's own cache
HELD = CHUNK + CHUNK // 2  # and room for the depths of the groups that they are split into
_RANK = np.uint64((1 << RANK_BITS) - 1)
_AHEAD = 32
_SMALL = 16  # up to so many are sorted by insertion


@njit(cache=True, nogil=True)
def first_groups(
    text: np.ndarray,
    code: np.ndarray,
    peaks: np.ndarray,
    steps: np.ndarray,
    keys: np.ndarray,
    borders: np.ndarray,
    bits: int,
    number_bits: int,
    order: np.ndarray,
    ranks: np.ndarray,
    depths: np.ndarray,
    starts: np.ndarray,
    sizes: np.ndarray,
) -> int:
    """Fills `order` and `ranks` for some buckets of sorted keys, and lists their groups.

    A group whose keys do not reach to the next peak for certain is sorted by the bits that follow in the text until they do.

    Args:
        text, code: (n,), (alphabet,).
        peaks, steps: u32, u8 (m,): see `deal_peaks`.
        keys: u64 (m,): see `deal_peaks`; sorted within each bucket.
        borders: int64 (buckets + 1,): bucket b is keys[borders[b] : borders[b + 1]].
        bits, number_bits: bits of a bucket's number and of a peak's.
        order, ranks, depths: u32 (m,), the last one for groups only, at their ranks.
        starts, sizes: u32, with room for half of the keys: the groups.

    Returns:
        the number of groups.
    """
    lower = np.uint64(number_bits)
    numbers = (np.uint64(1) << lower) - np.uint64(1)
    known = WINDOW - number_bits  # bits of a key that are text
    used = 0
    for b in range(borders.size - 1):
        todo = [(INT(borders[b]), INT(borders[b + 1]), INT(0))]  # sorted keys that begin alike, and tokens before them
        while len(todo) > 0:
            begin, stop, before = todo.pop()
            while begin < stop:
                key = keys[begin] >> lower
                end = begin + 1
                while end < stop and keys[end] >> lower == key:
                    end += 1
                if end - begin == 1:
                    number = keys[begin] & numbers
                    order[begin] = number
                    ranks[number] = begin
                else:
                    first = INT(keys[begin] & numbers)
                    depth = INT(steps[first]) if before == 0 else INT(0)
                    seen = before
                    if depth == 0:
                        seen, depth = _reach(text, code, peaks, first, before, known if before > 0 else known + bits)
                    if depth == 0:
                        for i in range(begin, end):
                            order[i] = INT(peaks[keys[i] & numbers]) + seen
                            prefetch(text, INT(order[i]))
                        for i in range(begin, end):
                            keys[i] = ((window(text, code, INT(order[i])) >> lower) << lower) | (keys[i] & numbers)
                        sort_keys(keys, begin, end)
                        todo.append((end, stop, before))  # the groups are listed from left to right
                        todo.append((begin, end, seen))
                        end = stop
                    else:
                        for i in range(begin, end):
                            number = keys[i] & numbers
                            order[i] = number
                            ranks[number] = begin
                        starts[used] = begin
                        sizes[used] = end - begin
                        depths[begin] = depth
                        used += 1
                begin = end
    return used


@njit(cache=True, nogil=True)
def _reach(text: np.ndarray, code: np.ndarray, peaks: np.ndarray, number: int, before: int, bits: int) -> tuple[int, int]:
    """How many tokens of a peak are known when it is known for `before` tokens and `bits` bits more; how many peaks behind are certain.

    No peak behind is certain by the first `before` tokens alone.
    """
    place = INT(peaks[number])
    seen = before
    left = bits
    while place + seen < text.size and INT(code[text[place + seen]] & LENGTH) <= left:
        left -= INT(code[text[place + seen]] & LENGTH)
        seen += 1
    certain = place + seen - 2  # whether it rises can be said of every position before the last run of one token
    known = place + max(before - 1, 0)  # no peak behind was certain when this was the last position
    while certain >= known and text[certain] == text[place + seen - 1]:
        certain -= 1
    if before > 0 and certain < known:  # the same run still: to walk to its beginning every time takes quadratic time
        return seen, 0
    depth = 0
    while number + depth + 1 < peaks.size and INT(peaks[number + depth + 1]) <= certain:
        depth += 1
    return seen, depth


@njit(cache=True, nogil=True)
def sort_keys(keys: np.ndarray, start: int, stop: int) -> None:
    """Sorts keys[start:stop] u64: quicksort, the smaller part first, then insertion."""
    todo = [(start, stop)]
    while len(todo) > 0:
        first, end = todo.pop()
        while end - first > _SMALL:
            a, pivot, c = keys[first], keys[(first + end) >> 1], keys[end - 1]
            pivot = max(min(a, pivot), min(max(a, pivot), c))
            i, j = first, end - 1
            while i <= j:
                while keys[i] < pivot:
                    i += 1
                while keys[j] > pivot:
                    j -= 1
                if i <= j:
                    keys[i], keys[j] = keys[j], keys[i]
                    i += 1
                    j -= 1
            if j + 1 - first > end - i:
                todo.append((first, j + 1))
                first = i
            else:
                todo.append((i, end))
                end = j + 1
        for i in range(first + 1, end):
            key = keys[i]
            j = i - 1
            while j >= first and keys[j] > key:
                keys[j + 1] = keys[j]
                j -= 1
            keys[j + 1] = key


@njit(cache=True, nogil=True)
def gather_keys(
    starts: np.ndarray,
    sizes: np.ndarray,
    group: int,
    order: np.ndarray,
    ranks: np.ndarray,
    depths: np.ndarray,
    number_bits: int,
    keys: np.ndarray,
    held: np.ndarray,
) -> tuple[int, int]:
    """The keys by which the next groups are to be sorted: as many groups as a chunk holds, or one that is larger.

    A key is (group, rank of the peak at the group's depth, place in the chunk); in one large group (that rank, number).

    Args:
        starts, sizes: u32 (groups,).
        group: the first one.
        order, ranks, depths: see `first_groups`.
        number_bits: bits of a peak's number.
        keys: u64 (m,), filled from the start of the first group on.
        held: u32 (HELD,): the peaks in the chunk; to be filled.

    Returns:
        the group to go on with, and the number of keys.
    """
    start, size = INT(starts[group]), INT(sizes[group])
    if size > CHUNK:
        depth = INT(depths[start])
        for i in range(start, start + size):
            number = INT(order[i])
            keys[i] = (np.uint64(ranks[number + depth]) << np.uint64(number_bits)) | np.uint64(number)
        return group + 1, size
    to = np.uint64(start)
    used = np.uint64(0)
    upper = np.uint64(0)
    while True:
        depth = INT(depths[start])
        for i in range(start, start + size):
            number = order[np.uint64(i)]
            held[used] = number
            behind = np.uint64(INT(number) + depth)
            keys[to + used] = (upper << np.uint64(RANK_BITS + CHUNK_BITS)) | (behind << np.uint64(CHUNK_BITS)) | used
            used += np.uint64(1)
        upper += np.uint64(1)
        group += 1
        if group == starts.size:
            break
        start, size = INT(starts[group]), INT(sizes[group])
        if INT(used) + size > CHUNK:
            break
    last = to + used - np.uint64(1)
    for at in range(to, to + used):  # a loop of its own, for one knows here where the next ranks are
        prefetch(ranks, (keys[min(np.uint64(at) + np.uint64(_AHEAD), last)] >> np.uint64(CHUNK_BITS)) & _RANK)
        behind = (keys[at] >> np.uint64(CHUNK_BITS)) & _RANK
        keys[at] ^= (behind ^ np.uint64(ranks[behind])) << np.uint64(CHUNK_BITS)
    return group, INT(used)


@njit(cache=True, nogil=True)
def split_groups(
    starts: np.ndarray,
    sizes: np.ndarray,
    group: int,
    stop: int,
    order: np.ndarray,
    depths: np.ndarray,
    number_bits: int,
    keys: np.ndarray,
    held: np.ndarray,
    new: tuple[np.ndarray, np.ndarray, np.ndarray],
    used: int,
) -> int:
    """Brings the groups from `group` to `stop` into the order of their sorted keys and lists what is still alike.

    Args:
        starts, …, held: as `gather_keys` left them, the keys sorted.
        new: starts, sizes and depths u32 of the new groups, of which there are `used` so far.

    Returns:
        how many new groups there are now.
    """
    new_starts, new_sizes, new_depths = new
    begin, size = INT(starts[group]), INT(sizes[group])
    alone = size > CHUNK
    lower = np.uint64(number_bits) if alone else np.uint64(CHUNK_BITS)
    last = (np.uint64(1) << lower) - np.uint64(1)
    at = begin
    first = used
    for g in range(group, stop):
        begin = INT(starts[g])
        end = begin + INT(sizes[g])
        depth = depths[begin]
        key = keys[at] >> lower
        for i in range(begin, end):
            value = keys[at]
            order[i] = value & last if alone else held[value & last]
            if value >> lower != key:
                if i - begin > 1:
                    new_starts[used], new_sizes[used], new_depths[used] = begin, i - begin, key & _RANK
                    if not alone:
                        held[CHUNK + used - first] = depth
                    used += 1
                begin = i
                key = value >> lower
            at += 1
        if end - begin > 1:
            new_starts[used], new_sizes[used], new_depths[used] = begin, end - begin, key & _RANK
            if not alone:
                held[CHUNK + used - first] = depth
            used += 1
    for g in range(first, used):  # a loop of its own, in which what is read does not wait for what is guessed
        before = depths[starts[group]] if alone else held[CHUNK + g - first]
        new_depths[g] = before + depths[new_depths[g]]
    return used


@njit(cache=True, nogil=True)
def rank_groups(
    starts: np.ndarray,
    sizes: np.ndarray,
    new: tuple[np.ndarray, np.ndarray, np.ndarray],
    used: int,
    order: np.ndarray,
    ranks: np.ndarray,
    depths: np.ndarray,
) -> None:
    """Gives the members of the old groups the ranks, and the new groups their depths, once no key is to be made of the old ones."""
    new_starts, new_sizes, new_depths = new
    at = 0
    for g in range(starts.size):
        i = INT(starts[g])
        end = i + INT(sizes[g])
        while i < end:
            rank = i
            size = 1
            if at < used and INT(new_starts[at]) == i:
                size = INT(new_sizes[at])
                depths[i] = new_depths[at]
                at += 1
            while i < rank + size:
                ranks[order[i]] = rank
                i += 1
