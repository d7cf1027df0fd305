"""Leak-free splits: groups against a search, the guarantees of a split, what is impossible, and the report against plain sets."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.corpus.dealing import deal, quotas
from palimpsest.corpus.groups import Carried, joined_groups
from palimpsest.corpus.splits import Split, given_split, leak_free_split, leakage_report
from palimpsest.corpus.word_ngrams import word_ngrams, words
from palimpsest.errors import InputError, SplitImpossible, SymbolTypeError

key_sets = st.lists(st.frozensets(st.integers(0, 25), max_size=3), max_size=40)


def by_search(examples) -> list[set[int]]:
    """The groups: from each example, everything that can be reached over shared keys."""
    groups, seen = [], set()
    for start in range(len(examples)):
        if start in seen:
            continue
        group, waiting = {start}, [start]
        while waiting:
            keys = examples[waiting.pop()]
            found = [i for i in range(len(examples)) if i not in group and keys & examples[i]]
            group |= set(found)
            waiting += found
        seen |= group
        groups.append(group)
    return groups


def identity(example):
    return example


def sets_of(groups: np.ndarray) -> list[set[int]]:
    return [set(np.flatnonzero(groups == number).tolist()) for number in range(groups.max(initial=-1) + 1)]


# --- groups -------------------------------------------------------------------------------------------------------------------------


@given(examples=key_sets)
def test_groups_are_what_can_be_reached_over_shared_keys(examples):
    groups = joined_groups(Carried.of(examples, identity))
    assert sets_of(groups) == by_search(examples)  # and numbered in the order of their first examples


@given(examples=key_sets, seed=st.integers(0, 1000))
def test_permuting_examples_gives_the_same_groups(examples, seed):
    order = np.random.default_rng(seed).permutation(len(examples)).tolist()
    before = {frozenset(group) for group in sets_of(joined_groups(Carried.of(examples, identity)))}
    after = joined_groups(Carried.of([examples[i] for i in order], identity))
    assert {frozenset(order[i] for i in group) for group in sets_of(after)} == before


@given(examples=key_sets, cut=st.sets(st.integers(0, 25)))
def test_ignored_keys_join_nothing(examples, cut):
    carried = Carried.of(examples, identity)
    ignored = np.array([value in cut for value in carried.values], bool)
    assert sets_of(joined_groups(carried, ignored)) == by_search([example - cut for example in examples])


def test_long_chains_are_one_group():
    n = 50_000
    order = np.random.default_rng(0).permutation(n).tolist()
    groups = joined_groups(Carried.of([[i, i + 1] for i in order], identity))
    assert groups.max() == 0


def test_what_counts_as_one_value():
    examples = ["ab", ("a", 1), 7, None, ["x", "y", "x"], {"q", "p"}, np.array([1, 2]), (c for c in "uv"), {"k": 1}.keys()]
    carried = Carried.of(examples, identity)
    rows = [[carried.values[i] for i in carried.ids[a:b]] for a, b in zip(carried.at, carried.at[1:], strict=False)]
    assert rows == [["ab"], [("a", 1)], [7], [], ["x", "y"], ["p", "q"], [1, 2], ["u", "v"], ["k"]]
    assert carried.counts().tolist() == [Counter(value for row in rows for value in row)[value] for value in carried.values]


@pytest.mark.parametrize("value", [[["a"]], {"a": 1}, [{"b"}], ("a", [])])
def test_what_cannot_be_hashed_is_named(value):
    with pytest.raises(SymbolTypeError, match="Example 1 carries"):
        Carried.of(["fine", value], identity)


# --- splits -------------------------------------------------------------------------------------------------------------------------


@st.composite
def facts(draw) -> list[tuple[frozenset, frozenset]]:
    """Examples with few shared keys, and a cover value or two."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    n = draw(st.integers(30, 120))
    return [
        (frozenset(rng.integers(0, 2 * n, rng.integers(0, 3)).tolist()), frozenset(rng.integers(0, 6, rng.integers(0, 3)).tolist()))
        for _ in range(n)
    ]


@settings(max_examples=60)
@given(
    examples=facts(),
    ratios=st.sampled_from([(80, 10, 10), (8, 1, 1), (0.5, 0.5), (1, 1, 1), (90, 10)]),
    seed=st.integers(0, 100),
)
def test_a_split_keeps_its_promises(examples, ratios, seed):
    try:
        split = leak_free_split(examples, lambda e: e[0], lambda e: e[1], ratios, seed)
    except SplitImpossible:
        largest = max(len(group) for group in by_search([e[0] for e in examples]))
        assert largest > 0.1 * len(examples)  # small groups can always be dealt out
        return
    parts = {name: indices.tolist() for name, indices in split.parts.items()}
    assert list(parts) == (["train", "test"] if len(ratios) == 2 else ["train", "dev", "test"])
    assert sorted(i for indices in parts.values() for i in indices) == list(range(len(examples)))
    keys = {name: {key for i in indices for key in examples[i][0]} for name, indices in parts.items()}
    cover = {name: {value for i in indices for value in examples[i][1]} for name, indices in parts.items()}
    others = [name for name in parts if name != "train"]
    assert all(not keys[a] & keys[b] for a in parts for b in parts if a != b)
    assert set(split.uncovered) == set().union(*(cover[name] for name in others)) - cover["train"]
    wanted = quotas(len(examples), ratios)
    assert all(abs(len(indices) - quota) <= 0.1 * len(examples) for indices, quota in zip(parts.values(), wanted.tolist(), strict=True))
    assert [len(split[name]) for name in parts] == [len(indices) for indices in parts.values()]
    assert sets_of(split.groups) == by_search([e[0] for e in examples])
    overlap = leakage_report(split).summary["overlap"]
    assert all(row["in_train"] == 0 for row in overlap if row["what"] == "keys")
    again = leak_free_split(examples, lambda e: e[0], lambda e: e[1], ratios, seed)
    assert all(np.array_equal(again.parts[name], split.parts[name]) for name in parts)


def test_sizes_are_met_exactly_where_there_are_single_examples():
    split = leak_free_split(list(range(1000)), identity)
    assert [indices.size for indices in split.parts.values()] == [800, 100, 100]
    other = leak_free_split(list(range(1000)), identity, seed=1)
    assert not np.array_equal(other.parts["test"], split.parts["test"])


def test_every_cover_value_is_in_train_when_there_is_room():
    """500 examples with a rare relation each: half of the relations occur twice, so one of each pair must go to train."""
    examples = [(i, i // 2) for i in range(500)]
    for seed in range(5):
        split = leak_free_split(examples, lambda e: e[0], lambda e: e[1], (80, 10, 10), seed)
        assert split.uncovered == []
    alone = [(i, i) for i in range(100)]  # nobody can have been told these
    split = leak_free_split(alone, lambda e: e[0], lambda e: e[1])
    assert sorted(split.uncovered) == sorted(i for name in ("dev", "test") for i in split.parts[name].tolist())


def test_a_large_group_goes_where_it_fits():
    examples = [0] * 70 + [1] * 15 + [2] * 15
    parts = leak_free_split(examples, identity).parts
    assert [indices.size for indices in parts.values()] == [70, 15, 15]
    assert parts["train"].tolist() == list(range(70))
    assert [p.size for p in leak_free_split([0] * 60 + list(range(1, 41)), identity, ratios=(30, 70)).parts.values()] == [30, 70]


def test_members_of_every_part_are_drawn_by_chance():
    """Groups of two among single examples land in test about as often as their share says."""
    examples = [i // 2 for i in range(100)] + list(range(1000, 1100))
    inside = [
        np.isin(leak_free_split(examples, identity, ratios=(1, 1), seed=seed).parts["test"], np.arange(100)).sum() for seed in range(60)
    ]
    assert 45 < np.mean(inside) < 55
    assert len(set(inside)) > 5


@given(sizes=st.lists(st.integers(1, 9), min_size=3, max_size=30), seed=st.integers(0, 50))
def test_dealing_keeps_groups_whole(sizes, seed):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    room = quotas(groups.size, (80, 10, 10))
    part_of = deal(groups, Carried.of(groups.tolist(), lambda group: group % 3), room, seed)
    assert all(np.unique(part_of[groups == group]).size == 1 for group in range(len(sizes)))
    assert np.bincount(part_of, minlength=3).sum() == groups.size


@pytest.mark.parametrize(
    ("n", "ratios", "expected"),
    [
        (10, (80, 10, 10), [8, 1, 1]),
        (3, (80, 10, 10), [1, 1, 1]),
        (7, (80, 10, 10), [5, 1, 1]),
        (5, (1, 1), [3, 2]),
        (100, (0.7, 0.3), [70, 30]),
    ],
)
def test_quotas(n, ratios, expected):
    assert quotas(n, ratios).tolist() == expected


def test_a_key_in_everything_is_to_blame():
    examples = [{"everywhere", f"own {i}", f"pair {i // 2}"} for i in range(200)]
    with pytest.raises(SplitImpossible, match=r"'everywhere' \(200 examples\)") as caught:
        leak_free_split(examples, identity)
    assert caught.value.keys[0] == "everywhere"
    assert all(key.startswith("pair") for key in caught.value.keys[1:])
    split = leak_free_split(examples, identity, cut_above=0.5)
    assert split.cut == {"everywhere": 200}
    overlap = {row["part"]: row for row in leakage_report(split).summary["overlap"] if row["what"] == "keys"}
    assert overlap["test"]["in_train"] == overlap["dev"]["in_train"] == 1  # what was cut is reported


def test_a_giant_group_is_refused_or_tolerated():
    examples = [0] * 95 + [1, 2, 3, 4, 5]
    with pytest.raises(SplitImpossible, match="95 of 100"):
        leak_free_split(examples, identity)
    assert leak_free_split(examples, identity, tolerance=0.2).parts["train"].size == 95


@pytest.mark.parametrize(
    ("examples", "options"),
    [
        ([1, 2], {}),
        ([], {}),
        (range(10), {"ratios": (1,)}),
        (range(10), {"ratios": (1, 1, 1, 1)}),
        (range(10), {"ratios": (1, 0)}),
        (range(10), {"ratios": (1, -1)}),
        (range(10), {"ratios": (1, float("nan"))}),
        (range(10), {"cut_above": 0}),
        (range(10), {"cut_above": 1.5}),
        (range(10), {"tolerance": -0.1}),
        (range(10), {"tolerance": float("nan")}),
    ],
)
def test_what_cannot_be_split_is_refused(examples, options):
    with pytest.raises(InputError):
        leak_free_split(list(examples), identity, **options)


def test_nothing_depends_on_the_order_of_a_set():
    """0 and 8 fall on the same place in a small set, so that its order tells which came first."""
    one, other = set([0, 8]), set([8, 0])  # noqa: C405
    assert list(one) != list(other)
    assert Carried.of([one], identity).values == Carried.of([other], identity).values
    first, second = ([({i, 1000 + i // 3}, cover) for i in range(90)] for cover in (one, other))
    splits = [leak_free_split(examples, lambda e: e[0], lambda e: e[1]) for examples in (first, second)]
    assert all(np.array_equal(splits[0].parts[name], splits[1].parts[name]) for name in splits[0].parts)


# --- leakage ------------------------------------------------------------------------------------------------------------------------

TEXTS = st.lists(st.sampled_from(["a b c", "A b, C!", "a b", "c a b c", "b", "", "…", "Ａ b c", "d e f g"]), max_size=3)


def normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    parts = normal(text).split()
    return {tuple(parts[i : i + n]) for i in range(len(parts) - n + 1)}


@settings(max_examples=80)
@given(
    examples=st.lists(st.tuples(st.frozensets(st.integers(0, 5), max_size=2), TEXTS), min_size=2, max_size=12),
    n=st.integers(1, 3),
    data=st.data(),
)
def test_the_report_counts_what_plain_sets_would(examples, n, data):
    others = data.draw(st.lists(st.sampled_from(["train", "dev", "test"]), min_size=len(examples) - 2, max_size=len(examples) - 2))
    parts = ["train", "test", *others]
    split = given_split(examples, parts, lambda e: e[0], lambda e: [text[:1] for text in e[1]])
    measured = leakage_report(split, lambda e: e[1], n)
    views = {
        "keys": lambda e: set(e[0]),
        "cover": lambda e: {text[:1] for text in e[1]},
        "targets": lambda e: set(e[1]),
        "normalised targets": lambda e: {normal(text) for text in e[1]} - {""},
        f"{n}-grams": lambda e: {gram for text in e[1] for gram in ngrams(text, n)},
    }
    inside = {what: set().union(*(view(e) for e, p in zip(examples, parts, strict=True) if p == "train")) for what, view in views.items()}
    expected = []
    for part in ("dev", "test"):
        if part not in parts:
            continue
        for what, view in views.items():
            found = set().union(*(view(e) for e, p in zip(examples, parts, strict=True) if p == part))
            shared = len(found & inside[what])
            share = shared / len(found) if found else None
            expected.append({"part": part, "what": what, "distinct": len(found), "in_train": shared, "share": share})
    assert measured.summary["overlap"] == expected
    for row in measured.table.iter_rows(named=True):
        example = examples[row["index"]]
        assert row["part"] == parts[row["index"]]
        assert (row["keys"], row["keys_in_train"]) == (len(example[0]), len(example[0] & inside["keys"]))
        assert row["cover_unseen"] == len(views["cover"](example) - inside["cover"])
        assert (row["targets"], row["targets_in_train"]) == (len(set(example[1])), len(set(example[1]) & inside["targets"]))
    assert measured.summary["parts"] == {name: parts.count(name) for name in ("train", "dev", "test") if name in parts}
    assert measured.summary["uncovered"] == [str(value) for value in split.uncovered]


@given(texts=st.lists(st.lists(st.sampled_from("abc"), max_size=8), max_size=8), n=st.integers(1, 5))
def test_ngrams_are_numbered_exactly(texts, n):
    at, ids, distinct = word_ngrams(texts, n)
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    assert np.diff(at).tolist() == [max(len(text) - n + 1, 0) for text in texts]
    assert len(set(grams)) == len(set(ids.tolist())) == distinct
    assert len(set(zip(grams, ids.tolist(), strict=True))) == distinct


def test_normalisation_sees_through_spelling():
    assert words("It’s  “Ｔｈｅ” END…\n") == words("it's the end") == ["it", "s", "the", "end"]
    split = given_split(["The end.", "the END", "the end is near"], ["train", "test", "test"], identity)
    shares = {row["what"]: row["share"] for row in leakage_report(split, ngram=2).summary["overlap"]}
    assert (shares["targets"], shares["normalised targets"], shares["2-grams"]) == (0, 0.5, 1 / 3)


def test_the_old_way_leaks_and_the_new_does_not():
    """Facts told in several sentences: a random split has nearly every test fact in train, a leak-free one none."""
    rng = np.random.default_rng(0)
    examples = [{"fact": int(rng.integers(300)), "words": f"fact {i}"} for i in range(2000)]
    parts = rng.choice(["train", "dev", "test"], 2000, p=[0.8, 0.1, 0.1]).tolist()
    random = given_split(examples, parts, lambda e: e["fact"])
    clean = leak_free_split(examples, lambda e: e["fact"])
    shares = [{row["part"]: row["share"] for row in leakage_report(s).summary["overlap"] if row["what"] == "keys"} for s in (random, clean)]
    assert min(shares[0].values()) > 0.9
    assert max(shares[1].values()) == 0


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["train"], "2 examples and 1"),
        (["train", "else"], "'else'"),
        (["train", "train"], "all in train"),
        (["dev", "test"], "all in dev"),
    ],
)
def test_a_given_split_must_have_two_sides(parts, message):
    with pytest.raises(InputError, match=message):
        given_split(["a", "b"], parts, identity)


def test_bad_reports_are_refused():
    split = given_split(["a", "b"], ["train", "test"], identity)
    with pytest.raises(InputError, match="ngram is 0"):
        leakage_report(split, ngram=0)
    with pytest.raises(InputError, match="target"):
        leakage_report(split, lambda example: [3])
    assert isinstance(split, Split)
