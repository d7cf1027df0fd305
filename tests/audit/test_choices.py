"""Multiple choice against the log-probabilities added up by hand."""

from __future__ import annotations

import numpy as np
import pytest

from palimpsest.audit.choices import Choice, answer_choices
from palimpsest.errors import InputError


def test_the_most_probable_answer_is_chosen(tiny_model):
    items = [
        Choice("the word was", (" written down", " scraped", " a fox and a dog"), (1,)),
        Choice("and what", (" was", " is not", " jumps"), (0, 2)),
        Choice("In the beginning", (" sheep", " was the word and the word was"), (1,)),
    ]
    encode = tiny_model.tokenizer.encode
    found = answer_choices(tiny_model, items).to_dicts()
    for item, row in zip(items, found, strict=True):
        scores = []
        for option in item.options:
            question, answer = encode(item.question), encode(option)
            scores.append(float(tiny_model.logprobs([[*question, *answer]])[0][len(question) - 1 :].sum()))
        per_byte = [score / len(option.encode()) for score, option in zip(scores, item.options, strict=True)]
        assert row["chosen"] == int(np.argmax(scores))
        assert row["chosen_per_byte"] == int(np.argmax(per_byte))
        assert row["correct"] == (int(np.argmax(scores)) in item.right)
        assert row["correct_per_byte"] == (int(np.argmax(per_byte)) in item.right)
        mass = np.exp(scores)
        assert row["mc2"] == pytest.approx(mass[list(item.right)].sum() / mass.sum(), rel=1e-3)
    templated = answer_choices(tiny_model, items, lambda text: encode(f"Q: {text}"))
    assert templated["mc2"].to_list() != [row["mc2"] for row in found]


def test_bad_input(tiny_model):
    for options, right in ((("a", "b"), ()), (("a", "b"), (0, 1)), (("a", ""), (0,)), (("a", "b"), (2,)), (("a", "b"), (0, 0))):
        with pytest.raises(InputError, match="make no choice"):
            Choice("q", options, right)
    with pytest.raises(InputError, match="no questions"):
        answer_choices(tiny_model, [])
    with pytest.raises(InputError, match="Question 0"):
        answer_choices(tiny_model, [Choice("", ("a", "b"))])
