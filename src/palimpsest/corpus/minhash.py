"""Kernels of the near-duplicate search: MinHash signatures, and the Jaccard similarity of two documents, exact.

A *shingle* is n consecutive tokens. Its hash h is a chain of SplitMix64 finalisers over its tokens. Permutation p of the 2⁶⁴ hashes is
h -> a_p h + b_p modulo 2⁶⁴ with odd a_p; the signature of a document is, for every p, the upper half of the least permuted hash of
its shingles. Two documents agree in one entry with probability J, the Jaccard similarity of their sets of shingles.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@njit(cache=True, inline="always")
def _hash(tokens: np.ndarray, start: int, n: int) -> np.uint64:
    """Hash of the shingle tokens[start : start + n]."""
    h = np.uint64(n)
    for t in range(start, start + n):
        h = (h ^ np.uint64(tokens[t])) + _GOLDEN
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        h ^= h >> np.uint64(31)
    return h


@njit(cache=True, nogil=True)
def sign_rows(
    tokens: np.ndarray, docs: np.ndarray, after: np.ndarray, n: int, a: np.ndarray, b: np.ndarray, out: np.ndarray, first: int, last: int
) -> None:
    """Writes the signatures u32 (documents, permutations) of the documents first … last - 1 of a shard to `out`.

    A document of fewer than n tokens is one shingle, itself; an empty one keeps what `out` holds.

    Args:
        tokens, docs, after: the shard's, as `Shard` has them.
        a, b: uint64 (permutations,), a odd.
    """
    least = np.empty(a.size, np.uint64)
    for d in range(first, last):
        start, length = docs[d], after[d] - 1 - docs[d]
        if length == 0:
            continue
        least[:] = np.uint64(0xFFFFFFFFFFFFFFFF)
        size = min(n, length)
        for i in range(start, start + length - size + 1):
            h = _hash(tokens, i, size)
            for p in range(a.size):
                least[p] = min(least[p], a[p] * h + b[p])
        for p in range(a.size):
            out[d, p] = least[p] >> np.uint64(32)


@njit(cache=True, nogil=True)
def band_keys(signatures: np.ndarray, first: int, last: int) -> np.ndarray:
    """One hash uint64 (documents,) of the columns first … last - 1 of every signature."""
    keys = np.empty(signatures.shape[0], np.uint64)
    for d in range(keys.size):
        keys[d] = _hash(signatures[d], first, last - first)
    return keys


@njit(cache=True)
def jaccard(x: np.ndarray, y: np.ndarray, n: int) -> float:
    """Jaccard similarity of the sets of shingles of two documents (tokens of one type, at least one each), by comparing tokens.

    The shingles of both go into one hash table with open addressing; where hashes meet, the tokens decide.
    """
    if min(x.size, y.size) < n:  # at least one of them is a single shingle, itself
        return 1.0 if np.array_equal(x, y) else 0.0
    tokens = np.concatenate((x, y))
    size = 4
    while size < 2 * tokens.size:
        size *= 2
    table = np.full(size, -1, np.int64)  # where a shingle stands in `tokens`
    shared = np.zeros(size, np.bool_)  # whether it stands in both
    distinct, common = 0, 0
    for start, end in ((0, x.size), (x.size, tokens.size)):
        for i in range(start, end - n + 1):
            slot = np.int64(_hash(tokens, i, n) & np.uint64(size - 1))
            while table[slot] >= 0 and not _equal(tokens, table[slot], i, n):
                slot = (slot + 1) & (size - 1)
            if table[slot] < 0:
                table[slot] = i
                distinct += 1
            elif table[slot] < start and not shared[slot]:
                shared[slot] = True
                common += 1
    return common / distinct


@njit(cache=True, inline="always")
def _equal(tokens: np.ndarray, i: int, j: int, n: int) -> bool:
    """Whether the n tokens at i and at j are the same."""
    for k in range(n):  # noqa: SIM110  (compiled)
        if tokens[i + k] != tokens[j + k]:
            return False
    return True
