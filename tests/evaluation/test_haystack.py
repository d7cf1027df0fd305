"""Contexts to the token: lengths, needles, depths, and that a row makes its context again."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.errors import InputError
from palimpsest.evaluation.haystack import Haystack, Recipe, sentences

TEXT = " ".join(f"This is sentence {n} of a text that goes on. And so it does!" for n in range(120))
NEEDLE = "The code of the gate is seven. "


@pytest.fixture(scope="module")
def haystack(tiny_tokenizer):
    return Haystack(tiny_tokenizer, [TEXT, "Another text. With a second line\nand a third.\n"])


@given(st.text(alphabet="ab .!?\n\"'", max_size=60))
def test_sentences_joined_are_the_text(text):
    pieces = sentences(text)
    assert "".join(pieces) == text
    assert all(piece.rstrip()[:-1].count(". ") == 0 for piece in pieces)


@settings(max_examples=80)
@given(st.integers(40, 900), st.lists(st.floats(0, 1), max_size=3).map(sorted), st.integers(0, 5), st.sampled_from(["", "Read this:\n"]))
def test_a_context_has_its_length_and_every_needle_once(haystack, length, depths, seed, before):
    tokenizer = haystack.tokenizer
    needles = tuple(f"The code of gate {chr(65 + n)} is {n}. " for n in range(len(depths)))
    recipe = Recipe(needles, tuple(depths), length, before, "What is the code?", seed)
    fixed = sum(len(tokenizer.encode(part)) for part in (*needles, before, recipe.after) if part)
    if fixed > length:
        with pytest.raises(InputError, match="no room"):
            haystack.make(recipe)
        return
    context = haystack.make(recipe)
    assert context.ids.shape == (length,)
    assert context.filler == length - fixed
    text = tokenizer.decode(context.ids)
    assert text.startswith(before)
    assert text.endswith("What is the code?")
    assert "<s>" not in text
    for needle, (start, end), asked, reached in zip(needles, context.spans, depths, context.depths, strict=True):
        assert tokenizer.decode(context.ids[start:end]) == needle
        windows = np.lib.stride_tricks.sliding_window_view(context.ids, end - start)
        assert (windows == context.ids[start:end]).all(axis=1).sum() == 1
        assert text.count(needle) == 1
        assert reached <= asked or asked == 1 or context.filler == 0
    again = haystack.make(Recipe(**json.loads(json.dumps(recipe.to_dict()))))
    assert again.recipe == recipe
    assert np.array_equal(again.ids, context.ids)


def test_needles_stand_behind_the_last_sentence_before_their_depth(haystack):
    tokenizer = haystack.tokenizer
    longest = max(len(tokenizer.encode(piece)) for piece in sentences(TEXT))
    for depth in np.linspace(0, 1, 11):
        context = haystack.make(Recipe((NEEDLE,), (float(depth),), 600))
        start, _ = context.spans[0]
        assert depth * context.filler - longest <= start <= depth * context.filler
        head = tokenizer.decode(context.ids[:start])
        assert head == "" or head.rstrip().endswith((".", "!"))
    ends = [haystack.make(Recipe((NEEDLE,), (depth,), 600)).spans[0] for depth in (0.0, 1.0)]
    assert (ends[0][0], ends[1][1]) == (0, 600)


def test_the_filler_is_a_window_that_ends_with_a_sentence_and_moves_with_the_seed(haystack):
    contexts = [haystack.make(Recipe((), (), 200, seed=seed)) for seed in range(8)]
    whole = haystack.tokenizer.decode(haystack._ids)
    texts = [haystack.tokenizer.decode(context.ids) for context in contexts]
    assert all(text in whole and text.rstrip().endswith((".", "!")) for text in texts)
    assert len(set(texts)) > 4


def test_filler_that_gives_the_answer_away_is_refused(haystack):
    with pytest.raises(InputError, match="'Sentence 3'"):
        Haystack(haystack.tokenizer, ["This is sentence 3 of it. "], cycle=True).make(Recipe((), (), 60), forbidden=["seven", "Sentence 3"])
    haystack.make(Recipe((), (), 60), forbidden=["seven", "sentence 999", "entence"])


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        (Recipe((NEEDLE,), (), 100), "1 needles"),
        (Recipe((NEEDLE, NEEDLE), (0.9, 0.1), 100), "ascending"),
        (Recipe((NEEDLE,), (1.1,), 100), "from 0 to 1"),
        (Recipe(("",), (0.5,), 100), "no tokens"),
        (Recipe((NEEDLE,), (0.5,), 5), "no room"),
        (Recipe((NEEDLE,), (0.5,), 10**6), "tokens of filler"),
    ],
)
def test_impossible_contexts_are_refused(haystack, recipe, match):
    with pytest.raises(InputError, match=match):
        haystack.make(recipe)


def test_short_texts_may_be_repeated_when_asked_to(tiny_tokenizer):
    haystack = Haystack(tiny_tokenizer, ["One. Two. "], cycle=True)
    context = haystack.make(Recipe((NEEDLE,), (0.4,), 300))
    assert len(context.ids) == 300
    assert tiny_tokenizer.decode(context.ids).count("Two.") > 10
    with pytest.raises(InputError, match="no tokens"):
        Haystack(tiny_tokenizer, [])
