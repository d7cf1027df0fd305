"""The first-sentence probe: where the sentence stands, what is asked, and rows to train on that look the same."""

from __future__ import annotations

import numpy as np
import pytest

from palimpsest.errors import InputError
from palimpsest.evaluation.first_sentence import QUESTION, draw_sentence, first_sentence, first_sentence_row, first_sentence_samples
from palimpsest.evaluation.haystack import Haystack


@pytest.fixture(scope="module")
def haystack(tiny_tokenizer):
    return Haystack(tiny_tokenizer, ["The sea was calm. Nobody spoke of it. A boat went out.\n"] * 3, cycle=True)


def test_the_sentence_begins_the_text_and_is_the_answer(haystack):
    decode = haystack.tokenizer.decode
    for sample in first_sentence_samples(haystack, 120, 3, seed=1):
        (question,) = sample.questions
        text, answer = decode(sample.context), decode(question.answer)
        assert len(sample.context) + len(question.ids) == 120
        assert text.startswith(answer.strip() + "\n")
        assert decode(question.ids) == QUESTION
        assert question.span[0] == 0


def test_rows_to_train_on_end_with_the_answer(haystack):
    row = first_sentence_row(haystack, 150, np.random.default_rng(4))
    text = haystack.tokenizer.decode(row)
    assert len(row) == 150
    assert text.endswith(f"{QUESTION} {text.splitlines()[0]}")
    assert len({draw_sentence(np.random.default_rng(seed)) for seed in range(50)}) > 45


def test_lengths_are_told_apart(tiny_model, haystack):
    found = first_sentence(tiny_model, tiny_model.tokenizer, None, haystack, [100, 120], 2, chunk=64)
    assert [one["length"] for one in found.summary["by_length"]] == [100, 120]
    for one in found.summary["by_length"]:
        part = found.table.filter(length=one["length"])
        assert one["exact"] == part["exact"].mean()
        assert one["logprob"] == pytest.approx(part["logprob"].mean())
    with pytest.raises(InputError):
        first_sentence_samples(haystack, 100, 0)
    with pytest.raises(InputError):
        first_sentence_samples(haystack, 20, 1)
    with pytest.raises(InputError, match="no sample"):
        first_sentence(tiny_model, tiny_model.tokenizer, None, haystack, [])
