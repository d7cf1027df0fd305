"""The shards of an open index: their mapped files, and how all of them are asked the same question."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

PARTS = ("tokens", "docs", "meta", "metaoff", "sa", "buckets")  # the files of a shard
CHANGED = ("sa", "buckets", "live")  # those that it has anew after documents were deleted
_T = TypeVar("_T")


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


class Shards(list[Shard]):
    """The shards of an index that is open in this process, in the order of the documents."""

    def each(self, function: Callable[..., _T], *arguments: Any, own: Sequence[Any] | None = None) -> list[_T]:
        """`function(shard, *arguments)` of every shard; with `own`, one value a shard, `function(shard, its own, *arguments)`."""
        if own is None:
            return [function(shard, *arguments) for shard in self]
        return [function(shard, mine, *arguments) for shard, mine in zip(self, own, strict=True)]

    def merged(self, merge: Callable[[_T, _T], _T], function: Callable[..., _T], *arguments: Any) -> _T:
        """What `each` gives, made one from the left by `merge`."""
        return reduce(merge, self.each(function, *arguments))

    def at(self, number: int, function: Callable[..., _T], *arguments: Any) -> _T:
        """`function(shard, *arguments)` of one shard."""
        return function(self[number], *arguments)


def open_shards(folder: Path, cards: list[dict[str, Any]], dtype: np.dtype, mode: str, only: range | None = None) -> Shards:
    """The shards of an index, all or only those of these numbers."""
    firsts = np.cumsum([0] + [card["documents"] for card in cards]).tolist()
    return Shards(Shard(folder, number, cards[number], firsts[number], dtype, mode) for number in only or range(len(cards)))
