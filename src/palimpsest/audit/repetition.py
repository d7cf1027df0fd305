"""How much of a text repeats itself: rep-n, the share of its n-grams that stood there before.

Welleck et al., *Neural Text Generation with Unlikelihood Training*, 2020, arXiv 1908.04319; as Li & Lee, 2024, arXiv 2401.03129, use it on
what chat models write:

    rep-n = mean over sequences of 1 − (different n-grams) / (n-grams).

n-grams are those of one sequence, never across two. A sequence of fewer than n tokens has none: the paper's code counts it as 0, which
makes a model that says little look good; here it is left out by default, and how many sequences were counted is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from palimpsest.errors import InputError

ORDERS = (4, 8, 12, 16, 20)  # the paper's n


@dataclass(frozen=True)
class Repetition:
    """rep-n of some sequences.

    Attributes:
        n: the length of the n-grams.
        mean: rep-n; None when no sequence counts.
        counted: how many sequences count.
        each: 1 − different / all of every sequence, None for those that are too short.
    """

    n: int
    mean: float | None
    counted: int
    each: tuple[float | None, ...]


def repetition(sequences: Sequence[np.ndarray | Sequence[int]], n: int = 4, *, paper: bool = False) -> Repetition:
    """Measures rep-n.

    Args:
        sequences: rows of token ids.
        n: at least 1.
        paper: count sequences of fewer than n tokens as 0, as the paper's code does.

    Raises:
        InputError: no sequences, a row that is not flat, or n < 1.

    Example:
        >>> repetition([[1, 2, 1, 2, 1], [1, 2, 3, 4, 5]], 2).each
        (0.5, 0.0)
    """
    if n < 1:
        raise InputError(f"n is {n}.", "Give at least 1.")
    if not len(sequences):
        raise InputError("There are no sequences.", "Give at least one row of token ids.")
    each: list[float | None] = []
    for index, sequence in enumerate(sequences):
        ids = np.asarray(sequence)
        if ids.ndim != 1:
            raise InputError(f"Sequence {index} has shape {ids.shape}.", "Give flat rows of token ids.")
        if ids.size < n:
            each.append(0.0 if paper else None)
            continue
        grams = np.lib.stride_tricks.sliding_window_view(ids, n)
        each.append(1 - len(np.unique(grams, axis=0)) / len(grams))
    counted = [value for value in each if value is not None]
    return Repetition(n, float(np.mean(counted)) if counted else None, len(counted), tuple(each))
