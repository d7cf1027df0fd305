"""Contexts with keys: exact lengths, the answer behind its question, and the key where it is said to be."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from palimpsest.audit.alignment import ChatTemplate
from palimpsest.errors import InputError
from palimpsest.evaluation.context_prompts import NAMES, KeyPrompt, draw_keys, named_key_samples, passkey_samples
from palimpsest.evaluation.haystack import Haystack
from palimpsest.tokenizer import Tokenizer

FILLER = ["The sea was calm. Nobody spoke of it. A boat went out, and it came back.\n" * 3]


@pytest.fixture(scope="module")
def haystack(tiny_tokenizer: Tokenizer) -> Haystack:
    return Haystack(tiny_tokenizer, FILLER, cycle=True)


def test_lengths_are_exact_and_the_text_reads_as_written(haystack: Haystack) -> None:
    decode = haystack.tokenizer.decode
    for sample in passkey_samples(haystack, 300, [0.0, 0.5, 1.0], 2, seed=3):
        (asked,) = sample.questions
        key = decode(asked.answer)
        assert len(sample.context) + len(asked.ids) == sample.length == 300
        assert len(key.strip()) == 5
        assert decode(sample.context).count(key.strip()) == 2
        whole = decode([*sample.context, *asked.ids, *asked.answer])
        assert whole.endswith(f"\nWhat is the pass key? The pass key is {key.strip()}")
        assert asked.depth <= sample.depth


def test_depths_order_the_keys(haystack: Haystack) -> None:
    first, last = passkey_samples(haystack, 300, [0.0, 1.0], 1)
    key = [haystack.tokenizer.decode(sample.questions[0].answer).strip() for sample in (first, last)]
    places = [haystack.tokenizer.decode(sample.context).index(one) for sample, one in zip((first, last), key, strict=True)]
    assert places[0] < 20
    assert places[1] > len(haystack.tokenizer.decode(last.context)) - 70


def test_every_named_key_is_asked_for_once_and_answered_by_its_own_number(haystack: Haystack) -> None:
    (sample,) = named_key_samples(haystack, 700, 4, 1, every=True, seed=1)
    decode = haystack.tokenizer.decode
    text = decode(sample.context)
    pairs = {(decode(one.ids).split("pass key of ")[1].split("?")[0], decode(one.answer).strip()) for one in sample.questions}
    assert len(pairs) == len(sample.questions) == 4
    for name, key in pairs:
        assert text.count(f"The pass key of {name} is {key}. ") == 1
    assert max(len(one.ids) for one in sample.questions) + len(sample.context) == 700
    (one,) = named_key_samples(haystack, 700, 4, 1, seed=1)
    assert len(one.questions) == 1
    assert one.id != sample.id


def test_samples_follow_from_the_seed_alone(haystack: Haystack) -> None:
    one, same, other = (named_key_samples(haystack, 500, 3, 2, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a.context, b.context) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0].context, other[0].context)
    assert len({sample.id for sample in one}) == 2
    # a longer run begins with the samples of a shorter one
    assert np.array_equal(named_key_samples(haystack, 500, 3, 1, seed=0)[0].context, one[0].context)


def test_a_chat_puts_context_and_question_into_the_users_turn(haystack: Haystack) -> None:
    prompt = KeyPrompt.chat(ChatTemplate("<user>", "<model>", "<end>"))
    (sample,) = passkey_samples(haystack, 500, [0.5], 1, prompt=prompt)
    assert haystack.tokenizer.decode(sample.context).startswith("<user>Some pass keys are hidden")
    assert haystack.tokenizer.decode(sample.questions[0].ids).endswith("What is the pass key?<model>The pass key is ")


def test_a_vocabulary_that_joins_space_and_digit_gets_the_space_with_the_answer() -> None:
    words = {word: number for number, word in enumerate(["<unk>", "Ġ", *(f"Ġ{d}" for d in range(10)), *map(str, range(10))])}
    backend = tokenizers.Tokenizer(models.BPE(words, [("Ġ", str(d)) for d in range(10)], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    haystack = Haystack(Tokenizer(backend), ["1 2 3 4 5 6 7. " * 20], cycle=True)
    prompt = KeyPrompt(needle=" {key}", question="1", tail="", lead="2 ", after="")
    (sample,) = passkey_samples(haystack, 60, [0.5], 1, prompt=prompt)
    first = int(sample.questions[0].answer[0])
    assert backend.id_to_token(first).startswith("Ġ")
    assert len(sample.questions[0].answer) == 5
    assert sample.questions[0].ids.tolist() == backend.encode("12").ids


def test_a_vocabulary_that_joins_word_and_digit_is_refused() -> None:
    words = {"<unk>": 0, "k": 1, **{str(d): d + 2 for d in range(10)}, **{f"k{d}": d + 12 for d in range(10)}}
    backend = tokenizers.Tokenizer(models.BPE(words, [("k", str(d)) for d in range(10)], unk_token="<unk>"))
    prompt = KeyPrompt(needle="{key}", question="1", tail="", lead="k", after="")
    with pytest.raises(InputError, match="joins"):
        passkey_samples(Haystack(Tokenizer(backend), ["1234567890"], cycle=True), 40, [0.5], 1, prompt=prompt)


def test_keys_differ_and_have_five_digits() -> None:
    keys = draw_keys(np.random.default_rng(0), 200)
    assert len(set(keys)) == 200
    assert {len(key) for key in keys} == {5}


@pytest.mark.parametrize(("keys", "n", "length"), [(0, 1, 300), (len(NAMES) + 1, 1, 3000), (2, 0, 300), (4, 1, 40)])
def test_what_cannot_be_made_is_refused(haystack: Haystack, keys: int, n: int, length: int) -> None:
    with pytest.raises(InputError):
        named_key_samples(haystack, length, keys, n)
    with pytest.raises(InputError):
        passkey_samples(haystack, 20, [0.5], 1)
    with pytest.raises(InputError):
        passkey_samples(haystack, 300, [], 1)


def test_a_question_knows_where_its_sentence_stands(haystack: Haystack) -> None:
    (sample,) = named_key_samples(haystack, 700, 4, 1, every=True, seed=2)
    decode = haystack.tokenizer.decode
    for question in sample.questions:
        sentence = decode(sample.context[slice(*question.span)])
        assert sentence.startswith("The pass key of ")
        assert decode(question.answer).strip() in sentence
