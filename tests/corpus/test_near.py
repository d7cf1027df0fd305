"""Near-verbatim search against a dynamic programming over every document."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from palimpsest.corpus import CorpusIndex
from palimpsest.errors import InputError

oracle = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def build(docs, **options) -> CorpusIndex:
    with tempfile.TemporaryDirectory() as folder:
        return CorpusIndex.build(docs, None, Path(folder) / "index", **options)


def scan(docs: list[list[int]], query: list[int], k: int) -> list[tuple[int, int, int, int]]:
    """Every window of every document compared: (distance, document, offset, length) of the best of each run of neighbouring ends."""
    found = []
    for d, doc in enumerate(docs):
        best = None
        for end in range(1, len(doc) + 2):
            windows = [(Levenshtein.distance(query, doc[s:end]), -s) for s in range(end + 1)] if end <= len(doc) else []
            distance, start = min(windows, default=(k + 1, 0))
            if distance > k:
                if best:
                    found.append(best)
                best = None
            elif best is None or distance < best[0]:
                best = (distance, d, -start, end + start)
    return sorted(found)


@given(
    st.lists(st.lists(st.integers(0, 3), max_size=16), min_size=3, max_size=6).filter(any),
    st.lists(st.integers(0, 3), min_size=1, max_size=9),
    st.integers(0, 3),
    st.integers(1, 3),
)
@oracle
def test_every_passage_that_a_scan_finds(docs, query, k, shards):
    index = build(docs, shards=shards)
    if len(query) <= k:
        with pytest.raises(InputError, match=f"within {k} edits"):
            index.near(query, k)
        return
    answer = index.near(query, k, limit=10_000, context=2)
    rows = [(m.distance, m.hit.index, m.hit.offset, len(m.hit.match)) for m in answer.matches]
    assert rows == scan(docs, query, k)
    assert answer.complete
    assert answer.total == len(rows)
    for m in answer.matches:
        doc = docs[m.hit.index]
        stop = m.hit.offset + len(m.hit.match)
        assert m.hit.match.tolist() == doc[m.hit.offset : stop]
        assert Levenshtein.distance(query, m.hit.match.tolist()) == m.distance
        assert m.hit.before.tolist() == doc[max(0, m.hit.offset - 2) : m.hit.offset]
        assert m.hit.after.tolist() == doc[stop : stop + 2]


def test_a_damaged_quotation_is_found_in_a_longer_text():
    rng = np.random.default_rng(0)
    docs = [rng.integers(0, 500, 2000) for _ in range(20)]
    quotation = docs[13][700:760].copy()
    quotation[[5, 31]] = 499
    quotation = np.delete(quotation, 44)
    index = build([doc.tolist() for doc in docs])
    (match,) = index.near(quotation, 5).matches
    assert (match.hit.index, match.hit.offset, len(match.hit.match), match.distance) == (13, 700, 60, 3)
    assert index.near(quotation, 2).matches == []


def test_nothing_crosses_a_document():
    index = build([[1, 2, 3, 4, 5], [6, 7, 8, 9]])
    assert index.near([3, 4, 5, 6, 7, 8], 2).matches == []
    assert [(m.distance, m.hit.index) for m in index.near([3, 4, 5, 6, 7, 8], 3).matches] == [(3, 0), (3, 1)]


def test_the_limit_and_an_incomplete_answer_are_said():
    index = build([[1, 2, 3, 4]] * 50)
    answer = index.near([1, 2, 3, 4], 1, limit=3)
    assert [m.hit.index for m in answer.matches] == [0, 1, 2]
    assert (answer.total, answer.complete) == (50, True)
    few = index.near([1, 2, 3, 4], 1, max_seeds=10)
    assert not few.complete
    assert 0 < few.total < 50


@pytest.mark.parametrize(
    ("options", "words"),
    [({"max_edits": -1}, "max_edits is -1"), ({"max_edits": 1, "limit": 0}, "limit 0"), ({"max_edits": 1, "max_seeds": 0}, "max_seeds 0")],
)
def test_senseless_requests(options, words):
    with pytest.raises(InputError, match=words):
        build([[1, 2, 3]]).near([1, 2, 3], **options)


def test_foreign_ids():
    with pytest.raises(InputError, match=r"no token|separator"):
        build([[1, 2, 3]]).near([1, 2, 300], 1)
