"""Thresholds, requests, conflicts and routes: data that is checked, with hashes that follow the content."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.corpus.factworld import FactWorld
from palimpsest.errors import InputError
from palimpsest.governance.items import ChangeRequest, ConflictRule, FactChange, Kind, MemoryItem
from palimpsest.governance.policy import Policy
from palimpsest.governance.router import route, rules

FACT = FactChange(
    "Ada", "home", "Ada lives in", "Rome", "Paris", paraphrases=("The home of Ada is in",), neighbours=(("Bo lives in", "Oslo"),)
)


def update(*facts: FactChange, **options) -> ChangeRequest:
    return ChangeRequest(Kind.UPDATE, facts or (FACT,), **options)


def test_a_policy_goes_through_files_and_its_hash_follows_every_threshold(tmp_path):
    policy = Policy(locality=0.9, stages=(0.1, 1.0), trust=(("desk", 2), ("web", 0)))
    (tmp_path / "p.json").write_text(json.dumps(policy.to_dict()))
    (tmp_path / "p.toml").write_text("locality = 0.9\nstages = [0.1, 1]\n[trust]\ndesk = 2\nweb = 0\n")
    assert Policy.load(tmp_path / "p.json") == policy == Policy.load(tmp_path / "p.toml")
    changed = {
        "stages": (1.0,),
        "places": ("backup",),
        "trust": (("x", 1),),
        "leaks": 1,
        "min_sample": 7,
        "latency": 3.0,
        "volatile_days": 5,
        "edit_max": 5,
    }
    hashes = {replace(policy, **{name: changed.get(name, 0.5 if name != "holdout" else 0.3)}).hash for name in policy.to_dict()}
    assert len(hashes) == len(policy.to_dict())
    assert policy.hash not in hashes


def test_all_that_is_wrong_with_a_policy_is_said():
    with pytest.raises(InputError, match=r"locality = 1.5.*alpha = 0.*stages = \(0.5, 0.2, 1.0\)"):
        Policy(locality=1.5, alpha=0, stages=(0.5, 0.2, 1.0))
    with pytest.raises(InputError, match="holdout"):
        Policy(stages=(0.5, 0.99, 1.0))
    with pytest.raises(InputError, match="'localty'"):
        Policy.from_dict({"localty": 0.9})
    with pytest.raises(InputError, match="wrong type"):
        Policy.from_dict({"locality": "high"})


def test_text_is_no_list_of_texts():
    with pytest.raises(InputError, match="places"):
        Policy(places="abc")
    with pytest.raises(InputError, match="texts"):
        ChangeRequest(Kind.BEHAVIOUR, texts="abc")


@pytest.mark.parametrize(
    "values",
    [
        {"min_sample": float("nan")},
        {"min_sample": 20.5},
        {"min_sample": float("inf")},
        {"locality": True},
        {"drawdown": float("inf")},
        {"edit_max": float("nan")},
        {"latency": 10**400},
        {"stages": "ab"},
        {"stages": [float("nan"), 1.0]},
        {"stages": [True]},
        {"places": "abc"},
        {"places": [{"a": 1}]},
        {"places": ["\ud800"]},
        {"trust": {"a": "x"}},
        {"trust": {"a": float("nan")}},
        {"trust": [["a", 1], ["a", 2]]},
        {"leaks": "3"},
        {"alpha": None},
    ],
)
def test_a_policy_of_the_wrong_types(values):
    with pytest.raises(InputError, match="wrong type"):
        Policy.from_dict(values)


def test_a_policy_file_that_is_none(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="cannot be read"):
        Policy.load(tmp_path / "deep.json")
    (tmp_path / "p.toml").write_text("locality = ")
    (tmp_path / "p.json").write_text("[1]")
    for name, problem in (("p.toml", "cannot be read"), ("p.json", "list"), ("none.json", "cannot be read")):
        with pytest.raises(InputError, match=problem):
            Policy.load(tmp_path / name)


def test_a_request_goes_through_json_and_its_hash_follows_the_content():
    request = update(replace(FACT, valid_from=date(2024, 1, 1)), owner="desk", expected_days=3)
    again = ChangeRequest.from_dict(json.loads(json.dumps(request.to_dict())))
    assert again == request
    assert again.hash == request.hash != update(owner="desk", expected_days=3).hash


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"kind": "update"}, "changes nothing"),
        ({"kind": "delete", "facts": []}, "not a request"),
        ({"facts": []}, "not a request"),
        ({"kind": "update", "facts": [{"subject": "Ada"}]}, "not a change of a fact"),
        ({"kind": "update", "facts": [{**FACT.to_dict(), "prompt": "Bo lives in"}]}, "does not name its subject"),
        ({"kind": "update", "facts": [{**FACT.to_dict(), "target": "Paris"}]}, "from 'Paris' to 'Paris'"),
        ({"kind": "update", "facts": [FACT.to_dict()] * 2}, "more than once"),
        ({"kind": "forget", "facts": [FACT.to_dict()]}, "says otherwise"),
        ({"kind": "update", "facts": [{**FACT.to_dict(), "valid_from": "2024-02-30"}]}, "not a change of a fact"),
        ({"kind": "update", "facts": [{**FACT.to_dict(), "valid_from": "2024-02-03", "valid_to": "2024-02-01"}]}, "end after it began"),
        ({"kind": "update", "facts": [FACT.to_dict()], "sensitivity": "secret"}, "sensitivity"),
        ({"kind": "update", "facts": [FACT.to_dict()], "attributed": "false"}, "attributed = 'false'"),
        ({"kind": "update", "facts": [FACT.to_dict()], "scope": "no"}, "scope = 'no'"),
        ({"kind": "update", "facts": [FACT.to_dict()], "owner": float("nan")}, "owner = nan"),
        ({"kind": "update", "facts": [FACT.to_dict()], "source": ["a"]}, "source"),
        ({"kind": "update", "facts": [FACT.to_dict()], "expected_days": "soon"}, "expected_days"),
        ({"kind": "update", "facts": [FACT.to_dict()], "expected_days": float("inf")}, "expected_days"),
        ({"kind": "update", "facts": [FACT.to_dict()], "supersedes": 3}, "supersedes"),
        ({"kind": "update", "facts": {"a": 1}}, "not a list"),
        ({"kind": "behaviour", "texts": "abc"}, "not a list"),
        ({"kind": "behaviour", "texts": ["a", 5]}, "texts"),
        ({"kind": "update", "facts": [{**FACT.to_dict(), "target": 5}]}, "5 where text belongs"),
        ({"kind": "update", "facts": [{**FACT.to_dict(), "old": 7}]}, "7 where text belongs"),
        ({"kind": "update", "facts": [{**FACT.to_dict(), "target": "\ud800"}]}, "where text belongs"),
        ({"kind": "update", "facts": [{**FACT.to_dict(), "neighbours": ["ab"]}]}, "no pair"),
        ({"kind": "update", "facts": [{**FACT.to_dict(), "paraphrases": "Ada"}]}, "not a list"),
    ],
)
def test_bad_requests(row, problem):
    with pytest.raises(InputError, match=problem):
        ChangeRequest.from_dict(row)


def test_a_change_in_a_made_up_world():
    world = FactWorld(seed=2, people=30)
    fact = world.facts("residence")[0]
    change = FactChange.from_world(world, fact, "Elsewhere", cues=(4,), neighbours=10, since=world.end)
    assert change.prompt == world.cue(fact)
    assert (change.valid_from, change.cues) == (world.end, (world.cue(fact, 4),))
    assert {world.cue(fact, k) for k in (1, 2, 3)} == set(change.paraphrases)
    assert len(change.neighbours) == 10
    assert all(fact.subject in cue or "lives in" in cue for cue, _ in change.neighbours)
    assert world.cue(fact) not in [cue for cue, _ in change.neighbours]


DAY = st.one_of(st.none(), st.integers(0, 9).map(lambda k: date(2020, 1, 1) + timedelta(days=k)))


@given(a=st.tuples(DAY, DAY), b=st.tuples(DAY, DAY))
def test_overlap_is_a_common_day(a, b):
    if any(x and y and y <= x for x, y in (a, b)):
        return
    one, two = (replace(FACT, valid_from=x, valid_to=y) for x, y in (a, b))
    days = [date(2019, 12, 1) + timedelta(days=k) for k in range(80)]
    both = [day for day in days if all((x or date.min) <= day < (y or date.max) for x, y in (a, b))]
    assert one.overlaps(two) == two.overlaps(one) == bool(both)


def test_conflicts_are_settled_by_trust_or_left_to_a_person():
    rule = ConflictRule({"registry": 2, "desk": 1})
    item = MemoryItem("home-1", update(source="desk"))
    other = replace(FACT, target="Bonn")
    for source, resolved in (("registry", True), ("desk", True), ("web", False)):
        [conflict] = rule.conflicts(update(other, source=source), [item])
        assert (conflict.item, conflict.new, conflict.old, conflict.resolved) == ("home-1", "Bonn", "Rome", resolved)
    assert rule.conflicts(update(source="web"), [item]) == []  # the same value is no conflict
    later, earlier = replace(other, valid_from=date(2024, 1, 1)), replace(FACT, valid_to=date(2024, 1, 1))
    assert rule.conflicts(update(later), [MemoryItem("x", update(earlier))]) == []
    assert rule.conflicts(update(other, source="web", supersedes="home-1"), [item])[0].resolved


def test_every_request_has_a_route_and_every_rule_is_reached():
    policy = Policy(edit_max=2)
    facts = [replace(FACT, subject=f"Ada{k}", prompt=f"Ada{k} lives in", paraphrases=()) for k in range(3)]
    reached = set()
    for kind, n, days, attributed, scope in itertools.product(Kind, range(4), (None, 5, 900), (True, False), (True, False)):
        chosen = tuple(replace(fact, target=None) if kind is Kind.FORGET else fact for fact in facts[:n])
        if n == 0 and kind in (Kind.ADD, Kind.UPDATE, Kind.FORGET):
            continue
        found = route(ChangeRequest(kind, chosen, ("text",), expected_days=days, attributed=attributed, scope=scope), policy)
        reached.add(found.rule)
        if kind in (Kind.ADD, Kind.UPDATE):
            assert (found.actions[0] == "store") == (days == 5 or attributed or not scope)
    assert reached == set(rules())


def test_routes_of_the_paper():
    few = [replace(FACT, subject=f"Ada{k}", prompt=f"Ada{k} lives in", paraphrases=()) for k in range(3)]
    assert route(update(), Policy()).actions[0] == "rome"
    assert route(update(*few), Policy()).actions[0] == "memit"
    assert route(update(*few), Policy(edit_max=2)).actions[0] == "lora"
    forget = route(ChangeRequest(Kind.FORGET, (replace(FACT, target=None),)), Policy())
    assert forget.joint
    assert {"store_delete", "guard"} < set(forget.actions)
