"""Asking in several orders: the table, its summary against the rows, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from palimpsest.context.order_dependence import WAYS, measure_order_dependence
from palimpsest.context.set_decoding import choice_logprobs
from palimpsest.context.set_prompting import SetPrompt
from palimpsest.errors import InputError
from palimpsest.measurement import Measurement

PROMPTS = [SetPrompt(["In the", [" fox", " dog", "s"], " was"]), SetPrompt(["A", [" page", " word and the"], "; the"])]
CHOICES = [[" fox", " dog", "s"], [" page", " word and the"]]


@pytest.fixture(scope="module")
def measured(tiny_model):
    return measure_order_dependence(tiny_model, PROMPTS, CHOICES, [0, 1], ways=list(WAYS), orders=4, seed=3)


def test_only_the_method_is_free_of_the_order(measured):
    ways = measured.summary["ways"]
    assert ways["set"]["changed"] == 0.0
    assert ways["set"]["greatest_difference"] <= 1e-4
    for way in ("plain", "mask only", "positions only"):
        assert ways[way]["greatest_difference"] >= 1e-2


def test_rows_and_summary_agree(measured, tiny_model):
    rows = measured.table.to_dicts()
    assert len(rows) == len(WAYS) * (4 + 2)  # the second prompt has two orders only
    for row in rows:
        prompt = PROMPTS[row["prompt"]].orders(4, 3 + row["prompt"])[row["order"]]
        apart, parallel = WAYS[row["way"]]
        own = choice_logprobs(tiny_model, [prompt], [CHOICES[row["prompt"]]], apart=apart, parallel=parallel)[0]
        np.testing.assert_allclose(row["logprobs"], own, atol=1e-4)
        assert row["chosen"] == int(np.argmax(row["logprobs"]))
    plain = [row for row in rows if row["way"] == "plain"]
    changed = [len({row["chosen"] for row in plain if row["prompt"] == number}) > 1 for number in range(2)]
    assert measured.summary["ways"]["plain"]["changed"] == np.mean(changed)
    assert measured.summary["ways"]["plain"]["accuracy"] == np.mean([row["correct"] for row in plain])
    assert Measurement.from_json(measured.to_json()).summary == measured.summary


def test_without_right_answers_there_is_no_accuracy(tiny_model):
    seen = []
    found = measure_order_dependence(
        tiny_model, PROMPTS, CHOICES, ways=["set"], orders=2, progress=lambda done, total: seen.append((done, total))
    )
    assert found.summary["ways"]["set"]["accuracy"] is None
    assert seen[-1] == (4, 4)


def test_what_cannot_be_asked_is_refused(tiny_model):
    with pytest.raises(InputError, match="backwards"):
        measure_order_dependence(tiny_model, PROMPTS, CHOICES, ways=["backwards"])
    with pytest.raises(InputError, match="fewer than two"):
        measure_order_dependence(tiny_model, PROMPTS, [[" fox"], [" page"]])
    with pytest.raises(InputError, match="not one of each"):
        measure_order_dependence(tiny_model, PROMPTS, CHOICES, [0, 2])
