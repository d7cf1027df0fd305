"""One shard of an open index, and the occurrences of a passage as positions and as documents."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PARTS = ("tokens", "docs", "meta", "metaoff", "sa", "buckets")  # the files of a shard
CHANGED = ("sa", "buckets", "live")  # those that it has anew after documents were deleted
_LOCATED = 10_000  # occurrences that are looked at to find distinct documents


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


@dataclass(frozen=True)
class Hit:
    """One occurrence of a passage.

    Attributes:
        doc_id: the document's name.
        index: the document's number.
        offset: tokens before the passage in its document.
        metadata: what the corpus says of the document.
        before, match, after: int64 ids: the passage and its surroundings within the document.
    """

    doc_id: str
    index: int
    offset: int
    metadata: dict[str, Any]
    before: np.ndarray
    match: np.ndarray
    after: np.ndarray


class Shard:
    """The mapped arrays of one shard.

    Attributes:
        arrays: tokens, sa, firsts, starts: what every function of `search` takes first.
        docs: int64 (documents,): start of every document in tokens.
        after: int64 (documents,): one past the separator that follows it, or would follow it at the end.
        first_document: number of its first document in the index.
    """

    def __init__(self, folder: Path, number: int, card: dict[str, Any], first_document: int, dtype: np.dtype, mode: str) -> None:
        def load(part: str, kind: np.dtype | str) -> np.ndarray:
            path = folder / file_name(part, number, card)
            if mode == "mmap" and path.stat().st_size:  # nothing cannot be mapped
                return np.memmap(path, kind, "r").view(np.ndarray)
            data = np.fromfile(path, kind)
            data.flags.writeable = False
            return data

        buckets = load("buckets", "<i8")
        firsts, starts = buckets[: card["alphabet"]], buckets[card["alphabet"] :]
        self.arrays = (load("tokens", dtype), load("sa", "<u4"), firsts, starts)
        docs, lines = load("docs", "<i8"), load("metaoff", "<i8")
        self.docs, self.after = docs[:-1], docs[1:]
        self._lines, self._lines_end = lines[:-1], lines[1:]
        self._live = load("live", "<i8") if "generation" in card else None
        if self._live is not None:
            self.docs, self.after = self.docs[self._live], self.after[self._live]
            self._lines, self._lines_end = self._lines[self._live], self._lines_end[self._live]
        self.first_document = first_document
        self._meta = load("meta", "<u1")

    def document_ids(self, local: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The token ids int64 of a document of this shard, or those from `start` to `stop` of them."""
        return self.arrays[0][self.docs[local] : self.after[local] - 1][start:stop].astype(np.int64)

    def document(self, local: int) -> tuple[str, dict[str, Any]]:
        """Name and metadata of a document of this shard."""
        record = json.loads(self._meta[self._lines[local] : self._lines_end[local]].tobytes())
        return record["id"], record["metadata"]

    @property
    def live(self) -> np.ndarray:
        """Place int64 (documents,) of every document among all that the files hold, deleted ones included."""
        return np.arange(self.docs.size) if self._live is None else self._live

    def stretches(self) -> list[tuple[int, int]]:
        """The parts [start, end) of the tokens, separators included, that hold the documents which were not deleted."""
        if not self.docs.size:
            return []
        gaps = np.flatnonzero(self.docs[1:] != self.after[:-1]) + 1
        firsts, lasts = np.concatenate([[0], gaps]), np.concatenate([gaps, [self.docs.size]]) - 1
        return list(zip((self.docs[firsts] - 1).tolist(), (self.after[lasts] - 1).tolist(), strict=True))

    def hit(self, local: int, offset: int, length: int, context: int) -> Hit:
        """The `length` tokens at `offset` of a document of this shard, with at most `context` tokens on either side."""
        start, end = int(self.docs[local]), int(self.after[local]) - 1
        at, stop = start + offset, start + offset + length
        before, match, after = (
            self.arrays[0][a:b].astype(np.int64) for a, b in ((max(start, at - context), at), (at, stop), (stop, min(end, stop + context)))
        )
        doc_id, metadata = self.document(local)
        return Hit(doc_id, self.first_document + local, offset, metadata, before, match, after)


def file_name(part: str, number: int, card: dict[str, Any]) -> str:
    """The file of a part of a shard; after a deletion, some have the number of that change."""
    changed = part in CHANGED and "generation" in card
    return f"{part}.{number}.{card['generation']}" if changed else f"{part}.{number}"


def open_shards(folder: Path, cards: list[dict[str, Any]], dtype: np.dtype, mode: str) -> list[Shard]:
    """All shards of an index, in the order of the documents."""
    shards: list[Shard] = []
    first = 0
    for number, card in enumerate(cards):
        shards.append(Shard(folder, number, card, first, dtype, mode))
        first += card["documents"]
    return shards


def locate(shards: list[Shard], ranges: list[SaRange], limit: int | None, seed: int | None) -> Positions:
    """The positions of the suffixes in `ranges`, or a uniform sample of `limit` of them; see `CorpusIndex.locate`."""
    borders = np.cumsum([0] + [r.count for r in ranges])
    total = int(borders[-1])
    sampled = limit is not None and total > limit
    if sampled:
        ranks = np.sort(np.random.default_rng(seed).choice(total, limit, replace=False, shuffle=False))
    else:
        ranks = np.arange(total)
    numbers, positions = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for r, start, end in zip(ranges, borders[:-1], borders[1:], strict=True):
        mine = ranks[np.searchsorted(ranks, start) : np.searchsorted(ranks, end)] - start + r.lo
        numbers.append(np.full(mine.size, r.shard, np.int64))
        positions.append(np.sort(shards[r.shard].arrays[1][mine].astype(np.int64)))
    return Positions(np.concatenate(numbers), np.concatenate(positions), total, sampled)


def hits(shards: list[Shard], ranges: list[SaRange], query: np.ndarray, limit: int, context: int) -> list[Hit]:
    """One `Hit` for each of the first `limit` documents among the occurrences; see `CorpusIndex.documents`."""
    found = locate(shards, ranges, _LOCATED, seed=0)
    answer: list[Hit] = []
    for number, shard in enumerate(shards):
        positions = found.position[found.shard == number]
        holders, firsts = np.unique(np.searchsorted(shard.docs, positions, side="right") - 1, return_index=True)
        room = max(limit - len(answer), 0)
        for local, position in zip(holders[:room].tolist(), positions[firsts[:room]].tolist(), strict=True):
            answer.append(shard.hit(local, position - int(shard.docs[local]), query.size, context))
    return answer
