"""The claim check of prompted cut-offs: its world, its smallest scale, and its verdict on figures that are known."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import date

import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import prompted_cutoff
from palimpsest.experiments.memory_frame_world import WorldConfig
from palimpsest.experiments.prompted_cutoff_world import DIRECT, FOLLOWING, LAST, PLAN, TODAY, DatedWorld

WORLD = DatedWorld(WorldConfig(seed=3, people=40))


@pytest.fixture(scope="module")
def smoke():
    return prompted_cutoff.run("smoke", 0)


def test_smoke_holds_only_the_sum_of_shares_against_anything(smoke):
    assert smoke.passed
    assert [check.what for check in smoke.checks if check.threshold is not None] == ["shares of the outcomes, less 1"]
    assert {row["model"] for row in smoke.rows} == {"dated", "undated"}
    assert json.loads(json.dumps(smoke.to_dict(), allow_nan=False))["passed"] is True


def said(text):
    """(year or None, whether it is a plan, the sentence) of a document."""
    found = re.match(r"(?:\[as of (\d+)\] )?(The plan was: )?(.*)", text)
    return found[1] and int(found[1]), bool(found[2]), found[3]


def test_dated_sentences_are_true_on_the_last_day_of_their_year_and_undated_ones_today():
    sentences: dict[str, list] = {}
    for relation in (*DIRECT, *FOLLOWING):
        for fact in WORLD.world.facts(relation):
            for wording in range(3):
                sentences.setdefault(WORLD.world.sentence(fact, wording), []).append(fact)
    for text in WORLD.documents():
        year, plan, sentence = said(text)
        facts = sentences[sentence]
        day = date(year, 12, 31) if year else WORLD.world.end
        assert any(fact.holds(day) for fact in facts) != plan
        if plan:
            assert year is None
            assert all(fact.relation in FOLLOWING for fact in facts)
        if year:
            assert 2001 <= year <= LAST
            assert year >= TODAY or all(fact.relation in DIRECT for fact in facts)


def test_what_follows_is_said_in_its_present_form_and_once_as_a_plan():
    texts = WORLD.documents()
    for (_, relation), (_, then, now) in WORLD.cuts.items():
        if relation in FOLLOWING:
            present = [text for text in texts if text in {WORLD.world.sentence(now, wording) for wording in range(3)}]
            ahead = [text for text in texts if said(text)[0] and said(text)[2] == WORLD.world.sentence(now)]
            plans = [text for text in texts if text == PLAN + WORLD.world.sentence(then)]
            assert (len(present), len(ahead), len(plans)) == (3, 1, then.object != now.object)


def test_items_ask_for_what_held_before_the_year():
    items = WORLD.items()
    assert {item.subset for item in items} == {"factual", "counterfactual"}
    assert any(item.retention for item in items)
    for item in items:
        relation, subject = item.id.split(" of ", 1)
        assert item.then == WORLD.world.value(subject, relation, date(item.year - 1, 12, 31)).object
        assert item.now == WORLD.world.value(subject, relation).object
        assert item.year <= TODAY
        assert item.question.startswith(subject)
        if item.retention:
            every = [WORLD.world.value(subject, relation, date(year - 1, 12, 31)) for year in range(2002, TODAY)]
            assert {fact.object for fact in every if fact} == {item.now}


def test_the_years_are_all_that_differs_between_the_two_readers():
    dated, undated = WORLD.documents(), WORLD.documents(dated=False)
    assert [re.sub(r"^\[as of \d+\] ", "", text) for text in dated] == undated
    assert dated != undated


def test_every_word_and_name_is_a_token():
    tokenizer = WORLD.tokenizer
    for text in [*WORLD.documents()[:50], *(f"[as of {item.year - 1}] {item.question}" for item in WORLD.items())]:
        ids = tokenizer.encode(text)
        assert 1 not in ids
    assert all(len(tokenizer.encode(item.now)) == len(tokenizer.encode(item.then)) == 1 for item in WORLD.items())


def summaries(direct=0.9, indirect=0.3, placebo=0.05, undated=0.1, missing=False):
    def rates(subset, strict):
        shares = {"then": strict, "now": 1 - strict, "other": 0.0, "na": 0.0}
        figures = {"strict_known": strict, "placebo_change": placebo, "success": strict, "known": 0.95}
        return {"subset": subset} | shares | {name: {"estimate": value} for name, value in figures.items()}

    dated = [rates("all", 0.5), rates("factual", direct), rates("counterfactual", indirect)]
    if missing:
        dated[2]["strict_known"] = None
    retention = [{"right": {"estimate": 0.9}}]
    return {
        "dated": {"rates": dated, "retention": retention},
        "undated": {"rates": [rates("all", undated), rates("factual", undated)], "retention": []},
    }


DIRECTLY, FOLLOWS, GAP = "dated facts: strict success on known items", "consequences: strict success on known items", "gap between them"


@pytest.mark.parametrize(
    ("figures", "failing"),
    [
        ({}, []),
        ({"direct": 0.79}, [DIRECTLY]),
        ({"indirect": 0.41}, [FOLLOWS]),
        ({"direct": 0.8, "indirect": 0.401}, [FOLLOWS, GAP]),
        ({"placebo": 0.11}, ["answers that a year to come changes"]),
        ({"undated": 0.21}, ["facts without years: strict success on known items"]),
        ({"missing": True}, [FOLLOWS, GAP]),
    ],
)
def test_the_verdict(figures, failing):
    assert [check.what for check in prompted_cutoff.verdict(summaries(**figures)) if not check.passed] == failing


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        prompted_cutoff.run("gpu", 0)


def test_the_world_follows_its_seed():
    assert replace(WORLD, config=replace(WORLD.config, seed=4)).documents() != WORLD.documents()
    assert DatedWorld(WORLD.config).documents() == WORLD.documents()
