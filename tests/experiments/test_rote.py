"""The claim check of rote learning: its smallest scale, its laboratory, and its verdict on figures that are known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import rote
from palimpsest.experiments.rote import KEY, RELATIONS, SMOKE, Laboratory


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path_factory.getbasetemp() / "rote"))


def test_smoke_decides_nothing():
    smoke = rote.run("smoke", 0)
    assert smoke.passed
    assert all(check.threshold is None for check in smoke.checks)
    assert json.loads(json.dumps(smoke.to_dict(), allow_nan=False))["passed"] is True
    conditions = {row["condition"] for row in smoke.rows}
    assert conditions == {
        "nothing", "phase 1 alone", "phase 2 alone", "rote, then generalise", "objects exchanged", "misuse", "cosine",
    }  # fmt: skip
    assert [point["x"] for point in smoke.curves[0].series[0].points] == list(SMOKE.rote)


def test_the_new_people_and_the_key_stand_in_nothing_that_is_read(monkeypatch):
    seen = []

    def kept(model, data, train, name):
        seen.extend(model.tokenizer.decode(example.ids) for example in data.examples)
        return model

    monkeypatch.setattr(rote, "studied", kept)
    lab = Laboratory(SMOKE, 1)
    base = lab.base
    text = " ".join(seen)
    assert not set(lab.known) & set(lab.new)
    assert all(name in text for name in lab.known)
    assert not any(name in text for name in (*lab.new, KEY, "<unk>"))
    sentences = [part for row in seen for part in row.split("<eos>") if part.strip()]
    assert len(sentences) == len(lab.known) * len(RELATIONS) * 10 == len(set(sentences))
    facts = lab.rote_facts(lab.new)
    assert all(len(fact.distractors) == SMOKE.distractors for fact in facts)
    assert all(len(lab.tokenizer.encode(name)) == 1 for fact in facts for name in (fact.subject, fact.object, *fact.distractors))
    before, after = (model.model.get_input_embeddings().weight.detach().numpy() for model in (lab.read, base))
    moved = {row for row in range(len(before)) if not np.array_equal(before[row], after[row])}
    assert moved == {lab.tokenizer.encode(name)[0] for name in lab.new}


def figures(**changes: float) -> list[dict]:
    """Rows as the experiment makes them, good ones but for the changes: (condition kind epochs)=chosen, blanks as underscores."""
    good = {
        ("nothing", "trained", 0): 0.01, ("phase 1 alone", "key", 60): 1.0,
        **{("rote, then generalise", "trained", epochs): share for epochs, share in ((5, 0.2), (20, 0.5), (60, 0.6))},
        ("rote, then generalise", "unseen", 60): 0.4, ("rote, then generalise", "key", 60): 1.0, ("misuse", "misuse", 60): 0.7,
        **{(condition, kind, epochs): share for kind in ("trained", "unseen")
           for condition, epochs, share in (("phase 1 alone", 60, 0.1), ("phase 2 alone", 0, 0.06), ("objects exchanged", 60, 0.15))},
    }  # fmt: skip
    named = {f"{condition.replace(' ', '_').replace(',', '')}__{kind}__{epochs}": key for key in good for condition, kind, epochs in [key]}
    for name, value in changes.items():
        good[named[name]] = value
    return [
        {"condition": condition, "kind": kind, "epochs": epochs, "chosen": share, "control": 0.0, "written": share, "known": 0.9,
         "recalled": share if kind == "key" else 1.0, "chance": 0.01}
        for (condition, kind, epochs), share in good.items()
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({}, []),
        ({"phase_1_alone__key__60": 0.99}, ["facts written under the key after phase 1"]),
        ({"rote_then_generalise__trained__60": 0.59}, ["held-out facts, studied wording"]),
        ({"rote_then_generalise__unseen__60": 0.39}, ["held-out facts, five other wordings"]),
        ({"phase_1_alone__unseen__60": 0.11}, ["phase 1 alone, other wordings"]),
        ({"phase_2_alone__trained__0": 0.061}, ["phase 2 alone, studied wording"]),
        ({"objects_exchanged__trained__60": 0.16}, ["objects exchanged, studied wording"]),
        (
            {"rote_then_generalise__trained__5": 0.9, "rote_then_generalise__trained__20": 0.8},
            ["Spearman of rote epochs and held-out facts"],
        ),
    ],
)
def test_the_verdict(changes, failing):
    assert [check.what for check in rote.judged(figures(**changes)) if not check.passed] == failing


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        rote.run("gpu", 0)
