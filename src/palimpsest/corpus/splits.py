"""Splits in which no key stands on both sides (106).

Aharoni & Goldberg, *Split and Rephrase: Better Evaluation and a Stronger Baseline*, ACL 2018: when the same fact stands in a training
and in a test example, a model is tested on what it was told. Every example carries keys (facts, authors, sources, near-duplicate
clusters, …); examples that share keys, directly or through others, form groups, and a group is never divided. So

    keys(train) ∩ keys(dev) = keys(train) ∩ keys(test) = keys(dev) ∩ keys(test) = ∅

What an example also carries, but may recur, is its cover (the relations of its facts): a model is not to be tested on a relation that
it never met. So a group of every cover value goes to train first, while there is room, and the rest is dealt out at random (`dealing`).
Cover values that another part has and train lacks are listed.

One key in everything leaves one group. `SplitImpossible` then names the keys to blame; `cut_above` ignores keys that common, and
`leakage_report` counts the leak that this leaves. It also says what keys do not: how many of the texts that a test asks for stand in
train word for word, or but for case and punctuation (for the paper's old test set 89 %), and how much of their n-grams.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from palimpsest.corpus.dealing import deal, quotas
from palimpsest.corpus.groups import Carried, Values, joined_groups
from palimpsest.corpus.word_ngrams import word_ngrams, words
from palimpsest.errors import InputError, SplitImpossible
from palimpsest.measurement import Measurement

NAMES = {2: ("train", "test"), 3: ("train", "dev", "test")}


@dataclass(frozen=True)
class Split:
    """Examples, dealt out to parts.

    Attributes:
        examples: all of them.
        parts: name -> int64: ascending indices into `examples`; "train" first.
        groups: int64 (examples,): which group each example is of, numbered by their first examples.
        keys, cover: what the examples carry.
        cut: keys that joined nothing because they were too common, with the number of examples that carry them.
        settings: ratios, seed and so on: what it takes to make the split again.
    """

    examples: Sequence[Any]
    parts: dict[str, np.ndarray]
    groups: np.ndarray
    keys: Carried
    cover: Carried
    cut: dict[Hashable, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, part: str) -> list[Any]:
        """The examples of a part."""
        return [self.examples[i] for i in self.parts[part].tolist()]

    @property
    def uncovered(self) -> list[Hashable]:
        """Cover values that another part has and train lacks."""
        names = list(self.parts)
        known = self.cover.within(self.parts[names[0]])
        asked = self.cover.within(np.concatenate([self.parts[name] for name in names[1:]]))
        return [self.cover.values[i] for i in np.flatnonzero(asked & ~known).tolist()]


def leak_free_split(
    examples: Sequence[Any],
    key_fn: Values,
    cover_fn: Values | None = None,
    ratios: Sequence[float] = (80, 10, 10),
    seed: int = 0,
    *,
    cut_above: float | None = None,
    tolerance: float = 0.1,
) -> Split:
    """Deals examples out so that no key stands in two parts.

    Args:
        examples: anything.
        key_fn: the keys of an example: a collection, or one string, number or tuple, or None.
        cover_fn: what else it carries, in the same form; train is to have all that dev and test have. None: nothing.
        ratios: sizes of train and test, or of train, dev and test, in any unit.
        seed: of which group goes where. The groups themselves depend on nothing but the keys.
        cut_above: keys that more than this share of the examples carry join nothing; None: all keys do.
        tolerance: by how much the share of a part may differ from what was asked for.

    Raises:
        SplitImpossible: no group fits, so that a part would be empty or differ by more than `tolerance`; its `keys` are those that join
            most examples of the largest group.
        InputError: fewer examples than parts, or ratios, share or tolerance out of range.
        SymbolTypeError: a key or cover value that cannot be hashed.

    Example:
        >>> facts = [{"a"}, {"a", "b"}, {"c"}, {"d"}, {"e"}, {"f"}]
        >>> split = leak_free_split(facts, lambda example: example, ratios=(2, 1))
        >>> split.groups.tolist(), [len(indices) for indices in split.parts.values()]
        ([0, 0, 1, 2, 3, 4], [4, 2])
    """
    wanted = quotas(len(examples), ratios, tuple(NAMES))
    names = NAMES[wanted.size]
    if cut_above is not None and not 0 < cut_above <= 1:
        raise InputError(f"cut_above is {cut_above}.", "Give a share above 0 and up to 1.")
    if not 0 <= tolerance <= 1:
        raise InputError(f"tolerance is {tolerance}.", "Give a share from 0 to 1.")
    keys, cover = Carried.of(examples, key_fn), Carried.of(examples, cover_fn or _nothing)
    counts = keys.counts()
    common = counts > (1.0 if cut_above is None else cut_above) * len(examples)
    groups = joined_groups(keys, common)
    part_of = deal(groups, cover, wanted, seed)
    sizes = np.bincount(part_of, minlength=wanted.size)
    if (sizes == 0).any() or (np.abs(sizes - wanted) > tolerance * len(examples)).any():
        raise _impossible(groups, keys, common, dict(zip(names, sizes.tolist(), strict=True)))
    return Split(
        examples,
        {name: np.flatnonzero(part_of == part) for part, name in enumerate(names)},
        groups,
        keys,
        cover,
        {keys.values[i]: int(counts[i]) for i in np.flatnonzero(common).tolist()},
        {"ratios": [float(r) for r in ratios], "seed": seed, "cut_above": cut_above, "tolerance": tolerance},
    )


def given_split(
    examples: Sequence[Any], parts: Sequence[str], key_fn: Values, cover_fn: Values | None = None, names: Sequence[str] = NAMES[3]
) -> Split:
    """A split that is already made, to be asked whether it leaks.

    Args:
        examples, key_fn, cover_fn: as of `leak_free_split`.
        parts: the part of each example.
        names: the parts that there may be, the one that a model is trained on first.

    Raises:
        InputError: not one part for each example, a part that is not among `names`, or nothing in the first or in the others.
        SymbolTypeError: a key or cover value that cannot be hashed.

    Example:
        >>> split = given_split(["ab", "bc"], ["train", "test"], set)
        >>> split["test"]
        ['bc']
    """
    if len(parts) != len(examples):
        raise InputError(f"There are {len(examples)} examples and {len(parts)} parts.", "Give the part of each example.")
    for part in dict.fromkeys(parts):
        if part not in names:
            raise InputError(f"An example is in the part {part!r}.", f"Use only {', '.join(names)}, or give other names.")
    column = np.array([names.index(part) for part in parts], np.int64)
    found = {name: np.flatnonzero(column == number) for number, name in enumerate(names)}
    filled = {name: indices for name, indices in found.items() if indices.size}
    if names[0] not in filled or len(filled) < 2:
        raise InputError(f"The examples are all in {', '.join(filled) or 'no part'}.", f"Leakage is between {names[0]} and another part.")
    keys = Carried.of(examples, key_fn)
    return Split(examples, filled, joined_groups(keys), keys, Carried.of(examples, cover_fn or _nothing))


def leakage_report(split: Split, target_fn: Values | None = None, ngram: int = 5) -> Measurement:
    """What the other parts of a split share with its first, on which a model is trained.

    Args:
        split: made by `leak_free_split` or `given_split`.
        target_fn: the texts of an example that a model is to be tested on; None: the example itself where it is a string, else nothing.
        ngram: words of an n-gram.

    Returns:
        A `Measurement`. Table: one row an example outside the first part: index, part, group; keys (how many), keys_in_train;
        cover_unseen (values that train lacks); targets, targets_in_train as they stand, normalised_in_train; ngrams, ngrams_in_train.
        Summary: "parts", "groups", "largest_group", "uncovered", "cut", and "overlap": one dict for every part and each of keys, cover,
        targets, normalised and n-grams, with the distinct values in the part, how many of them stand in train, and their share (None
        where there are none).

    Raises:
        InputError: an n-gram of no words, or a target that is no string.

    Example:
        >>> split = given_split(["A cat sat.", "a cat sat", "Dogs run."], ["train", "test", "test"], lambda example: example)
        >>> [row["share"] for row in leakage_report(split).summary["overlap"] if row["what"] in ("targets", "normalised targets")]
        [0.0, 0.5]
    """
    if ngram < 1:
        raise InputError(f"ngram is {ngram}.", "Give the number of words of an n-gram, 1 or more.")
    targets = Carried.of(split.examples, target_fn or _own_text)
    wrong = next((value for value in targets.values if not isinstance(value, str)), None)
    if wrong is not None:
        raise InputError(f"A target is {str(wrong)[:60]!r}, a {type(wrong).__name__}.", "Give texts.")
    spelled = [words(str(text)) for text in targets.values]
    normalised = _through(targets, Carried.of(spelled, lambda text: [tuple(text)] if text else None))
    at, ids, distinct = word_ngrams(spelled, ngram)
    grams = _through(targets, Carried([*range(distinct)], at, ids))
    carried = {"keys": split.keys, "cover": split.cover, "targets": targets, "normalised targets": normalised, f"{ngram}-grams": grams}
    names = list(split.parts)
    known = {what: column.within(split.parts[names[0]]) for what, column in carried.items()}
    overlap: list[dict[str, Any]] = []
    for part in names[1:]:
        for what, column in carried.items():
            found = column.within(split.parts[part])
            shared = int((found & known[what]).sum())
            n = int(found.sum())
            overlap.append({"part": part, "what": what, "distinct": n, "in_train": shared, "share": shared / n if n else None})
    sizes = np.bincount(split.groups)
    summary = {
        "parts": {name: int(indices.size) for name, indices in split.parts.items()},
        "groups": int(sizes.size),
        "largest_group": int(sizes.max(initial=0)),
        "uncovered": [str(value) for value in split.uncovered],
        "cut": {str(key): count for key, count in split.cut.items()},
        "overlap": overlap,
    }
    rows = np.concatenate([split.parts[part] for part in names[1:]])
    inside = {what: _per_example(column, known[what])[rows] for what, column in carried.items()}
    every = {what: np.diff(column.at)[rows] for what, column in carried.items()}
    table = pl.DataFrame(
        {
            "index": rows,
            "part": [part for part in names[1:] for _ in range(split.parts[part].size)],
            "group": split.groups[rows],
            "keys": every["keys"],
            "keys_in_train": inside["keys"],
            "cover_unseen": every["cover"] - inside["cover"],
            "targets": every["targets"],
            "targets_in_train": inside["targets"],
            "normalised_in_train": inside["normalised targets"],
            "ngrams": every[f"{ngram}-grams"],
            "ngrams_in_train": inside[f"{ngram}-grams"],
        }
    )
    return Measurement("leakage", table, summary, {**split.settings, "examples": len(split.examples), "ngram": ngram})


def _nothing(example: Any) -> None:
    return None


def _own_text(example: Any) -> str | None:
    return example if isinstance(example, str) else None


def _through(outer: Carried, inner: Carried) -> Carried:
    """What examples carry through the values that they carry: inner value v belongs to value i of `outer`, for all v of its row i."""
    amounts = np.diff(inner.at)[outer.ids]
    rows = np.repeat(outer.ids, amounts)
    within = np.arange(rows.size) - np.repeat(np.cumsum(amounts) - amounts, amounts)
    ends = np.concatenate([[0], np.cumsum(amounts)])
    return Carried(inner.values, ends[outer.at], inner.ids[inner.at[rows] + within])


def _per_example(carried: Carried, marked: np.ndarray) -> np.ndarray:
    """How many marked values every example carries: int64 (examples,)."""
    return np.bincount(carried.examples[marked[carried.ids]], minlength=carried.at.size - 1)


def _impossible(groups: np.ndarray, keys: Carried, cut: np.ndarray, sizes: dict[str, int]) -> SplitImpossible:
    counts = np.bincount(groups)
    largest = int(counts.argmax())
    inside = (groups == largest)[keys.examples]
    joins = np.bincount(keys.ids[inside], minlength=len(keys.values)) * ~cut
    blame = [int(i) for i in np.argsort(-joins, kind="stable")[:5] if joins[i] > 1]
    listed = ", ".join(f"{keys.values[i]!r} ({joins[i]:,} examples)" for i in blame)
    got = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    return SplitImpossible(
        f"{counts.size:,} groups, the largest of {counts[largest]:,} of {groups.size:,} examples, give {got}."
        + (f" Most are joined by {listed}." if listed else ""),
        "Leave such keys out, ignore them with cut_above, ask for other ratios, or allow a greater tolerance.",
        [keys.values[i] for i in blame],
    )
