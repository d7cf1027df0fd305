"""`WindowIndex`: all windows of a text in sorted order, which is a tree, a nearest-neighbour table and a trail to the text in one.

An instance is a position of a document: its class is the token there, its features are the n tokens before. Sorted by their features
in the order of the features' weights, all instances that agree in the first j of them stand side by side: the nodes of the decision
tree that IGTree builds (Daelemans, Van den Bosch & Weijters, *IGTree: using trees for compression and classification in lazy learning
algorithms*, AI Review 11, 1997) are stretches of one sorted array. Per token it takes

    2 or 4 bytes  its code            4 bytes  the sorted order            4 bytes  the places of every class in that order

and some tenths of a byte for what is known of large nodes beforehand: the most frequent class and how many there are.

The spec asks for tables of 64-bit hashes of every prefix, and of all 2ⁿ subsets of the features for IB1. Here nothing is hashed, so
nothing can collide; a node's instances, and with them every distribution and every training position, are there without a further
table; and `nearest` is exact for every n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from palimpsest.corpus.search import in_threads
from palimpsest.models import _window_kernels as kernels
from palimpsest.models._neighbours import elect_nearest, nearest
from palimpsest.models._ragged import Votes, count_stretches

BEGINNING, UNKNOWN = -2, -1  # in a context: before the document; a token that no document holds
ROUNDING = 1e-10  # bits; differences of large sums that are smaller mean 0
ARRAYS = ("tokens", "order", "occurrences", "starts", "class_starts", "node_lo", "node_top", "node_classes", "borders")

Nodes = tuple[np.ndarray, np.ndarray]  # lo and hi int64 (Q, n + 1): the node of every level, both 0 where there is none


@dataclass(frozen=True, eq=False)
class WindowIndex:
    """The sorted windows of some documents; see `_window_kernels` for the arrays.

    Attributes:
        features: int64 (n,), the distances of the features from the class in the order of their weights.
        tokens, order, occurrences, starts, class_starts: as there.
        node_lo, node_top, node_classes, borders: the stored nodes, see `store_nodes`.

    Example:
        >>> index = WindowIndex.build([np.array([0, 1, 2, 0, 1, 3])], 4, [1, 2])
        >>> lo, hi = index.descend(np.array([[1, 0]]))       # what stands before, the nearest first
        >>> index.votes(lo[:, 2], hi[:, 2])[1].tolist()      # what follows 0 1
        [2, 3]
    """

    features: np.ndarray
    tokens: np.ndarray
    order: np.ndarray
    occurrences: np.ndarray
    starts: np.ndarray
    class_starts: np.ndarray
    node_lo: np.ndarray
    node_top: np.ndarray
    node_classes: np.ndarray
    borders: np.ndarray

    @classmethod
    def build(cls, documents: Sequence[np.ndarray], kinds: int, features: Sequence[int] | np.ndarray) -> WindowIndex:
        """Sorts the windows of `documents`, rows of codes in 0 … kinds − 1."""
        return cls.sort(concatenate(documents, kinds), kinds, features)

    @classmethod
    def sort(cls, tokens: np.ndarray, kinds: int, features: Sequence[int] | np.ndarray) -> WindowIndex:
        """Sorts the windows of documents that `concatenate` has put together."""
        features = np.asarray(features, np.int64)
        pad = int(np.iinfo(tokens.dtype).max)
        order = np.flatnonzero(tokens != pad).astype(np.uint32)
        other = np.empty_like(order)
        starts = np.zeros(kinds + 2, np.int64)
        for back in (0, *features[::-1].tolist()):  # the least important key first: every pass keeps the order of the one before
            starts = kernels.sort_by(tokens, order, back, kinds, pad, other)
            order, other = other, order
        occurrences = np.argsort(tokens[order], kind="stable").astype(np.uint32)
        class_starts = np.concatenate([[0], np.cumsum(np.bincount(tokens[order], minlength=kinds))])
        shared = kernels.shared_features(tokens, order, features, pad)
        nodes = kernels.store_nodes(tokens, order, shared, features.size, kinds, pad)
        return cls.of_arrays(features, tokens, order, occurrences, starts.astype(np.uint32), class_starts.astype(np.uint32), *nodes)

    @classmethod
    def of_arrays(cls, features: np.ndarray, *arrays: np.ndarray) -> WindowIndex:
        """The index that consists of `arrays`, in the order of `ARRAYS`."""
        for array in arrays:
            array.flags.writeable = False  # as mapped files are: one compiled form of the loops serves both
        return cls(features, *arrays)

    def arrays(self) -> dict[str, np.ndarray]:
        """What `of_arrays` takes, by name."""
        return {name: getattr(self, name) for name in ARRAYS}

    @property
    def pad(self) -> int:
        """The code that stands for no token."""
        return int(np.iinfo(self.tokens.dtype).max)

    @property
    def kinds(self) -> int:
        """Codes run from 0 to kinds − 1."""
        return self.class_starts.size - 1

    def __len__(self) -> int:
        return self.order.size

    @cached_property
    def separators(self) -> np.ndarray:
        """Where `pad` stands in `tokens`: int64 (documents + 1,)."""
        return np.flatnonzero(self.tokens == self.pad)

    @property
    def frequency(self) -> np.ndarray:
        """How often every class occurs: int64 (kinds,)."""
        starts = self.class_starts.astype(np.int64)
        return starts[1:] - starts[:-1]

    @cached_property
    def _root(self) -> tuple[int, int]:
        counts = self.frequency
        most = np.flatnonzero(counts == counts.max(initial=0))
        return int(most[0]) if most.size == 1 else self.pad, int(np.count_nonzero(counts))

    def descend(self, contexts: np.ndarray) -> Nodes:
        """For every context the nodes of all levels.

        Args:
            contexts: int64 (Q, n), codes in the order of `features`; `BEGINNING` before the document, `UNKNOWN` for other tokens.
        """
        lo = np.zeros((len(contexts), self.features.size + 1), np.int64)
        hi = np.zeros_like(lo)
        in_threads(
            kernels.descend,
            (self.tokens, self.order, self.starts, self.features, self.pad, self._own(contexts), lo, hi),  # type: ignore[arg-type]
            len(contexts),
        )
        return lo, hi

    def summaries(self, nodes: Nodes, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the node that every query has at its `level` (Q,): its most frequent class, −1 for a tie or an empty node, and how many
        classes it has; both int64 (Q,)."""
        top, classes = np.empty(level.size, np.int64), np.empty(level.size, np.int64)
        stored = (self.node_lo, self.node_top, self.node_classes, self.borders)
        kernels.summaries(self.tokens, self.order, *stored, self._root, self.pad, *nodes, level, top, classes)
        top[top == self.pad] = UNKNOWN
        return top, classes

    def occurrences_between(self, nodes: Nodes, classes: np.ndarray) -> np.ndarray:
        """How often the class (Q,) of every query occurs in its nodes (Q, J), each inside the one before: int64 (Q, J)."""
        out = np.zeros(nodes[0].shape, np.int64)
        kernels.occurrences_between(self.occurrences, self.class_starts, classes, *nodes, out)
        return out

    def votes(self, lo: np.ndarray, hi: np.ndarray) -> Votes:
        """How often every class occurs in the nodes lo, hi (Q,): a ragged table of counts."""
        return count_stretches(self.tokens, self.order, lo, hi, self.kinds)

    def nearest(
        self,
        contexts: np.ndarray,
        fixed: np.ndarray,
        nodes: tuple[np.ndarray, np.ndarray],
        bound: np.ndarray,
        weights: np.ndarray,
        differs: bool,
        rings: int,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The instances at the `rings` smallest distinct distances: see `_neighbours.nearest`. `nodes` are (Q,) each."""
        return nearest(*self._searched, weights, self._own(contexts), fixed, *nodes, bound, differs, rings)

    def elect_nearest(
        self,
        contexts: np.ndarray,
        fixed: np.ndarray,
        nodes: tuple[np.ndarray, np.ndarray],
        bound: np.ndarray,
        weights: np.ndarray,
        differs: bool,
        rings: int,
        ids: np.ndarray,
    ) -> np.ndarray:
        """The class that wins among these instances, int64 (Q,): see `_neighbours.elect_nearest`."""
        winner = np.empty(len(contexts), np.int64)
        asked = (weights, self._own(contexts), fixed, *nodes, bound, differs, rings, self.frequency, ids, winner)
        in_threads(elect_nearest, (*self._searched, *asked), winner.size)
        return winner

    @property
    def _searched(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
        return self.tokens, self.order, self.features, self.occurrences, self.class_starts, self.separators, self.pad

    def _own(self, contexts: np.ndarray) -> np.ndarray:
        return np.where(contexts == BEGINNING, self.pad, contexts)


def concatenate(documents: Sequence[np.ndarray], kinds: int) -> np.ndarray:
    """Rows of codes as one array of the narrowest type, with its greatest value before every document and at the end."""
    dtype: Any = np.dtype(np.uint16 if kinds < np.iinfo(np.uint16).max else np.uint32)
    tokens = np.full(sum(len(row) for row in documents) + len(documents) + 1, np.iinfo(dtype).max, dtype)
    at = 1
    for row in documents:
        tokens[at : at + len(row)] = row
        at += len(row) + 1
    return tokens


def join(parts: Sequence[WindowIndex]) -> np.ndarray:
    """The documents of several indexes, put together as by `concatenate`."""
    dtype: Any = max((part.tokens.dtype for part in parts), key=lambda dtype: dtype.itemsize)
    pieces: list[np.ndarray] = []
    for part in parts:
        tokens = part.tokens.astype(dtype)
        tokens[part.separators] = np.iinfo(dtype).max
        pieces.append(tokens[1 if pieces else 0 :])
    return np.concatenate(pieces)


def gain_ratios(tokens: np.ndarray, kinds: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Information gain of the features 1 … n about the class, and the entropy of each feature, in bits: float64 (n,) both.

    gain_j = H(C) − Σ_v p(v) H(C | f_j = v); Quinlan's gain ratio is gain_j / H(f_j). The padding before a document counts as a value.
    """
    pad = int(np.iinfo(tokens.dtype).max)
    instances = np.flatnonzero(tokens != pad).astype(np.uint32)
    ordered = np.empty_like(instances)
    total = max(1, instances.size)
    spread = _sum(np.bincount(tokens[instances]))
    gain, split = np.zeros(n), np.zeros(n)
    for j in range(n):
        starts = kernels.sort_by(tokens, instances, j + 1, kinds, pad, ordered)
        values = _sum(np.diff(starts))
        pairs = kernels.sum_over_pairs(tokens, ordered, starts, kinds)
        gain[j] = (pairs - values - spread) / total + np.log2(total)
        split[j] = np.log2(total) - values / total
    return np.where(gain > ROUNDING, gain, 0.0), np.where(split > ROUNDING, split, 0.0)


def _sum(counts: np.ndarray) -> float:
    """Σ m log₂ m."""
    counts = counts[counts > 0].astype(np.float64)
    return float((counts * np.log2(counts)).sum())
