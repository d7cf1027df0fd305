"""Dealing groups out to parts of wanted sizes: the hand behind `leak_free_split`.

1. A group larger than every part but the largest goes there.
2. For every cover value, the rarest first, unless the first part has it already: a random one of its groups that fits goes there.
3. The other groups, the large before the small and equally large ones in random order, each go to a part in which they fit, drawn with
   probability proportional to the room left there. One that fits nowhere goes to the part that is still empty, or has most room.

Any room is used up by single examples at the end, so that sizes are met exactly where there are enough of these.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from palimpsest.corpus.groups import Carried
from palimpsest.errors import InputError


def quotas(n: int, ratios: Sequence[float], parts: Sequence[int] = (2, 3)) -> np.ndarray:
    """How many of `n` examples each part is to have: by largest remainder, and at least one.

    Args:
        ratios: sizes of the parts in any unit.
        parts: how many parts there may be.

    Raises:
        InputError: another number of ratios, one that is not above 0, or fewer examples than parts.

    Example:
        >>> quotas(25, (80, 10, 10)).tolist()
        [20, 3, 2]
    """
    given = np.asarray(ratios, np.float64)
    if given.ndim != 1 or given.size not in parts or not (np.isfinite(given).all() and (given > 0).all()):
        raise InputError(f"The ratios are {tuple(ratios)}.", f"Give {' or '.join(map(str, parts))} numbers above 0.")
    if n < given.size:
        raise InputError(f"{n} examples cannot be split into {given.size} parts.", "Give more examples.")
    exact = n * given / given.sum()
    shares = np.floor(exact).astype(np.int64)
    shares[np.argsort(shares - exact, kind="stable")[: n - shares.sum()]] += 1
    for part in np.flatnonzero(shares == 0):
        shares[shares.argmax()] -= 1
        shares[part] = 1
    return shares


def deal(groups: np.ndarray, cover: Carried, room: np.ndarray, seed: int) -> np.ndarray:
    """The part of every example.

    Args:
        groups: int64 (examples,): the group of every example, 0, 1, ….
        cover: what the first part is to have some of.
        room: int64 (parts,): how many examples each part is to have.
        seed: of all draws.

    Returns:
        int64 (examples,): the same part for all examples of a group.
    """
    rng = np.random.default_rng(seed)
    sizes = np.bincount(groups)
    order = rng.permutation(sizes.size)
    order = order[np.argsort(-sizes[order], kind="stable")]
    draws = rng.random(sizes.size)
    part_of = np.full(sizes.size, -1, np.int64)
    left = room.copy()
    _fill(order[sizes[order] > np.sort(room)[-2]], sizes, draws, left, part_of)
    pairs = np.unique(cover.ids * sizes.size + groups[cover.examples])
    values, holders = np.divmod(pairs, sizes.size)
    held = np.bincount(values, minlength=len(cover.values))
    by_group = np.lexsort((values, holders))
    group_at = np.searchsorted(holders[by_group], np.arange(sizes.size + 1))
    value_at = np.concatenate([[0], np.cumsum(held)])
    rarest = np.argsort(held, kind="stable")
    _cover(rarest, value_at, holders, group_at, values[by_group], sizes, rng.random(rarest.size), left, part_of)
    _fill(order, sizes, draws, left, part_of)
    return part_of[groups]


@njit(cache=True)
def _fill(order: np.ndarray, sizes: np.ndarray, draws: np.ndarray, left: np.ndarray, part_of: np.ndarray) -> None:
    """Gives every group in `order` that has no part yet one; counts down what room is `left`."""
    empty = np.ones(left.size, np.bool_)
    for part in part_of:
        if part >= 0:
            empty[part] = False
    for group in order:
        if part_of[group] >= 0:
            continue
        fitting = 0
        for part in range(left.size):
            if left[part] >= sizes[group]:
                fitting += left[part]
        chosen = 0
        if fitting > 0:
            point = draws[group] * fitting
            for part in range(left.size):
                if left[part] >= sizes[group]:
                    chosen = part
                    point -= left[part]
                    if point < 0:
                        break
        else:
            for part in range(1, left.size):
                if (empty[part], left[part]) > (empty[chosen], left[chosen]):
                    chosen = part
        part_of[group] = chosen
        left[chosen] -= sizes[group]
        empty[chosen] = False


@njit(cache=True)
def _cover(
    rarest: np.ndarray,
    value_at: np.ndarray,
    holders: np.ndarray,
    group_at: np.ndarray,
    values: np.ndarray,
    sizes: np.ndarray,
    draws: np.ndarray,
    left: np.ndarray,
    part_of: np.ndarray,
) -> None:
    """Puts a group of every value into part 0, while it fits.

    Args:
        rarest: int64 (values,): the values, those of the fewest groups first.
        value_at, holders: the groups that hold value v are holders[value_at[v] : value_at[v + 1]].
        group_at, values: the values that group g holds are values[group_at[g] : group_at[g + 1]].
    """
    covered = np.zeros(rarest.size, np.bool_)
    for group in range(sizes.size):
        if part_of[group] == 0:
            covered[values[group_at[group] : group_at[group + 1]]] = True
    for value in rarest:
        if covered[value]:
            continue
        fitting = 0
        for i in range(value_at[value], value_at[value + 1]):
            fitting += part_of[holders[i]] < 0 and sizes[holders[i]] <= left[0]
        if fitting == 0:
            continue
        skip = int(draws[value] * fitting)
        for i in range(value_at[value], value_at[value + 1]):
            group = holders[i]
            if part_of[group] >= 0 or sizes[group] > left[0]:
                continue
            if skip == 0:
                part_of[group] = 0
                left[0] -= sizes[group]
                covered[values[group_at[group] : group_at[group + 1]]] = True
                break
            skip -= 1
