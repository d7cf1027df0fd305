"""Near-verbatim search for many queries at once, against a comparison with every window of every document."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from palimpsest.corpus import CorpusIndex
from palimpsest.errors import InputError

SYMBOLS = {"u8": [0, 1, 2, 254], "u16": [0, 1, 2, 65534], "u32": [0, 1, 2, (1 << 32) - 2]}  # 0, and the last before the separator
oracle = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
documents = st.lists(st.lists(st.integers(0, 3), max_size=16), min_size=3, max_size=6).filter(any)


def build(docs, **options) -> CorpusIndex:
    with tempfile.TemporaryDirectory() as folder:
        return CorpusIndex.build(docs, None, Path(folder) / "index", **options)


def scan(docs: list[list[int]], query: list[int]) -> list[tuple[int, int | None]]:
    """For every place between two tokens the least distance of a window that ends there, and the token that comes next."""
    return [
        (min(Levenshtein.distance(query, doc[s:end]) for s in range(end + 1)), doc[end] if end < len(doc) else None)
        for doc in docs
        for end in range(1, len(doc) + 1)
    ]


@given(
    documents,
    st.integers(1, 9).flatmap(lambda m: st.lists(st.lists(st.integers(0, 4), min_size=m, max_size=m), min_size=1, max_size=3)),
    st.integers(0, 3),
    st.sampled_from(sorted(SYMBOLS)),
    st.integers(1, 3),
)
@oracle
def test_every_end_that_a_scan_finds(docs, queries, k, dtype, shards):
    foreign = {"u8": 255, "u16": 65535, "u32": -1}[dtype]  # the separator too is like no token
    symbols = [*SYMBOLS[dtype], foreign]
    docs = [[symbols[i] for i in doc] for doc in docs]
    queries = [[symbols[i] for i in query] for query in queries]
    index = build(docs, token_dtype=dtype, shards=shards)
    table = np.array(queries)
    if table.shape[1] <= k:
        for ask in (index.next_tokens_near, index.nearest_distance):
            with pytest.raises(InputError, match=f"within {k} edits"):
                ask(table, k)
        return
    offsets, ids, counts = index.next_tokens_near(table, k)
    least = index.nearest_distance(table, k)
    assert (offsets[0], offsets[-1], len(offsets)) == (0, len(ids), len(queries) + 1)
    for row, query in enumerate(queries):
        ends = scan(docs, query)
        follow = Counter(token for distance, token in ends if distance <= k and token is not None)
        here = slice(offsets[row], offsets[row + 1])
        assert dict(zip(ids[here].tolist(), counts[here].tolist(), strict=True)) == follow
        assert ids[here].tolist() == sorted(follow)
        assert least[row] == min(k + 1, min(distance for distance, _ in ends))


@given(documents, st.lists(st.integers(0, 3), min_size=4, max_size=8), st.integers(0, 2), st.sets(st.integers(0, 2), max_size=2))
@oracle
def test_deleted_documents_are_not_found(docs, query, k, gone):
    kept = [doc for number, doc in enumerate(docs) if number not in gone]
    if not any(kept):
        return
    with tempfile.TemporaryDirectory() as folder:
        index = CorpusIndex.build(docs, None, Path(folder) / "index")
        if gone:
            index = index.delete(sorted(gone))
        _, ids, counts = index.next_tokens_near(np.array([query]), k)
    follow = Counter(token for distance, token in scan(kept, query) if distance <= k and token is not None)
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == follow


def test_without_edits_these_are_the_next_tokens():
    rng = np.random.default_rng(1)
    docs = [rng.integers(0, 5, 300).tolist() for _ in range(8)]
    index = build(docs, shards=2)
    contexts = np.array([docs[i % 8][i : i + 4] for i in range(60)] + [[9, 0, 1, 2]])
    offsets, ids, counts = index.next_tokens_near(contexts, 0)
    exact = index.next_tokens_batch(contexts)
    assert offsets.tolist() == exact[0].tolist()
    assert ids.tolist() == exact[1].tolist()
    assert counts[: offsets[1]].tolist() == index.next_tokens(contexts[0])[1].tolist()


def test_a_long_passage_in_a_large_alphabet():
    rng = np.random.default_rng(0)
    docs = [rng.integers(0, 500, 2000) for _ in range(20)]
    passage = docs[13][700:760].copy()
    passage[[5, 31]] = 499
    index = build([doc.tolist() for doc in docs])
    damaged = np.delete(passage, 44)[None]
    _, ids, _ = index.next_tokens_near(damaged, 3)
    assert ids.tolist() == [docs[13][760]]  # three edits are needed already: no other end will do
    assert index.nearest_distance(damaged, 5).tolist() == [3]
    assert index.nearest_distance(damaged, 2).tolist() == [3]


@pytest.mark.parametrize(
    ("queries", "edits", "words"),
    [(np.zeros((1, 3), int), -1, "max_edits is -1"), (np.zeros(3, int), 1, r"shape \(3,\)"), (np.zeros((1, 3)), 1, "float64")],
)
def test_senseless_requests(queries, edits, words):
    index = build([[1, 2, 3]])
    for ask in (index.next_tokens_near, index.nearest_distance):
        with pytest.raises(InputError, match=words):
            ask(queries, edits)
