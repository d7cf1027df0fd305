"""What a protocol run says: accuracies, gains, transitions and reading, each with an interval and every comparison paired.

The table has one row an item, setting and seed, with `id`, `source`, `setting`, `seed`, `right`, and `hit` (whether declared evidence was
shown). Items that share a source are not independent: then intervals resample sources, and the permutation test flips the sign of
whole sources. Otherwise rates have Wilson intervals and pairs McNemar's exact test.

With h the share of items whose evidence was shown, Acc = h · Acc|hit + (1 − h) · Acc|miss is an identity; `reading` gives its parts.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from palimpsest.errors import InputError
from palimpsest.stats import Comparison, Interval, clustered_interval, compare_pairs, holm, mcnemar, paired_permutation, rate_interval


def accuracies(table: pl.DataFrame) -> dict[str, Interval]:
    """The accuracy in every setting of the table, in its order."""
    return {
        str(setting): rate_interval(rows["right"].to_numpy(), rows["source"].to_list())
        for (setting,), rows in table.group_by("setting", maintain_order=True)
    }


def gain(table: pl.DataFrame, before: str, after: str, *, draws: int = 10_000, seed: int = 0) -> Comparison:
    """The gain in accuracy from one setting to another, on the same items.

    Args:
        table: of a run.
        before, after: names of settings.
        draws, seed: of the permutation test, which is used when items share sources or were asked with several seeds.

    Raises:
        InputError: a setting that the table does not have, or settings with different items.
    """
    paired = _paired(table, before, after)
    one, two = paired["right"].to_numpy(), paired["right_after"].to_numpy()
    sources = paired["source"].to_list()
    if len(set(sources)) == len(one):
        return replace(mcnemar(one, two), first=before, second=after)
    difference = two.astype(np.float64) - one
    _, member = np.unique(sources, return_inverse=True)
    sums = np.bincount(member, difference)
    test = paired_permutation(np.zeros(len(sums)), sums, draws=draws, seed=seed)
    return replace(
        test, test="paired permutation of sources", n=paired["id"].n_unique(), difference=clustered_interval(difference, member),
        statistic=float(difference.mean()), first=before, second=after,
    )  # fmt: skip


def compare_settings(table: pl.DataFrame) -> dict[str, Any]:
    """Every pair of settings, corrected by Holm; with independent binary outcomes, Cochran's Q before.

    Returns:
        {"omnibus": Cochran's Q as a dict or None, "pairs": [`Comparison` as a dict]}.

    Raises:
        InputError: fewer than 2 settings, or settings with different items.
    """
    names = table["setting"].unique(maintain_order=True).to_list()
    if len(names) < 2:
        raise InputError(f"There are {len(names)} settings.", "A comparison needs at least 2.")
    independent = table.filter(pl.col("setting") == names[0])["source"].is_unique().all()
    if independent:
        columns = {name: _paired(table, names[0], name)["right_after"].to_numpy() for name in names}
        omnibus, pairs = compare_pairs(columns)
        return {"omnibus": omnibus.to_dict(), "pairs": [pair.to_dict() for pair in pairs]}
    pairs = [gain(table, one, two) for one, two in itertools.combinations(names, 2)]
    corrected = holm([pair.p_value for pair in pairs])
    return {"omnibus": None, "pairs": [replace(pair, adjusted=float(p)).to_dict() for pair, p in zip(pairs, corrected, strict=True)]}


def transitions(table: pl.DataFrame, before: str, after: str) -> dict[str, Interval]:
    """What becomes of the items: rescued (wrong, then right), harmed (right, then wrong), and what stays right or wrong.

    Raises:
        InputError: as for `gain`.
    """
    paired = _paired(table, before, after)
    one, two, sources = paired["right"].to_numpy(), paired["right_after"].to_numpy(), paired["source"].to_list()
    cells = {"rescued": ~one & two, "harmed": one & ~two, "kept right": one & two, "kept wrong": ~one & ~two}
    return {name: rate_interval(flags, sources) for name, flags in cells.items()}


def reading(table: pl.DataFrame, setting: str) -> dict[str, Any]:
    """How well what was shown is read: hit rate, accuracy with and without evidence shown, and the identity of the parts.

    Only items that declare evidence count.

    Returns:
        n, accuracy, hit_rate, accuracy_hit, accuracy_miss (None where there are no such items) as intervals, and `residual`, which the
        identity says is 0.

    Raises:
        InputError: no item of the setting declares evidence.
    """
    rows = table.filter((pl.col("setting") == setting) & pl.col("hit").is_not_null())
    if rows.is_empty():
        raise InputError(f"No item of the setting {setting!r} declares evidence.", "Give items their evidence_ids.")
    right, hit, sources = rows["right"].to_numpy(), rows["hit"].to_numpy(), np.array(rows["source"].to_list())
    parts = {
        name: rate_interval(right[here], sources[here].tolist()) if here.any() else None for name, here in (("hit", hit), ("miss", ~hit))
    }
    accuracy, rate = rate_interval(right, sources.tolist()), rate_interval(hit, sources.tolist())
    whole = sum(
        weight * part.estimate for weight, part in ((rate.estimate, parts["hit"]), (1 - rate.estimate, parts["miss"])) if part is not None
    )
    return {
        "n": len(right),
        "accuracy": accuracy,
        "hit_rate": rate,
        "accuracy_hit": parts["hit"],
        "accuracy_miss": parts["miss"],
        "residual": accuracy.estimate - whole,
    }


def _paired(table: pl.DataFrame, before: str, after: str) -> pl.DataFrame:
    """Rows of two settings side by side, by item and seed."""
    keys = ["id", "seed"]
    one, two = (table.filter(pl.col("setting") == name).select(*keys, "source", "right") for name in (before, after))
    joined = one.join(two.rename({"right": "right_after"}).drop("source"), on=keys, how="inner").sort(keys)
    if joined.is_empty() or not len(joined) == len(one) == len(two):
        raise InputError(f"{before!r} has {len(one)} rows and {after!r} {len(two)}, {len(joined)} in common.", "Compare the same items.")
    return joined
