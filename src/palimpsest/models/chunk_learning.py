"""What a chunking model learns from a parse: which units belong together, and which are interchangeable.

c(u) and T(u → u') are the counts of `chunk_evidence`, N is the sum of c(u). A unit that is an instance of a variable counts for the
variable too.

Chunking tests for every pair with T(u → u') ≥ min_count whether its halves are independent, by χ² over the 2 × 2 table of
"left is u" and "right is u'", expected from c(u) / N and c(u') / N, with df = 4 − 1 − 1 = 2, so that the p-value is exp(−χ²/2). The
pairs that are not are ranked by

    benefit = ((len(u) + len(u')) · p / EV) / (−p ln p),   p = T(u → u') / N,   EV = symbols a unit of the parse

Abstraction looks for units that stand between the same two: V = successors(pre) ∩ predecessors(post). If V has the wanted size and
Σ_{c ∈ V} T(pre → c) is large enough, V becomes a variable and pre · V · post a chunk. The pairs (pre, post) are not tried one by one:
V is the join of the transitions with themselves over the unit in the middle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from palimpsest.models.chunk_dictionary import Dictionary
from palimpsest.models.chunk_evidence import Evidence, Pairs, summed


def chi_square(
    both: np.ndarray, left_only: np.ndarray, right_only: np.ndarray, neither: np.ndarray, p_left: np.ndarray, p_right: np.ndarray
) -> np.ndarray:
    """The statistic of 2 × 2 tables (pairs,) against independence with the given marginal probabilities.

    Returns:
        float64 (pairs,): Σ (observed − expected)² / expected, the expected counts being scaled to the observed total. NaN where a
        marginal is 0 or 1: there is nothing to test.
    """
    observed = np.stack([both, left_only, right_only, neither]).astype(np.float64)
    shares = np.stack([p_left * p_right, p_left * (1 - p_right), (1 - p_left) * p_right, (1 - p_left) * (1 - p_right)])
    expected = shares * observed.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = ((observed - expected) ** 2 / expected).sum(axis=0)
    return np.where((expected > 0).all(axis=0), statistic, np.nan)


@dataclass
class Occurrences:
    """How often units occur in a parse, those that are instances of a variable counting for it too.

    Attributes:
        counts, lefts, rights: float64 (units,): occurrences at all, as the left and as the right of two units.
        units, transitions: length of the parse, and pairs in it.
    """

    counts: np.ndarray
    lefts: np.ndarray
    rights: np.ndarray
    units: float
    transitions: float

    @classmethod
    def of(cls, evidence: Evidence, kinds_at: np.ndarray, kinds: np.ndarray) -> Occurrences:
        """Counts where unit u is an instance of kinds[kinds_at[u] : kinds_at[u + 1]]."""
        n, amounts = evidence.counts.size, np.diff(kinds_at)
        lefts = np.bincount(evidence.left, evidence.together, minlength=n)
        rights = np.bincount(evidence.right, evidence.together, minlength=n)

        def raised(column: np.ndarray) -> np.ndarray:
            return np.bincount(kinds, np.repeat(column, amounts), minlength=n)

        return cls(raised(evidence.counts), raised(lefts), raised(rights), evidence.counts.sum(), evidence.together.sum())


def dependent(pairs: Pairs, occurrences: Occurrences, min_count: float, alpha: float) -> np.ndarray:
    """Which pairs occur together `min_count` times or more and are not independent: bool (pairs,)."""
    left, right, both, _ = pairs
    lefts, rights = occurrences.lefts[left], occurrences.rights[right]
    shares = occurrences.counts / max(occurrences.units, 1)
    neither = occurrences.transitions - lefts - rights + both
    statistic = chi_square(both, lefts - both, rights - both, neither, shares[left], shares[right])
    with np.errstate(invalid="ignore"):
        return (both >= min_count) & (np.exp(-statistic / 2) < alpha)


def chunk_candidates(evidence: Evidence, min_count: float, alpha: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The dependent pairs, the best first.

    Returns:
        left and right int64 (candidates,), p and benefit float64 (candidates,); sorted by benefit, then count, then first occurrence.
    """
    n = evidence.counts.size
    chosen = dependent(evidence.pairs, Occurrences.of(evidence, np.arange(n + 1), np.arange(n)), min_count, alpha)
    left, right, together, first = _chosen(evidence.pairs, chosen)
    units = max(evidence.counts.sum(), 1)
    lengths = evidence.covered / np.maximum(evidence.counts, np.finfo(float).tiny)
    p = together / units
    benefit = (lengths[left] + lengths[right]) / (evidence.covered.sum() / units) / -np.log(p)  # p cancels
    order = np.lexsort((first, -together, -benefit))
    return left[order], right[order], p[order], benefit[order]


def abstraction_candidates(
    dictionary: Dictionary, evidence: Evidence, min_members: int, max_members: int, min_count: float, alpha: float | None = None
) -> list[tuple[int, int, tuple[int, ...]]]:
    """Sets of units that stand between the same two units.

    Args:
        min_members, max_members: least and greatest size of a set.
        min_count: the first unit must be followed by one of the set more often than this.
        alpha: use only pairs that occur `min_count` times and are not independent at this level; None: all pairs. A variable is tested
            as a whole.

    Returns:
        (pre, post, set) with pre and post atoms or chunks, the set ascending, of units and the variables that they are instances of;
        sorted by how often pre is followed by one of the set, then by where it first is, then by pre and post.
    """
    n = len(dictionary)
    kinds_at, kinds = dictionary.abstractions()
    left, right, together, first = evidence.pairs
    followed = summed(*_raised(left, right, together, first, kinds_at, kinds), n)
    post, middle, together, first = summed(*_raised(right, left, together, first, kinds_at, kinds), n)
    following = middle, post, together, first
    if alpha is not None:
        occurrences = Occurrences.of(evidence, kinds_at, kinds)
        followed = _chosen(followed, dependent(followed, occurrences, min_count, alpha))
        following = _chosen(following, dependent(following, occurrences, min_count, alpha))
    order = np.lexsort((following[1], following[0]))
    after_at = np.searchsorted(following[0][order], np.arange(n + 1))
    starts = np.searchsorted(followed[0], np.arange(n + 1))
    pre, post, sums, places, sizes, members = _join(
        starts, followed[1], followed[2], followed[3], after_at, following[1][order], min_members, max_members, min_count
    )
    order = np.lexsort((post, pre, places, -sums))
    ends = np.cumsum(sizes)
    flat = members.tolist()
    sets = [tuple(flat[end - size : end]) for end, size in zip(ends.tolist(), sizes.tolist(), strict=True)]
    return [(int(pre[i]), int(post[i]), sets[i]) for i in order.tolist()]


def _chosen(pairs: Pairs, keep: np.ndarray) -> Pairs:
    left, right, together, first = pairs
    return left[keep], right[keep], together[keep], first[keep]


def _raised(left: np.ndarray, right: np.ndarray, together: np.ndarray, first: np.ndarray, above_at: np.ndarray, above: np.ndarray) -> Pairs:
    """Every pair once for all that its right unit is an instance of."""
    amounts = np.diff(above_at)[right]
    rows = np.repeat(np.arange(right.size), amounts)
    within = np.arange(rows.size) - np.repeat(np.cumsum(amounts) - amounts, amounts)
    return left[rows], above[above_at[right[rows]] + within], together[rows], first[rows]


@njit(cache=True, nogil=True)
def _join(
    starts: np.ndarray,
    middles: np.ndarray,
    together: np.ndarray,
    first: np.ndarray,
    after_at: np.ndarray,
    after: np.ndarray,
    min_members: int,
    max_members: int,
    min_count: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Joins pre → middle with middle → post: for every (pre, post) with a set of the wanted size and total, the set.

    Args:
        starts, middles, together, first: what follows unit u is middles[starts[u] : starts[u + 1]], ascending, and how often and where.
        after_at, after: what follows middle m is after[after_at[m] : after_at[m + 1]].

    Returns:
        pre, post, total, first occurrence and size (found,), and the sets one after the other.
    """
    n = starts.size - 1
    size = np.zeros(n, np.int64)
    total = np.zeros(n)
    place = np.zeros(n, np.int64)
    slot = np.full(n, -1, np.int64)
    touched = np.empty(n, np.int64)
    pres = [np.int64(0) for _ in range(0)]
    posts = [np.int64(0) for _ in range(0)]
    totals = [0.0 for _ in range(0)]
    places = [np.int64(0) for _ in range(0)]
    sizes = [np.int64(0) for _ in range(0)]
    members = np.empty(1024, np.int64)
    used = 0
    for pre in range(n):
        if starts[pre + 1] - starts[pre] < min_members:
            continue
        reached = 0
        for i in range(starts[pre], starts[pre + 1]):
            for j in range(after_at[middles[i]], after_at[middles[i] + 1]):
                post = after[j]
                if size[post] == 0:
                    touched[reached] = post
                    reached += 1
                    place[post] = first[i]
                size[post] += 1
                total[post] += together[i]
                place[post] = min(place[post], first[i])
        filled = used
        for k in range(reached):
            post = touched[k]
            if min_members <= size[post] <= max_members and total[post] > min_count:
                pres.append(np.int64(pre))
                posts.append(post)
                totals.append(total[post])
                places.append(place[post])
                sizes.append(size[post])
                slot[post] = filled
                filled += size[post]
        if filled > used:
            while filled > members.size:
                members = np.concatenate((members, np.empty_like(members)))
            for i in range(starts[pre], starts[pre + 1]):
                for j in range(after_at[middles[i]], after_at[middles[i] + 1]):
                    post = after[j]
                    if slot[post] >= 0:
                        members[slot[post]] = middles[i]
                        slot[post] += 1
            used = filled
        for k in range(reached):
            size[touched[k]] = 0
            total[touched[k]] = 0.0
            slot[touched[k]] = -1
    return np.array(pres), np.array(posts), np.array(totals), np.array(places), np.array(sizes), members[:used].copy()
