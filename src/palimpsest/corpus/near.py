"""Near-verbatim search: the passages of a corpus that a few token edits turn into a given one.

An *edit* inserts, deletes or replaces one token; d(q, w) is the least number of edits between the passage q (m tokens) and a window w
of a document. Sought are all windows with d(q, w) <= k, by seed and extend:

1. q is cut into k + 1 pieces. Any window within k edits holds one of them untouched (pigeonhole), so the suffix array gives a set
   of positions that misses none. The cuts are those with the fewest occurrences in all (dynamic programming over the counts of q's
   substrings), so that frequent phrases are not taken for seeds where rare ones can be had.
2. A piece at offset o of q, found at position p, puts the window inside [p - o - k, p - o + m + k). Overlapping stretches are joined.
3. In every stretch Sellers' dynamic programming (J. Algorithms 1, 1980) gives, for every end e, the least distance D[e] of a window
   that ends there, with Ukkonen's cut-off (J. Algorithms 6, 1985): a column is computed only as far down as it can hold k.

Ends next to one another are one passage: of each run of ends with D[e] <= k the first with the least D is reported, and with it the
shortest window. So an exact copy is reported once, at distance 0, and not again with one token more or less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from palimpsest.errors import InputError

if TYPE_CHECKING:
    from palimpsest.corpus.index import CorpusIndex
    from palimpsest.corpus.shard import Hit, Shard

REACH = 4  # a piece is at most so many times as long as an equal share of the passage


@dataclass(frozen=True)
class NearMatch:
    """A passage of the corpus close to the one that was asked for.

    Attributes:
        hit: where it stands; `hit.match` are its own tokens.
        distance: edits between it and the passage asked for.
    """

    hit: Hit
    distance: int


@dataclass(frozen=True)
class NearMatches:
    """What `near_matches` found.

    Attributes:
        matches: by distance, then in the order of the corpus.
        total: passages found, before the limit.
        complete: whether every occurrence of every seed was looked at; if not, there may be more passages.
    """

    matches: list[NearMatch]
    total: int
    complete: bool


def near_matches(
    index: CorpusIndex, shards: list[Shard], separator: int, ids: np.ndarray, max_edits: int, limit: int, context: int, max_seeds: int
) -> NearMatches:
    """The passages of the corpus within `max_edits` edits of `ids`; called as `CorpusIndex.near`.

    Args:
        index, shards, separator: the corpus, its parts and what stands between its documents.
        ids: int64 (m,), m > max_edits.
        max_edits: k >= 0.
        limit: report at most so many.
        context: tokens to give before and after, as far as the document goes.
        max_seeds: occurrences of seeds to look at, per shard; beyond it a uniform sample, and the answer is not complete.

    Returns:
        `NearMatches`.

    Raises:
        InputError: k below 0, a passage of k tokens or fewer (every window would do), a limit below 1, or foreign ids.
    """
    if max_edits < 0 or limit < 1 or max_seeds < 1 or context < 0:
        raise InputError(
            f"max_edits is {max_edits}, limit {limit}, context {context}, max_seeds {max_seeds}.",
            "Give max_edits and context of at least 0, the others of at least 1.",
        )
    if ids.size <= max_edits:
        raise InputError(f"Every passage is within {max_edits} edits of {ids.size} tokens.", "Give a longer passage or allow fewer edits.")
    cuts = _pieces(index, ids, max_edits + 1)
    found: list[tuple[int, int, int, int, int]] = []  # distance, document, offset, shard, length
    complete = True
    for number, shard in enumerate(shards):
        diagonals, whole = _diagonals(index, number, ids, cuts, max_seeds)
        complete &= whole
        if not diagonals.size:
            continue
        tokens = shard.arrays[0]
        for start, end in _stretches(diagonals, ids.size, max_edits, tokens.size):
            for stop, distance, first in _passages(near_ends(tokens, start, end, ids, max_edits, separator)).tolist():
                local = int(np.searchsorted(shard.docs, first, side="right")) - 1
                if local < 0 or first >= shard.after[local]:
                    continue  # in a document that was deleted, beside one that was not
                offset = first - int(shard.docs[local])
                found.append((distance, shard.first_document + local, offset, number, stop - first))
    found.sort()
    return NearMatches([_match(shards[row[3]], row, context) for row in found[:limit]], len(found), complete)


def _match(shard: Shard, row: tuple[int, int, int, int, int], context: int) -> NearMatch:
    distance, document, offset, _, length = row
    return NearMatch(shard.hit(document - shard.first_document, offset, length, context), distance)


def _pieces(index: CorpusIndex, ids: np.ndarray, pieces: int) -> np.ndarray:
    """Borders int64 (pieces + 1,) of the cut of `ids` into pieces with the fewest occurrences in all."""
    m = ids.size
    longest = min(m - pieces + 1, REACH * -(-m // pieces))
    starts, lengths = np.divmod(np.arange(m * longest), longest)
    lengths += 1
    inside = starts + lengths <= m
    starts, lengths = starts[inside], lengths[inside]
    table = np.full((m, longest + 1), np.inf)
    table[starts, lengths] = index.count_batch([ids[s : s + n] for s, n in zip(starts.tolist(), lengths.tolist(), strict=True)])
    return fewest(table, pieces)


@njit(cache=True)
def fewest(occurrences: np.ndarray, pieces: int) -> np.ndarray:
    """Borders of the cut with the least sum; occurrences[s, n] is that of the piece of n tokens at s."""
    m, longest = occurrences.shape[0], occurrences.shape[1] - 1
    best = np.full((pieces + 1, m + 1), np.inf)
    back = np.zeros((pieces + 1, m + 1), np.int64)
    best[0, 0] = 0.0
    for j in range(1, pieces + 1):
        for end in range(j, m - (pieces - j) + 1):
            for n in range(1, min(longest, end) + 1):
                total = best[j - 1, end - n] + occurrences[end - n, n]
                if total < best[j, end]:
                    best[j, end] = total
                    back[j, end] = n
    borders = np.empty(pieces + 1, np.int64)
    end = m
    for j in range(pieces, -1, -1):
        borders[j] = end
        end -= back[j, end]
    return borders


def _diagonals(index: CorpusIndex, number: int, ids: np.ndarray, cuts: np.ndarray, max_seeds: int) -> tuple[np.ndarray, bool]:
    """Where in a shard the passage would begin if it stood there unchanged around some seed: int64, ascending; and if these are all."""
    diagonals = [np.empty(0, np.int64)]
    whole = True
    left = max_seeds
    for start, end in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        mine = [r for r in index.find(ids[start:end]) if r.shard == number]
        positions = index.locate(mine, limit=max(left, 1))
        whole &= not positions.sampled
        left -= len(positions)
        diagonals.append(positions.position - start)
    return np.unique(np.concatenate(diagonals)), whole


def _stretches(diagonals: np.ndarray, m: int, k: int, size: int) -> list[tuple[int, int]]:
    """The parts [start, end) of a shard that hold every window around `diagonals`, joined where they overlap."""
    first = np.concatenate([[True], np.diff(diagonals) > m + 2 * k])
    last = np.concatenate([first[1:], [True]])
    starts, ends = np.maximum(diagonals[first] - k, 0), np.minimum(diagonals[last] + m + k, size)
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


@njit(cache=True)
def near_ends(tokens: np.ndarray, start: int, end: int, query: np.ndarray, k: int, separator: int) -> np.ndarray:
    """Where windows of tokens[start:end] within k edits of `query` end.

    Returns:
        int64 (ends, 3): one past the last token, least distance of a window that ends there, first token of the shortest such window.
    """
    m = query.size
    cost = np.arange(m + 1)  # of the window that ends here against query[:i]
    origin = np.full(m + 1, start)  # and where that window begins; of equal ones the latest
    deepest = min(k, m)  # row down to which the column is known; all rows below cost more than k
    found = np.empty((end - start, 3), np.int64)
    count = 0
    for at in range(start, end):
        token = np.int64(tokens[at])
        if token == separator:
            for i in range(m + 1):
                cost[i] = i
                origin[i] = at + 1
            deepest = min(k, m)
            continue
        above, above_origin = cost[0], origin[0]  # of row i - 1 in the column before
        origin[0] = at + 1
        bottom = min(deepest + 1, m)
        for i in range(1, bottom + 1):
            known = i <= deepest
            before = cost[i] if known else k + 1
            before_origin = origin[i] if known else at
            best, where = above + (0 if query[i - 1] == token else 1), above_origin
            if before + 1 < best or (before + 1 == best and before_origin > where):
                best, where = before + 1, before_origin
            if cost[i - 1] + 1 < best or (cost[i - 1] + 1 == best and origin[i - 1] > where):
                best, where = cost[i - 1] + 1, origin[i - 1]
            above, above_origin = before, before_origin
            cost[i], origin[i] = best, where
        deepest = bottom
        while cost[deepest] > k:
            deepest -= 1
        if deepest == m:
            found[count] = (at + 1, cost[m], origin[m])
            count += 1
    return found[:count]


def _passages(ends: np.ndarray) -> np.ndarray:
    """The first of the least distance of each run of neighbouring ends (rows of `near_ends`): between documents stands a separator."""
    runs = np.cumsum(np.diff(ends[:, 0], prepend=-1) > 1)
    order = np.lexsort((ends[:, 0], ends[:, 1], runs))
    return ends[order[np.diff(runs[order], prepend=-1) > 0]]
