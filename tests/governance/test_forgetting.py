"""Forgetting: the grade follows the clauses, and each clause can fail alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from palimpsest.errors import InputError
from palimpsest.governance.actions.overrides import GuardRule, StoreUpsert
from palimpsest.governance.actions.training import FullUpdate
from palimpsest.governance.forgetting import measure_forgetting
from palimpsest.governance.items import ChangeRequest, FactChange, Kind
from palimpsest.governance.policy import Policy
from palimpsest.training.loop import TrainConfig

# a tiny random model on one in a hundred tokens: what is tested is the logic, at margins that 60 facts can show
POLICY = Policy(membership=0.75, drawdown=0.5)


@pytest.fixture(scope="module")
def sides() -> tuple[list[FactChange], list[FactChange]]:
    """Sixty facts to forget and sixty of the same kind; every value is of one fact alone, so that none is guessed."""
    names = [f"{chr(65 + k % 26)}{'aeiou'[k // 26]}{'lmnrst'[k % 6]}" for k in range(120)]
    facts = [FactChange(name, "home", f"{name} lives in", None, f"{name[::-1].capitalize()}ville") for name in names]
    return facts[::2], facts[1::2]


def learnt(system, known):
    """The system after it learnt the facts by heart."""
    request = ChangeRequest(Kind.ADD, tuple(replace(fact, target=fact.old, old=None) for fact in known))
    config = TrainConfig(70, lr=1e-2, warmup=5, weight_decay=0.0, cpu=True)
    FullUpdate(request, config, batch_size=30).apply(system)
    return system


def test_what_was_never_learnt_is_certified(system, sides):
    forgotten, unseen = sides
    result = measure_forgetting(system, forgotten, unseen, POLICY, before=system.shadow())
    assert result.summary["grade"] == "certified", result.summary
    assert result.table["side"].to_list() == ["forgotten"] * 60 + ["unseen"] * 60


def test_known_facts_fail_and_guarded_ones_are_suppressed(system, sides):
    forgotten, unseen = sides
    before = learnt(system, forgotten).shadow()
    known = measure_forgetting(system, forgotten, unseen, POLICY, before=before)
    assert known.summary["clauses"]["recall_weights"]["forgotten"][0] > 50
    assert set(known.summary["failed"]) == {"recall_answers", "recall_weights", "membership"}
    assert known.summary["grade"] == "failed"
    GuardRule(forgotten).apply(system)
    guarded = measure_forgetting(system, forgotten, unseen, POLICY, before=before)
    assert guarded.summary["clauses"]["recall_answers"]["forgotten"] == [0, 60]
    assert set(guarded.summary["failed"]) == {"recall_weights", "membership"}
    assert guarded.summary["grade"] == "suppressed"


def test_a_row_left_in_the_store_or_a_backup_fails(system, sides):
    forgotten, unseen = sides
    one = forgotten[7]
    store = system.shadow()
    StoreUpsert([replace(one, target=one.old, old=None)]).apply(store)
    StoreUpsert([replace(one, target="Nowhere")]).apply(store)  # the old row is closed, but still there
    result = measure_forgetting(store, forgotten, unseen, POLICY, before=system)
    assert result.summary["failed"] == ["places"]
    assert result.summary["clauses"]["places"]["found"] == [f"store: {one.subject} / home"]
    assert result.summary["grade"] == "failed"
    backup = {"backup": ["nothing here", f"{one.subject} was seen in {one.old}."]}
    result = measure_forgetting(system, forgotten, unseen, POLICY, before=system, places=backup)
    assert result.summary["clauses"]["places"]["found"] == [f"backup: {one.subject} / home"]
    listed = replace(POLICY, places=("backup", "cache"))
    result = measure_forgetting(system, forgotten, unseen, listed, before=system, places={"backup": []})
    assert result.summary["clauses"]["places"]["not_searched"] == ["cache"]
    assert result.summary["grade"] == "failed"


def test_a_ruined_model_has_not_forgotten(system, sides):
    import torch

    before = system.shadow()
    with torch.no_grad():
        system.model.model.lm_head.weight.mul_(3)
    result = measure_forgetting(system, *sides, POLICY, before=before)
    assert "utility" in result.summary["failed"]
    assert result.summary["grade"] == "failed"


def test_an_auc_below_a_half_is_a_leak_too(system, sides):
    forgotten, unseen = sides
    learnt(system, unseen)  # the forgotten ones now stand out by being worse than "never seen" ones
    result = measure_forgetting(system, forgotten, unseen, POLICY, before=system)
    assert result.summary["clauses"]["membership"]["high"] < 0.5
    assert "membership" in result.summary["failed"]


def test_bad_sides(system, sides):
    forgotten, unseen = sides
    for a, b in (
        ([], unseen),
        (forgotten[:1], unseen),
        (forgotten, forgotten),
        ([replace(forgotten[0], target="x", old=None), *forgotten[1:]], unseen),
    ):
        with pytest.raises(InputError, match="unseen facts"):
            measure_forgetting(system, a, b, POLICY, before=system)
