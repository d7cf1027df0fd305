"""Parsing a sequence with a dictionary of chunks and variables: at every point the unit that covers most.

From left to right, the unit is taken whose match from here covers most atoms; the parse goes on behind it. An atom matches itself.
A chunk matches element by element. A variable matches the longest of its members that matches; there is no going back when that
choice lets the rest of a chunk fail. Among units, or members, that cover equally much the one with the lower `rank` wins.

The upstream code descends from atoms to ever longer extensions and stops where no child matches; here the longest match is found
among all units, by one walk through the trie for every position. What a variable matches at a position is needed by the walks that
start before it, so positions are treated from right to left, in windows whose tables are as wide as the longest match beyond them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from palimpsest.models.chunk_dictionary import Dictionary, Trie

NOVEL = -1  # the unit of a symbol that is no atom of the dictionary
_WINDOW = 4096


@dataclass(frozen=True)
class Parse:
    """A parsed sequence of K units with B bound variables.

    Attributes:
        units: int64 (K,), −1 for a symbol that is no atom of the dictionary.
        starts: int64 (K + 1,): where each unit begins, and the length of the sequence.
        bindings_at: int64 (K + 1,): the bindings of unit k are those from bindings_at[k] to bindings_at[k + 1].
        variables, members: int64 (B,): what was bound to what, from left to right; where the member holds variables itself, or is one,
            theirs come next.
    """

    units: np.ndarray
    starts: np.ndarray
    bindings_at: np.ndarray
    variables: np.ndarray
    members: np.ndarray

    def __len__(self) -> int:
        return self.units.size


def parse(dictionary: Dictionary, atoms: np.ndarray, rank: np.ndarray, window: int = _WINDOW) -> Parse:
    """Parses a row of atoms.

    Args:
        dictionary: the units.
        atoms: int64 (length,), −1 for a symbol that is no atom of the dictionary.
        rank: int64 (units,): which unit is preferred among those that cover equally much, the lowest.
        window: positions treated at once; the parse does not depend on it.

    Example:
        >>> import numpy as np
        >>> dictionary = Dictionary(3)
        >>> variable = dictionary.add_variable([1, 2])
        >>> chunk = dictionary.add_chunk((0, variable, 0))
        >>> parsed = parse(dictionary, np.array([0, 1, 0, 0, 2, 0, 0]), np.arange(5))
        >>> parsed.units.tolist(), parsed.members.tolist()
        ([4, 4, 0], [1, 2])
    """
    trie = dictionary.trie()
    reach = min(dictionary.max_length(), atoms.size)
    window = max(window, reach)  # or most of the work would be done twice
    nested = trie.variables[np.diff(trie.holders_at)[trie.variables] > 0]
    pieces = []
    cursor = 0
    for begin in range(0, atoms.size, window):
        end = min(begin + window + reach, atoms.size)
        lengths = np.zeros((end - begin, trie.variables.size), np.int32)
        bound = np.zeros((end - begin, trie.variables.size), np.int32)
        best = np.full(end - begin, NOVEL, np.int64)
        covers = np.zeros(end - begin, np.int64)
        _match(atoms[begin:end], trie, nested, rank, lengths, bound, best, covers)
        stop = min(begin + window, atoms.size) - begin
        *found, cursor = _cut(trie, bound, best, covers, cursor, stop, len(dictionary))
        found[1] += begin
        cursor -= window
        pieces.append(found)
    columns = [np.concatenate(column) for column in zip(*pieces, strict=True)] if pieces else [np.empty(0, np.int64)] * 5
    units, starts, amounts, variables, members = columns
    return Parse(units, np.append(starts, atoms.size), np.concatenate([[0], np.cumsum(amounts)]), variables, members)


def expand(dictionary: Dictionary, units: np.ndarray, members: np.ndarray) -> list[int]:
    """The atoms that a parse stands for; −1 where a unit is −1. The inverse of `parse`.

    Args:
        units, members: as in `Parse`.
    """
    atoms: list[int] = []
    choices = iter(members.tolist())
    for unit in units.tolist():
        if unit == NOVEL:
            atoms.append(NOVEL)
            continue
        waiting = [unit]
        while waiting:
            element = waiting.pop()
            if element < dictionary.n_atoms:
                atoms.append(element)
            elif dictionary.is_variable(element):
                waiting.append(next(choices))
            else:
                waiting.extend(reversed(dictionary.contents[element]))
    return atoms


@njit(cache=True, inline="always")
def _edge(labels: np.ndarray, begin: int, end: int, label: int) -> int:
    """Where `label` stands in the ascending labels[begin:end], or −1."""
    left, right = begin, end
    while left < right:
        middle = (left + right) >> 1
        if labels[middle] < label:
            left = middle + 1
        else:
            right = middle
    if left < end and labels[left] == label:
        return left
    return -1


@njit(cache=True, inline="always")
def _offer(trie: Trie, rank: np.ndarray, lengths: np.ndarray, bound: np.ndarray, unit: int, covered: int) -> None:
    """Binds every variable that holds `unit` to it, where it covers more than what the variable is bound to, or ranks before it."""
    for i in range(trie.holders_at[unit], trie.holders_at[unit + 1]):
        row = trie.holders[i]
        if covered > lengths[row] or (covered == lengths[row] and rank[unit] < rank[bound[row]]):
            lengths[row] = covered
            bound[row] = unit


@njit(cache=True, nogil=True)
def _match(
    atoms: np.ndarray,
    trie: Trie,
    nested: np.ndarray,
    rank: np.ndarray,
    lengths: np.ndarray,
    bound: np.ndarray,
    best: np.ndarray,
    covers: np.ndarray,
) -> None:
    """Fills the tables of a window: what every variable matches at each position, (positions, rows), and the best unit (positions,)."""
    nodes = np.empty(trie.unit_at.size, np.int64)
    places = np.empty(trie.unit_at.size, np.int64)
    for start in range(atoms.size - 1, -1, -1):
        edge = _edge(trie.atom_labels, trie.atoms_at[0], trie.atoms_at[1], atoms[start])
        if edge < 0:
            continue
        nodes[0] = trie.atom_ends[edge]
        places[0] = start + 1
        waiting = 1
        while waiting > 0:
            waiting -= 1
            node, place = nodes[waiting], places[waiting]
            unit = trie.unit_at[node]
            if unit >= 0:
                covered = place - start
                if covered > covers[start] or (covered == covers[start] and rank[unit] < rank[best[start]]):
                    covers[start] = covered
                    best[start] = unit
                _offer(trie, rank, lengths[start], bound[start], unit, covered)
            if place == atoms.size:
                continue
            edge = _edge(trie.atom_labels, trie.atoms_at[node], trie.atoms_at[node + 1], atoms[place])
            if edge >= 0:
                nodes[waiting] = trie.atom_ends[edge]
                places[waiting] = place + 1
                waiting += 1
            for i in range(trie.variables_at[node], trie.variables_at[node + 1]):
                covered = lengths[place, trie.variable_labels[i]]
                if covered > 0:
                    nodes[waiting] = trie.variable_ends[i]
                    places[waiting] = place + covered
                    waiting += 1
        for i in range(nested.size):  # ascending: a variable's members are older, and settled by now
            covered = lengths[start, trie.row_of[nested[i]]]
            if covered > 0:
                _offer(trie, rank, lengths[start], bound[start], nested[i], covered)


@njit(cache=True, nogil=True)
def _cut(
    trie: Trie, bound: np.ndarray, best: np.ndarray, covers: np.ndarray, cursor: int, stop: int, n_units: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Cuts off the best unit from `cursor` on until `stop` is reached; units, starts, numbers of bindings, bindings, and where it ended."""
    units = np.empty(max(stop - cursor, 0), np.int64)
    starts = np.empty(units.size, np.int64)
    amounts = np.empty(units.size, np.int64)
    variables = np.empty(1024, np.int64)
    members = np.empty(1024, np.int64)
    inner = np.empty(n_units + 1, np.int64)  # open contents, outermost first: the next element, and the end
    ends = np.empty(n_units + 1, np.int64)
    used = 0
    bindings = 0
    while cursor < stop:
        unit = best[cursor]
        units[used] = unit
        starts[used] = cursor
        before = bindings
        if unit >= 0:
            place = cursor
            inner[0], ends[0] = trie.content_at[unit], trie.content_at[unit + 1]
            depth = 1
            while depth > 0:
                if inner[depth - 1] == ends[depth - 1]:
                    depth -= 1
                    continue
                element = trie.content[inner[depth - 1]]
                inner[depth - 1] += 1
                while trie.row_of[element] >= 0:
                    if bindings == variables.size:
                        variables = np.concatenate((variables, np.empty_like(variables)))
                        members = np.concatenate((members, np.empty_like(members)))
                    variables[bindings] = element
                    element = np.int64(bound[place, trie.row_of[element]])
                    members[bindings] = element
                    bindings += 1
                begin, end = trie.content_at[element], trie.content_at[element + 1]
                if end - begin == 1:  # only an atom holds a single element: itself
                    place += 1
                else:
                    inner[depth], ends[depth] = begin, end
                    depth += 1
        cursor += max(covers[cursor], 1)
        amounts[used] = bindings - before
        used += 1
    return units[:used].copy(), starts[:used].copy(), amounts[:used].copy(), variables[:bindings].copy(), members[:bindings].copy(), cursor
