"""Tracing a text: passages between given borders, documents by BM25, and everything in characters, against plain definitions."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palimpsest.corpus import CorpusIndex
from palimpsest.corpus.trace import merge_spans, rank_documents
from palimpsest.corpus.traced_text import rarest, trace_text, word_borders
from palimpsest.errors import InputError

DOCS = ["In the beginning was the word, and the word was with the fox.", "The quick brown fox jumps over the lazy dog.", "", "a fox"]


def build(docs, tokenizer=None) -> CorpusIndex:
    return CorpusIndex.build(docs, tokenizer, Path(tempfile.mkdtemp()) / "index")


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_passages_between_borders_are_the_longest_of_those_that_begin_and_end_there(naive, data):
    docs = data.draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=4))
    text = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=14))
    borders = np.array(data.draw(st.lists(st.booleans(), min_size=len(text) + 1, max_size=len(text) + 1)))
    min_len = data.draw(st.integers(1, 3))
    corpus = naive(docs)
    found = [(i, j) for i in range(len(text)) for j in range(i + min_len, len(text) + 1) if borders[i] and borders[j]]
    found = [(i, j) for i, j in found if corpus.count(text[i:j])]
    expected = [(i, j) for i, j in found if not any(a <= i and j <= b and (a, b) != (i, j) for a, b in found)]
    spans = build(docs).trace(text, min_len, borders=borders)
    assert [(span.start, span.end) for span in spans] == expected
    assert [span.count for span in spans] == [corpus.count(text[i:j]) for i, j in expected]


def test_borders_of_another_shape_are_refused():
    index = build([[1, 2, 3]])
    for borders in (np.ones(3, bool), np.ones(4, int)):
        with pytest.raises(InputError, match="one truth value more"):
            index.trace([1, 2, 3], 1, borders=borders)


def bm25(query: list[int], docs: dict[int, list[int]]) -> dict[int, float]:
    """The formula, term by term."""
    mean = sum(map(len, docs.values())) / len(docs)
    scores = {}
    for name, doc in docs.items():
        counts, scores[name] = Counter(doc), 0.0
        for term in query:
            holding = sum(term in other for other in docs.values())
            idf = math.log(1 + (len(docs) - holding + 0.5) / (holding + 0.5))
            scores[name] += idf * counts[term] * 2.2 / (counts[term] + 1.2 * (1 - 0.75 + 0.75 * len(doc) / mean))
    return scores


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=30), min_size=1, max_size=6), st.integers(0, 99))
def test_documents_are_ranked_by_bm25(docs, seed):
    rng = np.random.default_rng(seed)
    source = docs[rng.integers(len(docs))]
    text = [*source[:6], 7, *docs[0][-4:], 200]  # ids that are in no document too
    index = build(docs)
    spans = index.trace(text, 2, max_docs=10)
    ranked = rank_documents(index, np.array(text), spans)
    holders = {hit.index for span in spans for hit in span.hits}
    expected = bm25(text, {i: docs[i] for i in holders})
    assert {document.index: pytest.approx(document.score) for document in ranked} == expected
    assert [d.score for d in ranked] == sorted((d.score for d in ranked), reverse=True)
    for document in ranked:
        assert document.spans == tuple(n for n, span in enumerate(spans) if document.index in [hit.index for hit in span.hits])


def test_a_long_document_is_judged_by_what_stands_around_its_passages():
    rng = np.random.default_rng(0)
    passage = [7] * 12
    long = [*rng.integers(20, 30, 5000).tolist(), *passage, *rng.integers(20, 30, 5000).tolist()]
    near = long[4750 : 5000 + 12 + 250]
    index = build([long, [1, 2, *passage, 3]])
    query = [*passage, *range(20, 30)]
    scores = {d.index: d.score for d in rank_documents(index, np.array(query), index.trace(query, 8))}
    assert scores == {i: pytest.approx(score) for i, score in bm25(query, {0: near, 1: [1, 2, *passage, 3]}).items()}


def test_nothing_found_ranks_nothing():
    index = build([[1, 2]])
    assert rank_documents(index, np.array([5, 6]), index.trace([5, 6], 1)) == []


def test_overlapping_spans_are_one_stretch_and_touching_ones_are_not():
    index = build([[1, 2, 3, 4], [3, 4, 5, 6], [7, 8]])
    spans = index.trace([1, 2, 3, 4, 5, 6, 7, 8], 2)
    assert [(s.start, s.end) for s in spans] == [(0, 4), (2, 6), (6, 8)]
    assert merge_spans(spans) == [(0, 6), (6, 8)]


def test_a_part_of_a_document():
    index = build([[1, 2, 3, 4], [5, 6]])
    assert index.document_ids(0, 1, 3).tolist() == [2, 3]
    assert index.document_ids(1, 0, 99).tolist() == [5, 6]


@pytest.mark.parametrize("whole_words", [False, True])
def test_a_text_is_traced_in_characters(tiny_tokenizer, whole_words):
    index = build(DOCS, tiny_tokenizer)
    text = "They said: the quick brown fox jumps over the fence, and the word was spoken."
    traced = trace_text(index, tiny_tokenizer, tiny_tokenizer.encode(text), min_len=4, whole_words=whole_words, context=3)
    assert traced.text == text
    assert traced.spans
    for span in traced.spans:
        passage = traced.text[span.start : span.end]
        assert passage == tiny_tokenizer.decode(tiny_tokenizer.encode(text)[slice(*span.tokens)])
        assert all(source["match"] == passage and passage in DOCS[source["index"]] for source in span.documents)
        assert any(source["before"] + passage + source["after"] in doc for source in span.documents for doc in DOCS)
        if whole_words:
            assert not (text[span.start - 1 : span.start].isalnum() and text[span.start].isalnum())
            assert not (text[span.end - 1].isalnum() and text[span.end : span.end + 1].isalnum())
    inside = {t for span in traced.spans for t in range(*span.tokens)}
    assert traced.covered == pytest.approx(len(inside) / traced.tokens)
    scores = {d["index"]: d["score"] for d in traced.documents}
    assert list(scores) == sorted([0, 1], key=lambda i: -scores[i])
    assert traced.to_dict()["spans"][0]["count"] == traced.spans[0].count


def test_only_the_rarest(tiny_tokenizer):
    index = build(DOCS, tiny_tokenizer)
    ids = tiny_tokenizer.encode("the word was the quick brown fox and the word was with")
    all_spans = trace_text(index, tiny_tokenizer, ids, min_len=2).spans
    one = trace_text(index, tiny_tokenizer, ids, min_len=2, max_spans=1).spans
    assert len(all_spans) > 1
    assert one == [max(all_spans, key=lambda span: span.bits)]
    assert (rarest(1), rarest(20), rarest(21)) == (1, 1, 2)


def test_an_empty_text_has_no_spans(tiny_tokenizer):
    traced = trace_text(build(DOCS, tiny_tokenizer), tiny_tokenizer, [])
    assert (traced.text, traced.spans, traced.documents, traced.covered) == ("", [], [], 0.0)


def test_no_word_ends_inside_a_character(tiny_tokenizer):
    text = "naïve 日本 x"
    pieces = tiny_tokenizer.pieces(tiny_tokenizer.encode(text))
    borders = word_borders(pieces)
    ends = np.cumsum([0, *map(len, pieces)])
    allowed = {int(ends[i]) for i in np.flatnonzero(borders)}
    assert allowed == {0, 5, 6, 8, 9, 10}
    assert not borders[1:][np.array([piece == "" for piece in pieces])].any()
