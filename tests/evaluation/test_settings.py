"""The three settings on a world of facts, with a reader whose answers are known: what each setting must give, and what is forbidden."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from datetime import date

import numpy as np
import polars as pl
import pytest

from palimpsest.corpus import FactWorld
from palimpsest.errors import CapabilityError, InputError, LeakError, SettingViolation
from palimpsest.evaluation.gains import accuracies, gain, reading, transitions
from palimpsest.evaluation.items import Item, items_hash, world_docs, world_items
from palimpsest.evaluation.prompting import Budget, PromptMaker, Template
from palimpsest.evaluation.retrieval import Doc, Passage, Snapshot
from palimpsest.evaluation.settings import Setting, ThreeSettingRun, build_prompt
from palimpsest.evaluation.temporal import Freshness, freshness
from palimpsest.stats import mcnemar, wilson_interval

CUT, ASKED = date(2012, 1, 1), date(2024, 1, 1)
BUDGET = Budget(evidence_tokens=500, answer_tokens=60, k=5)


@pytest.fixture(scope="module")
def world():
    return FactWorld(seed=2, people=24, changing=0.7)


@pytest.fixture(scope="module")
def items(world):
    return world_items(world, "residence", ASKED)


@pytest.fixture(scope="module")
def run(world, items, make_reader):
    """A model that learned what held at the cut of two thirds of the people; a snapshot of the cut; a live store of everything."""
    facts = world.facts("residence")
    people = world.entities["person"]
    learned = {fact.subject: fact.object for fact in facts if fact.holds(CUT) and people.index(fact.subject) % 3}
    reader = make_reader(learned, people)
    old = world_docs(world, [fact for fact in facts if fact.valid_from < CUT])
    return ThreeSettingRun(reader, items, Snapshot(old), Snapshot(world_docs(world, facts)), budget=BUDGET)


@pytest.fixture(scope="module")
def measured(run):
    return run.run()


def rows(measured, setting):
    return {row["id"]: row for row in measured.table.filter(pl.col("setting") == setting).to_dicts()}


def test_each_setting_gives_what_its_sources_know(world, items, run, measured):
    for item in items:
        subject = item.source.split("/")[1]
        at_cut, now = world.value(subject, "residence", CUT).object, world.value(subject, "residence", ASKED).object
        expected = {
            "param": run.model.learned.get(subject, "I do not know."),
            "offline": at_cut,
            "online": now,
        }
        for setting, answer in expected.items():
            row = rows(measured, setting)[item.id]
            assert row["answer"] == answer
            assert row["right"] == (answer == now)
            assert row["refused"] == (answer == "I do not know.")
            assert row["freshness"] == freshness(answer, item.history, ASKED)
    kinds = set(measured.table["freshness"].to_list())
    assert {Freshness.FRESH.value, Freshness.OUTDATED.value, Freshness.REFUSED.value} == kinds
    assert measured.summary["accuracy"]["online"]["estimate"] == 1
    assert measured.summary["freshness"]["offline"]["outdated"]["estimate"] > 0.3


def test_prompts_have_the_same_shape_in_all_settings(run, measured):
    lengths = measured.table.group_by("id").agg(pl.col("prompt_tokens").n_unique())
    assert lengths["prompt_tokens"].to_list() == [1] * len(run.items)
    assert (measured.table.filter(pl.col("setting") == "param")["evidence_tokens"] == 0).all()
    assert (measured.table.filter(pl.col("setting") == "online")["evidence_tokens"] > 0).all()
    texts = [run.model.tokenizer.decode(prompt) for prompt in run.model.prompts[: len(run.items)]]
    assert all("On 20" not in text and "This line says nothing" in text for text in texts)


def test_the_summary_follows_from_the_table(measured):
    table, summary = measured.table, measured.summary
    for setting in Setting:
        right = np.array([row["right"] for row in rows(measured, setting).values()])
        assert summary["accuracy"][setting] == wilson_interval(int(right.sum()), len(right))._asdict()
    for one, two in itertools.combinations(Setting, 2):
        before, after = rows(measured, one), rows(measured, two)
        a, b = [before[k]["right"] for k in sorted(before)], [after[k]["right"] for k in sorted(before)]
        made = summary["gains"][f"{one} to {two}"]
        assert made["p_value"] == mcnemar(a, b).p_value
        assert made["adjusted"] >= made["p_value"]
        assert made["difference"]["estimate"] == pytest.approx(np.mean(b) - np.mean(a))
        cells = summary["transitions"][f"{one} to {two}"]
        assert cells["rescued"]["estimate"] == pytest.approx(np.mean([y and not x for x, y in zip(a, b, strict=True)]))
        assert cells["harmed"]["estimate"] == pytest.approx(np.mean([x and not y for x, y in zip(a, b, strict=True)]))
        assert sum(cell["estimate"] for cell in cells.values()) == pytest.approx(1)
        assert cells["rescued"]["estimate"] - cells["harmed"]["estimate"] == pytest.approx(made["difference"]["estimate"])
    for setting in ("offline", "online"):
        assert abs(summary["reading"][setting]["residual"]) < 1e-12
        assert sum(rate["estimate"] for rate in summary["freshness"][setting].values()) == pytest.approx(1)
    assert table["id"].n_unique() == summary["n"]
    assert measured.provenance["item_ids"] == sorted(table["id"].unique())


def test_confidence_and_lag_are_measured_beside_the_answers(world, measured):
    table = measured.table
    assert table["answer_logprob"].to_list() == [pytest.approx(-0.1)] * table.height
    for name, part in measured.summary["abstention"].items():
        given = table.filter((pl.col("setting") == name) & ~pl.col("refused"))
        assert part["n"] == given.height
        assert part["aurc"]["estimate"] == pytest.approx(1 - given["right"].mean())  # the reader is equally sure of all its answers
    for row in table.to_dicts():
        subject = row["source"].split("/")[1]
        assert row["lag"] == (ASKED - world.value(subject, "residence", ASKED).valid_from).days
    assert [series.name for series in measured.curves["freshness-lag"].series] == ["param", "offline", "online"]
    online = measured.curves["freshness-lag"].series[2].points
    assert {point["y"] for point in online} == {1.0}
    assert sum(point["n"] for point in online) == measured.summary["n"]
    assert measured.curves["risk-coverage"].series[0].points[-1]["x"] == 1


def test_one_fact_on_several_days_is_one_source(world, run):
    early = world_items(world, "residence", date(2011, 1, 1))
    both = replace(run, items=[*run.items, *early]).run()
    assert both.table["id"].n_unique() == 2 * both.table["source"].n_unique()
    assert both.summary["gains"]["param to online"]["test"] == "paired permutation of sources"
    assert both.summary["omnibus"] is None


def test_the_order_of_the_items_and_the_second_run_change_nothing(run, measured):
    again = replace(run, items=list(reversed(run.items))).run()
    assert again.table.equals(measured.table)
    assert again.summary == measured.summary
    assert again.provenance["data"] == measured.provenance["data"]
    assert again.provenance["data"]["hash"] == items_hash(run.items)


def test_gold_scores_follow_the_evidence(measured):
    right = measured.table.filter(pl.col("right"))["gold_logprob"]
    wrong = measured.table.filter(~pl.col("right"))["gold_logprob"]
    assert right.min() > wrong.max()


def test_reading_splits_hits_from_misses():
    table = pl.DataFrame(
        {
            "id": list("abcdef"), "source": list("abcdef"), "setting": ["offline"] * 6, "seed": [0] * 6,
            "right": [True, True, False, True, False, False], "hit": [True, True, True, False, False, None],
        }
    )  # fmt: skip
    parts = reading(table, "offline")
    assert parts["n"] == 5
    assert parts["accuracy_hit"] == wilson_interval(2, 3)
    assert parts["accuracy_miss"] == wilson_interval(1, 2)
    assert parts["hit_rate"] == wilson_interval(3, 5)
    assert abs(parts["residual"]) < 1e-12
    assert reading(table.with_columns(hit=True), "offline")["accuracy_miss"] is None
    with pytest.raises(InputError, match="declares evidence"):
        reading(table.with_columns(hit=pl.lit(None, pl.Boolean)), "offline")


def test_items_of_one_source_are_not_independent():
    rng = np.random.default_rng(0)
    flags = np.repeat(rng.random(10) < 0.5, 8)
    frame = {"id": [f"i{k}" for k in range(80)], "seed": [0] * 80, "hit": [True] * 80}
    before = pl.DataFrame({**frame, "setting": ["param"] * 80, "right": [False] * 80})
    after = pl.DataFrame({**frame, "setting": ["offline"] * 80, "right": flags})
    alone = pl.concat([before, after]).with_columns(source=pl.col("id"))
    shared = pl.concat([before, after]).with_columns(source=pl.Series([f"s{k // 8}" for k in range(80)] * 2))
    one, many = gain(shared, "param", "offline"), gain(alone, "param", "offline")
    assert one.difference.estimate == many.difference.estimate == flags.mean()
    assert one.p_value > 20 * many.p_value
    wide, narrow = accuracies(shared)["offline"], accuracies(alone)["offline"]
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    assert transitions(shared, "param", "offline")["rescued"].estimate == flags.mean()


def test_an_unanswerable_item_is_right_when_refused(make_reader):
    reader = make_reader({"Ann": "Rome"}, ["Ann", "Bob"])
    items = [Item("known", "Where is Ann?", ("Rome",), ASKED), Item("never", "Where is Bob?", (), ASKED, slice="unanswerable")]
    store = Snapshot([Doc("x", "nothing of it", CUT)])
    found = ThreeSettingRun(reader, items, store, budget=BUDGET).run()
    assert found.table["setting"].unique(maintain_order=True).to_list() == ["param", "offline"]
    assert found.table.select("id", "right", "refused").rows()[:2] == [("known", True, False), ("never", True, True)]
    assert found.summary["refusals"]["param"]["answerable"]["accuracy"]["estimate"] == 1
    assert found.summary["refusals"]["param"]["unanswerable"]["accuracy"] is None
    assert found.summary["accuracy"]["param"]["estimate"] == 1


# --- what is forbidden --------------------------------------------------------------------------------------------------------------


def test_evidence_without_evidence_is_a_violation(run, items):
    maker = PromptMaker(run.model.tokenizer, run.template, run.budget)
    passage = Passage(Doc("d", "text", CUT), 1.0)
    with pytest.raises(SettingViolation, match="without evidence"):
        build_prompt(maker, Setting.PARAM, items[0], [passage])
    assert build_prompt(maker, Setting.OFFLINE, items[0], [passage]).shown == ("d",)


def test_a_retriever_without_a_clock_is_caught(run):
    class Careless:
        def search(self, query, k, as_of=None):
            return [Passage(Doc("tomorrow", query, date(2024, 1, 2)), 1.0)]

    with pytest.raises(LeakError, match="'tomorrow' of 2024-01-02"):
        replace(run, live=Careless()).run()


def test_a_snapshot_that_changes_is_caught(run, world):
    snapshot = Snapshot(world_docs(world, world.facts("residence")))
    snapshot.docs = snapshot.docs[1:]
    with pytest.raises(SettingViolation, match="snapshot"):
        replace(run, snapshot=snapshot, live=None).run()


def test_leaks_stop_the_run_or_are_left_out_or_flagged(run, items):
    leaky = Snapshot([*run.live.docs, Doc("copy", f"Quiz: {items[0].question}", CUT)])
    with pytest.raises(LeakError, match="'copy'"):
        replace(run, live=leaky).run()
    left_out = replace(run, live=leaky, on_leak="exclude").run()
    assert items[0].id not in left_out.table["id"]
    assert left_out.provenance["leaks"]["excluded"] == [items[0].id]
    flagged = replace(run, live=leaky, on_leak="flag").run()
    assert flagged.summary["leaks"]["text"] == 1
    assert items[0].id in flagged.table["id"]
    with pytest.raises(LeakError, match="Every item"):
        replace(run, items=items[:1], live=leaky, on_leak="exclude").run()


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (lambda run: replace(run, items=[]).run(), "0 items"),
        (lambda run: replace(run, items=[run.items[0]] * 2).run(), "2 items with 1"),
        (lambda run: replace(run, seeds=()).run(), "no seeds"),
        (lambda run: Template("{question} {evidence}"), "slots"),
        (lambda run: Template("{evidence}"), "slots"),
        (lambda run: Template(filler=""), "filler"),
        (lambda run: Budget(k=0), "k is 0"),
        (lambda run: replace(run.items[0], golds=("Nowhere",)), "history"),
        (lambda run: Item("i", "Who?", (), ASKED), "0 golds"),
        (lambda run: Item("i", "Who?", ("Ann",), ASKED, slice="unanswerable"), "1 golds"),
        (lambda run: gain(run.run().table, "param", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_refused(run, bad, match):
    with pytest.raises(InputError, match=match):
        bad(run)


def test_a_door_that_only_writes_is_asked_without_scores(run):
    model = copy.copy(run.model)
    model.capabilities = frozenset({"text"})
    found = replace(run, model=model, items=run.items[:6]).run()
    assert found.table["gold_logprob"].null_count() == found.table["answer_logprob"].null_count() == found.table.height
    assert found.summary["abstention"] == {"param": None, "offline": None, "online": None}
    assert set(found.curves) == {"freshness-lag"}
    model.capabilities = frozenset({"logprobs"})
    with pytest.raises(CapabilityError, match="Answering questions"):
        replace(run, model=model).run()


# --- the slot -----------------------------------------------------------------------------------------------------------------------


def test_the_slot_is_filled_to_the_token(tiny_tokenizer):
    maker = PromptMaker(tiny_tokenizer, Template(), Budget(evidence_tokens=64, answer_tokens=4, k=3))
    short, long = Passage(Doc("short", "Rome is old.", CUT), 2.0), Passage(Doc("long", "xyz " * 60, CUT), 1.0)
    empty, one, both = (maker.make("Who?", passages) for passages in ([], [short], [long, short]))
    assert len(empty.ids) == len(one.ids) == len(both.ids)
    assert (one.shown, one.dropped, both.shown, both.dropped) == (("short",), (), ("short",), ("long",))
    assert np.array_equal(one.ids, both.ids)
    assert one.evidence_tokens == len(tiny_tokenizer.encode("Rome is old.")) + len(tiny_tokenizer.encode("\n"))
    assert tiny_tokenizer.decode(one.ids).startswith("Rome is old.\nThis line says nothing")
    assert tiny_tokenizer.decode(one.ids).endswith("\nQuestion: Who?\nAnswer:")


def test_a_real_model_can_be_asked(tiny_model, tiny_tokenizer):
    items = [Item(f"q{k}", f"Who is {k}?", ("Ann",), ASKED) for k in range(3)]
    store = Snapshot([Doc("d", "Who is it", CUT)])
    budget = Budget(evidence_tokens=20, answer_tokens=5, k=1)
    run = ThreeSettingRun(tiny_model, items, store, store, template=Template("{evidence}\n{question}\n"), budget=budget)
    measured = run.run()
    assert measured.table.height == 9
    assert measured.table["gold_logprob"].max() < 0
    assert measured.table.equals(run.run().table)
    assert type(measured).from_json(measured.to_json()).summary == measured.summary
