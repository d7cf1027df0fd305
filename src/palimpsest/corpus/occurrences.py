"""The occurrences of a passage: as ranges of the suffix arrays, as positions, as documents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from palimpsest.corpus import shard_answers
from palimpsest.corpus.cluster_shards import ClusterShards
from palimpsest.corpus.shard import Hit, Shards


@dataclass(frozen=True)
class SaRange:
    """The suffixes lo, …, hi − 1 of a shard's suffix array."""

    shard: int
    lo: int
    hi: int

    @property
    def count(self) -> int:
        """How many they are."""
        return self.hi - self.lo


@dataclass(frozen=True)
class Positions:
    """Where a passage stands.

    Attributes:
        shard, position: int64 (k,): shard and index into its tokens, ascending.
        total: occurrences in all.
        sampled: whether these are a uniform sample of them.
    """

    shard: np.ndarray
    position: np.ndarray
    total: int
    sampled: bool

    def __len__(self) -> int:
        return self.position.size


def locate(shards: Shards | ClusterShards, ranges: list[SaRange], limit: int | None, seed: int | None) -> Positions:
    """The positions of the suffixes in `ranges`, or a uniform sample of `limit` of them; see `CorpusIndex.locate`."""
    borders = np.cumsum([0] + [r.count for r in ranges])
    total = int(borders[-1])
    sampled = limit is not None and total > limit
    if sampled:
        ranks = np.sort(np.random.default_rng(seed).choice(total, limit, replace=False, shuffle=False))
    else:
        ranks = np.arange(total)
    chosen: list[list[np.ndarray]] = [[] for _ in range(len(shards))]
    for r, start, end in zip(ranges, borders[:-1], borders[1:], strict=True):
        chosen[r.shard].append(ranks[np.searchsorted(ranks, start) : np.searchsorted(ranks, end)] - start + r.lo)
    found = [iter(parts) for parts in shards.each(shard_answers.positions, own=chosen)]
    numbers, positions = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for r in ranges:
        mine = next(found[r.shard])
        numbers.append(np.full(mine.size, r.shard, np.int64))
        positions.append(mine)
    return Positions(np.concatenate(numbers), np.concatenate(positions), total, sampled)


def hits(shards: Shards | ClusterShards, ranges: list[SaRange], query: np.ndarray, limit: int, context: int) -> list[Hit]:
    """One `Hit` for each of the first `limit` documents among the occurrences, one range a shard; see `CorpusIndex.documents`."""
    parts = shards.each(shard_answers.hits, query.size, max(limit, 0), context, own=[(r.lo, r.hi) for r in ranges])
    return [hit for part in parts for hit in part][: max(limit, 0)]
