"""What one shard answers to each kind of question. The index asks all of its shards and puts the answers together.

Every function takes the shard first, then what is meant for this shard alone (a stretch of its suffix array, positions), then what is
the same for all. They are asked through `Shards` in this process, or through `ClusterShards` where the shards are open in others: so
all arguments are plain values and arrays, and nothing is written into an argument.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from palimpsest.corpus import continuations, search
from palimpsest.corpus.shard import Hit, Shard

_STRIP = 1 << 16  # suffixes that are looked at at once
Stretch = tuple[int, int]  # the suffixes lo, …, hi − 1 of a shard's suffix array


def stretch(shard: Shard, query: np.ndarray, separator: int) -> Stretch:
    """The suffixes that begin with `query` (m >= 1); (-1, i) when query[i] is not an id."""
    return search.find(*shard.arrays, query, separator)


def everything(shard: Shard) -> Stretch:
    """All suffixes."""
    return 0, shard.arrays[1].size


def counts(shard: Shard, flat: np.ndarray, offsets: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Occurrences int64 (queries,) of each flat[offsets[i] : offsets[i + 1]], which are searched in `order`."""
    out = np.zeros(offsets.size - 1, np.int64)
    search.in_threads(search.count_rows, (*shard.arrays, flat, offsets, order, out), out.size)
    return out


def longest_match(shard: Shard, query: np.ndarray, begin: int) -> int:
    """Length of the longest prefix of query[begin:] that occurs."""
    return search.longest_match(*shard.arrays, query, search.ANYWHERE, begin)


def matches(shard: Shard, query: np.ndarray, separator: int) -> np.ndarray:
    """Matching statistics int32 (T,) of `query`; a match must go on in its document when `separator` >= 0."""
    out = np.zeros(query.size, np.int32)
    search.in_threads(search.match_rows, (*shard.arrays, query, separator, out), query.size)
    return out


def unigrams(shard: Shard) -> tuple[np.ndarray, np.ndarray]:
    """The tokens, ascending, and how often each occurs; the separator left out."""
    _, _, firsts, starts = shard.arrays
    return np.array(firsts[:-1]), np.diff(starts)[:-1]


def next_tokens_batch(shard: Shard, contexts: np.ndarray, separator: int) -> tuple[np.ndarray, np.ndarray]:
    """See `NextTokenQueries.next_tokens_batch`."""
    return continuations.next_tokens_batch(*shard.arrays, contexts, separator)


def longest_suffix(shard: Shard, prompt: np.ndarray, min_count: int, separator: int) -> tuple[int, int, int]:
    """n* of this shard alone and its stretch; see `continuations.longest_suffix`."""
    return continuations.longest_suffix(*shard.arrays, prompt, min_count, separator)


def narrowed(shard: Shard, within: Stretch, depth: int, token: int, separator: int) -> tuple[int, int, int]:
    """The suffixes of a stretch that have `token` at `depth`, and how many have any; see `continuations.narrow`."""
    return continuations.narrow(*shard.arrays[:2], *within, depth, token, separator)


def next_rows(shard: Shard, query: np.ndarray, begins: np.ndarray, separator: int) -> np.ndarray:
    """Counts and totals int64 (2, T) of the ∞-gram at every position; see `continuations.next_rows`."""
    out = np.zeros((2, query.size), np.int64)
    search.in_threads(continuations.next_rows, (*shard.arrays, query, begins, separator, out[0], out[1]), query.size)
    return out


def followed(shard: Shard, within: Stretch, depth: int, separator: int) -> Stretch:
    """The suffixes of a stretch that have a token of their document at `depth`."""
    return continuations.followed(*shard.arrays[:2], *within, depth, separator)


def branches(shard: Shard, within: Stretch, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct tokens at `depth` of a stretch, ascending, and how often each stands there."""
    ids, borders = search.branches(*shard.arrays[:2], *within, depth)
    return ids, np.diff(borders)


def weighted_tokens(shard: Shard, chosen: tuple[np.ndarray, np.ndarray], depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct tokens at `depth` of chosen suffixes, each suffix counted as its weight."""
    ranks, weights = chosen
    tokens, sa, _, _ = shard.arrays
    ids, place = np.unique(tokens[sa[ranks].astype(np.int64) + depth], return_inverse=True)
    return ids.astype(np.int64), np.bincount(place, weights, ids.size).astype(np.int64)


def positions(shard: Shard, chosen: list[np.ndarray]) -> list[np.ndarray]:
    """Where chosen suffixes begin, each group of them ascending."""
    return [np.sort(shard.arrays[1][ranks].astype(np.int64)) for ranks in chosen]


def hits(shard: Shard, within: Stretch, length: int, limit: int, context: int) -> list[Hit]:
    """One `Hit` for each of the first `limit` documents that hold a suffix of a stretch, at the first of them there."""
    places = _first_places(shard, within, limit)
    found = zip((np.searchsorted(shard.docs, places, side="right") - 1).tolist(), places.tolist(), strict=True)
    return [shard.hit(local, place - int(shard.docs[local]), length, context) for local, place in found]


def _first_places(shard: Shard, within: Stretch, limit: int) -> np.ndarray:
    """The first position of a stretch in each of the first `limit` documents that hold one, int64, ascending.

    A stretch is in the order of what follows, not of where it stands: all of it is looked at, in strips. Once there are enough
    documents, only a position before the last of them counts, and most of a long stretch costs one comparison each.
    """
    lo, hi = within
    best = np.empty(0, shard.arrays[1].dtype)
    while lo < hi and limit > 0:
        strip = shard.arrays[1][lo : min(lo + max(_STRIP, best.size), hi)]  # as long as what it is merged into: n log n in all
        lo += strip.size
        if best.size == limit:
            strip = strip[strip < best[-1]]
        if strip.size:
            merged = np.sort(np.concatenate([best, strip]))
            holders = np.searchsorted(shard.docs, merged, side="right")
            best = merged[np.flatnonzero(np.diff(holders, prepend=-1))[:limit]]
    return best.astype(np.int64)


def document_ids(shard: Shard, local: int, start: int, stop: int | None) -> np.ndarray:
    """See `Shard.document_ids`."""
    return shard.document_ids(local, start, stop)


def document(shard: Shard, local: int) -> tuple[str, dict[str, Any]]:
    """See `Shard.document`."""
    return shard.document(local)


def longest_document(shard: Shard) -> int:
    """Tokens of the longest document."""
    return int((shard.after - shard.docs).max(initial=1)) - 1  # a separator stands between
