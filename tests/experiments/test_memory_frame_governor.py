"""The governor's half of the memory frame's claim, on a world so small that its model knows next to nothing: that it runs, and what
must hold whatever a model knows."""

from __future__ import annotations

import pytest

from palimpsest.experiments.memory_frame_governor import forgetting, governor, null_comparisons
from palimpsest.experiments.memory_frame_world import CUT, RELATIONS, LabWorld, WorldConfig

SMALL = WorldConfig(seed=5, people=60, forget=30, unseen=30, epochs=1, width=16, heads=2)


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> LabWorld:
    return LabWorld(SMALL, tmp_path_factory.mktemp("world"))


def test_the_three_kinds_of_facts_are_apart(lab):
    kinds = [lab.unseen, lab.to_forget, lab.known]
    assert [len(kind) for kind in kinds] == [30, 30, len(lab.facts) - 60]
    keys = [{(fact.subject, fact.relation) for fact in kind} for kind in kinds]
    assert not keys[0] & keys[1] | keys[0] & keys[2] | keys[1] & keys[2]
    assert all(fact.holds(CUT) and fact.relation in RELATIONS for fact in lab.facts)
    text = " ".join(lab.tokenizer.decode(example.ids) for example in lab.examples(lab.known))
    assert all(lab.world.sentence(fact).removesuffix(".") not in text for fact in [*lab.unseen, *lab.to_forget])
    assert all(lab.world.sentence(fact).removesuffix(".") in text for fact in lab.known)
    assert 1 not in {token for example in lab.examples(lab.facts) for token in example.ids}  # no word is unknown


def test_models_are_trained_once(lab, monkeypatch):
    first, other = lab.model().fingerprint, lab.model(without=True).fingerprint
    monkeypatch.setattr("palimpsest.experiments.memory_frame_world.Trainer", None)
    assert lab.model().fingerprint == first != other
    assert LabWorld(SMALL, lab.cache).model(without=True).fingerprint == other


def test_the_governor_runs_and_every_rollback_is_exact(lab, monkeypatch, tmp_path):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))
    part = governor(lab, seed=5, neighbours=60)
    held = {check.what: check.passed for check in part.checks}
    assert held["hashes after all rollbacks are the first ones"]
    assert held["flipped bytes of the log found at their entry"]
    assert held["store rows of 5 changed facts are admitted"]
    assert len(held) == 8
    assert {row["action"] for row in part.rows} >= {"store", "rome", "full, 30 x learning rate"}


def test_nothing_differs_and_the_z_test_cries_wolf():
    part = null_comparisons(seed=5, runs=150)
    figures = {check.what: check for check in part.checks}
    assert figures["A/A: false alarms of a z-test, looked at after every sample"].passed
    assert figures["A/A: false alarms of the mSPRT, looked at after every sample"].ours <= 0.05


def test_grades_are_given(lab):
    part = forgetting(lab, seed=5)
    assert len(part.rows) == 15
    without = next(row for row in part.rows if row["system"] == "trained without" and row["clause"] == "recall_weights")
    assert without["forgotten"][1] == without["unseen"][1] == 30
