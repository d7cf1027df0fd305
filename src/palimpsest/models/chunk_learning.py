"""What a chunking model learns from a parse: which units belong together, and which are interchangeable.

From a parse come counts c(u), with N their sum, and the transitions T(u → u'): how often u' follows u at once. A unit that is an
instance of a variable counts for the variable too.

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
from palimpsest.models.chunk_parse import Parse


@dataclass
class Evidence:
    """Counts of one parse, or of several with decaying weights.

    Attributes:
        counts: float64 (units,): occurrences of every unit in the parse; none for a variable.
        covered: float64 (units,): atoms that those occurrences cover.
        bound: float64 (memberships,): how often a variable stood for a member, variable by variable, in the order of its members.
        left, right, together, first: int64, int64, float64, int64 (pairs,): the transitions T(left → right), and where in the parse each
            pair occurred first.
    """

    counts: np.ndarray
    covered: np.ndarray
    bound: np.ndarray
    left: np.ndarray
    right: np.ndarray
    together: np.ndarray
    first: np.ndarray


def observe(dictionary: Dictionary, parsed: Parse) -> Evidence:
    """The counts of a parse in which every symbol is an atom of the dictionary."""
    n = len(dictionary)
    keys = _membership_keys(dictionary)
    found = np.searchsorted(keys, parsed.variables * n + parsed.members)
    left, right, together, first = _summed(
        parsed.units[:-1], parsed.units[1:], np.ones(max(len(parsed) - 1, 0)), np.arange(max(len(parsed) - 1, 0)), n
    )
    return Evidence(
        counts=np.bincount(parsed.units, minlength=n).astype(np.float64),
        covered=np.bincount(parsed.units, np.diff(parsed.starts), minlength=n),
        bound=np.bincount(found, minlength=keys.size).astype(np.float64),
        left=left,
        right=right,
        together=together,
        first=first,
    )


def renumbered(evidence: Evidence, before: Dictionary, after: Dictionary, numbers: np.ndarray) -> Evidence:
    """Evidence over `before` as evidence over `after`, where unit u of `before` has the number numbers[u], −1 if it is gone."""
    kept = numbers >= 0
    counts, covered = np.zeros(len(after)), np.zeros(len(after))
    counts[numbers[kept]], covered[numbers[kept]] = evidence.counts[kept], evidence.covered[kept]
    owners, members = np.divmod(_membership_keys(before), max(len(before), 1))
    staying = kept[owners]  # a variable that stays keeps all of its members
    keys = _membership_keys(after)
    bound = np.zeros(keys.size)
    places = np.searchsorted(keys, numbers[owners[staying]] * len(after) + numbers[members[staying]])
    bound[places] = evidence.bound[staying]
    pairs = kept[evidence.left] & kept[evidence.right]
    return Evidence(
        counts,
        covered,
        bound,
        numbers[evidence.left[pairs]],
        numbers[evidence.right[pairs]],
        evidence.together[pairs],
        evidence.first[pairs],
    )


def added(older: Evidence, weight: float, newer: Evidence) -> Evidence:
    """`weight` times the older evidence and the newer, over the same dictionary."""
    pairs = _summed(
        np.concatenate([newer.left, older.left]),
        np.concatenate([newer.right, older.right]),
        np.concatenate([newer.together, weight * older.together]),
        np.concatenate([newer.first, older.first]),
        newer.counts.size,
    )
    return Evidence(
        newer.counts + weight * older.counts, newer.covered + weight * older.covered, newer.bound + weight * older.bound, *pairs
    )


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


def dependent(evidence: Evidence, min_count: float, alpha: float) -> np.ndarray:
    """Which pairs occur together `min_count` times or more and are not independent: bool (pairs,)."""
    n, total = evidence.counts.size, evidence.together.sum()
    lefts = np.bincount(evidence.left, evidence.together, minlength=n)[evidence.left]
    rights = np.bincount(evidence.right, evidence.together, minlength=n)[evidence.right]
    shares = evidence.counts / max(evidence.counts.sum(), 1)
    both = evidence.together
    statistic = chi_square(both, lefts - both, rights - both, total - lefts - rights + both, shares[evidence.left], shares[evidence.right])
    with np.errstate(invalid="ignore"):
        return (both >= min_count) & (np.exp(-statistic / 2) < alpha)


def chunk_candidates(evidence: Evidence, min_count: float, alpha: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The dependent pairs, the best first.

    Returns:
        left and right int64 (candidates,), p and benefit float64 (candidates,); sorted by benefit, then count, then first occurrence.
    """
    chosen = np.flatnonzero(dependent(evidence, min_count, alpha))
    left, right = evidence.left[chosen], evidence.right[chosen]
    units = evidence.counts.sum()
    volume = evidence.covered.sum() / max(units, 1)
    lengths = evidence.covered / np.maximum(evidence.counts, np.finfo(float).tiny)
    p = evidence.together[chosen] / max(units, 1)
    benefit = (lengths[left] + lengths[right]) / volume / -np.log(p)  # p cancels
    order = np.lexsort((evidence.first[chosen], -evidence.together[chosen], -benefit))
    return left[order], right[order], p[order], benefit[order]


def abstraction_candidates(
    dictionary: Dictionary, evidence: Evidence, pairs: np.ndarray, min_members: int, max_members: int, min_total: float
) -> list[tuple[int, int, tuple[int, ...]]]:
    """Sets of units that stand between the same two units.

    Args:
        pairs: bool (pairs,): the transitions that count.
        min_members, max_members: least and greatest size of a set.
        min_total: the first unit must be followed by one of the set more often than this.

    Returns:
        (pre, post, set) with pre and post atoms or chunks, the set ascending, of units and the variables that they are instances of;
        sorted by how often pre is followed by one of the set, then by where it first is, then by pre and post.
    """
    left, right, together, first = (column[pairs] for column in (evidence.left, evidence.right, evidence.together, evidence.first))
    n = len(dictionary)
    above_at, above = dictionary.abstractions()
    followed = _summed(*_raised(left, right, together, first, above_at, above), n)
    following = _summed(*_raised(right, left, together, first, above_at, above), n)[1::-1]
    following_order = np.lexsort((following[1], following[0]))
    starts = np.searchsorted(followed[0], np.arange(n + 1))
    after_at = np.searchsorted(following[0][following_order], np.arange(n + 1))
    after = following[1][following_order]
    pre, post, sums, places, sizes, members = _join(
        starts, followed[1], followed[2], followed[3], after_at, after, min_members, max_members, min_total
    )
    order = np.lexsort((post, pre, places, -sums))
    ends = np.cumsum(sizes)
    flat = members.tolist()
    sets = [tuple(flat[end - size : end]) for end, size in zip(ends.tolist(), sizes.tolist(), strict=True)]
    return [(int(pre[i]), int(post[i]), sets[i]) for i in order.tolist()]


def _membership_keys(dictionary: Dictionary) -> np.ndarray:
    """variable · units + member of every membership, ascending: int64 (memberships,)."""
    n = len(dictionary)
    return np.array([v * n + member for v in dictionary.variables for member in dictionary.members[v]], np.int64)


def _summed(
    left: np.ndarray, right: np.ndarray, together: np.ndarray, first: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Equal pairs as one, sorted by left and right: their counts added, the earliest of their first occurrences."""
    keys = left * n + right
    order = np.argsort(keys, kind="stable")
    begins = np.flatnonzero(np.diff(keys[order], prepend=-1))
    if not begins.size:
        return left[:0], right[:0], together[:0], first[:0]
    firsts = order[begins]
    return left[firsts], right[firsts], np.add.reduceat(together[order], begins), np.minimum.reduceat(first[order], begins)


def _raised(
    left: np.ndarray, right: np.ndarray, together: np.ndarray, first: np.ndarray, above_at: np.ndarray, above: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
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
    min_total: float,
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
            if min_members <= size[post] <= max_members and total[post] > min_total:
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
