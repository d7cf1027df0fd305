"""Symbols as numbers: any sequence of hashable things becomes a row of ids, and back.

Ids are given in the order of first occurrence, never by value. Whatever is learnt on ids is therefore the same, up to names, for
every renaming of the symbols.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from palimpsest.errors import InputError, SymbolTypeError


@dataclass
class SymbolTable:
    """The symbols that are known, with their ids.

    Attributes:
        symbols: the symbol of every id.
        is_text: the symbols are characters: a decoded sequence is a string again.

    Example:
        >>> table = SymbolTable()
        >>> table.add("abracadabra").tolist()
        [0, 1, 2, 0, 3, 0, 4, 0, 1, 2, 0]
        >>> ids, novel = table.encode("car!")
        >>> ids.tolist(), novel
        ([3, 0, 2, -1], ['!'])
    """

    symbols: list[Hashable] = field(default_factory=list)
    is_text: bool = False
    _ids: dict[Hashable, int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.symbols)

    def add(self, sequence: Iterable[Any]) -> np.ndarray:
        """The ids int64 (length,) of `sequence`; symbols that were not known get the next ones.

        Raises:
            SymbolTypeError: a symbol that cannot be hashed.
            InputError: not a sequence, or one of more than one dimension.
        """
        self.is_text = isinstance(sequence, str)
        ids, novel = self._look_up(sequence)
        fresh = {symbol: len(self.symbols) + number for number, symbol in enumerate(dict.fromkeys(novel))}
        self.symbols.extend(fresh)
        self._ids.update(fresh)
        ids[ids < 0] = [fresh[symbol] for symbol in novel]
        return ids

    def encode(self, sequence: Iterable[Any]) -> tuple[np.ndarray, list[Hashable]]:
        """The ids int64 (length,) of `sequence`, −1 for each symbol that is not known, and these symbols one by one."""
        return self._look_up(sequence)

    def decode(self, ids: Iterable[int], novel: Sequence[Hashable] = ()) -> list[Hashable]:
        """The symbols of `ids`, the inverse of `encode`."""
        rest = iter(novel)
        return [self.symbols[i] if i >= 0 else next(rest) for i in ids]

    def _look_up(self, sequence: Iterable[Any]) -> tuple[np.ndarray, list[Hashable]]:
        rows = _symbols(sequence)
        known = self._ids
        try:
            found = [known.get(symbol, -1) for symbol in rows]
        except TypeError as error:
            wrong = next(symbol for symbol in rows if not _is_hashable(symbol))
            raise SymbolTypeError(
                f"The symbol {str(wrong)[:60]!r} is a {type(wrong).__name__}, which cannot be hashed.",
                "Give symbols that can be keys of a dict, such as characters, numbers or tuples.",
            ) from error
        ids = np.array(found, np.int64)
        return ids, [rows[i] for i in np.flatnonzero(ids < 0).tolist()]


def _symbols(sequence: Iterable[Any]) -> Sequence[Hashable]:
    if isinstance(sequence, np.ndarray):
        if sequence.ndim != 1:
            raise InputError(f"An array of shape {sequence.shape} is not one sequence.", "Give one row of symbols.")
        return sequence.tolist()
    if isinstance(sequence, str | list | tuple):
        return sequence
    try:
        return list(sequence)
    except TypeError as error:
        raise InputError(f"A {type(sequence).__name__} is not a sequence.", "Give text, a list or an array of symbols.") from error


def _is_hashable(symbol: Any) -> bool:
    try:
        hash(symbol)
    except TypeError:
        return False
    return True
