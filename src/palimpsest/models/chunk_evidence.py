"""What a parse tells a chunking model: how often units occur, follow each other, and stand for a variable.

The counts c(u) are those of the units of the parse, and T(u → u') says how often u' follows u at once; so Σ_u' T(u → u') ≤ c(u). A
parse counts afresh, or on top of the decayed counts of the parses before it (the paper's forgetting).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from palimpsest.models.chunk_dictionary import Dictionary
from palimpsest.models.chunk_parse import Parse

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass
class Evidence:
    """Counts of one parse, or of several with decaying weights.

    Attributes:
        counts: float64 (units,): occurrences of every unit in the parse; none for a variable.
        covered: float64 (units,): atoms that those occurrences cover.
        bound: float64 (memberships,): how often a variable stood for a member, variable by variable, in the order of its members.
        left, right, together, first: int64, int64, float64, int64 (pairs,): the transitions T(left → right), and where in the parse each
            pair occurred first.
    """

    counts: np.ndarray
    covered: np.ndarray
    bound: np.ndarray
    left: np.ndarray
    right: np.ndarray
    together: np.ndarray
    first: np.ndarray

    @property
    def pairs(self) -> Pairs:
        """left, right, together and first."""
        return self.left, self.right, self.together, self.first


def observe(dictionary: Dictionary, parsed: Parse) -> Evidence:
    """The counts of a parse in which every symbol is an atom of the dictionary."""
    n = len(dictionary)
    keys = _membership_keys(dictionary)
    found = np.searchsorted(keys, parsed.variables * n + parsed.members)
    left, right, together, first = summed(
        parsed.units[:-1], parsed.units[1:], np.ones(max(len(parsed) - 1, 0)), np.arange(max(len(parsed) - 1, 0)), n
    )
    return Evidence(
        counts=np.bincount(parsed.units, minlength=n).astype(np.float64),
        covered=np.bincount(parsed.units, np.diff(parsed.starts), minlength=n),
        bound=np.bincount(found, minlength=keys.size).astype(np.float64),
        left=left,
        right=right,
        together=together,
        first=first,
    )


def renumbered(evidence: Evidence, before: Dictionary, after: Dictionary, numbers: np.ndarray) -> Evidence:
    """Evidence over `before` as evidence over `after`, where unit u of `before` has the number numbers[u], −1 if it is gone."""
    kept = numbers >= 0
    counts, covered = np.zeros(len(after)), np.zeros(len(after))
    counts[numbers[kept]], covered[numbers[kept]] = evidence.counts[kept], evidence.covered[kept]
    owners, members = np.divmod(_membership_keys(before), max(len(before), 1))
    staying = kept[owners]  # a variable that stays keeps all of its members
    keys = _membership_keys(after)
    bound = np.zeros(keys.size)
    places = np.searchsorted(keys, numbers[owners[staying]] * len(after) + numbers[members[staying]])
    bound[places] = evidence.bound[staying]
    pairs = kept[evidence.left] & kept[evidence.right]
    return Evidence(
        counts,
        covered,
        bound,
        numbers[evidence.left[pairs]],
        numbers[evidence.right[pairs]],
        evidence.together[pairs],
        evidence.first[pairs],
    )


def added(older: Evidence, weight: float, newer: Evidence) -> Evidence:
    """`weight` times the older evidence and the newer, over the same dictionary."""
    pairs = summed(
        np.concatenate([newer.left, older.left]),
        np.concatenate([newer.right, older.right]),
        np.concatenate([newer.together, weight * older.together]),
        np.concatenate([newer.first, older.first]),
        newer.counts.size,
    )
    return Evidence(
        newer.counts + weight * older.counts, newer.covered + weight * older.covered, newer.bound + weight * older.bound, *pairs
    )


def _membership_keys(dictionary: Dictionary) -> np.ndarray:
    """variable · units + member of every membership, ascending: int64 (memberships,)."""
    n = len(dictionary)
    return np.array([v * n + member for v in dictionary.variables for member in dictionary.members[v]], np.int64)


def summed(left: np.ndarray, right: np.ndarray, together: np.ndarray, first: np.ndarray, n: int) -> Pairs:
    """Equal pairs as one, sorted by left and right: their counts added, the earliest of their first occurrences."""
    keys = left * n + right
    order = np.argsort(keys, kind="stable")
    begins = np.flatnonzero(np.diff(keys[order], prepend=-1))
    if not begins.size:
        return left[:0], right[:0], together[:0], first[:0]
    firsts = order[begins]
    return left[firsts], right[firsts], np.add.reduceat(together[order], begins), np.minimum.reduceat(first[order], begins)
