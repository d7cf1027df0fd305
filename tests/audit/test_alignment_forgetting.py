"""The audit of a model before and after further training, on tiny models and against what they write."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from palimpsest.audit.alignment_forgetting import Probes, Writing, audit_alignment
from palimpsest.audit.choices import Choice, answer_choices
from palimpsest.audit.repetition import repetition
from palimpsest.continual import FreezeLayers, Full, trained_on
from palimpsest.errors import InputError
from palimpsest.experiments import cpt_forgetting_audit
from palimpsest.training.batch import RowBatches
from palimpsest.training.loop import TrainConfig


class ByLength:
    """An identifier: texts of an even number of letters are in one language."""

    def identify(self, texts):
        return [None if not text else ("even", "odd")[len(text) % 2] for text in texts]


QUESTIONS = [Choice("the word was", (" written", " a fox")), Choice("and what", (" was", " dog", " is"), (0, 2))]
PROBES = Probes(
    prompts={"a": ["the quick", "jumps over", "the word"], "b": ["sheep were counted", "both hands"]},
    identifier=ByLength(),
    knowledge={"small": QUESTIONS[:1], "large": QUESTIONS},
    truth=QUESTIONS,
    toxic=["you are", "they are"],
    judge=lambda texts: [len(text) % 2 for text in texts],
    groups={"x": ["the fox"], "y": ["the dog", "a dog"]},
    sentiment=lambda texts: [len(text) / 100 for text in texts],
)
WRITING = Writing(max_new_tokens=9, seed=3)


@pytest.fixture(scope="module")
def after(tiny_model):
    rows = np.random.default_rng(0).integers(2, 300, (8, 24))
    return trained_on(tiny_model, RowBatches(rows, 4), TrainConfig(4, lr=1e-2, cpu=True), Full(), "after")


def test_every_figure_is_that_of_what_was_written(tiny_model, after):
    found = audit_alignment(tiny_model, after, PROBES, writing=WRITING)
    for when, model in (("before", tiny_model), ("after", after)):
        figures = found.summary[when]
        rows = [row for row in found.table.to_dicts() if row["model"] == when]
        prompts = [(group, prompt) for group, texts in PROBES.prompts.items() for prompt in texts]
        asked = [tiny_model.tokenizer.encode(prompt) for _, prompt in prompts]
        answers = [found[0] for found in model.generate(asked, 9, temperature=0.1, top_p=0.9, seed=3)]
        texts = [model.tokenizer.decode(answer.tolist()) for answer in answers]
        mine = [row for row in rows if row["suite"] == "prompts"]
        assert [(row["group"], row["prompt"], row["answer"]) for row in mine] == [(*p, t) for p, t in zip(prompts, texts, strict=True)]
        assert [row["limit"] for row in mine] == [len(answer) == 9 for answer in answers]
        languages = ByLength().identify(texts)
        for group in "ab":
            own = [language for language, (g, _) in zip(languages, prompts, strict=True) if g == group]
            assert figures["language"].get(f"{group} answered in odd", 0) == pytest.approx(own.count("odd") / len(own))
            assert sum(share for name, share in figures["language"].items() if name.startswith(group)) == pytest.approx(1)
        whole = [np.concatenate([prompt, answer]) for prompt, answer in zip(asked, answers, strict=True)]
        for n in (4, 8, 12, 16, 20):
            assert figures["repetition"][f"rep_{n}"] == repetition(whole, n).mean
        assert figures["repetition"]["rep_4 of the answer"] == repetition(answers, 4).mean
        assert figures["repetition"]["rep_4, b"] == repetition(whole[3:], 4).mean
        assert figures["knowledge"] == {
            "small": answer_choices(model, QUESTIONS[:1])["correct"].mean(),
            "large": answer_choices(model, QUESTIONS)["correct"].mean(),
        }
        assert figures["truth"]["mc2"] == pytest.approx(answer_choices(model, QUESTIONS)["mc2"].mean())
        toxic = [row["answer"] for row in rows if row["suite"] == "toxicity"]
        assert figures["toxicity"]["toxic"] == np.mean([len(text) % 2 for text in toxic])
        means = {g: np.mean([len(row["answer"]) / 100 for row in rows if (row["suite"], row["group"]) == ("bias", g)]) for g in "xy"}
        assert figures["bias"] == pytest.approx({**means, "spread": abs(means["x"] - means["y"])})
        assert found.summary["counted"][when] == {"answers": 5, "rep_4": sum(len(row) >= 4 for row in whole)}
    for suite, change in found.summary["change"].items():
        for name, value in change.items():
            then, now = (found.summary[when][suite].get(name, 0.0) for when in ("before", "after"))
            assert value == (None if None in (then, now) else pytest.approx(now - then)), (suite, name)
    drift = found.summary["after"]["drift"]
    assert drift["weights, least"] < drift["weights"] < 1
    assert drift["layer 2"] < 1


def test_a_model_beside_itself_has_lost_nothing(tiny_model):
    change = audit_alignment(tiny_model, tiny_model, PROBES, writing=WRITING).summary["change"]
    assert {value for suite in change.values() for value in suite.values()} <= {0.0, None}


def test_a_frozen_layer_does_not_drift(tiny_model):
    rows = np.random.default_rng(0).integers(2, 300, (8, 24))
    frozen = trained_on(tiny_model, RowBatches(rows, 4), TrainConfig(2, lr=1e-2, cpu=True), FreezeLayers(first=1))
    drift = audit_alignment(tiny_model, frozen, Probes(prompts={"a": ["the fox"]}), ["drift"]).summary["after"]["drift"]
    assert drift["weights"] < 1
    ours, theirs = (dict(model.model.named_parameters()) for model in (tiny_model, frozen))
    assert all(np.array_equal(ours[n].detach(), theirs[n].detach()) for n in ours if ".layers.0." in n)


def test_the_papers_reading(tiny_model):
    few = replace(PROBES, prompts={"a": ["a"]}, knowledge={}, truth=(), toxic=(), groups={})
    writing = Writing(max_new_tokens=2)
    own, paper = (
        audit_alignment(tiny_model, tiny_model, few, writing=replace(writing, paper=paper)).summary["before"] for paper in (False, True)
    )
    assert own["repetition"]["rep_8"] is None
    assert paper["repetition"]["rep_8"] == 0
    seen = []
    spy = type("Spy", (), {"identify": lambda self, texts: seen.extend(texts) or ["en"] * len(texts)})()
    audit_alignment(tiny_model, tiny_model, replace(few, identifier=spy), writing=replace(writing, paper=True))
    assert seen[0].startswith("a")


def test_what_is_asked_for_must_be_there(tiny_model, other_model):
    with pytest.raises(InputError, match="no suite 'wit'"):
        audit_alignment(tiny_model, tiny_model, PROBES, ["wit"])
    with pytest.raises(InputError, match=r"'toxicity' has nothing to ask with.*Give Probes\(toxic and judge"):
        audit_alignment(tiny_model, tiny_model, Probes(prompts={"a": ["x"]}), ["toxicity"])
    with pytest.raises(InputError, match="nothing to ask"):
        audit_alignment(tiny_model, tiny_model, Probes())
    with pytest.raises(InputError, match="'b' has no prompts"):
        audit_alignment(tiny_model, tiny_model, Probes(prompts={"a": ["x"], "b": []}))
    with pytest.raises(InputError, match="1 scores for 2 texts"):
        audit_alignment(tiny_model, tiny_model, replace(PROBES, judge=lambda texts: [0.5]), ["toxicity"], WRITING)
    with pytest.raises(InputError, match="different parameters"):
        audit_alignment(tiny_model, other_model, PROBES, ["drift"])


def test_the_claims_smoke_run():
    claim = cpt_forgetting_audit.run("smoke", 0)
    assert claim.passed
    assert [row["model"] for row in claim.rows][:2] == ["before", "full"]
    assert claim.rows[1]["weights"] < 1
