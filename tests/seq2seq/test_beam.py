"""Beam search against all sequences there are, its length rule, and what it does where nothing ends."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.errors import InputError
from palimpsest.seq2seq.beam import beam_search

EOS, BOS = 0, 1


def tables(seed: int, rows: int, size: int, max_len: int, sharp: float = 2.0) -> torch.Tensor:
    """log p of the next token given place and last token: (rows, max_len, size, size); `BOS` never comes."""
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, sharp, (rows, max_len, size, size)))
    logits[..., BOS] = -torch.inf
    return logits.log_softmax(-1)


def search(table: torch.Tensor, beam: int, power: float):
    rows, max_len = table.shape[:2]

    def step(last, state):
        row, place = state
        return table[row, place, last], (row, place + 1)

    state = (torch.arange(rows).repeat_interleave(beam), torch.zeros(rows * beam, dtype=torch.int64))
    return beam_search(step, state, rows, bos=BOS, eos=EOS, beam=beam, max_len=max_len, power=power)


def best_of_all(table: torch.Tensor, power: float) -> tuple[list[int], float]:
    """The finished sequence of the best score, from all there are."""
    max_len, size = table.shape[0], table.shape[-1]
    found = []
    for length in range(max_len):
        for ids in product([i for i in range(size) if i not in (EOS, BOS)], repeat=length):
            total, last = 0.0, BOS
            for place, token in enumerate((*ids, EOS)):
                total += float(table[place, last, token])
                last = token
            found.append((total / (length + 1) ** power, list(ids), total))
    score, ids, _ = max(found)
    return ids, score


@given(seed=st.integers(0, 10_000), power=st.sampled_from([0.0, 0.5, 1.0]))
def test_a_wide_enough_beam_finds_the_best_of_all_sequences(seed, power):
    table = tables(seed, rows=2, size=4, max_len=4)
    for row, found in enumerate(search(table, beam=40, power=power)):
        ids, score = best_of_all(table[row], power)
        assert found.finished
        assert found.ids == ids
        assert found.score == pytest.approx(score, abs=1e-9)
        assert found.logprob == pytest.approx(score * (len(ids) + 1) ** power, abs=1e-9)


@given(seed=st.integers(0, 10_000))
def test_beam_one_is_greedy(seed):
    table = tables(seed, rows=3, size=5, max_len=8)
    for row, found in enumerate(search(table, beam=1, power=1.0)):
        ids, last = [], BOS
        for place in range(8):
            last = int(table[row, place, last].argmax())
            if last == EOS:
                break
            ids.append(last)
        assert found.ids == ids
        assert found.finished == (last == EOS)


@given(seed=st.integers(0, 10_000), beam=st.integers(1, 6), power=st.sampled_from([0.0, 1.0]))
def test_rows_do_not_touch_each_other(seed, beam, power):
    table = tables(seed, rows=4, size=5, max_len=6)
    together = search(table, beam, power)
    apart = [search(table[row : row + 1], beam, power)[0] for row in range(4)]
    assert together == apart


def test_the_power_decides_between_short_and_long():
    # end at once with log p -1.0, or go on for three tokens and the end at -0.3 each
    table = torch.full((1, 6, 8, 8), -9.0)
    table[..., EOS] = table[..., BOS] = -50.0
    table[0, 0, BOS, EOS] = -1.0
    table[0, 0, BOS, 2] = table[0, 1, 2, 2] = table[0, 2, 2, 2] = table[0, 3, 2, EOS] = -0.3
    assert search(table, 2, 0.0)[0].ids == []
    assert search(table, 2, 1.0)[0].ids == [2, 2, 2]


def test_what_does_not_end_is_cut_and_says_so():
    table = tables(0, rows=1, size=4, max_len=5)
    table[..., EOS] = -torch.inf
    [found] = search(table, 3, 1.0)
    assert not found.finished
    assert len(found.ids) == 5
    assert found.score == pytest.approx(found.logprob / 5)


@pytest.mark.parametrize(("beam", "max_len", "power"), [(0, 5, 1.0), (2, 0, 1.0), (2, 5, -0.1), (2, 5, float("nan"))])
def test_bad_settings_are_refused(beam, max_len, power):
    with pytest.raises(InputError, match=f"beam is {beam}"):
        beam_search(lambda last, state: (last, state), (), 1, bos=BOS, eos=EOS, beam=beam, max_len=max_len, power=power)
