"""The store with two times against a search day by day; saved versions to the bit, and what happens when their weights are gone."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, timedelta

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.errors import EditFailedError, InputError, WeightsMissingError
from palimpsest.governance.actions.overrides import GuardRule, Joint, StoreDelete, StoreUpsert
from palimpsest.governance.actions.store import FactStore
from palimpsest.governance.items import FactChange
from palimpsest.governance.system import System
from palimpsest.governance.versions import Versions
from palimpsest.models import HFModel

FACT = FactChange("Ada", "home", "Ada lives in", "Rome", "Paris", cues=("The home of Ada is in",))
DAYS = [date(2020, 1, 1) + timedelta(days=k) for k in range(8)]
SPAN = st.tuples(st.one_of(st.none(), st.integers(0, 7)), st.one_of(st.none(), st.integers(0, 7)))


# --- the store ----------------------------------------------------------------------------------------------------------------------


@given(writes=st.lists(st.tuples(st.sampled_from(["Rome", "Oslo", "Bonn", None]), SPAN), max_size=6))
def test_both_times_against_a_table_of_days(writes):
    store, table, believed = FactStore(), dict.fromkeys(DAYS), []
    for value, (a, b) in writes:
        since, until = (None if k is None else DAYS[k] for k in (a, b))
        if since and until and until <= since:
            continue
        store.upsert([replace(FACT, target=value, valid_from=since, valid_to=until)])
        table |= {day: value for day in DAYS if (since or date.min) <= day < (until or date.max)}
        believed.append((store.transactions - 1, dict(table)))
    for transaction, days in believed:
        found = {day: store.value("Ada", "home", day, transaction) for day in DAYS}
        assert {day: row.value if row else None for day, row in found.items()} == days
    assert all(len([r for r in store.as_of() if r.span[0] <= day < r.span[1]]) <= 1 for day in DAYS)
    assert FactStore.from_list(store.to_list()).hash == store.hash


@given(writes=st.lists(st.tuples(st.sampled_from(["Rome", "Oslo", None]), SPAN), min_size=1, max_size=5))
def test_undo_is_exact(writes):
    store, hashes = FactStore(), []
    for value, (a, b) in writes:
        since, until = (None if k is None else DAYS[k] for k in (a, b))
        if since and until and until <= since:
            continue
        before, rows = store.transactions, store.hash
        store.upsert([replace(FACT, target=value, valid_from=since, valid_to=until)])
        if store.transactions > before:
            hashes.append(rows)
    for digest in reversed(hashes):
        store.undo(store.transactions - 1)
        assert store.hash == digest
    with pytest.raises(InputError, match="not the last"):
        store.undo(5)


def test_what_is_in_scope():
    store = FactStore()
    job = FactChange("Ada", "job", "Ada works as a", "smith", "miller")
    store.upsert([FACT, job])
    for prompt, value in (
        ("Ada lives in", "Rome"),
        ("The home of Ada is in", "Rome"),
        ("the home of Ada is in", "Rome"),
        ("Ada works as a", "smith"),
        ("Adam lives in", None),
        ("Bo lives in", None),
        ("Ada was born in the year", None),
        ("Ada", None),
        ("today Ada lives in", "Rome"),
        ("Ada Byron lives in", None),
        ("Mary Ada lives in", None),
        ("Ada-Marie lives in", None),
        ("The home of Ada and Bo is in", None),
        ("The home of Ada's aunt is in", None),
        ("Ada never lives in", None),
        ("The home of Ada isn't in", None),
    ):
        row = store.lookup(prompt)
        assert (row.value if row else None) == value, prompt


def test_purge_leaves_nothing_to_find():
    store = FactStore()
    store.upsert([FACT])
    store.upsert([replace(FACT, target="Oslo", old="Rome")])
    assert store.search("Rome")
    removed = store.purge([replace(FACT, target=None, old="Rome")])
    assert [row.value for row in removed] == ["Rome"]
    assert not store.search("Rome")
    assert store.lookup("Ada lives in").value == "Oslo"


# --- actions that leave the weights alone -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["store", "delete", "guard", "joint"])
def test_overrides_and_their_way_back(system, which):
    StoreUpsert([replace(FACT, target="Paris", old=None)]).apply(system)
    forget = replace(FACT, target=None, old="Paris")
    action = {
        "store": StoreUpsert([FACT]),
        "delete": StoreDelete([forget]),
        "guard": GuardRule([forget]),
        "joint": Joint([StoreDelete([forget]), GuardRule([forget]), StoreUpsert([FACT])]),
    }[which]
    before, said = system.state, system.answers([FACT.prompt, "Bo lives in"], 3)
    handle = action.apply(system)
    assert system.state != before
    if which in ("store", "joint"):
        assert system.answers([FACT.prompt], 3)[0] == (" Rome", "store")
        assert system.prefers([FACT.prompt, FACT.cues[0]], ["Rome"] * 2, ["Paris"] * 2).all()
    if which == "delete":
        assert system.answers([FACT.prompt], 3)[0].source == "model"
    action.revert(system, handle)
    assert system.state == before
    assert system.answers([FACT.prompt, "Bo lives in"], 3) == said


def test_a_joint_action_is_done_whole_or_not_at_all(system):
    before = system.state

    class Fails(StoreUpsert):
        def _apply(self, system, handle):
            super()._apply(system, handle)
            raise EditFailedError("It does not take.")

    with pytest.raises(EditFailedError, match="does not take"):
        Joint([StoreUpsert([FACT]), GuardRule([replace(FACT, target=None)]), Fails([FACT])]).apply(system)
    assert system.state == before


def test_a_row_that_answers_nothing_does_not_take(system):
    before = system.state
    with pytest.raises(EditFailedError, match="answers 'Adam lives in' with None, not with 'Rome'"):
        StoreUpsert([FACT, replace(FACT, prompt="Adam lives in", relation="stay", cues=())]).apply(system)
    assert system.state == before
    StoreUpsert([replace(FACT, valid_to=date(2001, 1, 1))]).apply(system)  # asked as of its own time


def test_a_guard_blocks_the_value_after_this_subject_alone(system):
    prompts = ["Ada lives in", "Bo lives in"]
    free = [answer.text for answer in system.answers(prompts, 4)]
    for prompt, subject in zip(prompts, ("Ada", "Bo"), strict=True):
        guarded = system.shadow()
        value = free[prompts.index(prompt)].strip()
        GuardRule([FactChange(subject, "home", prompt, None, value)]).apply(guarded)
        after = [answer.text for answer in guarded.answers(prompts, 4)]
        for k in (0, 1):
            if prompts[k] == prompt:
                assert not after[k].strip().startswith(value)  # nor in smaller tokens
            else:
                assert after[k] == free[k]


def test_a_guard_needs_the_old_value(system):
    with pytest.raises(InputError, match="must not be written"):
        GuardRule([replace(FACT, old=None)])
    with pytest.raises(InputError, match="no facts"):
        StoreUpsert([])
    with pytest.raises(InputError, match="no parts"):
        Joint([])


# --- versions -----------------------------------------------------------------------------------------------------------------------


def disturb(system, name: str | None = None) -> str:
    """Changes one tensor; returns its name."""
    parameters = dict(system.model.model.named_parameters())
    name = name or next(n for n in parameters if n.endswith("down_proj.weight"))
    with torch.no_grad():
        parameters[name].mul_(1.5)
    return name


def test_restore_is_exact(system, tmp_path):
    versions = Versions(tmp_path)
    state, first = system.state, versions.save(system)
    name = disturb(system)
    StoreUpsert([FACT]).apply(system)
    GuardRule([replace(FACT, target=None)]).apply(system)
    changed, second = system.state, versions.save(system)
    assert len({*state.items(), *changed.items()}) == 6
    assert versions.changed(first, second) == [name]
    for version, wanted in ((first, state), (second, changed), (first, state)):
        versions.restore(version, system)
        assert system.state == wanted
        assert versions.identify(system) == version
    blobs = list((tmp_path / "blobs").glob("*.safetensors"))
    tensors = len(system.model.model.state_dict())
    assert len(blobs) <= tensors + 1  # what both share is there once
    assert versions.save(system) == first


@pytest.mark.parametrize("damage", ["gone", "flipped", "short", "manifest", "store"])
def test_a_version_with_missing_weights_leaves_the_system_alone(system, tmp_path, damage):
    versions = Versions(tmp_path)
    first = versions.save(system)
    disturb(system)
    StoreUpsert([FACT]).apply(system)
    second = versions.save(system)
    [name] = versions.changed(first, second)
    manifest = json.loads((tmp_path / f"{first}.json").read_text())
    blob = tmp_path / "blobs" / f"{manifest['tensors'][name]}.safetensors"
    state = system.state
    if damage == "gone":
        blob.unlink()
    elif damage == "flipped":
        data = bytearray(blob.read_bytes())
        data[-1] ^= 1
        blob.write_bytes(data)
    elif damage == "short":
        blob.write_bytes(blob.read_bytes()[:-3])
    elif damage == "manifest":
        (tmp_path / f"{first}.json").write_text("{}")
    else:
        (tmp_path / "blobs" / f"{manifest['store']}.json").write_text("[{}]")
    problem = {"manifest": "no whole version", "store": "the store", "gone": f"{name}.*are missing"}.get(damage, f"{name}.*are damaged")
    with pytest.raises(WeightsMissingError, match=problem):
        versions.restore(first, system)
    assert system.state == state


def test_a_version_of_another_model(system, other_model, tmp_path):
    versions = Versions(tmp_path)
    first = versions.save(system)
    assert isinstance(other_model, HFModel)
    with pytest.raises(InputError, match="another model"):
        versions.restore(first, System.of(other_model))
