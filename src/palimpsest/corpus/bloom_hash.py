"""Kernels of the Bloom filter: the hash of an n-gram, and the test, the insertion and the scan of a blocked bit table.

**Hash.** An n-gram x_1..x_n of token ids is the polynomial H = sum_i x_i B^(n-i) modulo the prime P = 2^61 - 1, with a fixed
random base B. With the context's polynomial C = sum_{i<n} x_i B^(n-1-i) in hand, H = C B + x_n: a candidate for the last token
costs one addition. Two different n-grams collide for at most n - 1 of the P possible bases. The finaliser of SplitMix64 makes
one 64-bit hash of H: its upper half chooses the block, its lower half names three bits in it, and mixing it further gives seven
bits at a time (9 bits name one of 512).

**Groups.** With every n-gram its *group* is entered as a key of its own: the context and the last id divided by 512. A test reads
the group first, and only what passes is looked up itself; so that to find every id that may end an n-gram after a context takes
V / 512 tests of groups and a scan of those few that pass, not V look-ups.

`bits` is uint64 (blocks, 8) throughout. Everything is uint64, because numba makes float64 of int64 with uint64.
"""

from __future__ import annotations

import numba
import numpy as np

GROUP_PROBES = 6  # bits of a group
_GROUP_SHIFT = 9  # a group is 512 consecutive ids

_PRIME = np.uint64((1 << 61) - 1)
_BASE = np.uint64(0x13C6EF372FE94F82)  # below P
_GROUP_SALT = np.uint64(0x6A09E667F3BCC908)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@numba.njit(cache=True, inline="always")
def _multiply(a: np.uint64, b: np.uint64) -> np.uint64:
    """a b mod P for a, b < P, from the 128-bit product in four 32-bit pieces."""
    mask = np.uint64(0xFFFFFFFF)
    s32 = np.uint64(32)
    a0, a1, b0, b1 = a & mask, a >> s32, b & mask, b >> s32
    low = a0 * b0
    middle = a1 * b0 + (low >> s32)
    other = a0 * b1 + (middle & mask)
    high = a1 * b1 + (middle >> s32) + (other >> s32)
    low = (other << s32) | (low & mask)
    total = ((high << np.uint64(3)) | (low >> np.uint64(61))) + (low & _PRIME)
    return total - _PRIME if total >= _PRIME else total


@numba.njit(cache=True, inline="always")
def _append(context: np.uint64, token: np.uint64) -> np.uint64:
    """Polynomial of the context with `token` after it, when `context` is already multiplied by B."""
    total = context + token
    return total - _PRIME if total >= _PRIME else total


@numba.njit(cache=True, inline="always")
def _mix(z: np.uint64) -> np.uint64:
    """Finaliser of SplitMix64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit(cache=True, inline="always")
def _bit(bits: np.ndarray, block: np.uint64, probe: np.uint64) -> np.uint64:
    """The bit that the low 9 bits of `probe` name within a block."""
    return (bits[block, (probe >> np.uint64(6)) & np.uint64(7)] >> (probe & np.uint64(63))) & np.uint64(1)


@numba.njit(cache=True, inline="always")
def _block(hashed: np.uint64, blocks: int) -> np.uint64:
    """The block of a key, from the upper half of its hash."""
    return ((hashed >> np.uint64(32)) * np.uint64(blocks)) >> np.uint64(32)


@numba.njit(cache=True, inline="always")
def _first_three(bits: np.ndarray, hashed: np.uint64, block: np.uint64) -> np.uint64:
    """Whether the three bits that the lower half of a hash names are set."""
    return _bit(bits, block, hashed) & _bit(bits, block, hashed >> np.uint64(9)) & _bit(bits, block, hashed >> np.uint64(18))


@numba.njit(cache=True, inline="always")
def _rest(bits: np.ndarray, hashed: np.uint64, block: np.uint64, probes: int) -> np.uint64:
    """Whether the probes after the third are set as well."""
    found = np.uint64(1)
    r = np.uint64(0)
    for j in range(probes - 3):
        if j % 7 == 0:
            hashed = _mix(hashed + _GOLDEN)
            r = hashed
        found &= _bit(bits, block, r)
        r >>= np.uint64(9)
    return found


@numba.njit(cache=True, inline="always")
def _test(bits: np.ndarray, key: np.uint64, probes: int) -> bool:
    """Whether all bits of `key` are set."""
    h = _mix(key + _GOLDEN)
    block = _block(h, bits.shape[0])
    return bool(_first_three(bits, h, block)) and bool(_rest(bits, h, block, probes))


@numba.njit(cache=True, inline="always")
def _set(bits: np.ndarray, key: np.uint64, probes: int) -> bool:
    """Sets all bits of `key`; whether one of them was clear before."""
    h = _mix(key + _GOLDEN)
    block = _block(h, bits.shape[0])
    r = h
    fresh = False
    for j in range(probes):
        if j >= 3 and (j - 3) % 7 == 0:
            h = _mix(h + _GOLDEN)
            r = h
        fresh |= _bit(bits, block, r) == np.uint64(0)
        bits[block, (r >> np.uint64(6)) & np.uint64(7)] |= np.uint64(1) << (r & np.uint64(63))
        r >>= np.uint64(9)
    return fresh


@numba.njit(cache=True, inline="always")
def _group(context: np.uint64, token: np.uint64) -> np.uint64:
    """Key of the group of `token` after a context that is already multiplied by B."""
    return _append(context, token >> np.uint64(_GROUP_SHIFT)) ^ _GROUP_SALT


@numba.njit(cache=True)
def add(bits: np.ndarray, ids: np.ndarray, n: int, probes: int) -> int:
    """Adds all n-grams of one document and their groups, hashed as the window rolls; how many n-grams were new."""
    drop = np.uint64(1)  # B^(n - 1): weight of the id that leaves the window
    for _ in range(n - 1):
        drop = _multiply(drop, _BASE)
    context = np.uint64(0)
    new = 0
    for t in range(len(ids)):
        token = np.uint64(ids[t])
        context = _multiply(context, _BASE)
        whole = _append(context, token)
        if t >= n - 1:
            _set(bits, _group(context, token), GROUP_PROBES)
            new += _set(bits, whole, probes)
            whole = _append(whole, _PRIME - _multiply(drop, np.uint64(ids[t - n + 1])))
        context = whole
    return new


@numba.njit(cache=True)
def hash_contexts(contexts: np.ndarray) -> np.ndarray:
    """For every context (B, n - 1) its polynomial times B: uint64 (B,), what a candidate is added to."""
    hashes = np.zeros(len(contexts), dtype=np.uint64)
    for row in range(len(contexts)):
        for i in range(contexts.shape[1]):
            hashes[row] = _append(_multiply(hashes[row], _BASE), np.uint64(contexts[row, i]))
        hashes[row] = _multiply(hashes[row], _BASE)
    return hashes


@numba.njit(cache=True)
def contains_next(bits: np.ndarray, contexts: np.ndarray, candidates: np.ndarray, probes: int) -> np.ndarray:
    """Whether context (B, n - 1) and candidate (B, K) make an n-gram of the set: bool (B, K)."""
    rows, columns = candidates.shape
    found = np.zeros((rows, columns), dtype=np.bool_)
    hashes = hash_contexts(contexts)
    for row in range(rows):
        for column in range(columns):
            token = np.uint64(candidates[row, column])
            if _test(bits, _group(hashes[row], token), GROUP_PROBES):
                found[row, column] = _test(bits, _append(hashes[row], token), probes)
    return found


@numba.njit(cache=True)
def _scan(bits: np.ndarray, context: np.uint64, first: int, last: int, probes: int, ids: np.ndarray) -> int:
    """Writes the ids in [first, last) that end an n-gram of the set to the front of `ids`; how many there are.

    Two passes without unpredictable branches: what survives three probes is written densely, then tested with the rest.
    """
    survivors = 0
    for token in range(first, last):
        h = _mix(_append(context, np.uint64(token)) + _GOLDEN)
        ids[survivors] = token
        survivors += np.int64(_first_three(bits, h, _block(h, bits.shape[0])))  # type: ignore[assignment]
    found = 0
    for i in range(survivors):
        h = _mix(_append(context, np.uint64(ids[i])) + _GOLDEN)
        ids[found] = ids[i]
        found += np.int64(_rest(bits, h, _block(h, bits.shape[0]), probes))  # type: ignore[assignment]
    return found


@numba.njit(cache=True)
def next_tokens(bits: np.ndarray, contexts: np.ndarray, vocab_size: int, probes: int) -> tuple[np.ndarray, np.ndarray]:
    """Every id below `vocab_size` that ends an n-gram of the set after each context: offsets (B + 1,) and ids, ascending in a row."""
    hashes = hash_contexts(contexts)
    size = 1 << _GROUP_SHIFT
    offsets = np.zeros(len(contexts) + 1, dtype=np.int64)
    ids = np.empty(len(contexts) * vocab_size + 1, dtype=np.int64)  # pages of it that are not written are never mapped
    used = 0
    for row in range(len(contexts)):
        for first in range(0, vocab_size, size):
            if _test(bits, _group(hashes[row], np.uint64(first)), GROUP_PROBES):
                used += _scan(bits, hashes[row], first, min(first + size, vocab_size), probes, ids[used:])
        offsets[row + 1] = used
    return offsets, ids[:used].copy()
