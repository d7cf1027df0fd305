"""BM25 against its formula, and the clock."""

from __future__ import annotations

import math
from collections import Counter
from datetime import date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.corpus.word_ngrams import words
from palimpsest.errors import InputError
from palimpsest.evaluation.retrieval import Doc, Retriever, Snapshot

TEXTS = st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=8).map(" ".join), min_size=1, max_size=8)


@given(TEXTS, st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=5), st.integers(1, 9), st.integers(2000, 2010))
def test_the_ranking_is_that_of_the_formula(texts, query, k, year):
    docs = [Doc(f"d{i}", text, date(2000 + i, 1, 1)) for i, text in enumerate(texts)]
    mean = sum(len(words(text)) for text in texts) / len(texts)
    scores = {}
    for doc in docs:
        counts, score = Counter(words(doc.text)), 0.0
        for term in query:
            n = sum(term in words(text) for text in texts)
            damped = counts[term] + 1.2 * (0.25 + 0.75 * counts.total() / mean)
            score += math.log(1 + (len(texts) - n + 0.5) / (n + 0.5)) * counts[term] * 2.2 / damped
        if score > 0 and doc.published_at <= date(year, 1, 1):
            scores[doc.id] = score
    found = Snapshot(docs).search(" ".join(query), k, date(year, 1, 1))
    assert len(found) == min(k, len(scores))
    assert [passage.score for passage in found] == pytest.approx(sorted(scores.values(), reverse=True)[:k])
    assert all(passage.score == pytest.approx(scores[passage.doc.id]) for passage in found)


def test_of_equal_documents_the_newest_comes_first():
    docs = [Doc(name, "Ann lives in Rome", date(year, 1, 1)) for name, year in (("a", 2001), ("b", 2003), ("c", 2002), ("d", 2003))]
    snapshot = Snapshot(docs)
    assert [found.doc.id for found in snapshot.search("Rome", 9)] == ["b", "d", "c", "a"]
    assert [found.doc.id for found in snapshot.search("Rome", 2, date(2002, 6, 1))] == ["c", "a"]


def test_the_hash_is_of_the_content_and_not_of_the_order():
    docs = [Doc("a", "one", date(2001, 1, 1)), Doc("b", "two", date(2002, 1, 1))]
    snapshot = Snapshot(docs)
    assert isinstance(snapshot, Retriever)
    assert snapshot.hash == Snapshot(docs[::-1]).hash
    assert snapshot.hash != Snapshot([docs[0], Doc("b", "two.", date(2002, 1, 1))]).hash
    assert snapshot.hash != Snapshot([docs[0], Doc("b", "two", date(2002, 1, 2))]).hash
    assert snapshot.unchanged
    snapshot.docs = snapshot.docs[:1]
    assert not snapshot.unchanged


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (lambda: Snapshot([]), "0 documents"),
        (lambda: Snapshot([Doc("a", "x", date(2000, 1, 1))] * 2), r"\['a'\]"),
        (lambda: Snapshot([Doc("a", "…", date(2000, 1, 1))]), "no words"),
        (lambda: Doc("a", " ", date(2000, 1, 1)), "no text"),
        (lambda: Doc("a", "x", datetime(2000, 1, 1)), "time zone"),
        (lambda: Snapshot([Doc("a", "x", date(2000, 1, 1))]).search("x", 0), "0 documents"),
    ],
)
def test_what_cannot_be_searched_is_refused(bad, match):
    with pytest.raises(InputError, match=match):
        bad()
