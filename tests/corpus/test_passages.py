"""The index in memory answers as a scan of the documents and as a `CorpusIndex` do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.corpus import CorpusIndex
from palimpsest.corpus.passages import PassageIndex
from palimpsest.errors import InputError

documents = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=4)
queries = st.lists(st.integers(0, 4), max_size=5)


def occurrences(rows, ids):
    return [(d, i) for d, row in enumerate(rows) for i in range(len(row) - len(ids) + 1) if row[i : i + len(ids)] == ids]


@given(documents, queries)
def test_equals_a_scan(rows, ids):
    index = PassageIndex(rows)
    if not ids:
        assert index.count(ids) == sum(map(len, rows))
        values, counts = np.unique(np.concatenate(rows), return_counts=True)
    else:
        found = occurrences(rows, ids)
        assert index.count(ids) == len(found)
        assert index.locate(ids) == found
        assert index.locate(ids, at_end=True) == [(d, i) for d, i in found if i + len(ids) == len(rows[d])]
        following = [rows[d][i + len(ids)] for d, i in found if i + len(ids) < len(rows[d])]
        values, counts = np.unique(np.array(following, np.int64), return_counts=True)
    got = index.next_tokens(ids)
    assert got[0].tolist() == values.tolist()
    assert got[1].tolist() == counts.tolist()


def test_equals_the_index_in_a_folder(tmp_path):
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 50_000, size=size) for size in (400, 1, 250)]
    index, whole = PassageIndex(rows), CorpusIndex.build([row.tolist() for row in rows], None, tmp_path / "index")
    for row in rows:
        for start in range(0, len(row), 17):
            for m in (1, 2, 5):
                ids = row[start : start + m]
                assert index.count(ids) == whole.count(ids)
                for ours, theirs in zip(index.next_tokens(ids), whole.next_tokens(ids), strict=True):
                    np.testing.assert_array_equal(ours, theirs)


def test_ids_that_no_document_has_are_nowhere():
    index = PassageIndex([[1, 2, 2**32 - 2]])
    assert index.locate([2**32 - 2]) == [(0, 2)]
    for ids in ([-1], [2**32 - 1], [2**40], [1, -1]):
        assert index.count(ids) == 0
        assert index.locate(ids) == []
        assert index.next_tokens(ids)[0].size == 0


@pytest.mark.parametrize("rows", [[], [[]], [[1], []], [[1.5]], [[-1]], [[2**32 - 1]], [[[1, 2]]]])
def test_bad_documents_are_refused(rows):
    with pytest.raises(InputError, match="Give"):
        PassageIndex(rows)


def test_no_ids_are_not_located():
    with pytest.raises(InputError, match="stand everywhere"):
        PassageIndex([[1]]).locate([])
