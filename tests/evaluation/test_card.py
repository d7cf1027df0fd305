"""The evaluation card: complete or refused with everything that is missing; comparable or refused with every reason; and no field too
many."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from datetime import date
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from palimpsest.corpus import FactWorld
from palimpsest.errors import InputError, NotComparable
from palimpsest.evaluation import card as card_module
from palimpsest.evaluation.answers import RefusalRules
from palimpsest.evaluation.card import load_card, problems, schema
from palimpsest.evaluation.card_making import card_of_run, results_of
from palimpsest.evaluation.card_text import render_md
from palimpsest.evaluation.comparison import COMPARED, comparable, diff, minimal_card_fields
from palimpsest.evaluation.items import Item, world_docs, world_items
from palimpsest.evaluation.prompting import Budget
from palimpsest.evaluation.retrieval import Doc, Snapshot
from palimpsest.evaluation.settings import ThreeSettingRun
from palimpsest.models import Sampler
from palimpsest.taxonomy import AccessPath, Location, Persistence, Quadruple, WritePath

CUT, ASKED = date(2012, 1, 1), date(2024, 1, 1)
WEIGHTS = Quadruple(Location.WEIGHTS, Persistence.PERMANENT, WritePath.PRETRAIN, AccessPath.FORWARD)
STORE = Quadruple(Location.STORE_TEXT, Persistence.PERMANENT, WritePath.STORE_UPSERT, AccessPath.RETRIEVAL)
SAID = {
    "memory": [WEIGHTS, STORE],
    "data_name": "a made-up world",
    "licence": "CC0",
    "limits": ["A made-up world says nothing of a real one."],
}


@pytest.fixture(scope="module")
def base(make_reader):
    """A run whose outcome depends on everything that a card says of it; the model reads, obeys, and has moods when it is sampled."""
    world = FactWorld(seed=2, people=24, changing=0.7)
    people = world.entities["person"]

    class Moody(type(make_reader({}, []))):
        def answer(self, prompt):
            if "No reading." in prompt or "pirates" in prompt:
                return self.learned.get("default", "pass")
            found = super().answer(prompt)
            return "pass" if found == "I do not know." else found

        def generate(self, prefixes, max_new_tokens, *, temperature=0.0, seed=0, **options):
            if temperature == 0:
                return super().generate(prefixes, max_new_tokens)
            rng = np.random.default_rng(seed)
            texts = [self.answer(self.tokenizer.decode(ids)) if rng.random() < 0.5 else "Nowhere" for ids in prefixes]
            return [[np.array(self.tokenizer.encode(f" {text}\n")[:max_new_tokens])] for text in texts]

    facts = world.facts("residence")
    learned = {fact.subject: f"{fact.object} surely" for fact in facts if fact.holds(CUT) and people.index(fact.subject) % 3}
    never = [Item(f"never/{k}", f"Where does {name} live?", (), ASKED, slice="unanswerable") for k, name in enumerate(["Zork", "Quux"])]
    reader = Moody(make_reader({}, []).tokenizer, learned, [*people, "Zork", "Quux"])
    decoys = [Doc(f"decoy/{name}", f"Live, live! Where {name} does, does, live?", CUT) for name in people[:2]]  # nearer, and of no use
    old = Snapshot([*world_docs(world, [fact for fact in facts if fact.valid_from < CUT]), *decoys])
    items = [*world_items(world, "residence", ASKED), *never]
    budget = Budget(evidence_tokens=500, answer_tokens=60, k=5)
    return ThreeSettingRun(reader, items, old, Snapshot([*world_docs(world, facts), *decoys]), budget=budget, on_leak="flag")


def card_of(run, **more):
    missing = {} if run.live is not None else {"online": "no live store"}
    return card_of_run(run.run(), **{**SAID, "missing": missing, **more})


@pytest.fixture(scope="module")
def card(base):
    return card_of(base)


def test_a_run_makes_a_card_that_says_what_it_found(card, base):
    measured = base.run()
    assert problems(card.to_dict()) == []
    accuracy = {r.metric: r.value.estimate for r in card.results}
    assert accuracy["accuracy/online"] == measured.summary["accuracy"]["online"]["estimate"]
    gain = next(r for r in card.results if r.metric == "gain/param to online")
    assert (gain.test, gain.p_adjusted) == ("McNemar exact", measured.summary["gains"]["param to online"]["adjusted"])
    assert sum(rate.estimate for rate in card.temporal["online"].values()) == pytest.approx(1)
    assert card.leaks.counts == {"time": 0, "text": 0, "duplicate": 0}


def test_the_card_is_the_same_after_a_round_trip_and_fits_its_schema(card, tmp_path):
    card.save(tmp_path / "card.json")
    assert load_card(tmp_path / "card.json") == card
    stored = json.loads((Path(card_module.__file__).parent / "card-1.json").read_text(encoding="utf-8"))
    assert stored == schema()
    jsonschema.Draft202012Validator(stored).validate(card.to_dict())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(stored).validate({**card.to_dict(), "surprise": 1})


def test_everything_that_is_missing_is_listed(card):
    assert len(problems({})) == sum(field.is_required() for field in type(card).model_fields.values())
    broken = card.to_dict()
    del broken["limits"]
    broken["created"] = "2026-01-01T00:00:00"
    broken["memory"][0]["location"] = "cloud"
    broken["results"][0]["value"] = {"estimate": 0.5}
    broken["results"][1]["value"]["low"] = 2.0
    broken["settings"]["online"] = {"run": False}
    broken["identity"]["fingerprint"] = "abc"
    found = problems(broken)
    for part in ("limits: Field required", "created", "memory.0.location", "results.0.value.low: Field required", "results.1.value",
                 "settings.online: a setting that was not run needs a reason", "identity.fingerprint"):  # fmt: skip
        assert any(entry.startswith(part) for entry in found), part
    with pytest.raises(InputError, match=r"results\.0\.value\.low.*limits: Field required"):
        load_card(broken)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(snapshot=None), "needs the hash of its snapshot"),
        (lambda c: c["results"][0]["value"].update(high=math.inf), "finite"),
        (lambda c: c["compute"].update(seconds=math.inf), "finite"),
        (lambda c: c["data"].update(size=1), "size is 1, but 26 items were scored"),
        (lambda c: c["data"]["item_ids"].append(c["data"]["item_ids"][0]), "item_ids names twice: never/0"),
        (lambda c: c["data"].update(asked=["2024-01-02", "2024-01-01"]), "asked ends on 2024-01-01"),
        (lambda c: c["leaks"]["counts"].update(direct=-1), "greater than or equal to 0"),
        (lambda c: c["results"].append(c["results"][0]), "there are 2 results of accuracy/param (protocol)"),
        (lambda c: c.update(live=None), "an online run needs"),
        (lambda c: c.update(governed=True), "needs ledger_head"),
        (lambda c: c["temporal"]["online"].pop("fresh"), "five rates of online"),
        (lambda c: c["settings"].update(online={"run": False, "reason": "no"}), "results of online, which was not run"),
        (lambda c: c["results"][0].update(judged=True), "need raters"),
        (lambda c: c["results"][0].update(test="McNemar"), "belong together"),
        (lambda c: c["identity"].update(door="endpoint"), "accessed"),
    ],
)
def test_what_contradicts_itself_is_no_card(card, change, says):
    value = copy.deepcopy(card.to_dict())
    change(value)
    assert any(says in entry for entry in problems(value))


def test_judged_figures_are_unreliable_when_raters_disagree(card):
    value = card.to_dict()
    value["results"][0]["judged"] = True
    raters = {"kind": "judge", "names": ["a", "b"], "coefficient": "Krippendorff alpha"}
    for agreement, unreliable in ((0.5, [value["results"][0]["metric"]]), (0.8, [])):
        estimate = {"estimate": agreement, "low": agreement - 0.1, "high": agreement + 0.1}
        judged = load_card({**value, "raters": [{**raters, "agreement": estimate}]})
        assert judged.unreliable == unreliable
        assert ("unreliable" in render_md(judged)) == bool(unreliable)


def test_the_page_shows_the_card(card):
    page = render_md(card)
    for part in ("# reader on a made-up world", "| weights | permanent | pretrain | forward | parametric |", "accuracy/online", "CC0",
                 "greedy", "A made-up world says nothing", card.prompting.template):  # fmt: skip
        assert part in page
    assert all(f"{r.value.low:.3f} to {r.value.high:.3f}" in page for r in card.results)


def test_the_layers_fill_their_sections(base):
    measured = base.run()
    found = results_of(measured, "external")
    online = {"layer": "external", "metric": "three-settings/accuracy/online", "n": 26}
    assert {**online, "value": measured.summary["accuracy"]["online"]} in found
    whole = card_of_run(measured, **SAID, layers={"external": measured})
    assert sum(r.layer == "external" for r in whole.results) == len(found)


# --- comparison ---------------------------------------------------------------------------------------------------------------------


def variants(base):
    """Runs that differ from the base in one field of the card, named; the last two differ from each other."""
    template, budget = base.template, base.budget
    other = [replace(item, golds=("Atlantis",), history=()) if item.golds else item for item in base.items]
    leaky = Snapshot([*base.snapshot.docs, Doc("quiz", f"Quiz: {base.items[0].question}", CUT)])
    sampled = replace(template, sampler=Sampler(temperature=1.0))
    return {
        "data.hash": replace(base, items=other),
        "snapshot": replace(base, snapshot=Snapshot(base.snapshot.docs[::2])),
        "live": replace(base, live=base.snapshot),
        "prompting.template": replace(base, template=replace(template, text=f"No reading.\n{template.text}")),
        "prompting.filler": replace(base, template=replace(template, filler="Beware of pirates.\n")),
        "prompting.separator": replace(base, template=replace(template, separator=" | ")),
        "prompting.stop": replace(base, template=replace(template, stop=("never",))),
        "prompting.rule": replace(base, template=replace(template, rule="start")),
        "prompting.refusals": replace(base, refusals=RefusalRules(options=("pass",))),
        "budgets.evidence_tokens": replace(base, budget=replace(budget, evidence_tokens=60)),
        "budgets.answer_tokens": replace(base, budget=replace(budget, answer_tokens=3)),
        "budgets.k": replace(base, budget=replace(budget, k=1)),
        "leaky": replace(base, snapshot=leaky),
        "data.item_ids": replace(base, snapshot=leaky, on_leak="exclude"),
        "prompting.sampler": replace(base, template=sampled, seeds=(0,)),
        "seeds": replace(base, template=sampled, seeds=(1,)),
    }


@pytest.fixture(scope="module")
def cards(base, card):
    return {"base": card, **{name: card_of(run) for name, run in variants(base).items()}}


def test_no_field_can_be_left_out_and_none_is_missing(cards):
    """Proposition 2: for each field there are two runs of one model that compare as equal without it and gave different results."""
    named = list(cards)
    found = minimal_card_fields(list(cards.values()))
    assert tuple(found) == COMPARED
    for field, (i, j) in found.items():
        one, two = cards[named[i]], cards[named[j]]
        assert [reason.field for reason in comparable(one, two)] == [field]
        assert comparable(one, two, [name for name in COMPARED if name != field]) == []
        assert one.results != two.results
        with pytest.raises(NotComparable, match="agree in all"):
            minimal_card_fields([one, two], [name for name in COMPARED if name != field])


def test_cards_that_may_not_be_compared_are_refused_or_stamped(cards):
    with pytest.raises(NotComparable, match=r"budgets\.k is 5 and 1"):
        diff(cards["base"], cards["budgets.k"])
    forced = diff(cards["base"], cards["budgets.k"], force=True)
    assert forced.stamp == "NOT COMPARABLE: budgets.k is 5 and 1"
    assert forced.to_dict()["stamp"] == forced.stamp


def test_models_are_compared_on_equal_terms(base, card):
    blank = copy.copy(base.model)
    blank.learned, blank.fingerprint, blank.name = {}, "1" * 64, "blank"
    other = card_of(replace(base, model=blank))
    assert comparable(card, other) == []
    difference = diff(other, card)
    assert difference.stamp == ""
    row = next(row for row in difference.rows if row.metric == "accuracy/param")
    assert row.difference == pytest.approx(row.second - row.first)
    assert diff(card, card).rows[0].separate is False
    assert [reason.field for reason in comparable(card, card_of(replace(base, live=None)))] == ["live"]
    without = load_card({**card.to_dict(), "results": card.to_dict()["results"][1:]})
    assert diff(card, without).only_first == (f"protocol/{card.results[0].metric}",)
