"""Who votes after a context, and who wins: IGTree, IB1 and TRIBL2 with TiMBL's rules for ties.

Daelemans, Zavrel, Van der Sloot & Van den Bosch, *TiMBL: Tilburg Memory-Based Learner, reference guide*; what the guide leaves open
follows the program (release 6.10). In particular: a tie among the nearest neighbours is put to one ring more, and only if that settles
it, the larger vote counts; otherwise the first vote stands and the class that is more frequent in all of the text wins. TRIBL2 does
not look further after a full match, IB1 does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from palimpsest.models import _ragged as ragged
from palimpsest.models._memory import Memory
from palimpsest.models._ragged import EQUAL, Votes
from palimpsest.models._window_index import UNKNOWN, Nodes

# What a neighbour at distance `gap` counts, when the nearest stands at `near` and the furthest that is asked at `far`.
DECAYS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "none": lambda gap, near, far: np.ones_like(gap),
    "inverse": lambda gap, near, far: 1 / (gap + np.finfo(np.float64).eps),
    "linear": lambda gap, near, far: np.where(gap <= near + EQUAL, 1.0, (far - gap) / np.where(far > near, far - near, 1.0)),
    "exponential": lambda gap, near, far: np.exp(-gap),
}

Members = tuple[np.ndarray, np.ndarray, np.ndarray]  # of one index: offsets, places int64, distances float64

BLOCK = 1024  # contexts whose voters are listed at once


@dataclass
class Ballot:
    """The vote after each of Q contexts.

    Attributes:
        votes: a ragged table of codes and votes.
        winner: int64 (Q,), the code that wins.
        rings: int64 (Q,), how many distinct distances have a vote.
        on_path: bool (Q,), whether the voters are just the instances of the deepest node; all False unless that was asked.
    """

    votes: Votes
    winner: np.ndarray
    rings: np.ndarray
    on_path: np.ndarray


@dataclass(frozen=True)
class Voting:
    """The rules of an algorithm over a memory; see `MemoryBasedLM` for `algorithm`, `k` and `decay`."""

    memory: Memory
    algorithm: str
    k: int
    decay: str

    def vote(self, codes: np.ndarray, nodes: list[Nodes], sizes: np.ndarray, *, compare: bool = False, ascending: bool = True) -> Ballot:
        """Holds the vote.

        Args:
            codes: contexts int64 (Q, n).
            nodes, sizes: what `Memory.descend` says of them.
            compare: whether to find out `on_path`.
            ascending: whether the codes of a vote are to ascend.
        """
        depth = deepest(sizes)
        if self.algorithm == "igtree":
            votes = self.memory.votes(nodes, depth)
            winner, _ = self._elect(votes)
            return Ballot(votes, winner, np.ones_like(depth), np.ones(depth.size, np.bool_))
        votes, on_path = self._ask(codes, nodes, sizes, self.k, compare, ascending)
        winner, tied = self._elect(votes)
        ballot = Ballot(votes, winner, np.full(depth.size, self.k), on_path)
        if self.algorithm == "tribl2":
            tied &= depth < self.memory.n
        again = np.flatnonzero(tied & ~_blank(codes))
        if again.size:
            wider, on_path = self._ask(codes[again], _rows(nodes, again), sizes[again], self.k + 1, compare, ascending)
            winner, tied = self._elect(wider)
            settled = np.flatnonzero(~tied)
            ballot.votes = ragged.replace_rows(votes, again[settled], ragged.take_rows(wider, settled))
            ballot.winner[again[settled]] = winner[settled]
            ballot.rings[again[settled]] += 1
            ballot.on_path[again[settled]] = on_path[settled]
        return ballot

    def winners(self, codes: np.ndarray) -> np.ndarray:
        """The codes that win after the contexts: int64 (Q,).

        Mostly without a list of the voters. Where they are the instances of one node, its winner is stored: for igtree, for contexts of
        which all is known, and for tribl2 also where only the last feature is missing, for then all of the node is equally far.
        """
        nodes, sizes = self.memory.descend(codes)
        depth = deepest(sizes)
        winner = np.full(depth.size, UNKNOWN)
        stored = depth >= {"igtree": 0, "tribl2": self.memory.n - 1, "ib1": self.memory.n}[self.algorithm]
        if self.algorithm == "ib1" and (self.k > 1 or not self._all_weigh):
            stored[:] = False
        rows = np.flatnonzero(stored)
        winner[rows] = self._stored_winners(_rows(nodes, rows), sizes[rows], depth[rows])
        winner[_blank(codes) | (stored & (depth == 0))] = self.memory.most_frequent
        if self.algorithm != "ib1":
            rows = rows[winner[rows] == UNKNOWN]
            if rows.size:
                winner[rows], _ = self._elect(self.memory.votes(_rows(nodes, rows), depth[rows]))
        rows = np.flatnonzero(winner == UNKNOWN)
        if rows.size and self.decay == "none" and len(self.memory.parts) == 1:
            fixed, bound = self._reach(depth[rows], self.k)
            lo, hi = nodes[0]
            ends = lo[rows, fixed], hi[rows, fixed]
            asked = (codes[rows], fixed, ends, bound, self.memory.ordered_weights, self.algorithm == "tribl2", self.k, self.memory.ids)
            winner[rows] = self.memory.parts[0].elect_nearest(*asked)
        else:
            for part in (rows[begin : begin + BLOCK] for begin in range(0, rows.size, BLOCK)):
                winner[part] = self.vote(codes[part], _rows(nodes, part), sizes[part], ascending=False).winner
        return winner

    def _stored_winners(self, nodes: list[Nodes], sizes: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """The code that is most frequent in each context's deepest node (Q,), `UNKNOWN` for a tie and where several indexes have some."""
        rows = np.arange(depth.size)
        winner = np.full(depth.size, UNKNOWN)
        for part, (lo, hi) in zip(self.memory.parts, nodes, strict=True):
            alone = hi[rows, depth] - lo[rows, depth] == sizes[rows, depth]  # no other index has instances of this node
            winner[alone] = part.summaries((lo[alone], hi[alone]), depth[alone])[0]
        return winner

    def neighbours(self, codes: np.ndarray, nodes: list[Nodes], sizes: np.ndarray, rings: int) -> list[Members]:
        """The voters themselves, index by index; `rings` distinct distances of them for ib1 and tribl2."""
        depth = deepest(sizes)
        if self.algorithm == "igtree":
            return self.memory.instances(nodes, depth, self._rest[depth])
        return self.memory.nearest(codes, nodes, *self._reach(depth, rings), self.algorithm == "tribl2", rings)

    def _reach(self, depth: np.ndarray, rings: int) -> tuple[np.ndarray, np.ndarray]:
        """How many leading features the `rings` nearest have for certain, and a distance within which they lie: both (Q,)."""
        fixed = depth
        if self.algorithm == "ib1":  # where every feature weighs something, nothing is as near as a full match
            fixed = np.where((depth == self.memory.n) & (rings == 1) & self._all_weigh, depth, 0)
        return fixed, self._rest[depth] if rings == 1 else np.full(depth.size, np.inf)

    @property
    def _all_weigh(self) -> bool:
        return bool(np.all(self.memory.weights > 0))

    @property
    def _rest(self) -> np.ndarray:
        """float64 (n + 1,): entry j is the distance of a context of which just the first j features agree."""
        weights = self.memory.ordered_weights
        return np.concatenate([np.cumsum(weights[::-1])[::-1], [0.0]])

    def _elect(self, votes: Votes) -> tuple[np.ndarray, np.ndarray]:
        return ragged.elect(*votes, self.memory.frequency, self.memory.ids)

    def _ask(
        self, codes: np.ndarray, nodes: list[Nodes], sizes: np.ndarray, rings: int, compare: bool, ascending: bool
    ) -> tuple[Votes, np.ndarray]:
        """The votes of the `rings` nearest distances, and whether the voters are the instances of the deepest node."""
        blank = np.flatnonzero(_blank(codes))
        known = nodes
        if blank.size:  # everything is equally far: no need to list it
            known = [(lo.copy(), hi.copy()) for lo, hi in nodes]
            for _, hi in known:
                hi[blank] = 0
        found = self.neighbours(codes, known, sizes, rings)
        tables = [
            (offsets, part.tokens[places].astype(np.int64), gaps)
            for part, (offsets, places, gaps) in zip(self.memory.parts, found, strict=True)
        ]
        offsets, classes, gaps = ragged.stack(tables)
        lengths = np.diff(offsets)
        distances = ragged.smallest_distinct(offsets, gaps, rings)
        near, far = distances[:, 0], np.where(np.isfinite(distances), distances, -np.inf).max(axis=1)
        weights = DECAYS[self.decay](gaps, np.repeat(near, lengths), np.repeat(far, lengths))
        votes = ragged.add_equal(offsets, classes, weights, self.memory.kinds, ascending)
        rows, depth = np.arange(len(codes)), deepest(sizes)
        on_path = np.full(rows.size, compare and self.decay == "none")
        for part, (offsets, places, _), (lo, hi) in zip(self.memory.parts, found, nodes, strict=True):
            if on_path.any():
                on_path &= ragged.are_stretches(offsets, places, part.order, lo[rows, depth], hi[rows, depth])
        if blank.size:
            votes = ragged.replace_rows(votes, blank, self.memory.votes(_rows(nodes, blank), np.zeros_like(blank)))
            on_path[blank] = True
        return votes, on_path


def deepest(sizes: np.ndarray) -> np.ndarray:
    """The level of the deepest node that is not empty: int64 (Q,)."""
    return np.count_nonzero(sizes, axis=1) - 1


def _blank(codes: np.ndarray) -> np.ndarray:
    """Of which contexts nothing is known: bool (Q,)."""
    return (codes == UNKNOWN).all(axis=1)


def _rows(nodes: list[Nodes], rows: np.ndarray) -> list[Nodes]:
    return [(lo[rows], hi[rows]) for lo, hi in nodes]
