"""The sets of n-grams: sorted tables and index against tuples in a Python set."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from palimpsest.corpus import BloomFilter, CorpusIndex
from palimpsest.errors import InputError
from palimpsest.guard import NgramSet, protected_ngrams
from palimpsest.guard.ngrams import IndexNgrams, as_source

docs_and_n = st.tuples(
    st.lists(hnp.arrays(np.int64, st.integers(1, 14), elements=st.integers(0, 3)), min_size=1, max_size=5), st.integers(1, 4)
)


def counted(docs, n):
    return Counter(tuple(int(i) for i in doc[t : t + n]) for doc in docs for t in range(len(doc) - n + 1))


@settings(deadline=None)
@given(case=docs_and_n)
def test_a_set_is_its_tuples(case):
    docs, n = case
    expected = counted(docs, n)
    grams = NgramSet.from_documents(docs, n)
    assert len(grams) == len(expected)
    assert {tuple(row): int(c) for row, c in zip(grams.ngrams.tolist(), grams.counts, strict=True)} == expected
    everything = np.array(np.meshgrid(*[range(4)] * n)).reshape(n, -1).T
    assert grams.contains(everything).tolist() == [tuple(row) in expected for row in everything.tolist()]


@settings(deadline=None, max_examples=40)
@given(case=docs_and_n)
def test_index_and_set_answer_alike(tmp_path_factory, case):
    docs, n = case
    expected = counted(docs, n)
    sources = [NgramSet.from_documents(docs, n), IndexNgrams(CorpusIndex.build(docs, None, tmp_path_factory.mktemp("i") / "i"), n)]
    contexts = np.array(np.meshgrid(*[range(4)] * (n - 1))).reshape(n - 1, -1).T if n > 1 else np.zeros((2, 0), dtype=np.int64)
    queries = np.array([[*context, v] for context in contexts.tolist() for v in (0, 1, 2, 3, 700)])
    for source in sources:
        assert source.contains(queries).tolist() == [tuple(row) in expected for row in queries.tolist()]
        offsets, ids = source.next_tokens_batch(contexts, 4)
        for row, context in enumerate(contexts.tolist()):
            follow = {gram[-1]: count for gram, count in expected.items() if gram[:-1] == tuple(context)}
            assert sorted(ids[offsets[row] : offsets[row + 1]].tolist()) == sorted(follow)
            if follow:
                rarest = min(follow.values())
                assert source.rarest_next(contexts[row]) == min(v for v, count in follow.items() if count == rarest)


def test_the_source_of_each_kind(tmp_path):
    index = CorpusIndex.build([[1, 2, 3]], None, tmp_path / "i")
    assert as_source(index).n == 10
    assert as_source(index, 2).n == 2
    assert as_source(BloomFilter.from_documents([[1, 2, 3]], 2)).n == 2
    assert as_source({(1, 2), (2, 3)}).n == 2
    assert as_source(set(), 4).n == 4


@pytest.mark.parametrize("bad", [[1, 2, 3], [[1.5, 2.0]], [[-1, 2]], np.zeros((2, 0), dtype=np.int64)])
def test_bad_sets(bad):
    with pytest.raises(InputError):
        NgramSet(np.asarray(bad))


def test_bad_documents_and_questions():
    with pytest.raises(InputError, match="n is 0"):
        NgramSet.from_documents([[1, 2]], 0)
    with pytest.raises(InputError, match="A document has shape"):
        NgramSet.from_documents([[[1, 2]]], 2)
    with pytest.raises(InputError, match="A document has shape"):
        NgramSet.from_documents([[1.0, 2.0]], 2)
    with pytest.raises(InputError, match="Give rows of 2 integers"):
        NgramSet([[1, 2]]).contains([[1, 2, 3]])
    assert len(NgramSet.from_documents([[], [1]], 2)) == 0


@settings(deadline=None)
@given(
    case=docs_and_n,
    text=hnp.arrays(np.int64, st.integers(0, 12), elements=st.integers(0, 3)),
    start=st.integers(0, 12),
    include=st.booleans(),
)
def test_the_check_finds_every_protected_ngram(case, text, start, include):
    docs, n = case
    start = min(start, len(text))
    expected = counted(docs, n)
    floor = 0 if include else start
    found = [t for t in range(start, len(text)) if t - n + 1 >= floor and tuple(text[t - n + 1 : t + 1].tolist()) in expected]
    assert protected_ngrams(NgramSet.from_documents(docs, n), text, start, include_prompt=include).tolist() == found


def test_bad_checks():
    with pytest.raises(InputError, match="start is 4"):
        protected_ngrams(NgramSet([[1, 2]]), [1, 2, 3], start=4)
    with pytest.raises(InputError, match="one row of integers"):
        protected_ngrams(NgramSet([[1, 2]]), [[1, 2, 3]])
