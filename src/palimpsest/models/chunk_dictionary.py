"""The dictionary of a chunking model: atoms, chunks and variables, numbered in the order in which they were made.

    atom      one symbol; units 0 … A − 1
    chunk     a row of atoms and variables that begins and ends with an atom
    variable  a set of units that may stand for each other

Two kinds of edges join them: a chunk has parts (left and right, or left, variable and right: part-of), a variable has members
(is-a). Whatever a unit is made of is older than the unit, so the graph has no cycle. Chunks are flat: a chunk made of chunks holds
their atoms and variables, so that equal rows are one unit whichever way they came about.

`Trie` is the same as flat arrays, for the compiled parser: the paths from its root spell the atoms and chunks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np


class Trie(NamedTuple):
    """The contents of all atoms and chunks as one tree, and who belongs to which variable; all int64.

    Attributes:
        atoms_at: (nodes + 1,) the edges of a node over atoms are atom_labels[atoms_at[n] : atoms_at[n + 1]], ascending.
        atom_labels, atom_ends: (edges,) the atom on the edge, the node it leads to; node 0 is the root.
        variables_at: (nodes + 1,) the same for edges over variables.
        variable_labels, variable_ends: (edges,) the variable's row, the node.
        unit_at: (nodes,) the unit spelled by the path to a node, or −1.
        holders_at: (units + 1,) the variables of which a unit is a member are holders[holders_at[u] : holders_at[u + 1]], as rows.
        holders: (memberships,).
        row_of: (units,) the row of a variable, −1 for other units.
        variables: (rows,) the unit of every row, ascending.
        content_at: (units + 1,) the content of a chunk or atom is content[content_at[u] : content_at[u + 1]].
        content: (elements,) atoms and variables as units.
    """

    atoms_at: np.ndarray
    atom_labels: np.ndarray
    atom_ends: np.ndarray
    variables_at: np.ndarray
    variable_labels: np.ndarray
    variable_ends: np.ndarray
    unit_at: np.ndarray
    holders_at: np.ndarray
    holders: np.ndarray
    row_of: np.ndarray
    variables: np.ndarray
    content_at: np.ndarray
    content: np.ndarray


class Dictionary:
    """Atoms, chunks and variables.

    Args:
        n_atoms: symbols of the alphabet.

    Attributes:
        contents: of every unit: an atom holds itself, a variable nothing.
        members: of every variable, ascending; of other units nothing.
        parts: of every chunk, the units that it was joined from.

    Example:
        >>> dictionary = Dictionary(3)
        >>> variable = dictionary.add_variable([1, 2])
        >>> dictionary.add_chunk((0, variable, 0))
        4
        >>> dictionary.contents[4], dictionary.members[3]
        ((0, 3, 0), (1, 2))
    """

    def __init__(self, n_atoms: int) -> None:
        self.n_atoms = n_atoms
        self.contents: list[tuple[int, ...]] = [(atom,) for atom in range(n_atoms)]
        self.members: list[tuple[int, ...]] = [()] * n_atoms
        self.parts: list[tuple[int, ...]] = [()] * n_atoms
        self.variables: list[int] = []
        self._below: list[set[int]] = []  # of every variable: all units that it can stand for, through variables inside it too
        self._index: dict[tuple[int, ...], int] = {content: unit for unit, content in enumerate(self.contents)}
        # sets of variables as bits, of every unit: itself if it is one, those that it is a member of, and those that can stand for it
        self._bit: list[int] = [0] * n_atoms
        self._holders: list[int] = [0] * n_atoms
        self._above: list[int] = [0] * n_atoms

    def __len__(self) -> int:
        return len(self.contents)

    def __contains__(self, content: tuple[int, ...]) -> bool:
        return content in self._index

    def is_variable(self, unit: int) -> bool:
        """Whether a unit is a variable."""
        return bool(self.members[unit])

    def add_chunk(self, parts: tuple[int, ...]) -> int:
        """The chunk of some units one after the other, made if it is not there yet."""
        content = self.joined(parts)
        unit = self._index.get(content)
        if unit is None:
            unit = self._append(content, (), parts)
            self._index[content] = unit
        return unit

    def joined(self, parts: Iterable[int]) -> tuple[int, ...]:
        """The content of some units one after the other."""
        return tuple(element for part in parts for element in self.contents[part] or (part,))

    def add_variable(self, members: Iterable[int]) -> int:
        """The variable that stands for `members` (two or more): the oldest one that can stand for all of them, else a new one."""
        ordered = tuple(sorted(members))
        common = ~0
        for member in ordered:
            common &= self._holders[member]
            if not common:
                break
        else:
            return self.variables[(common & -common).bit_length() - 1]
        bit = 1 << len(self.variables)
        unit = self._append((), ordered, ())
        self._bit[unit] = bit
        below = set(ordered)
        for member in ordered:
            self._holders[member] |= bit
            if self.members[member]:
                below |= self._below[bisect_left(self.variables, member)]
        for inner in below:
            self._above[inner] |= bit
        self.variables.append(unit)
        self._below.append(below)
        return unit

    def without_abstractions(self, units: Iterable[int]) -> list[int]:
        """`units` without the variables that can stand for another one of them."""
        given = list(units)
        above = 0
        for unit in given:
            above |= self._above[unit]
        return [unit for unit in given if not above & self._bit[unit]]

    def abstractions(self) -> tuple[np.ndarray, np.ndarray]:
        """What every unit is an instance of, itself first: offsets int64 (units + 1,) and units int64."""
        below = [np.fromiter(sorted(units), np.int64, len(units)) for units in self._below]
        instances = np.concatenate([np.arange(len(self)), *below])
        kinds = np.repeat([*range(len(self)), *self.variables], [1] * len(self) + [len(units) for units in below])
        order = np.argsort(instances, kind="stable")
        return _offsets(instances, len(self)), kinds[order].astype(np.int64)

    def drop_last(self, n: int) -> None:
        """Takes back the last `n` units, which must be chunks that nothing is made of."""
        for _ in range(n):
            del self._index[self.contents.pop()]
            for column in (self.members, self.parts, self._bit, self._holders, self._above):
                column.pop()

    def kept(self, used: np.ndarray) -> tuple[Dictionary, np.ndarray]:
        """The dictionary without what is not needed: the atoms, the `used` units, and all that those are made of, stay.

        A part that goes is replaced by its own parts, so that the parts of every chunk still spell its content.

        Args:
            used: bool (units,).

        Returns:
            a new dictionary, and int64 (units,): the new number of every unit, −1 where it is gone.
        """
        needed = used.tolist()
        needed[: self.n_atoms] = [True] * self.n_atoms
        for unit in range(len(self) - 1, self.n_atoms - 1, -1):  # what a unit is made of is older
            if needed[unit]:
                for element in self.members[unit] or self.contents[unit]:
                    needed[element] = True
        rest = Dictionary(self.n_atoms)
        numbers = list(range(self.n_atoms)) + [-1] * (len(self) - self.n_atoms)
        for unit in range(self.n_atoms, len(self)):
            if not needed[unit]:
                continue
            if self.members[unit]:
                numbers[unit] = rest.add_variable(numbers[member] for member in self.members[unit])
            else:
                numbers[unit] = rest.add_chunk(tuple(numbers[part] for part in self._standing(self.parts[unit], needed)))
        return rest, np.array(numbers, np.int64)

    def max_length(self) -> int:
        """Atoms that the longest match of any unit can cover; 1 at least."""
        longest = [1] * self.n_atoms
        for unit in range(self.n_atoms, len(self)):
            inner = self.members[unit]
            longest.append(max(longest[m] for m in inner) if inner else sum(longest[e] for e in self.contents[unit]))
        return max(longest, default=1)

    def trie(self) -> Trie:
        """The dictionary as flat arrays."""
        rows = {unit: row for row, unit in enumerate(self.variables)}
        edges: list[dict[int, int]] = [{}]
        unit_at = [-1]
        for unit, content in enumerate(self.contents):
            node = 0
            for element in content:
                following = edges[node].get(element)
                if following is None:
                    following = edges[node][element] = len(edges)
                    edges.append({})
                    unit_at.append(-1)
                node = following
            if content:
                unit_at[node] = unit
        triples = [(node, label, end) for node, out in enumerate(edges) for label, end in out.items()]
        over_atoms = _array(sorted(t for t in triples if t[1] not in rows)).reshape(-1, 3)
        over_variables = _array(sorted((n, rows[label], end) for n, label, end in triples if label in rows)).reshape(-1, 3)
        holding = _array([(m, row) for row, unit in enumerate(self.variables) for m in self.members[unit]]).reshape(-1, 2)
        holding = holding[np.argsort(holding[:, 0], kind="stable")]
        row_of = np.full(len(self), -1, np.int64)
        row_of[self.variables] = np.arange(len(self.variables))
        return Trie(
            atoms_at=_offsets(over_atoms[:, 0], len(edges)),
            atom_labels=over_atoms[:, 1].copy(),
            atom_ends=over_atoms[:, 2].copy(),
            variables_at=_offsets(over_variables[:, 0], len(edges)),
            variable_labels=over_variables[:, 1].copy(),
            variable_ends=over_variables[:, 2].copy(),
            unit_at=_array(unit_at),
            holders_at=_offsets(holding[:, 0], len(self)),
            holders=holding[:, 1].copy(),
            row_of=row_of,
            variables=_array(self.variables),
            content_at=np.concatenate([[0], np.cumsum([len(content) for content in self.contents])]).astype(np.int64),
            content=_array([element for content in self.contents for element in content]),
        )

    def _append(self, content: tuple[int, ...], members: tuple[int, ...], parts: tuple[int, ...]) -> int:
        self.contents.append(content)
        self.members.append(members)
        self.parts.append(parts)
        self._bit.append(0)
        self._holders.append(0)
        self._above.append(0)
        return len(self.contents) - 1

    def _standing(self, parts: tuple[int, ...], needed: list[bool]) -> Iterator[int]:
        for part in parts:
            if needed[part]:
                yield part
            else:
                yield from self._standing(self.parts[part], needed)


def _array(values: Sequence[Any]) -> np.ndarray:
    return np.array(values, np.int64)


def _offsets(owners: np.ndarray, n: int) -> np.ndarray:
    """Where each of `n` owners' entries begin and end, when the entries are sorted by owner: int64 (n + 1,)."""
    return np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=n))]).astype(np.int64)
