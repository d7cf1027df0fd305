"""What a door has said, kept in a bounded number of bytes: the store behind `palimpsest.models.score_cache`.

A row of ids is kept under its bytes, four big-endian ones an id, so that bytes and ids are ordered alike: a row that begins with another
follows it in the sorted list of keys, and nothing stands between them that does not begin with it too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from palimpsest.models.base import Sampler

IDS = 1 << 32  # a key holds an id in four bytes; whether a model knows it is the door's affair
_OVERHEAD = 600  # bytes of the objects around a row
_PLAIN, _MOMENTS, _SAMPLER = 5, 8, 8  # bytes a position: log-prob and hit; mean and variance; the log-prob under one sampler


@dataclass(frozen=True)
class Need:
    """What is wanted of a row: the first position, and which statistics."""

    start: int
    moments: bool
    samplers: frozenset[Sampler]

    def __or__(self, other: Need) -> Need:
        return Need(min(self.start, other.start), self.moments or other.moments, self.samplers | other.samplers)

    def within(self, other: Need) -> bool:
        """Whether who has what `other` wants has this too."""
        return self.start >= other.start and self.moments <= other.moments and self.samplers <= other.samplers

    def nbytes(self, key: bytes) -> int:
        """What the answer for the row `key` takes in the store."""
        each = _PLAIN + _MOMENTS * self.moments + _SAMPLER * len(self.samplers)
        return _OVERHEAD + len(key) + each * (len(key) // 4 - self.start)


@dataclass(frozen=True)
class Entry:
    """What a door said of a row: for each statistic one array, from position `need.start` on."""

    need: Need
    arrays: dict[str | Sampler, np.ndarray]


@dataclass(frozen=True)
class Text:
    """Continuations that a door wrote, and how many tokens it was asked for."""

    ids: list[np.ndarray]
    asked: int

    def reaches(self, tokens: int) -> bool:
        """Whether a single continuation says what one of `tokens` would be: it is long enough, or has ended."""
        return tokens <= self.asked or len(self.ids[0]) < self.asked

    @property
    def nbytes(self) -> int:
        """What it takes in the store."""
        return _OVERHEAD + sum(ids.nbytes for ids in self.ids)


TextKey = tuple[object, ...]


def key_of(row: np.ndarray) -> bytes:
    """The key of a row of ids."""
    return row.astype(">u4").tobytes()


def ids_of(key: bytes) -> np.ndarray:
    """The row of a key, int64."""
    return np.frombuffer(key, ">u4").astype(np.int64)


class ScoreStore:
    """Entries by row and texts by question.

    Args:
        max_bytes: what `trim` leaves at most, what is pinned included.
        extends: whether a longer row answers for those with which it begins.
    """

    def __init__(self, max_bytes: int, extends: bool) -> None:
        self.max_bytes, self.extends = max_bytes, extends
        self.nbytes = 0
        self.texts: dict[TextKey, Text] = {}
        self._entries: dict[bytes, Entry] = {}
        self._sorted: list[bytes] = []
        self._pinned: set[bytes] = set()
        self._recent: OrderedDict[bytes | TextKey, None] = OrderedDict()  # what may be forgotten, the least recently used first

    def find(self, key: bytes, need: Need) -> Entry | None:
        """An entry that answers, marked as used; None where there is none."""
        for candidate in self._beginning_with(key):
            entry = self._entries[candidate]
            if need.within(entry.need):
                if candidate in self._recent:
                    self._recent.move_to_end(candidate)
                return entry
        return None

    def known(self, key: bytes) -> Need | None:
        """What is known of the row itself."""
        entry = self._entries.get(key)
        return entry.need if entry is not None else None

    def put(self, entries: dict[bytes, Entry], *, pinned: bool) -> None:
        """Adds entries, or replaces them; pinned ones are not forgotten."""
        for key, entry in entries.items():
            if key in self._entries:
                self.nbytes -= self._entries[key].need.nbytes(key)
            self._entries[key] = entry
            self.nbytes += entry.need.nbytes(key)
            if pinned:
                self._pinned.add(key)
                self._recent.pop(key, None)  # it may have been there before it was announced
            if key not in self._pinned:
                self._recent[key] = None
                self._recent.move_to_end(key)
        self._sorted = sorted(self._entries)

    def put_text(self, key: TextKey, text: Text) -> None:
        """Adds a text, or replaces it."""
        if key in self.texts:
            self.nbytes -= self.texts[key].nbytes
        self.texts[key] = text
        self.nbytes += text.nbytes
        self._recent[key] = None
        self._recent.move_to_end(key)

    def text(self, key: TextKey) -> Text | None:
        """A text, marked as used."""
        if key in self._recent:
            self._recent.move_to_end(key)
        return self.texts.get(key)

    def trim(self) -> None:
        """Forgets what was used least recently until the bytes are kept to; nothing that is pinned."""
        gone = False
        while self.nbytes > self.max_bytes and self._recent:
            key, _ = self._recent.popitem(last=False)
            if isinstance(key, bytes):
                self.nbytes -= self._entries.pop(key).need.nbytes(key)
                gone = True
            else:
                self.nbytes -= self.texts.pop(key).nbytes
        if gone:
            self._sorted = sorted(self._entries)

    def _beginning_with(self, key: bytes) -> Iterator[bytes]:
        """The rows that are, or begin with, the row `key`, the shortest first."""
        if not self.extends:
            if key in self._entries:
                yield key
            return
        for at in range(bisect_left(self._sorted, key), len(self._sorted)):
            if not self._sorted[at].startswith(key):
                return
            yield self._sorted[at]


def joined(needs: dict[bytes, Need], extends: bool) -> dict[bytes, Need]:
    """The rows that have to be scored, in sorted order: with `extends`, none of them begins with another.

    Example:
        >>> row, longer = key_of(np.array([1, 2])), key_of(np.array([1, 2, 3]))
        >>> joined({row: Need(1, True, frozenset()), longer: Need(2, False, frozenset())}, True) == {longer: Need(1, True, frozenset())}
        True
    """
    out: dict[bytes, Need] = {}
    last: bytes | None = None
    for key in sorted(needs):
        need = needs[key]
        if extends and last is not None and key.startswith(last):
            need = need | out.pop(last)
        out[key] = need
        last = key
    return out
