"""Order memory of scripted readers: one who reads, one who cannot, one who always says A."""

from __future__ import annotations

from dataclasses import replace

import pytest

from palimpsest.errors import CapabilityError, ContextOverflowError, InputError
from palimpsest.evaluation.order_recall import PROMPTS, OrderPrompt, choose_prompt, label_logprobs, measure_order, order_summary
from palimpsest.evaluation.order_trials import build_trials
from palimpsest.experiments.book_sort import OrderReader

PROSE = ["".join(f"Then w{n * k % 997}x went {k} miles to town {n * k % 89}. It was w{n}. " for n in range(300)) for k in (3, 7)]


class Orderly(OrderReader):
    """Counts the rows that it is asked for."""

    context_length = 4096

    def __init__(self, tokenizer, **options):
        super().__init__(tokenizer, **options)
        self.rows = 0

    def score(self, batch_ids, *, start, **options):
        self.rows += len(batch_ids)
        assert list(start) == [len(ids) - 1 for ids in batch_ids]
        return super().score(batch_ids)


@pytest.fixture(scope="module")
def trials():
    return build_trials({"one": PROSE[0], "two": PROSE[1]}, 120, 10, 40, seed=0)


def by_condition(found):
    return {row["condition"]: row for row in found.summary["conditions"]}


@pytest.mark.parametrize("task", ["first", "last"])
def test_one_who_reads_is_right_in_context_alone(tiny_tokenizer, trials, task):
    conditions = ("in_context", "from_memory", "shuffled")
    found = measure_order(Orderly(tiny_tokenizer), trials, conditions, task=task)
    rows = by_condition(found)
    assert rows["in_context"]["raw"]["estimate"] == rows["in_context"]["debiased"]["estimate"] == 1
    assert rows["in_context"]["said_a"]["estimate"] == 0.5
    assert rows["in_context"]["in_reach"] == 1
    assert [cell["n"] for cell in rows["in_context"]["by_bin"]] == [10] * 4
    assert rows["from_memory"]["ties"] == 40
    assert rows["from_memory"]["raw"]["estimate"] == rows["from_memory"]["debiased"]["estimate"] == 0.5
    assert 0.2 <= rows["shuffled"]["raw"]["estimate"] <= 0.8
    assert all(test["first"] == "in_context" and test["adjusted"] < 1e-3 for test in found.summary["comparisons"])
    assert order_summary(found.table) == found.summary


def test_a_constant_label_is_right_in_exactly_half(tiny_tokenizer, trials):
    for prior, label in ((1.0, 1.0), (-1.0, 0.0)):
        row = by_condition(measure_order(Orderly(tiny_tokenizer, reads=False, prior=prior), trials))["in_context"]
        assert row["said_a"]["estimate"] == label
        assert row["raw"]["estimate"] == row["debiased"]["estimate"] == 0.5
        assert row["ties"] == 40


def test_a_label_prior_spoils_the_raw_accuracy_and_not_the_debiased(tiny_tokenizer, trials):
    row = by_condition(measure_order(Orderly(tiny_tokenizer, prior=5.0), trials, ("in_context",)))["in_context"]
    assert row["said_a"]["estimate"] == 1
    assert row["raw"]["estimate"] == 0.5
    assert row["debiased"]["estimate"] == 1


def test_the_task_flips_every_answer_and_a_retriever_gives_the_text(tiny_tokenizer, trials):
    model = Orderly(tiny_tokenizer)
    first, last = (measure_order(model, trials[:20], ("in_context",), task=task).table for task in ("first", "last"))
    assert all(a != b for a, b in zip(first["chosen"], last["chosen"], strict=True))
    turned = measure_order(model, trials[:20], ("retrieved",), retrieve=lambda trial: " ... ".join(reversed(trial.segments)))
    assert by_condition(turned)["retrieved"]["debiased"]["estimate"] == 0
    assert model.rows == 20 * 4 * 3


def test_s_is_its_definition(tiny_model, trials):
    short = [replace(trial, words=tuple("abcdef"), at=(0, 3), segment_words=3) for trial in trials[:3]]
    prompt = OrderPrompt("", "", "A: {a} B: {b} {task}?", " Segment")
    found = measure_order(tiny_model, short, ("from_memory",), prompt=prompt).table
    for row, trial in zip(found.to_dicts(), short, strict=True):
        value = {}
        for shown in (True, False):
            for label in "AB":
                ids = tiny_model.tokenizer.encode(prompt.fill(trial, None, shown, "first") + f" {label}")
                value[shown, label] = float(tiny_model.logprobs([ids])[0][-1])
        s = (value[True, "A"] - value[True, "B"] + value[False, "B"] - value[False, "A"]) / 2
        assert row["s"] == pytest.approx(s, abs=1e-4)
        assert row["chosen"] == max("AB", key=lambda label: value[trial.earlier_is_a, label])


def test_the_prompt_is_chosen_by_what_it_gains(tiny_tokenizer, trials):
    blind = replace(PROMPTS[0], excerpt="{book} is good.\n")
    assert choose_prompt(Orderly(tiny_tokenizer), trials[:6], [blind, PROMPTS[0]]) == PROMPTS[0]
    for prompt in PROMPTS:
        text = prompt.fill(trials[0], trials[0].excerpt, False, "last")
        assert text.index(trials[0].excerpt) < text.rindex(trials[0].segments[1]) < text.rindex(trials[0].segments[0]) < text.rindex("last")
        assert trials[0].excerpt not in prompt.fill(trials[0], None, False, "last")
    with pytest.raises(InputError, match="no prompt"):
        choose_prompt(Orderly(tiny_tokenizer), trials[:6], [])


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"conditions": ["guessed"]}, InputError, "guessed"),
        ({"conditions": ["retrieved"]}, InputError, "retriever"),
        ({"task": "middle"}, InputError, "middle"),
        ({"prompt": replace(PROMPTS[0], head="x " * 9000)}, ContextOverflowError, "4096"),
    ],
)
def test_what_cannot_be_measured_is_refused(tiny_tokenizer, trials, options, error, match):
    with pytest.raises(error, match=match):
        measure_order(Orderly(tiny_tokenizer), trials[:4], **options)


def test_few_trials_an_unfit_door_and_unfit_labels_are_refused(tiny_tokenizer, trials):
    with pytest.raises(InputError, match="too few"):
        measure_order(Orderly(tiny_tokenizer), trials[:1])
    mute = Orderly(tiny_tokenizer)
    mute.capabilities = frozenset({"text"})
    with pytest.raises(CapabilityError):
        measure_order(mute, trials[:4])
    with pytest.raises(InputError, match="one token"):
        label_logprobs(Orderly(tiny_tokenizer), ["Say"], "Answer:")
