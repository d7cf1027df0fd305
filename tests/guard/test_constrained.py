"""Constrained decoding: what is allowed is what a scan allows, and whatever is drawn, nothing leaves the set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.corpus import CorpusIndex
from palimpsest.corpus.passages import PassageIndex
from palimpsest.errors import InputError
from palimpsest.guard.constrained import ConstrainedLogits, IndexConstraint, TrieConstraint
from palimpsest.models import HFModel
from palimpsest.tokenizer import Tokenizer

rows_of_ids = st.lists(st.lists(st.integers(2, 5), min_size=1, max_size=6), min_size=1, max_size=6)
EOS = 1


@given(rows_of_ids, st.lists(st.integers(2, 6), max_size=6))
def test_the_trie_equals_a_scan(rows, written):
    following, may_end = TrieConstraint(rows).allowed(tuple(written))
    n = len(written)
    assert following.tolist() == sorted({row[n] for row in rows if len(row) > n and row[:n] == written})
    assert may_end == (written in rows)


@given(rows_of_ids, st.lists(st.integers(2, 6), max_size=5), st.integers(1, 4))
def test_the_index_equals_a_scan(rows, written, length):
    following, may_end = IndexConstraint(PassageIndex(rows), length).allowed(tuple(written))
    n = len(written)
    places = [(row, i) for row in rows for i in range(len(row) - n + 1) if row[i : i + n] == written]
    after = sorted({row[i + n] for row, i in places if i + n < len(row)})
    assert following.tolist() == (after if n < length else [])
    if n == 0:
        assert not may_end
    elif n < length:
        assert may_end == any(i + n == len(row) for row, i in places)
    else:
        assert may_end == (n == length and bool(places))


def test_an_index_in_a_folder_serves_as_well(tmp_path):
    rows = [[2, 3, 4, 2, 3], [3, 4, 5]]
    here, there = PassageIndex(rows), CorpusIndex.build(rows, None, tmp_path / "index")
    for written in [(), (3,), (2, 3), (5,), (9,), (2, 3, 4)]:
        ours, theirs = (IndexConstraint(index, 3).allowed(written) for index in (here, there))
        assert ours[0].tolist() == theirs[0].tolist()
        assert ours[1] == theirs[1]


@pytest.mark.parametrize("options", [{}, {"num_beams": 4, "n": 4}, {"temperature": 1.5, "n": 8, "seed": 3}])
def test_nothing_leaves_the_set(tiny_model, options):
    titles = [(40, 41), (40, 41, 42), (90,), (200, 7, 7, 7)]
    prompts = [[50, 51], [60, 61, 62, 63]]
    written = tiny_model.generate(prompts, 6, processors=[ConstrainedLogits(TrieConstraint(titles), EOS)], **options)
    drawn = {tuple(row.tolist()) for rows in written for row in rows if len(row)}
    assert drawn <= set(titles)
    assert drawn


def test_each_prompt_has_its_own_set(tiny_model):
    prompts = [[50, 51], [60, 61, 62, 63]]
    own = {(50, 51): TrieConstraint([[7, 8]]), (60, 61, 62, 63): TrieConstraint([[9]])}
    assert [rows[0].tolist() for rows in tiny_model.generate(prompts, 4, processors=[ConstrainedLogits(own, EOS)])] == [[7, 8], [9]]
    beams = tiny_model.generate(prompts, 4, num_beams=2, n=2, processors=[ConstrainedLogits(own, EOS)])
    assert [rows[0].tolist() for rows in beams] == [[7, 8], [9]]
    with pytest.raises(InputError, match="has no constraint"):
        tiny_model.generate([[50, 52]], 4, processors=[ConstrainedLogits(own, EOS)])


def test_bos_in_front_of_a_prompt_is_no_part_of_it(tiny_model):
    backend = tiny_model.tokenizer.backend
    model = HFModel(tiny_model.model, Tokenizer(backend, bos_id=0, eos_id=EOS, pad_id=EOS), bos="always")
    processor = ConstrainedLogits({(50, 51): TrieConstraint([[7, 8]])}, EOS, bos_id=0)
    assert model.generate([[50, 51]], 4, processors=[processor])[0][0].tolist() == [7, 8]


def test_the_allowed_logits_stay_as_they_are():
    processor = ConstrainedLogits(TrieConstraint([[2, 3], [2], [9]]), eos_id=0)
    processor.start_batch([1, 2], 2)
    scores = torch.randn(4, 6)
    ids = torch.tensor([[0, 4, 2], [0, 4, 5], [4, 4, 2], [4, 4, 0]])
    got = processor(ids, scores)
    allowed = [{0, 3}, {0}, {0, 3}, {0}]  # goes on or ends; has left the set; goes on or ends; has ended
    for row, tokens in enumerate(allowed):
        assert set(torch.isfinite(got[row]).nonzero().flatten().tolist()) == tokens
        assert all(got[row, token] == scores[row, token] for token in tokens)


def test_ids_beyond_the_model_are_left_out():
    processor = ConstrainedLogits(TrieConstraint([[2], [99]]), eos_id=0)
    processor.start_batch([1], 1)
    assert torch.isfinite(processor(torch.tensor([[4]]), torch.zeros(1, 6)))[0].nonzero().flatten().tolist() == [2]


def test_bad_input_is_refused():
    for rows in ([], [[1], []]):
        with pytest.raises(InputError):
            TrieConstraint(rows)
    with pytest.raises(InputError, match="0 tokens"):
        IndexConstraint(PassageIndex([[1]]), 0)
    with pytest.raises(InputError, match="no prompt"):
        ConstrainedLogits({}, EOS)
    processor = ConstrainedLogits(TrieConstraint([[2]]), EOS)
    with pytest.raises(InputError, match="not announced"):
        processor(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 5))
    processor.start_batch([1, 1], 2)
    with pytest.raises(InputError, match="not announced"):
        processor(torch.zeros(3, 3, dtype=torch.int64), torch.zeros(3, 5))


def test_a_row_of_numpy_ids_is_a_row():
    assert TrieConstraint([np.array([2, 3])]).allowed((2,))[0].tolist() == [3]
