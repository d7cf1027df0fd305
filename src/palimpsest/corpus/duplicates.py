"""Exact repeated passages of a corpus, from its suffix arrays.

Lee, Ippolito, Nystrom, Zhang, Eck, Callison-Burch & Carlini, *Deduplicating Training Data Makes Language Models Better*, ACL 2022,
arXiv 2107.06499 (ExactSubstr; their code is google-research/deduplicate-text-datasets). The array of longest common prefixes is that
of Kasai, Lee, Arimura, Arikawa & Park, CPM 2001, filled in the order of the text as Kärkkäinen, Manzini & Puglisi, CPM 2009, do it.

A *window* is L tokens of one document, L = `min_len`. A window is a *repeat* when the same L tokens stand earlier in the corpus, and a
*first* when they stand later again and never before. A token is to be dropped when it lies in a repeat and in no first:

    drop = union of [i, i + L) over repeats i  -  union of [p, p + L) over firsts p

so every repeated window keeps its first occurrence whole. What may go with a repeat are windows that stand nowhere else and reach into
it; what stays of a repeat is only what a first covers ("aaaa…" keeps its first L tokens). The code of the paper drops *every*
copy, the first included; we depart from it here, as its users ask (issue 32 there).

Suffixes that share L tokens are neighbours: a maximal run of the suffix array with common prefixes of L and more holds all
occurrences of one window, and the least position in it is the first. The runs of two shards, both sorted, are brought together as
two lists are merged, comparing from the common prefix on; so a passage that stands in an earlier shard is a repeat too. Time is linear
in the tokens for every pair of shards, whatever L is; memory is 9 bytes a token of the corpus, and 4 more of the shard in work.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numba import njit

from palimpsest.corpus.shard import Shard
from palimpsest.errors import InputError

# what is known of a position: the document goes on for a window's length; the window is a repeat; it is a first
_WHOLE, _REPEAT, _FIRST = 1, 2, 4


@dataclass(frozen=True)
class Duplicates:
    """The passages that repeat an earlier one.

    Attributes:
        ranges: int64 (k, 3): document, start and end (half-open, in tokens of the document) of what is to be dropped; ascending,
            without overlap or contact within a document.
        min_len: tokens from which on a repeated passage counts.
        n_tokens: tokens of the corpus.
    """

    ranges: np.ndarray
    min_len: int
    n_tokens: int

    @cached_property
    def dropped(self) -> int:
        """Tokens to drop."""
        return int((self.ranges[:, 2] - self.ranges[:, 1]).sum())

    @property
    def share(self) -> float:
        """The share of the corpus's tokens that is to be dropped."""
        return self.dropped / self.n_tokens

    @cached_property
    def documents(self) -> np.ndarray:
        """The documents int64 (d,), ascending, that lose tokens."""
        return np.unique(self.ranges[:, 0])

    def __len__(self) -> int:
        return len(self.ranges)


def repeated_passages(shards: list[Shard], separator: int, min_len: int, n_tokens: int) -> Duplicates:
    """What repeats an earlier passage of at least `min_len` tokens; called as `CorpusIndex.duplicates`.

    Args:
        shards, separator: the parts of the corpus and what stands between its documents.
        min_len: L >= 1.
        n_tokens: tokens of the corpus.

    Returns:
        `Duplicates`.

    Raises:
        InputError: `min_len` below 1.
    """
    if min_len < 1:
        raise InputError(f"Passages of {min_len} tokens cannot be repeated.", "Give a min_len of at least 1; 50 is usual.")
    known: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for shard in shards:
        tokens, sa = shard.arrays[:2]
        marks = _mark_whole(shard.docs, shard.after, tokens.size, min_len)
        heads, shares = _group(sa, lcp_array(tokens, sa, separator), marks, min_len)
        for earlier in known:
            _meet(*earlier, tokens, heads, shares, marks, min_len)
        known.append((tokens, heads, shares, marks))
    rows = [_ranges(shard, marks, min_len) for shard, (_, _, _, marks) in zip(shards, known, strict=True)]
    return Duplicates(np.concatenate(rows), min_len, n_tokens)


@njit(cache=True)
def lcp_array(tokens: np.ndarray, sa: np.ndarray, separator: int) -> np.ndarray:
    """How many tokens neighbours of a suffix array share before the next separator.

    From one position of the text to the next the shared prefix loses at most one token, so all comparisons together are linear.

    Args:
        tokens, sa: a shard's, as `search` has them: fewer than 2³¹. The suffixes of deleted documents are not in sa.

    Returns:
        int32 (sa.size,): entry k is for sa[k - 1] and sa[k]; entry 0 is 0.
    """
    n = tokens.size
    by_position = np.full(n, -1, np.int32)  # first the suffix before this one in sa, if there is one, then what they share
    before: Any = np.int64(-1)
    for k in range(sa.size):
        by_position[sa[k]] = before
        before = np.int64(sa[k])
    shared = 0
    for i in range(n):
        j: Any = np.int64(by_position[i])
        if j < 0:
            shared = 0
        else:
            end = n - max(i, j)
            while shared < end and tokens[i + shared] == tokens[j + shared] and tokens[i + shared] != separator:
                shared += 1
        by_position[i] = shared
        shared = max(shared - 1, 0)
    lcp = np.empty(sa.size, np.int32)
    for k in range(sa.size):
        lcp[k] = by_position[sa[k]]
    return lcp


@njit(cache=True)
def _mark_whole(docs: np.ndarray, after: np.ndarray, length: int, min_len: int) -> np.ndarray:
    """Marks u8 (length,): _WHOLE where a window begins that its document has room for."""
    marks = np.zeros(length, np.uint8)
    for d in range(docs.size):
        for i in range(docs[d], after[d] - min_len):
            marks[i] = _WHOLE
    return marks


@njit(cache=True)
def _group(sa: np.ndarray, lcp: np.ndarray, marks: np.ndarray, min_len: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct windows of a shard in lexicographic order; marks which of their occurrences are repeats and which are firsts.

    Returns:
        heads u32 (g,), the earliest position of every window, and shares i32 (g,), the tokens it shares with the window before.
    """
    heads = np.empty(sa.size, np.uint32)
    shares = np.empty(sa.size, np.int32)
    count = 0
    share = 0  # of the window before with all suffixes since
    for k in range(sa.size):
        position: Any = sa[k]
        if lcp[k] >= min_len:  # shared with a suffix of a whole window: this is one more occurrence
            head = heads[count - 1]
            later = max(head, position)
            heads[count - 1] = min(head, position)
            marks[later] = _WHOLE | _REPEAT
            marks[heads[count - 1]] = _WHOLE | _FIRST
            continue
        share = min(share, lcp[k])
        if marks[position] & _WHOLE:
            heads[count], shares[count] = position, share
            count += 1
            share = min_len
    return heads[:count], shares[:count]


@njit(cache=True)
def _meet(
    tokens_a: np.ndarray,
    heads_a: np.ndarray,
    shares_a: np.ndarray,
    marks_a: np.ndarray,
    tokens_b: np.ndarray,
    heads_b: np.ndarray,
    shares_b: np.ndarray,
    marks_b: np.ndarray,
    min_len: int,
) -> None:
    """Marks the windows of shard b that stand in the earlier shard a as repeats, and those of a, unless they are repeats, as firsts."""
    a, b = 0, 0
    with_a: Any = np.int64(0)  # tokens that the window at a shares with the last one that was passed
    with_b: Any = np.int64(0)
    while a < heads_a.size and b < heads_b.size:
        passed_a, passed_b = with_a > with_b, with_b > with_a  # who agrees longer with what is less than both is the lesser
        shared = min(with_a, with_b)
        if not (passed_a or passed_b):
            i: Any = np.int64(heads_a[a])
            j: Any = np.int64(heads_b[b])
            while shared < min_len and tokens_a[i + shared] == tokens_b[j + shared]:
                shared += 1
            if shared == min_len:
                passed_a = passed_b = True
                marks_b[j] = _WHOLE | _REPEAT
                if not marks_a[i] & _REPEAT:
                    marks_a[i] = _WHOLE | _FIRST
            elif tokens_a[i + shared] < tokens_b[j + shared]:
                passed_a, with_b = True, shared
            else:
                passed_b, with_a = True, shared
        if passed_a:
            a += 1
            if a < heads_a.size:
                with_a = np.int64(shares_a[a])
        if passed_b:
            b += 1
            if b < heads_b.size:
                with_b = np.int64(shares_b[b])


@njit(cache=True)
def _dropped(marks: np.ndarray, min_len: int) -> np.ndarray:
    """Which tokens i8 (length,) are to be dropped."""
    dropped = np.zeros(marks.size, np.int8)
    repeated, kept = 0, 0  # ends of the last repeat and of the last first
    for t in range(marks.size):
        if marks[t] & _REPEAT:
            repeated = t + min_len
        if marks[t] & _FIRST:
            kept = t + min_len
        dropped[t] = kept <= t < repeated
    return dropped


def _ranges(shard: Shard, marks: np.ndarray, min_len: int) -> np.ndarray:
    """What is to be dropped of a shard: int64 (k, 3), document of the index, start and end."""
    edges = np.diff(_dropped(marks, min_len), prepend=np.int8(0), append=np.int8(0))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    local = np.searchsorted(shard.docs, starts, side="right") - 1  # no range holds a separator: each lies in one document
    return np.stack([local + shard.first_document, starts - shard.docs[local], ends - shard.docs[local]], axis=1).astype(np.int64)
