"""The loop from proposal to rollback: what is legal, what is measured, what the log says, and what goes wrong."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
import torch
from tests.governance.conftest import change

from palimpsest.errors import EditFailedError, IllegalTransition, InputError, LedgerBrokenError, ModelNotFoundError, WeightsMissingError
from palimpsest.governance.actions.base import Action, keep_weights
from palimpsest.governance.actions.factory import make_action
from palimpsest.governance.items import ChangeRequest, Kind
from palimpsest.governance.loop import Governor
from palimpsest.governance.monitor import Observation, rate_e_process, stability_index, watch
from palimpsest.governance.policy import Policy
from palimpsest.governance.record import LEGAL, State, session_place

POLICY = Policy(min_sample=20, stages=(0.01, 0.25, 1.0))


class Scale(Action):
    """Multiplies one matrix: a change of the weights whose effect one can choose."""

    name = "scale"
    memory = None
    factor = 1.0

    def __init__(self, request):
        pass

    def _apply(self, system, handle):
        name = "lm_head.weight"
        keep_weights(system, handle, [name])
        with torch.no_grad():
            dict(system.model.model.named_parameters())[name].mul_(self.factor)


class Refuses(Scale):
    name = "refuses"

    def _apply(self, system, handle):
        super()._apply(system, handle)
        raise EditFailedError("The edit does not take: 'Paris' is still preferred.", "Choose another layer.")


class Wrecks(Scale):
    factor = 4.0


def actions(name, request):
    return {"refuses": Refuses, "wrecks": Wrecks}[name](request) if name in ("refuses", "wrecks") else make_action(name, request)


@pytest.fixture
def governor(system, tmp_path) -> Governor:
    return Governor.init(tmp_path / "g", system, POLICY, actor="tester", actions=actions)


def seen(governor, item: str, n: int = 30, right: bool = True) -> list[Observation]:
    """Observations of sessions that see the item."""
    names = (f"session-{k}" for k in itertools.count())
    return [Observation(name, right, True) for name in itertools.islice((s for s in names if governor.sees(item, s)), n)]


def to_full(governor, item: str) -> None:
    governor.admit(item)
    while governor.position(item).state is not State.FULL:
        governor.rollout(item)
        if governor.position(item).state is State.CANARY:
            governor.monitor(item, seen(governor, item))


def test_from_proposal_to_full_and_back(governor, request_):
    before, first = governor.system.state, governor.live()
    item = governor.propose(request_)
    result = governor.admit(item)
    assert result.summary["admitted"], result.summary
    assert (result.summary["reversibility"], result.summary["cost"]["backward"]) == ("exact", 0)
    assert governor.system.state == before  # tried on a shadow
    to_full_states = [governor.position(item).state]
    shares = []
    while governor.position(item).state is not State.FULL:
        place = governor.rollout(item)
        shares.append(place.share)
        to_full_states.append(place.state)
        if place.state is State.CANARY:
            assert governor.system.state == before
            with pytest.raises(InputError, match="observed in 0 sessions"):
                governor.rollout(item)
            governor.monitor(item, seen(governor, item))
    assert shares == [0.01, 0.25, 1.0]
    assert to_full_states == [State.ADMITTED, State.CANARY, State.CANARY, State.FULL]
    assert governor.system.says(["Ada lives in"], ["Rome"])[0]
    assert governor.live() != first
    place = governor.rollback(item, "by command")
    assert place.state is State.ROLLED_BACK
    assert governor.system.state == before
    assert governor.live() == first
    entries = governor.ledger.entries()
    moves = [(e["from"], e["to"]) for e in entries if e["event"] == "transition"]
    states = [None, "proposed", "admitted", "canary", "canary", "full", "rolled_back"]
    assert moves == list(itertools.pairwise(states))
    assert {e["policy"] for e in entries} == {POLICY.hash}
    assert entries[-1]["seconds_to_restore"] >= 0
    assert {e["actor"] for e in entries} == {"tester"}
    assert (governor.folder / "evidence" / f"{entries[2]['evidence']}.json").is_file()


def test_no_other_transition_is_legal(governor, request_, tmp_path):
    moves = {
        State.ADMITTED: lambda item: governor.admit(item),
        State.CANARY: lambda item: governor.rollout(item),
        State.ROLLED_BACK: lambda item: governor.rollback(item),
        State.EXPIRED: lambda item: governor.expire(item),
    }
    item = governor.propose(request_)
    for state in State:
        for to, move in moves.items():
            if to in LEGAL.get(state, ()) or (to is State.CANARY and State.FULL in LEGAL.get(state, ())):
                continue
            governor.ledger.append(
                {
                    "event": "transition",
                    "item": item,
                    "from": None,
                    "to": state,
                    "share": 0.5,
                    "before": None,
                    "after": None,
                    "request": "x",
                }
            )
            length = governor.ledger.verify()
            with pytest.raises(IllegalTransition, match=f"{item} is {state}"):
                move(item)
            assert governor.ledger.verify() == length


def test_a_change_that_wrecks_the_model_is_rejected(governor, request_):
    item = governor.propose(request_)
    before = governor.system.state
    result = governor.admit(item, "wrecks")
    assert not result.summary["admitted"]
    assert "drawdown" in result.summary["failed"]
    assert governor.position(item).state is State.REJECTED
    assert governor.system.state == before
    assert "drawdown" in governor.ledger.entries()[-1]["rule"]
    with pytest.raises(IllegalTransition):
        governor.rollout(item)


def test_an_edit_that_does_not_take_is_rejected_with_its_reason(governor, request_):
    item, before = governor.propose(request_), governor.system.state
    result = governor.admit(item, "refuses")
    assert "does not take" in result.summary["error"]
    assert governor.position(item).state is State.REJECTED
    assert "does not take" in governor.ledger.entries()[-1]["rule"]
    assert governor.ledger.verify() == 3
    assert governor.system.state == before


def test_a_breach_at_a_quarter_is_rolled_back(governor, request_):
    item, before = governor.propose(request_), governor.system.state
    governor.admit(item)
    governor.rollout(item)
    governor.monitor(item, seen(governor, item))
    governor.rollout(item)
    assert governor.position(item).share == 0.25
    result = governor.monitor(item, seen(governor, item, 60, right=False))
    assert result.summary["breach"]["rate"] == "harm"
    assert governor.position(item).state is State.ROLLED_BACK
    assert governor.ledger.entries()[-1]["rule"] == "breach of harm"
    assert governor.system.state == before
    assert governor.version_for("anyone") == governor.live()


def test_rollback_without_the_weights_is_refused_and_the_log_stays_whole(governor, request_):
    item = governor.propose(request_)
    to_full(governor, item)
    running, place, length = governor.system.state, governor.position(item), governor.ledger.verify()
    (governor.versions.folder / f"{place.parent}.json").unlink()
    with pytest.raises(WeightsMissingError, match="no whole version"):
        governor.rollback(item)
    assert governor.system.state == running
    assert governor.position(item) == place
    assert governor.ledger.verify() == length + 1
    last = governor.ledger.entries()[-1]
    assert last["event"] == "rollback failed"
    assert "no whole version" in last["details"]["error"]


def test_sessions_are_dealt_by_their_hash(governor, request_):
    item = governor.propose(request_)
    governor.admit(item)
    names = [f"s{k}" for k in range(4000)]
    assert not any(governor.sees(item, name) for name in names)
    governor.rollout(item)
    first = {name for name in names if governor.sees(item, name)}
    assert all(governor.version_for(name) == governor.position(item).version for name in first)
    governor.monitor(item, seen(governor, item))
    with pytest.raises(InputError, match="does not see"):
        governor.monitor(item, [Observation(next(name for name in names if name not in first), True, True)])
    governor.rollout(item)
    second = {name for name in names if governor.sees(item, name)}
    assert first < second
    assert abs(len(first) / 4000 - 0.01) < 0.01
    assert abs(len(second) / 4000 - 0.25) < 0.03
    assert not any(session_place(name) >= 1 - POLICY.holdout for name in second)


def test_rollbacks_go_last_in_first_out(governor, request_):
    one = governor.propose(request_)
    to_full(governor, one)
    two = governor.propose(ChangeRequest(Kind.UPDATE, (change(governor.system, "Lena"),), attributed=True))
    to_full(governor, two)
    with pytest.raises(InputError, match=f"{two} was built on"):
        governor.rollback(one)
    governor.rollback(two)
    assert governor.system.says(["Ada lives in", "Lena lives in"], ["Rome"] * 2).tolist() == [True, False]
    governor.rollback(one)
    assert not governor.system.store.rows


def test_an_item_that_was_superseded_is_in_force_again_after_a_rollback(governor, request_):
    one = governor.propose(request_)
    to_full(governor, one)
    two = governor.propose(replace(request_, facts=(change(governor.system, target="Bern"),), source="web", supersedes=one))
    assert governor.item(two).version == 2
    to_full(governor, two)
    assert governor.position(one).state is State.SUPERSEDED
    governor.rollback(two)
    assert governor.position(one).state is State.FULL
    assert governor.system.says(["Ada lives in"], ["Rome"])[0]
    governor.rollback(one)


def test_a_conflict_waits_for_a_person(governor, request_):
    governor.change_policy(replace(POLICY, trust=(("desk", 2),)))
    one = governor.propose(request_)
    to_full(governor, one)
    two = governor.propose(replace(request_, facts=(change(governor.system, target="Bern"),), source="web"))
    with pytest.raises(InputError, match="trusted more"):
        governor.admit(two)
    assert governor.position(two).state is State.PROPOSED
    assert governor.ledger.entries()[-1]["event"] == "held"
    assert len({e["policy"] for e in governor.ledger.entries()}) == 2


def test_only_one_change_at_a_time_and_only_on_what_is_in_force(governor, request_):
    one = governor.propose(request_)
    two = governor.propose(ChangeRequest(Kind.UPDATE, (change(governor.system, "Lena"),), attributed=True))
    governor.admit(one)
    governor.admit(two)
    governor.rollout(one)
    with pytest.raises(InputError, match=f"{one} is being rolled out"):
        governor.rollout(two)
    for _ in range(2):
        governor.monitor(one, seen(governor, one))
        governor.rollout(one)
    with pytest.raises(InputError, match="admitted on version"):
        governor.rollout(two)
    governor.expire(two)
    assert governor.position(two).state is State.EXPIRED


def test_a_system_that_was_changed_past_the_log_is_noticed(governor, request_):
    item = governor.propose(request_)
    governor.system.store.upsert(request_.facts)
    with pytest.raises(InputError, match="past the log"):
        governor.admit(item)
    governor.versions.restore(governor.live(), governor.system)
    governor.admit(item)


def test_a_new_process_goes_on_from_the_log(governor, request_, system):
    item = governor.propose(request_)
    governor.admit(item)
    again = Governor(governor.folder, system, actor="another", actions=actions)
    assert again.position(item) == governor.position(item)
    again.rollout(item)
    assert governor.position(item).share == 0.01
    assert again.item(item).request == request_


def test_a_certificate_proves_the_last_entry(governor, request_):
    item = governor.propose(request_)
    to_full(governor, item)
    from palimpsest.governance.ledger import Certificate

    certificate = governor.certificate(item)
    assert certificate["state"] == "full"
    assert certificate["reversibility"] == "exact"
    assert len(certificate["evidence"]) == 3  # admission and two looks
    assert Certificate(**certificate["proof"]).holds()


def test_bad_input(governor, request_, system, tmp_path):
    with pytest.raises(ModelNotFoundError, match="no governed memory"):
        Governor(tmp_path / "none", system)
    with pytest.raises(InputError, match="already holds"):
        Governor.init(governor.folder, system)
    with pytest.raises(InputError, match="no item 'x'"):
        governor.admit("x")
    item = governor.propose(request_)
    with pytest.raises(InputError, match="same request"):
        governor.propose(request_)
    with pytest.raises(InputError, match="no action 'pray'"):
        governor.admit(item, "pray")
    (governor.folder / "requests" / f"{request_.hash}.json").write_text("{}")
    with pytest.raises(LedgerBrokenError, match="not the one"):
        governor.admit(item)
    data = bytearray(governor.ledger.path.read_bytes())
    data[-30] ^= 1
    governor.ledger.path.write_bytes(data)
    with pytest.raises(LedgerBrokenError, match="seq 1"):
        Governor(governor.folder, system)


def test_a_canary_that_is_taken_back_leaves_in_force_what_is_in_force(governor, request_):
    one = governor.propose(request_)
    to_full(governor, one)
    two = governor.propose(ChangeRequest(Kind.UPDATE, (change(governor.system, "Lena"),), attributed=True))
    governor.admit(two)
    governor.rollout(two)
    live, state = governor.live(), governor.system.state
    with pytest.raises(InputError, match=f"{two} is being rolled out"):
        governor.rollback(one)
    assert (governor.live(), governor.system.state) == (live, state)
    governor.rollback(two)
    assert (governor.live(), governor.system.state) == (live, state)
    governor.rollback(one)
    assert not governor.system.store.rows


class Killed(BaseException):
    pass


def killed(*arguments, **options):
    raise Killed


def test_a_breach_that_was_noted_is_taken_back_by_the_next_step(governor, request_, monkeypatch):
    item = governor.propose(request_)
    governor.admit(item)
    governor.rollout(item)
    with monkeypatch.context() as patch:
        patch.setattr(governor, "rollback", killed)
        rows = seen(governor, item, 60, right=False)
        with pytest.raises(Killed):
            governor.monitor(item, rows)
    assert governor.position(item).state is State.CANARY
    assert governor.rollout(item).state is State.ROLLED_BACK
    assert governor.ledger.entries()[-1]["rule"] == "breach of harm"


def test_two_processes_wait_for_each_other(governor, request_, system, monkeypatch):
    """While one is between reading the log and writing it, the other does not get the lock."""
    held = []

    def look(*arguments, **options):
        handle = os.open(governor.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held.append(True)
        finally:
            os.close(handle)
        return append(*arguments, **options)

    append = governor.ledger.append
    monkeypatch.setattr(governor.ledger, "append", look)
    item = governor.propose(request_)
    governor.admit(item)
    governor.rollout(item)
    governor.monitor(item, seen(governor, item, 60, right=False))
    governor.expire(governor.propose(request_))
    governor.change_policy(Policy())
    assert len(held) == governor.ledger.verify() - 1
    other = Governor(governor.folder, system)
    governor.change_policy(POLICY)
    other.propose(request_)
    assert other.ledger.entries()[-1]["policy"] == POLICY.hash


def test_a_policy_changed_past_the_log_is_noticed(governor, system, monkeypatch):
    path = governor.folder / "policy.json"
    path.write_text(path.read_text().replace("0.95", "0.01"))
    with pytest.raises(LedgerBrokenError, match="changed past the log"):
        Governor(governor.folder, system)
    path.write_text(json.dumps(POLICY.to_dict()))
    other = replace(POLICY, locality=0.9)
    with monkeypatch.context() as patch:
        patch.setattr(governor.ledger, "append", killed)
        with pytest.raises(Killed):
            governor.change_policy(other)
    assert Governor(governor.folder, system).policy == POLICY
    governor.change_policy(other)
    path.write_text(json.dumps(POLICY.to_dict()))  # killed after the log, before the copy
    assert Governor(governor.folder, system).policy == other


def test_a_log_that_is_gone_is_not_an_empty_one(governor, system):
    governor.ledger.path.write_bytes(b"")
    with pytest.raises(LedgerBrokenError, match="missing or empty"):
        Governor(governor.folder, system)
    governor.ledger.path.unlink()
    with pytest.raises(LedgerBrokenError, match="missing or empty"):
        Governor(governor.folder, system)


def test_observations_that_were_damaged(governor, request_):
    item = governor.propose(request_)
    governor.admit(item)
    governor.rollout(item)
    governor.monitor(item, seen(governor, item, 25))
    path = governor.folder / "observations" / f"{item}.jsonl"
    whole = path.read_text()
    path.write_text(whole.replace("session", "sessio", 1))
    with pytest.raises(LedgerBrokenError, match="line 1 is none"):
        governor.rollout(item)
    path.write_text("")
    with pytest.raises(LedgerBrokenError, match="the log knows 25, there are 0"):
        governor.rollout(item)
    path.write_text(whole + "garbage\n")  # never noted
    assert governor.rollout(item).share == 0.25


def test_an_actor_that_cannot_be_written(governor, system, tmp_path):
    with pytest.raises(InputError, match="actor"):
        Governor(governor.folder, system, actor="\udcff")
    with pytest.raises(InputError, match="actor"):
        Governor.init(tmp_path / "new", system, actor="\udcff")
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="cannot be written"):
        governor.ledger.append({"event": "\udcff"})


def test_observations_are_counted_once(governor, request_, monkeypatch):
    item = governor.propose(request_)
    governor.admit(item)
    governor.rollout(item)
    rows = seen(governor, item, 15)
    with monkeypatch.context() as patch:
        patch.setattr(governor, "_note", killed)
        with pytest.raises(Killed):
            governor.monitor(item, rows, batch="a")
    assert governor.observations(item) == []
    for batch, n in (("a", 15), ("a", 15), ("b", 30)):
        assert governor.monitor(item, rows, batch=batch).summary["n"] == n
    with pytest.raises(InputError, match="observed in 15 sessions"):  # 30 observations, of the same sessions
        governor.rollout(item)


def test_an_item_and_the_one_it_supersedes_move_in_one_entry(governor, request_):
    one = governor.propose(request_)
    to_full(governor, one)
    two = governor.propose(replace(request_, facts=(change(governor.system, target="Bern"),), source="web", supersedes=one))
    to_full(governor, two)
    last = governor.ledger.entries()[-1]
    assert (last["item"], last["to"], last["also"]["item"], last["also"]["to"]) == (two, "full", one, "superseded")
    governor.rollback(two)
    last = governor.ledger.entries()[-1]
    assert (last["to"], last["also"]["to"]) == ("rolled_back", "full")
    assert [item.id for item in governor.in_force()] == [one]


# --- admission ----------------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_measured_is_not_met(governor, request_):
    bare = replace(request_.facts[0], paraphrases=(), neighbours=())
    item = governor.propose(replace(request_, facts=(bare,)))
    result = governor.admit(item)
    assert set(result.summary["failed"]) == {"paraphrase", "locality"}
    assert result.summary["clauses"]["locality"]["value"] is None


def test_locality_counts_what_was_known_before(governor, request_):
    fact = request_.facts[0]
    swapped = tuple((cue, "Rome") for cue, _ in fact.neighbours)  # "Rome" is not preferred to "Rome": the system never knew it
    item = governor.propose(replace(request_, facts=(replace(fact, neighbours=swapped),)))
    result = governor.admit(item)
    assert result.summary["clauses"]["locality"]["n"] == 0
    assert not result.summary["admitted"]


def test_forgetting_in_a_store(governor, request_):
    to_full(governor, governor.propose(request_))
    fact = replace(request_.facts[0], target=None, old="Rome")
    item = governor.propose(ChangeRequest(Kind.FORGET, (fact,), source="desk", supersedes="update-1"))
    result = governor.admit(item, "store_delete")
    assert result.summary["clauses"]["edit_success"]["value"] == 1
    assert result.summary["admitted"], result.summary["failed"]
    table = result.table.filter(result.table["kind"] == "edit")
    assert table["before"].to_list() == [False]


def test_a_secret_that_the_change_lets_out_is_a_leak(governor, request_):
    item = governor.propose(request_)
    result = governor.admit(item, secrets=[("The flat of Ada is in", "Rome")])
    assert result.summary["failed"] == ["leaks"]


def test_questions_are_asked_as_of_a_day(governor, request_):
    fact = replace(request_.facts[0], valid_from=date(2020, 1, 1), valid_to=date(2021, 1, 1))
    item = governor.propose(replace(request_, facts=(fact,)))
    assert governor.admit(item).summary["admitted"]
    other = governor.propose(replace(request_, facts=(replace(fact, valid_to=date(2022, 1, 1)),)))
    assert "freshness" in governor.admit(other, day=date(2024, 1, 1)).summary["failed"]


# --- monitoring ---------------------------------------------------------------------------------------------------------------------


def test_each_rate_is_watched_and_named():
    fine = [Observation(str(k), True, True) for k in range(40)]
    bad = {
        "harm": Observation("x", False, True),
        "outdated": Observation("x", False, False, outdated=True),
        "refusal": Observation("x", False, False, refused=True),
        "slow": Observation("x", True, True, latency=3.0),
    }
    assert watch(fine, POLICY).summary["breach"] is None
    for name, one in bad.items():
        found = watch([*fine, *[one] * 40], POLICY).summary["breach"]
        assert found["rate"] == name
        assert 40 <= found["observation"] < 80
        assert watch([*fine, *[one] * (found["observation"] - 40)], POLICY).summary["breach"] is None


def test_a_sound_change_is_seldom_taken_back_however_often_one_looks():
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        harmed = rng.random(300) < POLICY.harm
        alarms += watch([Observation("s", not bad, True) for bad in harmed], POLICY).summary["breach"] is not None
    assert alarms / 200 <= POLICY.alpha + 2 * (POLICY.alpha * (1 - POLICY.alpha) / 200) ** 0.5


def test_rate_e_process_against_its_integral():
    hits = np.random.default_rng(3).random(30) < 0.2
    e = rate_e_process(hits, 0.1)
    p = 0.1 + 0.9 * (np.arange(200_000) + 0.5) / 200_000
    for n in (1, 7, 30):
        k = int(hits[:n].sum())
        ratio = (p / 0.1) ** k * ((1 - p) / 0.9) ** (n - k)
        assert e[n - 1] == pytest.approx(ratio.mean(), rel=1e-6)


def test_rate_e_process_is_a_supermartingale():
    """The mean of the next value, under every rate up to the limit, is at most the present one."""
    for history in ([], [1], [0, 0, 1], [1, 1, 0, 1], [0] * 30):
        now = rate_e_process(np.array(history, dtype=bool), 0.1)[-1] if history else 1.0
        hit, miss = (rate_e_process(np.array([*history, x], dtype=bool), 0.1)[-1] for x in (1, 0))
        assert 0.1 * hit + 0.9 * miss == pytest.approx(now, rel=1e-9)
        assert hit >= miss


def test_drift_of_the_questions_is_reported_but_not_blamed_on_the_change(governor, request_):
    item = governor.propose(request_)
    governor.admit(item)
    governor.rollout(item)
    x = np.random.default_rng(0).normal(size=(300, 4))
    result = governor.monitor(item, seen(governor, item, 5), questions=(x, x + 3))
    assert result.summary["drift"]["drifted"]
    assert governor.position(item).state is State.CANARY
    assert governor.ledger.entries()[-1]["details"]["drift"] == result.summary["drift"]
    assert not governor.monitor(item, seen(governor, item, 5), questions=(x, x[::-1])).summary["drift"]["drifted"]


def test_stability_index_against_its_definition():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(400, 1)), rng.normal(0.7, 1.3, size=(300, 1))
    edges = np.quantile(a, np.arange(1, 10) / 10)
    total = 0.0
    for low, high in itertools.pairwise([-np.inf, *edges, np.inf]):
        p = (((a >= low) & (a < high)).sum() + 0.5) / 405
        q = (((b >= low) & (b < high)).sum() + 0.5) / 305
        total += (q - p) * np.log(q / p)
    assert stability_index(a, b) == pytest.approx(total, rel=1e-9)
    with pytest.raises(InputError, match="shapes"):
        stability_index(a, b[:, 0])


GOOD = {"session": "s", "right": True, "right_before": True}


@pytest.mark.parametrize(
    "row",
    [
        {"session": "s"},
        {**GOOD, "right": 1},
        {**GOOD, "latency": 0.0},
        {**GOOD, "latency": float("inf")},
        {**GOOD, "latency": True},
        {**GOOD, "session": "\ud800"},
        {**GOOD, "mood": "fine"},
        3,
    ],
)
def test_bad_observations(row):
    with pytest.raises(InputError):
        Observation.from_dict(row)
    with pytest.raises(InputError, match="nothing to monitor"):
        watch([], POLICY)
