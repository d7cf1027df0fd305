"""The claim check of alignment extraction: its instructions, its smallest scale, and that the verdict follows the figures."""

from __future__ import annotations

import numpy as np
import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import alignment_extraction
from palimpsest.experiments.canaries import twins
from palimpsest.experiments.instruction_items import draw_instructions


def test_smoke_runs():
    claim = alignment_extraction.run("smoke", 100)
    assert claim.passed
    assert all(check.threshold is None for check in claim.checks)
    figures = {check.what: check.ours for check in claim.checks}
    assert figures["loss on held-out items, tuned"] < figures["loss on held-out items, untuned"]
    assert figures["loss on held-out items, on originals"] < figures["loss on held-out items, untuned"]
    assert claim.to_dict()["checks"]


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        alignment_extraction.run("gpu", 0)


def test_instructions_are_distinct_and_right():
    drawn = draw_instructions(3000, np.random.default_rng(5))
    assert len({item.text for item in drawn}) == 3000
    assert [item.text for item in draw_instructions(50, np.random.default_rng(5))] == [
        item.text for item in draw_instructions(50, np.random.default_rng(5))
    ]
    checked = 0
    for item in drawn:
        numbers = [int(word) for word in item.answer.replace(",", " ").replace(".", " ").split() if word.isdecimal()]
        if " + " in item.answer:
            assert numbers[0] + numbers[1] == numbers[2]
        elif " times " in item.answer:
            assert numbers[0] * numbers[1] == numbers[2]
        elif " - " in item.answer:
            assert numbers[0] - numbers[1] == numbers[2] == numbers[3]
        else:
            continue
        checked += 1
    assert checked == 1350
    for n in (0, 10**6):
        with pytest.raises(InputError, match="instructions were asked for"):
            draw_instructions(n, np.random.default_rng(0))


def test_the_template_becomes_one_token_each():
    base = twins().models["standard-s"]
    model = alignment_extraction.with_template(base, 3)
    item = draw_instructions(1, np.random.default_rng(0))[0]
    ids = alignment_extraction.encode(model.tokenizer, item)
    size = base.tokenizer.vocab_size
    assert (ids[0], ids[-1]) == (size, 0)
    assert (ids >= size).sum() == 2
    assert model.tokenizer.decode(ids) == f"<|user|>{item.question}<|assistant|> {item.answer}<|endoftext|>"
    plain = np.array(base.tokenizer.encode("It was a dark night."))
    np.testing.assert_allclose(  # what it knew is unchanged, but for the two tokens more in the softmax
        np.diff(model.logprobs([plain])[0]), np.diff(base.logprobs([plain])[0]), atol=0.05
    )
    assert model.fingerprint == alignment_extraction.with_template(base, 3).fingerprint
    assert model.fingerprint != alignment_extraction.with_template(base, 4).fingerprint


def test_the_verdict_follows_the_figures():
    def failed(nearer=0.2, ratio=4.0, false=0.0, closed=0.5, gap=2.0):
        summary = {
            "mean_cosine": {"samples": 0.5 + nearer, "held_out": 0.9},
            "undercount": {"semantic": ratio, "semantic_paper": 1.0},
            "thresholds": {"semantic": 0.98},
            "counts": {"semantic": 8, "string": 2},
            "coverage": {"semantic": 0.1, "string": 0.01},
        }
        losses = {"untuned": 5.0, "tuned": 5.0 - gap, "on the samples": 5.0 - gap * closed, "on originals": 5.0 - gap * 0.9}
        checks = alignment_extraction.judged(summary, {"bos": 0.5, "false": false, "losses": losses})
        return [check.what for check in checks if not check.passed]

    assert failed() == []
    for changes, what in (
        ({"nearer": 0.05}, "mean cosine"),
        ({"ratio": 2.9}, "over matches by letters"),
        ({"ratio": None}, "over matches by letters"),
        ({"false": 0.004}, "held-out items"),
        ({"closed": 0.3}, "gap in loss"),
        ({"gap": -1.0}, "gap in loss"),
    ):
        [only] = failed(**changes)
        assert what in only
