"""Rote learning: what is trained and asked against masks and scores by hand, a model that knows a table, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from palimpsest.audit.cued_recall import copy_of, cue_example
from palimpsest.audit.rote import LOSSES, RoteThenGeneralize, directions, measure
from palimpsest.audit.rote_facts import PartlyAsked, PartlyAskedBatches, RoteFact, checked, checked_prompts, filled, without_substrings
from palimpsest.errors import CapabilityError, InputError
from palimpsest.experiments.study_lab import Shape, new_model, word_tokenizer
from palimpsest.models import HFModel

CITIES = ("Oslo", "Rome", "New York", "Lima")
FACTS = [RoteFact(f"Ada {n}", CITIES[n % 4], tuple(c for c in CITIES if c != CITIES[n % 4])) for n in range(6)]
PROMPTS = ["{s} was born in", "The birthplace of {s} is"]


@pytest.fixture(scope="module")
def lab_model():
    words = [filled(prompt, fact) for prompt in [*PROMPTS, "{s} [X]", "{s}"] for fact in FACTS]
    return new_model(word_tokenizer([*words, *CITIES], [fact.subject for fact in FACTS]), Shape(32, 2, 2, 32), 0)


@pytest.fixture(scope="module")
def learnt(lab_model):
    learner = RoteThenGeneralize(lab_model, "[X]", lr=1e-2, batch_size=6)
    return learner, learner.memorize(FACTS, 60)


def test_rote_is_learnt_under_the_key_alone(lab_model, learnt):
    learner, recalled = learnt
    assert recalled == 1
    assert learner.memorized == FACTS
    found = learner.measure(FACTS, {"key": ["{s} [X]"]}).summary["kinds"]["key"]
    assert found["written"]["estimate"] == found["chosen"]["estimate"] == 1
    assert found["probability"]["estimate"] > 0.9
    before = measure(lab_model, FACTS, {"key": ["{s} [X]"]}).summary["kinds"]["key"]
    assert before["written"]["estimate"] < 1
    assert before["probability"]["estimate"] < 0.3


def test_facts_of_phase_2_are_not_asked(learnt):
    learner = RoteThenGeneralize(learnt[0].model, lr=1e-3)
    learner.generalize(FACTS[:2], PROMPTS, 1)
    with pytest.raises(InputError, match="seen 1 of the facts, 'Ada 1'"):
        learner.measure([FACTS[3], replace(FACTS[1], object="Lima", distractors=("Oslo",))], {"a": PROMPTS})
    assert learner.measure(FACTS[2:], {"a": PROMPTS, "b": PROMPTS[:1]}).summary["facts"] == 4


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bos", ["never", "always"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_loss_is_on_what_it_names(tiny_model, loss, bos, prompt):
    """Targets, spelt out: the object (and EOS) always, the subject's tokens with "s-o", everything with "all"."""
    model = HFModel(tiny_model.model, tiny_model.tokenizer, bos=bos)
    learner, fact = RoteThenGeneralize(model), FACTS[0]
    example = learner._example(prompt, fact, loss)
    batch = PartlyAskedBatches([example, cue_example(model, "A fox", "jumps over the lazy dog")], 2, 1, seed=3)[0]
    row = next(n for n in range(2) if tuple(batch.input_ids[n, : len(example.ids)].tolist()) == example.ids)
    targets = [(position + 1, int(label)) for position, label in enumerate(batch.labels[row]) if label != -100]
    assert all(example.ids[position] == label for position, label in targets)
    text, skip = f"{filled(prompt, fact)} {fact.object}", int(bos == "always")
    offsets = model.tokenizer.backend.encode(text, add_special_tokens=False).offsets
    begin = prompt.index("{s}")
    spans = {"o": [(len(filled(prompt, fact)), len(text))], "all": [(0, len(text))]}
    spans["s-o"] = [(begin, begin + len(fact.subject)), *spans["o"]]
    wanted = [
        place + skip
        for place, (start, end) in enumerate(offsets)
        if place + skip > 0 and any(max(start, low) < min(end, high) for low, high in spans[loss])
    ]
    assert [position for position, _ in targets] == [*wanted, len(example.ids) - 1]
    assert example.ids[-1] == model.tokenizer.eos_id


def test_the_gradient_is_that_of_a_hand_masked_loss(lab_model):
    learner = RoteThenGeneralize(lab_model)
    examples = [learner._example(PROMPTS[1], fact, "s-o") for fact in FACTS[:3]]
    assert all(isinstance(example, PartlyAsked) for example in examples)
    batch = PartlyAskedBatches(examples, 3)[0]
    model = copy_of(lab_model).model
    logits = model(batch.input_ids, attention_mask=batch.attention_mask()).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100, reduction="sum")
    mine = torch.autograd.grad(loss, list(model.parameters()))
    by_hand = torch.zeros(())
    for example in examples:  # <eos> The birthplace of [Ada n] is [city] <eos>: positions 4 and 6 on
        log_p = model(torch.tensor([example.ids])).logits[0].log_softmax(-1)
        by_hand = by_hand - sum(log_p[t - 1, example.ids[t]] for t in (4, *range(6, len(example.ids))))
    for a, b in zip(mine, torch.autograd.grad(by_hand, list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_choices_against_scores_of_whole_rows(tiny_model):
    """Candidates have several tokens: the choice is by the mean, the probability by the sum, and their order does not count."""
    found = measure(tiny_model, FACTS, {"a": PROMPTS}).table
    for row in found.iter_rows(named=True):
        fact = next(fact for fact in FACTS if fact.subject == row["subject"])
        means = {}
        for name in CITIES:
            cue = tiny_model.tokenizer.encode(filled(row["prompt"], fact))
            ids = tiny_model.tokenizer.encode(f"{filled(row['prompt'], fact)} {name}")
            assert ids[: len(cue)] == cue
            values = tiny_model.score([ids], start=len(cue)).logprobs[0]
            means[name] = float(values.mean())
            if name == fact.object:
                assert row["logprob"] == pytest.approx(float(values.sum()), abs=1e-3)
        assert row["chosen"] == float(max(means, key=means.__getitem__) == fact.object)
        assert row["rank"] == 1 + sum(value > means[fact.object] for value in means.values())
    turned = [replace(fact, distractors=fact.distractors[::-1]) for fact in FACTS]
    assert measure(tiny_model, turned, {"a": PROMPTS}).table["chosen"].to_list() == found["chosen"].to_list()


def test_the_control_is_the_next_subjects_prompt(lab_model):
    """Right with its own prompt, and with the next subject's where both have one object."""
    learner = RoteThenGeneralize(lab_model, "[X]", lr=1e-2, batch_size=6)
    alike = [replace(fact, object="Oslo" if n < 3 else "Rome", distractors=("Lima", "New York")) for n, fact in enumerate(FACTS)]
    learner.memorize(alike, 60)
    rows = learner.measure(alike, {"key": ["{s} [X]"]})
    assert rows.table["chosen"].to_list() == [1] * 6
    control = rows.table["control"].to_list()
    assert [control[n] for n in (0, 1, 3, 4)] == [1] * 4  # the next subject has the same object
    assert rows.summary["kinds"]["key"]["beyond_control"]["estimate"] == pytest.approx(1 - np.mean(control))
    assert rows.summary["chance"] == pytest.approx(1 / 3)


def test_ties_share_the_credit(lab_model):
    model = copy_of(lab_model)
    with torch.no_grad():
        model.model.lm_head.weight.zero_()
    row = measure(model, FACTS, {"a": PROMPTS[:1]}).table.row(0, named=True)
    assert row["chosen"] == row["control"] == pytest.approx(1 / 4)
    assert row["rank"] == 1


def test_directions_against_hidden_states(lab_model):
    names = [fact.subject for fact in FACTS]
    found = directions(lab_model, names, "[X]", PROMPTS[:1])
    assert found["layer"].to_list() == [1, 2]

    def mean(template, layer):
        rows = [lab_model.tokenizer.encode(template.replace("{s}", name)) for name in names]
        alone = [lab_model.tokenizer.encode(name) for name in names]
        moved, still = (lab_model.hidden_states(ids, [layer]) for ids in (rows, alone))
        return np.mean([a[layer][-1] - b[layer][-1] for a, b in zip(moved, still, strict=True)], axis=0)

    for row in found.iter_rows(named=True):
        a, b = mean("{s} [X]", row["layer"]), mean(PROMPTS[0], row["layer"])
        assert row["cosine"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
    assert directions(lab_model, names, "[X]", ["{s} [X]"])["cosine"].to_list() == pytest.approx([1, 1], abs=1e-5)


def test_objects_inside_others_are_left_out():
    facts = [RoteFact("a", "York"), RoteFact("b", "New York"), RoteFact("c", "Oslo"), RoteFact("d", "Oslo")]
    assert [fact.subject for fact in without_substrings(facts)] == ["c", "d"]


def test_what_cannot_be_learnt_is_refused(lab_model, narrow_door):
    learner = RoteThenGeneralize(lab_model)
    twice = [FACTS[0], replace(FACTS[0], object="Rome", distractors=())]
    for refused, said in (
        (lambda: learner.memorize(twice, 1), "two objects"),
        (lambda: learner.memorize([], 1), "no facts"),
        (lambda: learner.memorize(FACTS, 0), "epochs is 0"),
        (lambda: learner.generalize(twice, PROMPTS), "two objects"),
        (lambda: learner.generalize(FACTS, []), "0 prompts"),
        (lambda: learner.generalize(FACTS, ["no subject"]), "no subject"),
        (lambda: learner.generalize(FACTS, PROMPTS, loss="s"), "'s'"),
        (lambda: checked([replace(FACTS[0], distractors=("Oslo",))]), "hold its object"),
        (lambda: checked([replace(FACTS[0], distractors=("Lima", "Lima"))]), "one of them twice"),
        (lambda: checked_prompts(["{s} and {s}"]), "once"),
        (lambda: measure(lab_model, FACTS[:1], {"a": PROMPTS}), "1 facts"),
        (lambda: measure(lab_model, [FACTS[0], RoteFact("x", "Oslo")], {"a": PROMPTS}), "without distractors"),
        (lambda: measure(lab_model, FACTS, {}), "no prompts"),
        (lambda: directions(lab_model, ["Ada 0"], "[X]", PROMPTS), "do not begin"),
        (lambda: directions(lab_model, [], "[X]", PROMPTS[:1]), "0 subjects"),
        (lambda: RoteThenGeneralize(lab_model, " "), "key"),
    ):
        with pytest.raises(InputError, match=said.replace("{", r"\{")):
            refused()
    with pytest.raises(CapabilityError, match="logprobs"):
        measure(narrow_door(lab_model, {"text"}), FACTS, {"a": PROMPTS})
