"""BLEU: against exact fractions, against figures of sacrebleu, and against the program itself where it is installed."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.bleu import sentence_bleu
from palimpsest.errors import InputError

texts = st.lists(st.sampled_from("abc"), min_size=1, max_size=12)


def by_hand(candidate, references, smoothing):
    """The definition, with n-grams taken out of the references one by one."""
    precisions, zeros, matched = [], 0, 0
    for n in range(1, 5):
        grams = [tuple(candidate[i : i + n]) for i in range(len(candidate) - n + 1)]
        if not grams:
            break
        hits = 0
        for gram in set(grams):
            in_references = [sum(tuple(r[i : i + n]) == gram for i in range(len(r) - n + 1)) for r in references]
            hits += min(grams.count(gram), max(in_references))
        matched += hits
        zeros += hits == 0
        precisions.append(Fraction(hits, len(grams)) if hits else Fraction(1, 2**zeros * len(grams)))
    if not matched or (smoothing is None and (zeros or len(precisions) < 4)):
        return 0.0
    lengths = sorted({len(r) for r in references}, key=lambda n: (abs(n - len(candidate)), n))
    penalty = 1.0 if len(candidate) >= lengths[0] else math.exp(1 - lengths[0] / len(candidate))
    return penalty * math.prod(precisions) ** (1 / len(precisions))


@given(candidate=texts, references=st.lists(texts, min_size=1, max_size=4), smoothing=st.sampled_from(["exp", None]))
def test_it_is_the_definition(candidate, references, smoothing):
    assert sentence_bleu(candidate, references, smoothing) == pytest.approx(by_hand(candidate, references, smoothing), abs=1e-12)


@pytest.mark.parametrize(
    ("candidate", "references", "exp", "none"),
    [
        ("a b c d e", ["a b c d f"], 66.87403, 66.87403),
        ("a b c d e", ["a b c d f", "a b"], 66.87403, 66.87403),
        ("the the the the", ["the cat sat"], 15.973578, 0.0),  # clipped
        ("a b", ["a b"], 100.0, 0.0),  # too short for four-grams
        ("a", ["a b c"], 13.533528, 0.0),  # brevity
        ("x y z w", ["a b c d"], 0.0, 0.0),
        ("a b c d e f g", ["a b c d", "a b c d e f g h i j"], 100.0, 100.0),  # two lengths are as close: the shorter counts
        ("a b c d", ["a b x d", "b c d a"], 70.710678, 0.0),
        ("he ate an apple today and slept", ["he ate the apple today and slept", "today he ate an apple"], 79.527073, 79.527073),
    ],
)  # fmt: skip
def test_figures_of_sacrebleu_2_6(candidate, references, exp, none):
    split = [text.split() for text in references]
    assert 100 * sentence_bleu(candidate.split(), split) == pytest.approx(exp, abs=1e-5)
    assert 100 * sentence_bleu(candidate.split(), split, smoothing=None) == pytest.approx(none, abs=1e-5)


@given(candidate=texts, references=st.lists(texts, min_size=1, max_size=3))
def test_it_is_sacrebleu_where_that_is_installed(candidate, references):
    sacrebleu = pytest.importorskip("sacrebleu")
    theirs = sacrebleu.sentence_bleu(" ".join(candidate), [" ".join(text) for text in references], tokenize="none")
    assert 100 * sentence_bleu(candidate, references) == pytest.approx(theirs.score, abs=1e-9)


def test_order_of_references_and_repetition_do_not_matter():
    one, two, text = list("abcde"), list("abdcef"), list("abcdef")
    assert sentence_bleu(text, [one, two]) == sentence_bleu(text, [two, one, one])
    assert sentence_bleu(text, [one, two]) > max(sentence_bleu(text, [one]), sentence_bleu(text, [two]))


def test_bad_input_is_refused():
    assert sentence_bleu([], [["a"]]) == 0.0
    for candidate, references, smoothing, message in [
        (["a"], [], "exp", "0 references"),
        (["a"], [["a"], []], "exp", "one is empty"),
        ("a b", [["a"]], "exp", "not cut"),
        (["a"], ["a b"], "exp", "not cut"),
        (["a"], [["a"]], "floor", "'floor'"),
    ]:
        with pytest.raises(InputError, match=message):
            sentence_bleu(candidate, references, smoothing)
