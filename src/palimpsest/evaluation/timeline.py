"""A time line of sessions from a made-up world: dated events, updates, corrections, and things that are never mentioned (system 104).

Every session has a day and says what became true on it. Of some subjects nothing is ever said. Some sessions say something false, which a
later session corrects; whoever keeps only the first or only the last word of a subject can be told from one who keeps a history.

From it come seven kinds of questions. Each is asked after all sessions, *as of* a day, and each has one right answer that follows from what
the sessions said:

* ``what``: all that a session said;
* ``when``: the day since which something holds;
* ``order``: which of four things became true first, second, …;
* ``latest``: the value of a fact that was updated or corrected, today;
* ``replay``: its value on an earlier day;
* ``consistency``: one question in three wordings;
* ``abstain``: something that was never mentioned.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from palimpsest.corpus import Fact, FactWorld
from palimpsest.errors import InputError

KINDS = ("what", "when", "order", "latest", "replay", "consistency", "abstain")
RELATIONS = ("residence", "employer")  # of people, that change
_ORDERED = 4  # things that are to be put in order
_CORRECTED = timedelta(days=20)  # how long a false statement stands


@dataclass(frozen=True)
class Event:
    """Something that a session says.

    Attributes:
        fact: what it says.
        kind: "event" (the first value), "update", "false" (it does not hold) or "correction" (of a false one).
        text: the sentence.
    """

    fact: Fact
    kind: str
    text: str


@dataclass(frozen=True)
class Session:
    """What is said on one day."""

    id: str
    day: date
    events: tuple[Event, ...]

    @property
    def text(self) -> str:
        """The session as a system is shown it."""
        return "\n".join([f"Session of {self.day.isoformat()}.", *(event.text for event in self.events)])


@dataclass(frozen=True)
class TimelineQuestion:
    """A question about the sessions.

    Attributes:
        id, kind: its name, and one of `KINDS`.
        text: the question, one wording.
        as_of: the day on which it is asked.
        golds: the right answer: accepted forms; for "what" one entry an event as (subject, object); for "order" letters in order; for
            "abstain" nothing.
        source: the subject, or session, that it is about; questions of one source are not independent.
        group: what the wordings of one question share.
    """

    id: str
    kind: str
    text: str
    as_of: date
    golds: tuple[str, ...] | tuple[tuple[str, str], ...]
    source: str
    group: str


class TimelineWorld:
    """Sessions and questions.

    Args:
        world: where the facts are from.
        subjects: people of whom something is said; as many others are never mentioned.
        relations: of people, that change.
        corrected: share of the updated facts of which something false is said first.
        seed: of the choice of people and false values.

    Attributes:
        sessions: by day.
        today: the day after the last session's month, on which everything is asked.

    Raises:
        InputError: fewer people in the world than two for each subject, fewer than 4 subjects, or a share out of range.

    Example:
        >>> timeline = TimelineWorld(FactWorld(seed=0, people=40), subjects=10)
        >>> timeline.sessions[0].day <= timeline.sessions[-1].day
        True
        >>> sorted({question.kind for question in timeline.questions()}) == sorted(KINDS)
        True
    """

    def __init__(
        self, world: FactWorld, subjects: int = 20, relations: Sequence[str] = RELATIONS, *, corrected: float = 0.3, seed: int = 0
    ) -> None:
        people = world.entities["person"]
        if subjects < _ORDERED or 2 * subjects > len(people) or not 0 <= corrected <= 1:
            raise InputError(
                f"{subjects} subjects of {len(people)} people, {corrected} of the updates corrected.",
                f"Give at least {_ORDERED} subjects, at most half of the people, and a share.",
            )
        self.world, self.relations, self.seed = world, tuple(relations), seed
        self._rng = np.random.default_rng(seed)
        chosen = [people[n] for n in self._rng.permutation(len(people))[: 2 * subjects].tolist()]
        self.mentioned, self.unmentioned = chosen[:subjects], chosen[subjects:]
        self.histories = {(name, relation): world.history(name, relation) for name in self.mentioned for relation in self.relations}
        said: dict[date, list[Event]] = {}
        self.corrected: set[tuple[str, str]] = set()
        for key, history in self.histories.items():
            for number, fact in enumerate(history):
                kind = "event" if number == 0 else "update"
                if number == len(history) - 1 > 0 and self._rng.random() < corrected:
                    self.corrected.add(key)
                    wrong = world.distractors(fact, 1)[0]
                    false = Fact(fact.subject, fact.relation, wrong, fact.valid_from)
                    said.setdefault(fact.valid_from, []).append(Event(false, "false", self._sentence(false)))
                    text = f"Correction: it was wrong that {self._clause(false)}. {self._sentence(fact)}"
                    said.setdefault(fact.valid_from + _CORRECTED, []).append(Event(fact, "correction", text))
                else:
                    said.setdefault(fact.valid_from, []).append(Event(fact, kind, self._sentence(fact)))
        self.sessions = tuple(
            Session(f"s{number}", day, tuple(events))
            for number, (day, events) in enumerate(sorted(said.items(), key=lambda entry: entry[0]))
        )
        self.today = self.sessions[-1].day + timedelta(days=31)

    def _clause(self, fact: Fact) -> str:
        return self.world.sentence(fact).rstrip(".")

    def _sentence(self, fact: Fact) -> str:
        return f"Since {fact.valid_from.isoformat()}: {self.world.sentence(fact)}"

    def questions(self) -> list[TimelineQuestion]:
        """All questions, by kind and name."""
        made = [*self._what(), *self._when(), *self._order()]
        for (name, relation), history in self.histories.items():
            source, key = name, f"{relation}/{name}"
            wordings = self._wordings(name, relation)
            if len(history) > 1:
                made.append(TimelineQuestion(f"latest/{key}", "latest", wordings[0], self.today, (history[-1].object,), source, key))
                past = history[-2]
                day = past.valid_from + (history[-1].valid_from - past.valid_from) / 2
                text = f"As of {day.isoformat()}: {wordings[0]}"
                made.append(TimelineQuestion(f"replay/{key}", "replay", text, self.today, (past.object,), source, key))
            made += [
                TimelineQuestion(f"consistency/{key}/{n}", "consistency", text, self.today, (history[-1].object,), source, key)
                for n, text in enumerate(wordings)
            ]
        for name, relation in itertools.product(self.unmentioned, self.relations):
            key = f"{relation}/{name}"
            made.append(TimelineQuestion(f"abstain/{key}", "abstain", self._wordings(name, relation)[0], self.today, (), name, key))
        return made

    def _wordings(self, name: str, relation: str) -> list[str]:
        one, two = (text.format(s=name) for text in self.world.relations[relation].questions[:2])
        return [one, two, f"From all that you were told: {one[0].lower()}{one[1:]}"]

    def _what(self) -> list[TimelineQuestion]:
        return [
            TimelineQuestion(
                f"what/{session.id}",
                "what",
                f"What was said in the session of {session.day.isoformat()}? One sentence a line.",
                self.today,
                tuple((event.fact.subject, event.fact.object) for event in session.events),
                session.id,
                session.id,
            )
            for session in self.sessions
        ]

    def _when(self) -> list[TimelineQuestion]:
        found = []
        for (name, relation), history in self.histories.items():
            if len(history) > 1:
                fact = history[-1]
                text = f"Since when does this hold: {self.world.sentence(fact)} Answer with a date like 2001-02-03."
                key = f"{relation}/{name}"
                found.append(TimelineQuestion(f"when/{key}", "when", text, self.today, (fact.valid_from.isoformat(),), name, key))
        return found

    def _order(self) -> list[TimelineQuestion]:
        facts = [history[-1] for history in self.histories.values() if len(history) > 1]
        facts = [facts[n] for n in np.random.default_rng([self.seed, 1]).permutation(len(facts)).tolist()]
        found = []
        for number in range(len(facts) // _ORDERED):
            group = facts[number * _ORDERED : (number + 1) * _ORDERED]
            if len({fact.valid_from for fact in group}) < _ORDERED:
                continue
            letters = "ABCD"
            listed = "\n".join(f"{letter}) {self.world.sentence(fact)}" for letter, fact in zip(letters, group, strict=True))
            right = tuple(letters[n] for n in np.argsort([fact.valid_from.toordinal() for fact in group]).tolist())
            text = f"In which order did these become true, the first one first? Answer with letters.\n{listed}"
            found.append(TimelineQuestion(f"order/{number}", "order", text, self.today, right, f"order{number}", f"order{number}"))
        return found
