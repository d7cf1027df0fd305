"""Examples and what they carry: keys as numbers, and the groups of examples that shared keys join.

Two examples belong together when they share a key, or when a chain of others joins them: the groups are the connected components of
the graph of examples and keys. They are found by union-find with path halving and union by size, one pass over all pairs of example
and key, which is linear for all practical purposes (Tarjan, *Efficiency of a good but not linear set union algorithm*, J. ACM 22(2),
1975).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from palimpsest.errors import SymbolTypeError

Values = Callable[[Any], Iterable[Hashable] | Hashable | None]


@dataclass(frozen=True)
class Carried:
    """Which values each example carries.

    Attributes:
        values: the distinct values, in the order of first occurrence.
        at: int64 (examples + 1,): example i carries ids[at[i] : at[i + 1]].
        ids: int64 (pairs,): numbers of values, each once an example.
    """

    values: list[Hashable]
    at: np.ndarray
    ids: np.ndarray

    @classmethod
    def of(cls, examples: Sequence[Any], values_of: Values) -> Carried:
        """Collects what `values_of` says of every example.

        Args:
            examples: anything.
            values_of: gives the values of an example: a list, a set or another collection of them; a string, a number or a tuple is one
                value, None is none. The values of a set are taken in the order of their `repr`, so that nothing depends on hashing.

        Raises:
            SymbolTypeError: a value that cannot be hashed.

        Example:
            >>> carried = Carried.of([{"a", "b"}, "bc", None], lambda example: example)
            >>> carried.at.tolist(), carried.values
            ([0, 2, 3, 3], ['a', 'b', 'bc'])
        """
        numbers: dict[Hashable, int] = {}
        rows: list[int] = []
        at = np.zeros(len(examples) + 1, np.int64)
        for place, example in enumerate(examples):
            given = values_of(example)
            try:
                rows += [numbers.setdefault(value, len(numbers)) for value in dict.fromkeys(_several(given))]
            except TypeError as error:
                raise SymbolTypeError(
                    f"Example {place} carries {str(given)[:60]!r}, which cannot be hashed.",
                    "Give values that can be keys of a dict, such as strings, numbers or tuples of these.",
                ) from error
            at[place + 1] = len(rows)
        return cls(list(numbers), at, np.array(rows, np.int64))

    @property
    def examples(self) -> np.ndarray:
        """int64 (pairs,): the example of every pair."""
        return np.repeat(np.arange(self.at.size - 1), np.diff(self.at))

    def counts(self) -> np.ndarray:
        """int64 (values,): how many examples carry each value."""
        return np.bincount(self.ids, minlength=len(self.values))

    def within(self, chosen: np.ndarray) -> np.ndarray:
        """bool (values,): which values the examples `chosen`, int64 indices, carry."""
        found = np.zeros(len(self.values), np.bool_)
        mask = np.zeros(self.at.size - 1, np.bool_)
        mask[chosen] = True
        found[self.ids[mask[self.examples]]] = True
        return found


def _several(given: Any) -> Iterable[Hashable]:
    if given is None:
        return ()
    if isinstance(given, set | frozenset):
        return sorted(given, key=repr)
    if isinstance(given, np.ndarray):
        return given.tolist()
    one = isinstance(given, str | bytes | tuple | dict) or not isinstance(given, Iterable)
    return [given] if one else given


def joined_groups(carried: Carried, ignored: np.ndarray | None = None) -> np.ndarray:
    """The group of every example, int64 (examples,), numbered in the order of their first examples.

    Args:
        carried: the keys of the examples; an example without any is a group of its own.
        ignored: bool (values,): keys that join nothing.

    Example:
        >>> joined_groups(Carried.of(["ab", "cd", "bc", "e"], set)).tolist()
        [0, 0, 0, 1]
    """
    joins = np.ones(len(carried.values), np.bool_) if ignored is None else ~ignored
    return _components(carried.at, carried.ids, joins)


@njit(cache=True)
def _components(at: np.ndarray, ids: np.ndarray, joins: np.ndarray) -> np.ndarray:
    n = at.size - 1
    parent = np.arange(n)
    size = np.ones(n, np.int64)
    first = np.full(joins.size, -1, np.int64)  # the first example that carried each key
    for example in range(n):
        for i in range(at[example], at[example + 1]):
            key = ids[i]
            if not joins[key]:
                continue
            if first[key] < 0:
                first[key] = example
                continue
            a, b = example, first[key]
            while parent[a] != a:
                parent[a] = parent[parent[a]]
                a = parent[a]
            while parent[b] != b:
                parent[b] = parent[parent[b]]
                b = parent[b]
            if a == b:
                continue
            if size[a] < size[b]:
                a, b = b, a
            parent[b] = a
            size[a] += size[b]
    groups = np.empty(n, np.int64)
    number = np.full(n, -1, np.int64)
    used = 0
    for example in range(n):
        root = example
        while parent[root] != root:
            root = parent[root]
        if number[root] < 0:
            number[root] = used
            used += 1
        groups[example] = number[root]
    return groups
