"""Cells of a table: what they say, when two say the same, and how they are written."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none", "-"})


def row_text(cells: Sequence[str], delimiter: str = ",") -> str:
    """A row as CSV: cells are quoted where they must be.

    Example:
        >>> row_text(["a", "b,c"])
        'a,"b,c"'
    """
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\r\n").writerow(cells)  # so that both characters are quoted in cells
    return out.getvalue()[:-2]


def quoted(cell: str, delimiter: str) -> bool:
    """Whether a cell must stand in quotes."""
    return any(mark in cell for mark in (delimiter, '"', "\n", "\r"))


def missing(cell: str) -> bool:
    """Whether a cell says that there is no value."""
    return cell.strip().lower() in MISSING


def number(cell: str) -> float | None:
    """A finite number, or None."""
    try:
        value = float(cell) if "_" not in cell else float("inf")
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def codes(values: Sequence[str]) -> np.ndarray:
    """Texts as numbers 0, 1, …, the most common first, ties in alphabetical order."""
    unique, inverse, counts = np.unique(np.array(values, dtype=object).astype(str), return_inverse=True, return_counts=True)
    rank = np.empty(len(unique))
    rank[np.lexsort((np.arange(len(unique)), -counts))] = np.arange(len(unique))
    return rank[inverse]


def same(a: str, b: str) -> bool:
    """Whether two cells say the same: equal texts without outer spaces and quotes, or equal numbers.

    Example:
        >>> same(" .28", "0.280"), same("1", "10")
        (True, False)
    """
    x, y = a.strip().strip('"'), b.strip().strip('"')
    first, second = number(x), number(y)
    return x == y or (first is not None and first == second)
