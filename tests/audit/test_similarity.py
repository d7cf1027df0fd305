"""Similarity measures against naive definitions written in another way."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.audit import similarity as sim
from palimpsest.errors import InputError

TOKENS = st.lists(st.integers(0, 3), max_size=12)


def naive_edit(a, b):
    table = [[i + j if i * j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a[i - 1] != b[j - 1]))
    return table[-1][-1]


def naive_subsequence(a, b):
    @cache
    def longest(i, j):
        if i == len(a) or j == len(b):
            return 0
        if a[i] == b[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    return longest(0, 0)


def substrings(a):
    return {tuple(a[i:j]) for i in range(len(a)) for j in range(i + 1, len(a) + 1)}


def naive_bleu(y, s):
    if not y or not s:
        return float(len(y) == len(s))
    if not set(y) & set(s):
        return 0.0
    logs = []
    for n in range(1, min(4, len(y)) + 1):
        ours = Counter(tuple(y[i : i + n]) for i in range(len(y) - n + 1))
        theirs = Counter(tuple(s[i : i + n]) for i in range(len(s) - n + 1))
        logs.append(math.log(((ours & theirs).total() or 0.1) / ours.total()))
    return math.exp(sum(logs) / len(logs)) * min(1.0, math.exp(1 - len(s) / len(y)))


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=6))
def test_batch_equals_the_naive_definitions(pairs):
    result = sim.similarities([y for y, _ in pairs], [np.array(s, dtype=np.int64) for _, s in pairs])
    for i, (y, s) in enumerate(pairs):
        distance = naive_edit(y, s)
        assert result.exact[i] == (y == s)
        assert result.edit_distance[i] == distance
        assert result.edit_similarity[i] == pytest.approx(1 - distance / max(len(y), len(s)) if y or s else 1.0)
        assert result.longest_subsequence[i] == naive_subsequence(y, s)
        assert result.longest_run[i] == max((len(x) for x in substrings(y) & substrings(s)), default=0)
        assert result.bleu[i] == pytest.approx(naive_bleu(y, s))
        assert result.longest_run[i] <= result.longest_subsequence[i]
        assert result.rouge_l[i] == pytest.approx(sim.rouge_l(y, s).f1)


@settings(deadline=None, max_examples=60)
@given(TOKENS, TOKENS)
def test_the_common_run_is_where_it_says(y, s):
    run = sim.longest_common_substring(y, s)
    assert y[run.candidate_start : run.candidate_start + run.length] == s[run.reference_start : run.reference_start + run.length]
    assert run.length == sim.similarities([y], [s]).longest_run[0] == sim.longest_common_substring(s, y).length


def test_words_and_ids_give_the_same_figures():
    y, s = (text.split() for text in ("the quick brown fox jumps over the dog", "the quick brown dog jumps over the fox"))
    vocabulary = {word: number for number, word in enumerate(sorted(set(y + s)))}
    words = sim.similarities([y], [s])
    ids = sim.similarities([[vocabulary[w] for w in y]], [np.array([vocabulary[w] for w in s], dtype=np.uint16)])
    for ours, theirs in zip(words, ids, strict=True):
        assert ours.tolist() == theirs.tolist()
    assert sim.edit_distance(y, s) == 2


def test_bleu_by_hand():
    # 3 of 4 unigrams, 2 of 3 bigrams, 1 of 2 trigrams, no 4-gram (0.1 of 1), no brevity penalty
    assert sim.bleu([1, 2, 3, 9], [1, 2, 3, 4]) == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** 0.25)
    # a prefix of the reference: all precisions 1, only the brevity penalty
    assert sim.bleu([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]) == pytest.approx(math.exp(1 - 2))
    # clipping: the reference holds the token once
    assert sim.bleu([7, 7, 7, 7], [7, 1, 2, 3]) == pytest.approx((1 / 4 * 0.1 / 3 * 0.1 / 2 * 0.1) ** 0.25)


def test_rouge_l_by_hand():
    score = sim.rouge_l([1, 2, 3, 4], [1, 9, 3])
    assert score == pytest.approx((2 / 4, 2 / 3, 4 / 7))


@pytest.mark.parametrize(("y", "s"), [("abc", [1, 2, 3]), ([1], "a"), (np.zeros((2, 2), dtype=int), [1])])
def test_text_and_matrices_are_refused(y, s):
    with pytest.raises(InputError):
        sim.edit_distance(y, s)


def test_unpaired_input_is_refused():
    with pytest.raises(InputError, match="1 candidates and 2 references"):
        sim.similarities([[1]], [[1], [2]])
    with pytest.raises(InputError, match="0 candidates"):
        sim.similarities([], [])
