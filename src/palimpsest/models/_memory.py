"""What a memory-based model has stored: its vocabulary, its weights, and a few sorted indexes that grow like a log-structured merge tree.

New documents become an index of their own (`WindowIndex`), which is merged with the one before while that is less than four times as
long. So there are never more indexes than the logarithm of the text, every token is sorted again a few times at most, and whatever is
counted is counted in all of them. The weights, and with them the order of the features, depend on all of the text; they are computed
again, in linear time, when they are next needed, and should their order have changed, everything is sorted anew. So the answers after
any number of additions are those after one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from palimpsest.corpus.tokens import integers
from palimpsest.errors import InputError
from palimpsest.models import _ragged as ragged
from palimpsest.models._ragged import EQUAL, Votes
from palimpsest.models._window_index import BEGINNING, UNKNOWN, Nodes, WindowIndex, concatenate, gain_ratios, join

MAX_LENGTH = (1 << 32) - 1  # of all documents, one separator each
MERGE_RATIO = 4
TABLE = 1 << 24  # the greatest id that is looked up in a table rather than searched

Contexts = Sequence[Sequence[int] | np.ndarray] | np.ndarray


class Memory:
    """Stored documents, as codes: each id that was met has one, in the order in which they were met.

    Args:
        n: features of an instance.
        weighting: "gr", "ig" or "none".

    Attributes:
        ids: u32 (kinds,), the id of every code.
        frequency: int64 (kinds,), how often each occurs.
        parts: the indexes, in the order of learning.
        sources: names of the documents.
    """

    def __init__(self, n: int, weighting: str) -> None:
        self.n, self.weighting = n, weighting
        self.ids = np.empty(0, np.uint32)
        self.frequency = np.empty(0, np.int64)
        self.parts: list[WindowIndex] = []
        self.sources: list[str] = []
        self._weights = np.zeros(n)  # of feature j at j − 1
        self._stale = False
        self._codes: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def kinds(self) -> int:
        """How many different tokens were met."""
        return self.ids.size

    @property
    def weights(self) -> np.ndarray:
        """float64 (n,): entry j − 1 is the weight of the token j places before."""
        self.settle()
        return self._weights

    @property
    def features(self) -> np.ndarray:
        """The features 1 … n in the order of their weights, of equal ones the nearer first."""
        return np.argsort(-self._weights, kind="stable") + 1

    @property
    def ordered_weights(self) -> np.ndarray:
        """The weights in the order of `features`."""
        return self.weights[self.features - 1]

    def learn(self, rows: list[np.ndarray], names: Iterable[str], *, overlay: bool = False) -> None:
        """Stores documents, rows of ids, in addition.

        Args:
            overlay: keep them in an index of their own, and the weights as they are.

        Raises:
            InputError: more tokens than places can be numbered.
        """
        length = sum(part.tokens.size for part in self.parts) + sum(map(len, rows)) + len(rows) + 1
        if length > MAX_LENGTH:
            raise InputError(f"{length:,} tokens are too many for one memory: places are 32 bits.", "Divide them among several models.")
        self.sources = [*self.sources, *names]
        tokens = concatenate(self._code(rows), self.kinds)
        if not self.parts:
            self._weights = self._weigh(tokens)
        elif not overlay:
            self._stale = True
        part = WindowIndex.sort(tokens, self.kinds, self.features)
        while not overlay and self.parts and (not len(part) or len(self.parts[-1]) < MERGE_RATIO * len(part)):
            part = WindowIndex.sort(join([self.parts.pop(), part]), self.kinds, self.features)
        self.parts.append(part)

    def documents(self) -> Iterator[np.ndarray]:
        """The ids u32 of every document, in the order of `sources`."""
        for part in self.parts:
            for begin, end in pairwise(part.separators.tolist()):
                yield self.ids[part.tokens[begin + 1 : end]]

    def copy(self) -> Memory:
        """Another memory of the same documents, to which more can be added; nothing is copied that does not change."""
        other = copy.copy(self)
        other.parts = list(self.parts)
        return other

    def settle(self, *, whole: bool = False) -> None:
        """Brings weights and sorting up to date with everything learnt, and with `whole` makes one index of all.

        Raises:
            InputError: nothing was learnt.
        """
        if not self.parts:
            raise InputError("The model has learnt nothing yet.", "Call fit first.")
        merge = whole and len(self.parts) > 1
        if not self._stale and not merge:
            return
        tokens = join(self.parts) if len(self.parts) > 1 else self.parts[0].tokens
        if self._stale:
            self._weights = self._weigh(tokens)
            self._stale = False
        if merge or not np.array_equal(self.features, self.parts[0].features):
            self.parts = [WindowIndex.sort(tokens, self.kinds, self.features)]

    def _weigh(self, tokens: np.ndarray) -> np.ndarray:
        if self.weighting == "none":
            return np.ones(self.n)
        gain, split = gain_ratios(tokens, self.kinds, self.n)
        return gain if self.weighting == "ig" else np.divide(gain, split, out=np.zeros(self.n), where=split > 0)

    # --- ids and codes ------------------------------------------------------------------------------------------------------------

    def _code(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        """The rows as codes; ids that were never met get the next ones."""
        flat = np.concatenate(rows)
        met = np.unique(flat)
        new = met[self.codes(met) == UNKNOWN]
        if new.size:
            self.ids, self._codes = np.concatenate([self.ids, new.astype(np.uint32)]), None
        codes = self.codes(flat)
        frequency = np.bincount(codes, minlength=self.kinds)
        frequency[: self.frequency.size] += self.frequency
        self.frequency = frequency
        return np.split(codes, np.cumsum([row.size for row in rows])[:-1])

    def codes(self, ids: np.ndarray) -> np.ndarray:
        """The codes int64 of ids, `UNKNOWN` for those that were never met."""
        if not self.kinds:
            return np.full(ids.shape, UNKNOWN)
        if self._codes is None:
            order = np.argsort(self.ids)
            top = int(self.ids[order[-1]])
            if top <= TABLE:
                table = np.full(top + 2, UNKNOWN)
                table[self.ids] = np.arange(self.kinds)
                self._codes = table, order
            else:
                self._codes = self.ids[order].astype(np.int64), order
        known, order = self._codes
        if int(self.ids[order[-1]]) <= TABLE:
            return known[np.minimum(ids, known.size - 1)]
        at = np.minimum(np.searchsorted(known, ids), known.size - 1)
        return np.where(known[at] == ids, order[at], UNKNOWN)

    def encode(self, contexts: Contexts) -> np.ndarray:
        """The features of contexts: int64 (Q, n), in the order of `features`.

        Args:
            contexts: rows of ids, oldest first, of which the last n count; a shorter row begins a document.

        Raises:
            InputError: not rows of integers >= 0.
        """
        self.settle()
        if isinstance(contexts, np.ndarray) and contexts.ndim == 2:
            flat = _ids(contexts).reshape(-1)
            ends = np.arange(1, len(contexts) + 1) * contexts.shape[1]
        elif isinstance(contexts, str | bytes | np.ndarray):
            raise InputError("A list of contexts is expected.", "Give rows of ids: [ids].")
        else:
            try:
                lengths = np.fromiter(map(len, contexts), np.int64, len(contexts))
                flat = _ids(np.concatenate([row for row in contexts if len(row)] or [np.empty(0, np.int64)]))
            except (TypeError, ValueError) as error:
                raise InputError(f"The contexts are not rows of ids: {error}", "Give flat rows of integers.") from error
            ends = np.cumsum(lengths)
            if flat.shape != (lengths.sum(),):
                raise InputError("A context is not a flat row of ids.", "Give flat rows of integers.")
        begins = np.concatenate([[0], ends[:-1]]) if ends.size else ends
        at = ends[:, None] - self.features  # feature j stands j places before the end of its row
        codes = self.codes(flat[np.clip(at, 0, max(0, flat.size - 1))]) if flat.size else np.empty(at.shape, np.int64)
        return np.where(at >= begins[:, None], codes, BEGINNING)

    def windows(self, ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The features int64 (T, n) of every position of a document, as `encode` gives them, and the classes int64 (T,)."""
        self.settle()
        classes = self.codes(_row(ids))
        padded = np.concatenate([np.full(self.n, BEGINNING), classes])
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.n)[: classes.size] if self.n else np.empty((classes.size, 0))
        return np.ascontiguousarray(windows[:, ::-1][:, self.features - 1], np.int64), classes

    # --- asking all indexes -------------------------------------------------------------------------------------------------------

    def descend(self, contexts: np.ndarray) -> tuple[list[Nodes], np.ndarray]:
        """For every context (Q, n) the nodes of all levels in every index, and how many instances they have together: int64 (Q, n + 1)."""
        nodes = [part.descend(contexts) for part in self.parts]
        return nodes, np.sum([hi - lo for lo, hi in nodes], axis=0)

    @property
    def most_frequent(self) -> int:
        """The code that occurs most often, of several the one with the lowest id."""
        most = np.flatnonzero(self.frequency == self.frequency.max())
        return int(most[np.argmin(self.ids[most])])

    def votes(self, nodes: list[Nodes], level: np.ndarray) -> Votes:
        """How often every class occurs in each context's node at its own `level` (Q,); nothing at level −1."""
        rows = np.arange(level.size)
        counted = []
        for part, (lo, hi) in zip(self.parts, nodes, strict=True):
            begin = lo[rows, level]
            counted.append(part.votes(begin, np.where(level > 0, hi[rows, level], begin)))
        votes = counted[0]
        if len(counted) > 1:
            offsets, classes, count = ragged.stack(counted)
            votes = ragged.add_equal(offsets, classes, count, self.kinds, True)
        root = np.flatnonzero(level == 0)
        if root.size:  # known, and long to count
            classes = np.flatnonzero(self.frequency)
            all_of_it = np.arange(root.size + 1) * classes.size, np.tile(classes, root.size), np.tile(self.frequency[classes], root.size)
            votes = ragged.replace_rows(votes, root, (*all_of_it[:2], all_of_it[2].astype(np.float64)))
        return votes

    def instances(self, nodes: list[Nodes], level: np.ndarray, distance: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The instances of each context's node at its own `level` (Q,), index by index: offsets, places, and their `distance` (Q,)."""
        rows = np.arange(level.size)
        out = []
        for part, (lo, hi) in zip(self.parts, nodes, strict=True):
            offsets, places = ragged.stretches(part.order, lo[rows, level], hi[rows, level])
            out.append((offsets, places, np.repeat(distance, np.diff(offsets))))
        return out

    def count_classes(self, nodes: list[Nodes], level: int) -> np.ndarray:
        """How many different classes occur in the nodes of one level: int64 (Q,)."""
        count = self.parts[0].summaries(nodes[0], np.full(len(nodes[0][0]), level))[1]
        for number in range(1, len(self.parts)):  # of a later, smaller index those that no earlier one has at the same node
            offsets, classes, _ = self.parts[number].votes(*(ends[:, level] for ends in nodes[number]))
            row = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
            new = np.ones(row.size, np.bool_)
            for part, (lo, hi) in zip(self.parts[:number], nodes, strict=False):
                new &= part.occurrences_between((lo[row, level, None], hi[row, level, None]), classes)[:, 0] == 0
            count += np.bincount(row[new], minlength=count.size)
        return count

    def count_occurrences(self, nodes: list[Nodes], classes: np.ndarray) -> np.ndarray:
        """How often each context's class (Q,) occurs in its nodes of every level: int64 (Q, n + 1)."""
        found = [part.occurrences_between(ends, classes) for part, ends in zip(self.parts, nodes, strict=True)]
        return np.sum(found, axis=0)

    def nearest(
        self, contexts: np.ndarray, nodes: list[Nodes], fixed: np.ndarray, bound: np.ndarray, differs: bool, rings: int
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The instances at the `rings` smallest distinct distances, index by index: see `_neighbours.nearest`."""
        rows = np.arange(fixed.size)
        weights = self.ordered_weights
        found = [
            part.nearest(contexts, fixed, (lo[rows, fixed], hi[rows, fixed]), bound, weights, differs, rings)
            for part, (lo, hi) in zip(self.parts, nodes, strict=True)
        ]
        if len(found) == 1:
            return found
        offsets, gaps = ragged.stack([(offsets, gaps) for offsets, _, gaps in found])
        limit = ragged.smallest_distinct(offsets, gaps, rings)[:, -1] + EQUAL
        out = []
        for offsets, places, gaps in found:
            row = np.repeat(rows, np.diff(offsets))
            kept = gaps <= limit[row]
            out.append((np.concatenate([[0], np.cumsum(np.bincount(row[kept], minlength=rows.size))]), places[kept], gaps[kept]))
        return out

    def locate(self, number: int, place: int) -> dict[str, Any]:
        """Where an instance of index `number` stands: its window, position, document, offset and source."""
        part = self.parts[number]
        before = self.parts[:number]
        document = int(np.searchsorted(part.separators, place)) - 1
        offset = place - int(part.separators[document]) - 1
        window = part.tokens[place - min(offset, self.n) : place]
        index = document + sum(other.separators.size - 1 for other in before)
        return {
            "token": int(self.ids[part.tokens[place]]),
            "window": (*[None] * (self.n - window.size), *self.ids[window].tolist()),
            "position": place - document - 1 + sum(len(other) for other in before),
            "document": index,
            "offset": offset,
            "source": self.sources[index],
        }


def _ids(values: np.ndarray) -> np.ndarray:
    values = integers(values) if values.size else values.astype(np.int64)
    if values.size and int(values.min()) < 0:
        raise InputError(f"A context holds {values.min()}.", "Token ids are not negative.")
    return values.astype(np.int64, copy=False)


def _row(ids: Sequence[int] | np.ndarray) -> np.ndarray:
    row = np.asarray(ids)
    if row.ndim != 1:
        raise InputError(f"A row of ids has shape {row.shape}.", "Give a flat list of token ids.")
    return _ids(row)
