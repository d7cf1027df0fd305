"""Repeated passages against a scan of all pairs of windows."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palimpsest.corpus import CorpusIndex
from palimpsest.corpus.duplicates import lcp_array
from palimpsest.corpus.suffix_array import suffix_array
from palimpsest.errors import InputError

pytestmark = pytest.mark.usefixtures("unsynced")
SYMBOLS = {"u8": [0, 1, 254], "u32": [0, 70_000, (1 << 32) - 2]}  # 0, and the last before the separator
documents = st.lists(st.lists(st.integers(0, 2), max_size=14), min_size=3, max_size=8).filter(any)
oracle = settings(max_examples=70, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def build(docs, **options) -> CorpusIndex:
    with tempfile.TemporaryDirectory() as folder:
        return CorpusIndex.build(docs, None, Path(folder) / "index", **options)


def windows(docs: list[list[int]], n: int) -> list[tuple[int, int, list[int]]]:
    return [(d, i, doc[i : i + n]) for d, doc in enumerate(docs) for i in range(len(doc) - n + 1)]


def scan(docs: list[list[int]], n: int) -> list[tuple[int, int]]:
    """The tokens to drop, every window compared with every other: the definition, in words of lists."""
    found = windows(docs, n)
    repeated, kept = set(), set()
    for k, (d, i, gram) in enumerate(found):
        span = {(d, t) for t in range(i, i + n)}
        if any(gram == other for _, _, other in found[:k]):
            repeated |= span
        elif any(gram == other for _, _, other in found[k + 1 :]):
            kept |= span
    return sorted(repeated - kept)


def tokens_of(ranges: np.ndarray) -> list[tuple[int, int]]:
    return [(d, t) for d, start, end in ranges.tolist() for t in range(start, end)]


def pieces(docs: list[list[int]], ranges: np.ndarray) -> list[tuple[int, int, list[int]]]:
    """What is left: (document, offset, tokens) of every stretch between two cuts."""
    left = []
    for d, doc in enumerate(docs):
        start = 0
        for _, first, last in ranges[ranges[:, 0] == d].tolist():
            left.append((d, start, doc[start:first]))
            start = last
        left.append((d, start, doc[start:]))
    return left


@given(documents, st.integers(1, 6), st.sampled_from([1, 2, 3]), st.sampled_from(sorted(SYMBOLS)))
@oracle
def test_the_ranges_are_those_of_a_scan(docs, n, shards, dtype):
    docs = [[SYMBOLS[dtype][s] for s in doc] for doc in docs]
    found = build(docs, shards=shards, token_dtype=dtype).duplicates(min_len=n)
    expected = scan(docs, n)
    assert tokens_of(found.ranges) == expected
    for (d, _, end), (e, start, _) in pairwise(found.ranges.tolist()):
        assert d < e or end < start  # merged: neither overlap nor contact
    assert found.dropped == len(expected)
    assert found.share == pytest.approx(len(expected) / sum(map(len, docs)))
    assert found.documents.tolist() == sorted({d for d, _ in expected})
    assert len(found) == len(found.ranges)


@given(documents, st.integers(1, 5), st.sampled_from([1, 3]))
@oracle
def test_what_is_dropped_is_still_there(docs, n, shards):
    ranges = build(docs, shards=shards).duplicates(min_len=n).ranges
    left = pieces(docs, ranges)
    still = {(d, start + i): piece[i : i + n] for d, start, piece in left for i in range(len(piece) - n + 1)}
    before = windows(docs, n)
    grams = [tuple(gram) for _, _, gram in before]
    first = {gram: place for *place, gram in reversed([(d, i, tuple(g)) for d, i, g in before])}
    kept = {tuple(gram) for gram in still.values()}
    dropped = set(tokens_of(ranges))
    guarded = set()
    for gram in set(grams):
        d, i = first[gram]
        if grams.count(gram) > 1:  # whatever is repeated keeps its first occurrence, whole and in its place
            assert still[d, i] == list(gram)
            guarded |= {(d, t) for t in range(i, i + n)}
        elif gram not in kept:  # what stood once is lost only where it reaches into something dropped
            assert any((d, t) in dropped for t in range(i, i + n))
    for (d, i), gram in still.items():  # and what is still there twice is so only inside of first occurrences
        assert [d, i] == first[tuple(gram)] or all((d, t) in guarded for t in range(i, i + n))


@given(st.lists(st.lists(st.integers(0, 2), max_size=10), min_size=1, max_size=6))
@oracle
def test_common_prefixes_end_at_separators(docs):
    tokens = np.array([token for doc in docs for token in (255, *doc)], np.uint8)
    sa = suffix_array(tokens, 2, "sais")
    suffixes = [[int(token) for token in tokens[i:]] for i in sa]

    def shared(a: list[int], b: list[int]) -> int:
        length = 0
        while length < min(len(a), len(b)) and a[length] == b[length] != 255:
            length += 1
        return length

    expected = [0, *(shared(a, b) for a, b in pairwise(suffixes))]
    assert lcp_array(tokens, sa, 255).tolist() == expected


def test_by_hand():
    passage = list(range(60))
    docs = [[90, *passage, 91], [92, *passage[:50], 93], [94, *passage[:49], 95], passage, [96] * 130]
    found = build(docs).duplicates()
    # 50 tokens count, 49 do not; a run of one token keeps its first 50
    assert found.ranges.tolist() == [[1, 1, 51], [3, 0, 60], [4, 50, 130]]
    assert found.min_len == 50
    assert build(docs, shards=3).duplicates().ranges.tolist() == found.ranges.tolist()


def test_nothing_repeated_and_windows_longer_than_any_document():
    index = build([[1, 2, 3], [], [4]])
    for n in (1, 4, 10**6):
        found = index.duplicates(min_len=n)
        assert found.ranges.shape == (0, 3)
        assert (found.dropped, found.share) == (0, 0.0)
    with pytest.raises(InputError, match="0 tokens"):
        index.duplicates(min_len=0)
