"""rep-n against sets of n-grams."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from palimpsest.audit.repetition import repetition
from palimpsest.errors import InputError

rows = st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=6)


@given(rows, st.integers(1, 5), st.booleans())
def test_it_is_the_share_of_ngrams_that_stood_there_before(sequences, n, paper):
    expected = []
    for row in sequences:
        grams = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
        expected.append(1 - len(set(grams)) / len(grams) if grams else 0.0 if paper else None)
    found = repetition(sequences, n, paper=paper)
    assert found.each == pytest.approx(expected)
    counted = [value for value in expected if value is not None]
    assert found.counted == len(counted)
    assert found.mean == (pytest.approx(np.mean(counted)) if counted else None)
    assert repetition(sequences[::-1], n, paper=paper).mean == (None if found.mean is None else pytest.approx(found.mean))


def test_the_ends_of_the_scale():
    assert repetition([range(30)], 4).mean == 0
    for length in (4, 9, 50):
        assert repetition([[7] * length], 4).mean == pytest.approx(1 - 1 / (length - 3))
    assert repetition([[1, 2, 3, 4], [1, 2, 3, 4]], 4).mean == 0  # never across two sequences


def test_bad_input():
    with pytest.raises(InputError, match="n is 0"):
        repetition([[1]], 0)
    with pytest.raises(InputError, match="no sequences"):
        repetition([])
    with pytest.raises(InputError, match=r"Sequence 1 has shape \(1, 1\)"):
        repetition([[1], [[1]]])
