"""What a guard promises, checked without it: where does a text end a protected n-gram?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from palimpsest.errors import InputError
from palimpsest.guard.ngrams import Protected, as_source, windows


def protected_ngrams(
    source: Protected,
    ids: Sequence[int] | np.ndarray,
    start: int = 0,
    n: int | None = None,
    *,
    approximate: int = 0,
    include_prompt: bool = True,
) -> np.ndarray:
    """Where a text ends a protected n-gram: the check of what a guard promises, one look-up an n-gram and no guard involved.

    Args:
        source: what is protected; see `MemFreeProcessor`.
        ids: prompt and generation.
        start: the first generated position.
        n, approximate: see `MemFreeProcessor`. A guard that allows for k edits cannot promise that nothing is found among the first k
            generated tokens after a prompt that stands in the corpus: give the position k after it.
        include_prompt: False counts only n-grams that lie wholly at or after `start`.

    Returns:
        The positions t >= start with ids[t - n + 1 : t + 1] in the source, or within so many edits of it, int64, ascending.

    Raises:
        InputError: ids that are not a row of integers, or a start outside it.

    Example:
        >>> from palimpsest.guard import NgramSet
        >>> protected_ngrams(NgramSet.from_documents([[1, 2, 3]], n=2), [9, 1, 2, 3], start=3).tolist()
        [3]
    """
    grams = as_source(source, n, approximate)
    row = np.asarray(ids)
    if row.size and (row.ndim != 1 or not np.issubdtype(row.dtype, np.integer)):
        raise InputError(f"ids have shape {row.shape} and type {row.dtype}.", "Give one row of integers.")
    if not 0 <= start <= len(row):
        raise InputError(f"start is {start}, but there are {len(row)} ids.", "Give a position in the row.")
    first = max(0, start - grams.n + 1) if include_prompt else start  # where the first n-gram begins
    found = grams.contains(windows(row[first:].astype(np.int64), grams.n))
    return np.flatnonzero(found) + first + grams.n - 1
