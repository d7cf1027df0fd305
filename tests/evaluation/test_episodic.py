"""Episodic memory: systems that remember everything, only the last word, or nothing, and what each part of the vector says of them."""

from __future__ import annotations

import re
from datetime import date
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from palimpsest.corpus import FactWorld
from palimpsest.errors import InputError
from palimpsest.evaluation.layers.episodic import composite, event_f1, measure_episodic, order_score, score_answer
from palimpsest.evaluation.timeline import KINDS, TimelineQuestion, TimelineWorld


@pytest.fixture(scope="module")
def timeline():
    return TimelineWorld(FactWorld(seed=4, people=60, changing=0.8), subjects=14, corrected=0.5, seed=1)


class Diary:
    """Keeps all sentences and answers from them; `newest_only` keeps one value of a subject, `guesses` never refuses."""

    def __init__(self, newest_only=False, guesses=False):
        self.newest_only, self.guesses, self.sessions, self.known = newest_only, guesses, {}, {}

    def observe(self, session):
        self.sessions[session.day.isoformat()] = session.text
        for line in session.text.splitlines()[1:]:
            wrong = re.search(r"it was wrong that (.*?)\. Since", line)
            since, sentence = re.search(r"Since (\d{4}-\d\d-\d\d): (.*)\.$", line).groups()
            form, subject, value = self.parse(sentence)
            history = self.known.setdefault((form, subject), {})
            if wrong and not self.newest_only:
                history.pop(since, None)
            if self.newest_only:
                history.clear()
            history[since] = value

    @staticmethod
    def parse(sentence):
        for verb in ("lives in", "works for"):
            if f" {verb} " in sentence:
                return (verb, *sentence.rstrip(".").split(f" {verb} "))
        raise AssertionError(sentence)

    def answer(self, question, as_of):
        if question.startswith("What was said"):
            day = re.search(r"\d{4}-\d\d-\d\d", question).group()
            return "\n".join(self.sessions.get(day, "").splitlines()[1:]) or "I don't know."
        if question.startswith("Since when"):
            form, subject, value = self.parse(question.split(": ", 1)[1].split(". Answer")[0])
            found = [since for since, known in self.known.get((form, subject), {}).items() if known == value]
            return f"Since {found[-1]}." if found else "I do not know."
        if question.startswith("In which order"):
            lines = [line.split(") ", 1) for line in question.splitlines()[1:]]
            days = {}
            for letter, sentence in lines:
                form, subject, value = self.parse(sentence)
                days[letter] = next((s for s, v in self.known.get((form, subject), {}).items() if v == value), "")
            return " ".join(sorted(days, key=days.get)) if all(days.values()) else "unknown"
        day = re.match(r"As of (\S+):", question)
        form = "lives in" if re.search(r"live|home", question) else "works for"
        subject = next((name for kind, name in self.known if kind == form and name in question), None)
        history = {s: v for s, v in self.known.get((form, subject), {}).items() if not day or s <= day.group(1)}
        if history:
            return f"It is {history[max(history)]}."
        return "Atlantis" if self.guesses else "I do not know."


def measured(timeline, **options):
    return measure_episodic(lambda: Diary(**options), timeline)


def estimates(parts):
    return {kind: part["estimate"] if part else None for kind, part in parts.items()}


def test_a_perfect_memory_has_all_and_its_control_has_nothing(timeline):
    found = measured(timeline)
    assert estimates(found.summary["vector"]) == dict.fromkeys(KINDS, pytest.approx(1))
    control = estimates(found.summary["control"])
    assert control == {"what": 0, "when": 0, "order": 0, "latest": 0, "replay": 0, "consistency": None, "abstain": 0.5}
    assert found.summary["composite"] == pytest.approx(1)
    assert found.summary["unreadable"] == 0
    assert found.table.height == 2 * len(timeline.questions())


def test_who_keeps_only_the_last_word_cannot_replay(timeline):
    vector = estimates(measured(timeline, newest_only=True).summary["vector"])
    assert vector["latest"] == vector["consistency"] == vector["what"] == 1
    assert vector["replay"] < 0.2
    assert vector["abstain"] < 1  # of an earlier day it no longer knows anything


def test_who_never_refuses_is_seen_by_abstention(timeline):
    found = measured(timeline, guesses=True).summary
    assert found["vector"]["abstain"]["estimate"] == 0.5
    assert (found["vector"]["abstain"]["refused_unmentioned"], found["vector"]["abstain"]["answered_mentioned"]) == (0, 1)
    assert found["control"]["abstain"]["estimate"] == 0.5


def test_the_composite_has_declared_weights(timeline):
    found = measure_episodic(lambda: Diary(newest_only=True), timeline, weights={"latest": 3.0, "replay": 1.0}).summary
    vector = estimates(found["vector"])
    assert found["composite"] == pytest.approx((3 * vector["latest"] + vector["replay"]) / 4)
    assert found["weights"] == {"latest": 3.0, "replay": 1.0}
    assert composite(found["control"], {"consistency": 1.0}) is None
    for bad in ({"who": 1.0}, {"what": -1.0}, {"what": 0.0}, {}):
        with pytest.raises(InputError, match="weights"):
            measure_episodic(Diary, timeline, weights=bad)


# --- the time line ------------------------------------------------------------------------------------------------------------------


def test_the_sessions_say_what_the_world_says(timeline):
    world = timeline.world
    days = [session.day for session in timeline.sessions]
    assert days == sorted(set(days))
    said = [event for session in timeline.sessions for event in session.events]
    assert {event.kind for event in said} == {"event", "update", "false", "correction"}
    for event in said:
        true = event.fact in world.history(event.fact.subject, event.fact.relation)
        assert true == (event.kind != "false")
        assert event.fact.object in event.text
        assert not any(name in event.text for name in timeline.unmentioned)
    falses = [event.fact for event in said if event.kind == "false"]
    for fact in falses:
        (fixed,) = [e for e in said if e.kind == "correction" and (e.fact.subject, e.fact.relation) == (fact.subject, fact.relation)]
        assert fact.object in fixed.text
    assert {(fact.subject, fact.relation) for fact in falses} == timeline.corrected


def test_the_questions_have_the_answers_of_the_world(timeline):
    world = timeline.world
    for question in timeline.questions():
        relation, _, subject = question.group.partition("/")
        if question.kind == "latest":
            assert question.golds == (world.value(subject, relation, timeline.today).object,)
        if question.kind == "replay":
            day = date.fromisoformat(re.match(r"As of (\S+):", question.text).group(1))
            assert question.golds == (world.value(subject, relation, day).object,)
            assert question.golds != (world.value(subject, relation, timeline.today).object,)
        if question.kind == "order":
            letters = dict(line.split(") ", 1) for line in question.text.splitlines()[1:])
            sentences = [letters[letter] for letter in question.golds]
            begun = {world.sentence(history[-1]): history[-1].valid_from for history in timeline.histories.values()}
            assert all(begun[one] < begun[two] for one, two in pairwise(sentences))
    names = [question.id for question in timeline.questions()]
    assert len(set(names)) == len(names)
    again = TimelineWorld(FactWorld(seed=4, people=60, changing=0.8), subjects=14, corrected=0.5, seed=1)
    assert again.sessions == timeline.sessions
    assert again.questions() == timeline.questions()


def test_a_world_that_is_too_small_is_refused():
    with pytest.raises(InputError, match="subjects of 20"):
        TimelineWorld(FactWorld(seed=0, people=20), subjects=11)
    with pytest.raises(InputError, match="at least 4"):
        TimelineWorld(FactWorld(seed=0, people=20), subjects=3)


# --- single answers -----------------------------------------------------------------------------------------------------------------


def question(kind, *golds):
    return TimelineQuestion("q", kind, "?", date(2020, 1, 1), golds, "s", "g")


@pytest.mark.parametrize(
    ("kind", "golds", "answer", "score", "readable", "near"),
    [
        ("when", ("2010-05-06",), "On 2010-05-06, I think", 1, True, True),
        ("when", ("2010-05-06",), "2010-05-20", 0, True, True),
        ("when", ("2010-05-06",), "2011-05-06", 0, True, False),
        ("when", ("2010-05-06",), "in May", 0, False, False),
        ("when", ("2010-05-06",), "2010-13-40", 0, False, False),
        ("when", ("2010-05-06",), "unknown", 0, True, False),
        ("order", ("B", "A", "C", "D"), "B, A, C, D", 1, True, None),
        ("order", ("B", "A", "C", "D"), "B then A", 0, False, None),
        ("order", ("B", "A", "C", "D"), "B B A C D", 0, False, None),
        ("latest", ("Rome",), "It is Rome", 1, True, None),
        ("latest", ("Rome",), "I do not know: Rome?", 0, True, None),
        ("abstain", (), "", 1, True, None),
        ("abstain", (), "Rome", 0, True, None),
    ],
)
def test_answers_are_read_or_said_to_be_unreadable(kind, golds, answer, score, readable, near):
    row = score_answer(answer, question(kind, *golds))
    assert (row["score"], row["readable"], row["near"]) == (score, readable, near)


@given(st.permutations(list("ABCD")), st.permutations(list("ABCD")))
def test_orders_are_scored_by_kendall(given_order, right):
    ranks = [given_order.index(letter) for letter in right]
    concordant = sum(ranks[i] < ranks[j] for i in range(4) for j in range(i + 1, 4))
    assert order_score(given_order, right) == pytest.approx(concordant / 6)
    assert order_score(given_order, right) == pytest.approx((scipy_stats.kendalltau(ranks, range(4)).statistic + 1) / 2)


def test_events_are_counted_once():
    events = (("Ann", "Rome"), ("Bob", "Bern"), ("Ann", "Oslo"))
    assert event_f1("Ann lives in Rome.\nBob went to Bern.\nAnn left for Oslo.", events) == 1
    assert event_f1("Ann lives in Rome.\n" * 3, events) == pytest.approx(2 / 6)
    assert event_f1("Ann, Bob\nRome, Bern", events) == 0
    assert event_f1("", events) == 0
    assert np.isclose(event_f1("Bern is where Bob is\nAnn: Rome", events), 4 / 5)
