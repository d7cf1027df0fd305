"""Near-duplicate documents against the Jaccard similarity of all pairs."""

from __future__ import annotations

import tempfile
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palimpsest.corpus import CorpusIndex, NearDuplicates
from palimpsest.corpus.minhash import jaccard
from palimpsest.corpus.near_duplicates import banding, found_with
from palimpsest.errors import InputError

pytestmark = pytest.mark.usefixtures("unsynced")
oracle = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def build(docs, **options) -> CorpusIndex:
    with tempfile.TemporaryDirectory() as folder:
        return CorpusIndex.build(docs, None, Path(folder) / "index", **options)


def shingles(doc: list[int], n: int) -> set[tuple[int, ...]]:
    size = min(n, len(doc))
    return {tuple(doc[i : i + size]) for i in range(len(doc) - size + 1)} if doc else set()


def similarity(a: list[int], b: list[int], n: int) -> float:
    x, y = shingles(a, n), shingles(b, n)
    return len(x & y) / len(x | y)


def components(pairs: list[tuple[int, int]]) -> list[set[int]]:
    found: list[set[int]] = []
    for pair in pairs:
        touched = [c for c in found if c & set(pair)]
        found = [c for c in found if c not in touched] + [set(pair).union(*touched)]
    return sorted(found, key=min)


def check(found: NearDuplicates, docs: list[list[int]], n: int) -> set[tuple[int, int]]:
    """What holds whatever the hashes are; returns the pairs that a comparison of all pairs finds."""
    filled = [d for d, doc in enumerate(docs) if doc]
    like = {(a, b) for a, b in combinations(filled, 2) if similarity(docs[a], docs[b], n) >= found.threshold}
    links = [tuple(link) for link in found.links.tolist()]
    assert set(links) <= like  # precision is 1: every link was verified
    assert found.similarity.tolist() == [similarity(docs[a], docs[b], n) for a, b in links]
    assert [set(cluster.tolist()) for cluster in found.clusters] == components(links)
    assert all(cluster.tolist() == sorted(cluster.tolist()) for cluster in found.clusters)
    assert len(links) == sum(len(cluster) - 1 for cluster in found.clusters) <= found.candidates
    assert found.drop.tolist() == sorted(d for cluster in found.clusters for d in cluster.tolist()[1:])
    assert found.share == found.drop.size / len(docs)
    return like


@given(
    st.lists(st.lists(st.integers(0, 2), max_size=12), min_size=3, max_size=8).filter(any),
    st.integers(1, 5),
    st.sampled_from([0.3, 0.5, 0.8, 1.0]),
    st.integers(1, 3),
)
@oracle
def test_every_link_is_true_and_equal_documents_always_meet(docs, n, threshold, shards):
    index = build(docs, shards=shards)
    found = index.near_duplicates(threshold, shingle=n)
    like = check(found, docs, n)
    cluster_of = {d: number for number, cluster in enumerate(found.clusters) for d in cluster.tolist()}
    for a, b in like:
        if shingles(docs[a], n) == shingles(docs[b], n):  # their signatures are the same, whatever the permutations
            assert cluster_of[a] == cluster_of[b]
    one = build(docs, shards=1).near_duplicates(threshold, shingle=n)
    assert (one.links.tolist(), one.candidates) == (found.links.tolist(), found.candidates)


@pytest.mark.parametrize(("threshold", "edits"), [(0.5, 14), (0.8, 5), (0.95, 1)])
def test_planted_pairs_are_found(threshold, edits):
    random = np.random.default_rng(5)
    docs = []
    for _ in range(80):  # 200 tokens and a copy with some of them replaced: similarities all around the threshold
        doc = random.integers(0, 5000, 200)
        copy = doc.copy()
        copy[random.choice(200, random.integers(0, 2 * edits + 1), replace=False)] = 5001
        docs += [doc.tolist(), copy.tolist()]
    found = build(docs, shards=2).near_duplicates(threshold)
    like = check(found, docs, 5)
    assert 20 < len(like) < 80  # the set-up: some pairs lie below, some above
    reached = {tuple(link) for link in found.links.tolist()}
    assert len(like - reached) <= 2  # each pair above is missed with a probability below 0.01
    assert found.recall >= 0.99
    assert found.candidates < 160  # of 12,720 pairs


def test_a_chain_is_one_cluster_and_other_seeds_find_it_too():
    tokens = list(range(400))
    docs = [tokens[i : i + 200] for i in range(0, 80, 8)]  # neighbours share 188 of 204 shingles, first and last 124 of 268
    assert similarity(docs[0], docs[-1], 5) < 0.5
    for seed in range(3):
        found = build(docs).near_duplicates(0.85, seed=seed)
        check(found, docs, 5)
        assert [cluster.tolist() for cluster in found.clusters] == [list(range(10))]


def test_short_and_empty_documents():
    docs = [[1, 2], [], [1, 2], [1, 2, 3], [], [4], [4], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]]
    found = build(docs).near_duplicates(0.1)
    # below five tokens only equals are alike, whatever the threshold; the last two share one of five shingles; empty ones are left out
    assert [cluster.tolist() for cluster in found.clusters] == [[0, 2], [5, 6], [7, 8]]
    assert sorted(found.similarity.tolist()) == [1 / 5, 1.0, 1.0]
    none = build([[1, 2, 3], [], []]).near_duplicates()
    assert (none.clusters, none.links.shape, none.drop.size, none.share) == ([], (0, 2), 0, 0.0)


def test_hundreds_of_equal_documents_are_verified_once_each():
    docs = [[1, 2, 3, 4, 5, 6, 7, 8]] * 300 + [[8, 7, 6, 5, 4, 3, 2, 1]] * 200
    found = build(docs, shards=3).near_duplicates()
    assert [len(cluster) for cluster in found.clusters] == [300, 200]
    assert found.candidates == 498


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 6))
@oracle
def test_jaccard_counts_sets(a, b, n):
    for dtype in (np.uint8, np.uint32):
        assert jaccard(np.array(a, dtype), np.array(b, dtype), n) == similarity(a, b, n)


@pytest.mark.parametrize("threshold", [0.01, 0.2, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("permutations", [1, 128, 450])
def test_the_banding_bears_the_threshold(threshold, permutations):
    bands, rows = banding(threshold, permutations)
    assert 1 <= bands * rows <= permutations
    if found_with(threshold, permutations, 1) >= 0.99:
        assert found_with(threshold, bands, rows) >= 0.99
        for more in range(rows + 1, permutations + 1):
            assert found_with(threshold, permutations // more, more) < 0.99
    else:
        assert (bands, rows) == (permutations, 1)


@pytest.mark.parametrize(
    "options", [{"threshold": 0.0}, {"threshold": 1.01}, {"threshold": float("nan")}, {"shingle": 0}, {"permutations": 0}, {"seed": -1}]
)
def test_values_out_of_range(options):
    with pytest.raises(InputError, match=str(next(iter(options.values())))):
        build([[1], [2]]).near_duplicates(**options)
