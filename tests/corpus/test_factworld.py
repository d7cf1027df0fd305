"""The made-up world: its histories, consequences against a search day by day, its wording, and that nothing in it is given away."""

from __future__ import annotations

import datetime
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.corpus.facts import Fact, relations
from palimpsest.corpus.factworld import FactWorld
from palimpsest.corpus.made_up_names import KINDS, NameMaker
from palimpsest.errors import InputError

DERIVED = [name for name, relation in relations().items() if relation.follows]
BASE = [name for name in relations() if name not in DERIVED]


@pytest.fixture(scope="module")
def world() -> FactWorld:
    return FactWorld(seed=3)


@pytest.fixture(scope="module")
def small() -> FactWorld:
    """So few things that people often work for companies that they lead."""
    return FactWorld(seed=1, people=20, changing=1.0)


def test_there_is_enough_of_it(world):
    assert len(BASE) >= 15
    assert len(world.facts()) >= 5000
    assert all(len(relation.templates) >= 10 for relation in world.relations.values())


def test_the_seed_decides_alone(world):
    again = FactWorld(seed=3)
    again.questions("mayor")  # whatever is asked before changes nothing
    assert again.facts() == world.facts()
    assert again.changes() == world.changes()
    assert again.questions(form=1)[:50] == world.questions(form=1)[:50]
    other = FactWorld(seed=4)
    assert not set(other.entities["person"]) & set(world.entities["person"])


def test_no_name_stands_inside_another(small):
    for world in (small, FactWorld(seed=5, people=60)):
        names = [name for of_kind in world.entities.values() for name in of_kind]
        assert len(set(names)) == len(names)
        assert not [(a, b) for a in names for b in names if a != b and a in b]


# --- time ---------------------------------------------------------------------------------------------------------------------------


def test_a_history_covers_all_time_with_different_values(world):
    changed = 0
    for name in BASE:
        relation = world.relations[name]
        for subject in world.entities[relation.subject_kind]:
            history = world.history(subject, name)
            assert history[0].valid_from == world.start
            assert history[-1].valid_to is None
            assert [fact.valid_to for fact in history[:-1]] == [fact.valid_from for fact in history[1:]]
            values = [fact.object for fact in history]
            assert len(set(values)) == len(values)
            assert all(world.kind_of(value) == relation.object_kind for value in values)
            years = [fact.valid_from.year for fact in history[1:]]
            assert len(set(years)) == len(years)
            assert relation.changes or len(history) == 1
            changed += len(history) > 1
    assert changed > 200
    assert len(world.changes()) == len(world.facts()) - sum(len(world.entities[world.relations[name].subject_kind]) for name in BASE)


def test_what_holds_on_a_day_is_one_value_each(world):
    day = datetime.date(2011, 6, 1)
    now = world.valid_at(day)
    assert len(now) == sum(len(world.entities[world.relations[name].subject_kind]) for name in BASE)
    assert len({(fact.subject, fact.relation) for fact in now}) == len(now)
    assert all(world.value(fact.subject, fact.relation, day) == fact for fact in now[:300])
    assert set(world.triples(day)) < set(world.triples()) == {fact.triple for fact in world.facts()}


def test_the_share_of_what_changes_is_as_asked():
    assert FactWorld(people=40, changing=0).changes() == []
    everything = FactWorld(people=40, changing=1)
    assert {len(everything.history(subject, "employer")) for subject in everything.entities["person"]} == {2, 3, 4}


def test_a_capital_lies_in_its_country(world):
    for fact in world.facts("capital"):
        assert world.value(fact.object, "country").object == fact.subject


def test_a_change_names_both_values(world):
    for change in world.changes()[::20]:
        assert change.before.valid_to == change.after.valid_from
        for name in (change.before.subject, change.before.object, change.after.object):
            assert name in change.cause


# --- consequences -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DERIVED)
def test_a_consequence_is_what_two_lookups_give_on_every_day(small, name):
    first, second = small.relations[name].follows
    days = [small.start + datetime.timedelta(days=n) for n in range(0, 365 * 26, 40)]
    holes = 0
    for subject in small.entities[small.relations[name].subject_kind]:
        for day in days:
            between = small.value(subject, first, day)
            end = small.value(between.object, second, day)
            found = small.value(subject, name, day)
            if end.object == subject:
                holes += 1
                assert found is None
            else:
                assert found.object == end.object
        history = small.history(subject, name)
        for a, b in pairwise(history):
            assert a.valid_to <= b.valid_from
            assert a.object != b.object or a.valid_to < b.valid_from  # joined where nothing changed
    assert holes > 0 or name != "superior"


@pytest.mark.parametrize("name", DERIVED)
def test_consequences_of_either_fact_make_up_the_history(small, name):
    for relation in small.relations[name].follows:
        pieces = [piece for fact in small.facts(relation) for piece in small.consequences(fact) if piece.relation == name]
        days = {
            (piece.subject, piece.object, day) for piece in pieces for day in range(1999, 2027) if piece.holds(datetime.date(day, 7, 1))
        }
        facts = small.facts(name)
        assert days == {(f.subject, f.object, day) for f in facts for day in range(1999, 2027) if f.holds(datetime.date(day, 7, 1))}


def test_consequences_are_not_among_the_facts(world):
    assert not {fact.relation for fact in world.facts()} & set(DERIVED)
    assert world.consequences(world.facts("instrument")[0]) == []
    with pytest.raises(InputError, match="changes with employer and headquarters"):
        world.changes("workplace")


# --- wording ------------------------------------------------------------------------------------------------------------------------


def test_every_wording_is_whole_and_ends_with_the_object():
    seen = set()
    for relation in relations().values():
        for number, template in enumerate(relation.templates):
            assert template.count("{s}") == template.count("{o}") == 1
            assert template.endswith(" {o}.")
            assert template.startswith("{s} ") == (number < 6)
            assert (relation.subject_kind, template) not in seen  # no wording of two meanings
            seen.add((relation.subject_kind, template))
        assert len(relation.questions) == 2
        assert all(text.count("{s}") == 1 and text.endswith("?") for text in relation.questions)
        assert bool(relation.causes) == relation.changes
        assert all(part in cause for cause in relation.causes for part in ("{old}", "{new}"))


@given(place=st.integers(0, 6000), template=st.integers(0, 9))
@settings(max_examples=50)
def test_a_cue_is_the_sentence_without_its_object(world, place, template):
    fact = world.facts()[place]
    assert f"{world.cue(fact, template)} {fact.object}." == world.sentence(fact, template)
    assert fact.subject in world.cue(fact, template)


# --- questions ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relation", [None, "residence", "superior"])
def test_distractors_are_of_the_kind_and_never_true(world, relation):
    day = datetime.date(2012, 3, 4)
    questions = world.questions(relation, day, distractors=20)
    for question in questions[::7]:
        fact = question.fact
        assert fact.holds(question.asked_at)
        assert question.gold == fact.object
        assert fact.subject in question.text
        assert len(set(question.distractors)) == 20
        ever = {other.object for other in world.history(fact.subject, fact.relation)}
        assert not ever & set(question.distractors)
        assert fact.subject not in question.distractors
        assert {world.kind_of(name) for name in question.distractors} == {world.kind_of(question.gold)}
    assert len({question.distractors for question in questions[:20]}) == 20


def test_distractors_are_evenly_drawn(world):
    facts = world.facts("river")
    counts = np.zeros(len(world.entities["river"]))
    for fact in facts:
        for name in world.distractors(fact, 10):
            counts[world.entities["river"].index(name)] += 1
    expected = counts.sum() / counts.size
    assert ((counts - expected) ** 2 / expected).sum() < 100  # chi-squared of 49 degrees of freedom exceeds 95 in 1 case of 10,000


# --- what is refused ----------------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused(world):
    fact = world.facts("river")[0]
    for call, message in [
        (lambda: FactWorld(seed=-1), "seed is -1"),
        (lambda: FactWorld(people=19), "people is 19"),
        (lambda: FactWorld(people=3001), "people is 3001"),
        (lambda: FactWorld(changing=1.5), "changing is 1.5"),
        (lambda: FactWorld(end=datetime.date(2003, 1, 1)), "2000-01-01 to 2003-01-01"),
        (lambda: world.facts("shoe_size"), "'shoe_size'"),
        (lambda: world.history("Nobody", "river"), "'Nobody'"),
        (lambda: world.history(world.entities["person"][0], "river"), "is a person"),
        (lambda: world.sentence(fact, 10), "template is 10"),
        (lambda: world.cue(fact, -1), "template is -1"),
        (lambda: world.questions("river", form=2), "form is 2"),
        (lambda: world.distractors(fact, 50), "50 distractors"),
        (lambda: world.sentence(Fact("a", "b", "c", world.start)), "'b'"),
        (lambda: NameMaker(np.random.default_rng(0)).draw("dragon", 1), "'dragon'"),
        (lambda: NameMaker(np.random.default_rng(0)).draw("genre", 101), "101 names of the kind 'genre'"),
    ]:
        with pytest.raises(InputError, match=message):
            call()


def test_the_largest_world_can_be_made():
    world = FactWorld(people=3000)
    assert len(world.facts()) > 50_000
    assert set(world.entities) == set(KINDS)
