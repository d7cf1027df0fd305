"""A small world of made-up facts, with all that a study of memory must know of them (systems 005, 044, 099, 104 and 106).

People, cities, countries, companies, universities, books and teams that do not exist stand in 25 relations to each other. A relation
gives a subject one value at a time; some values change, so that every (subject, relation) has a history

    v1 on [t0, t1), v2 on [t1, t2), …, the last one without an end

of values that are all different and change at most once in a calendar year. Every relation can be said in ten ways, each of which ends
with the object, and asked in two; a change has a cause; and from two facts a third may follow (who works for a company works where its
headquarters are), which changes when one of the two does. Such consequences are not among `facts()` unless they are asked for.

Names are drawn from syllables (`made_up_names`), objects uniformly from all of their kind (a capital from the cities of its country), so
nothing can be guessed from a name. The same arguments give the same world. The wording is in `factworld.toml`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from itertools import pairwise
from zlib import crc32

import numpy as np

from palimpsest.corpus.facts import Change, Fact, Question, Relation, relations
from palimpsest.corpus.made_up_names import KINDS, NameMaker
from palimpsest.errors import InputError

_START, _END = date(2000, 1, 1), date(2025, 1, 1)


class FactWorld:
    """A world of facts.

    Args:
        seed: of everything.
        people: how many; the other things are in proportion (a tenth as many countries, a quarter as many companies, …). 400 people
            make some 7,000 facts.
        changing: the share of subjects whose value changes, in relations that may; these have two to four values.
        start: the first day of every first value.
        end: the day after the last one on which something may change; what is asked without a day is asked as of this one.

    Attributes:
        relations: name -> `Relation`.
        entities: kind -> names.

    Raises:
        InputError: a negative seed, fewer than 20 or more than 3,000 people, a share out of range, or less than five years.

    Example:
        >>> world = FactWorld(seed=0)
        >>> fact = world.facts("residence")[0]
        >>> world.sentence(fact) == f"{fact.subject} lives in {fact.object}."
        True
        >>> world.cue(fact, 6) == f"The home of {fact.subject} is in"
        True
        >>> question = world.questions("mayor", distractors=3)[0]
        >>> question.text.startswith("Who is the mayor of "), len(question.distractors)
        (True, 3)
    """

    def __init__(
        self,
        seed: int = 0,
        people: int = 400,
        *,
        changing: float = 0.4,
        start: date = _START,
        end: date = _END,
    ) -> None:
        if seed < 0:
            raise InputError(f"seed is {seed}.", "Give 0 or more.")
        if not 20 <= people <= 3000:
            raise InputError(f"people is {people}.", "Ask for 20 to 3,000 people.")
        if not 0 <= changing <= 1:
            raise InputError(f"changing is {changing}.", "Give a share from 0 to 1.")
        if end.year - start.year < 5:
            raise InputError(f"The world lasts from {start} to {end}.", "Give it five years or more.")
        self.seed, self.start, self.end = seed, start, end
        self.relations = relations()
        maker = NameMaker(np.random.default_rng([seed, crc32(b"names")]))
        self.entities = {kind: maker.draw(kind, n) for kind, n in _amounts(people).items()}
        self._kind = {name: kind for kind, names in self.entities.items() for name in names}
        self._history: dict[tuple[str, str], list[Fact]] = {}
        self._holders: dict[tuple[str, str], list[Fact]] = {}  # by relation and object
        for relation in self.relations.values():
            if relation.follows is None:
                self._fill(relation, changing)

    # --- what holds -------------------------------------------------------------------------------------------------------------

    def facts(self, relation: str | None = None) -> list[Fact]:
        """All facts of all times, or those of one relation (here also of a consequence), by subject and time."""
        if relation is None:
            return [fact for history in self._history.values() for fact in history]
        subjects = self.entities[self._relation(relation).subject_kind]
        return [fact for subject in subjects for fact in self.history(subject, relation)]

    def history(self, subject: str, relation: str) -> list[Fact]:
        """The values of a subject in a relation, the first one first; none where the subject has none, as where a consequence fails.

        Only the history of a consequence can have gaps, and come back to an earlier value.

        Raises:
            InputError: an unknown relation, or a subject of another kind.
        """
        asked = self._relation(relation)
        if self.kind_of(subject) != asked.subject_kind:
            raise InputError(f"{subject} is a {self.kind_of(subject)}.", f"The relation {relation!r} is of a {asked.subject_kind}.")
        if asked.follows is None:
            return list(self._history.get((subject, relation), ()))
        pieces = [piece for fact in self.history(subject, asked.follows[0]) for piece in self._following(fact, asked)]
        joined: list[Fact] = []
        for piece in pieces:
            if joined and joined[-1].object == piece.object and joined[-1].valid_to == piece.valid_from:
                piece = Fact(*piece.triple, joined.pop().valid_from, piece.valid_to)
            joined.append(piece)
        return joined

    def value(self, subject: str, relation: str, day: date | None = None) -> Fact | None:
        """What holds of a subject on a day (None: at the end of the world's time); None where nothing does."""
        return next((fact for fact in self.history(subject, relation) if fact.holds(day or self.end)), None)

    def valid_at(self, day: date, relation: str | None = None) -> list[Fact]:
        """The facts that hold on a day."""
        return [fact for fact in self.facts(relation) if fact.holds(day)]

    def triples(self, day: date | None = None) -> list[tuple[str, str, str]]:
        """RDF triples (subject, predicate, object) of all facts, or of those that hold on a day; each once."""
        facts = self.facts() if day is None else self.valid_at(day)
        return list(dict.fromkeys(fact.triple for fact in facts))

    def kind_of(self, name: str) -> str:
        """The kind of a thing.

        Raises:
            InputError: nothing in this world has the name.
        """
        if name not in self._kind:
            raise InputError(f"There is no {name!r} in this world.", "Names are in `entities`; another seed gives others.")
        return self._kind[name]

    # --- causes and consequences ------------------------------------------------------------------------------------------------

    def changes(self, relation: str | None = None) -> list[Change]:
        """Where one value gives way to the next, and why; of all relations that change, or of one of these."""
        if relation is not None and self._relation(relation).follows is not None:
            raise InputError(f"{relation} is a consequence.", f"It changes with {' and '.join(self._relation(relation).follows or ())}.")
        found = []
        for before, after in pairwise(self.facts(relation)):
            if (before.subject, before.relation) != (after.subject, after.relation):
                continue
            causes = self.relations[before.relation].causes
            chosen = causes[int(self._draw("cause", *after.triple).integers(len(causes)))]
            found.append(Change(before, after, chosen.format(s=before.subject, old=before.object, new=after.object)))
        return found

    def consequences(self, fact: Fact) -> list[Fact]:
        """What follows from a fact together with one other, for as long as both hold."""
        found = []
        for relation in self.relations.values():
            if relation.follows is not None and relation.follows[0] == fact.relation:
                found += self._following(fact, relation)
            if relation.follows is not None and relation.follows[1] == fact.relation:
                for other in self._holders.get((relation.follows[0], fact.subject), ()):
                    found += [piece for piece in [_both(other, fact, relation.name)] if piece is not None]
        return found

    def _following(self, fact: Fact, relation: Relation) -> list[Fact]:
        assert relation.follows is not None
        pieces = (_both(fact, other, relation.name) for other in self._history.get((fact.object, relation.follows[1]), ()))
        return [piece for piece in pieces if piece is not None]

    # --- how it is said and asked -----------------------------------------------------------------------------------------------

    def sentence(self, fact: Fact, template: int = 0) -> str:
        """A fact in words, in the present tense of its own time; `template` from 0 to 9 chooses the wording."""
        return self._template(fact, template).format(s=fact.subject, o=fact.object)

    def cue(self, fact: Fact, template: int = 0) -> str:
        """The sentence up to its object, without the space before it."""
        return self._template(fact, template).removesuffix(" {o}.").format(s=fact.subject)

    def distractors(self, fact: Fact, k: int) -> list[str]:
        """Other values of the object's kind that the subject never has in this relation, drawn by the seed for this fact.

        Raises:
            InputError: there are fewer than `k`.
        """
        never = {other.object for other in self.history(fact.subject, fact.relation)} | {fact.object, fact.subject}
        kind = self.relations[fact.relation].object_kind
        pool = [name for name in self.entities[kind] if name not in never]
        if not 0 <= k <= len(pool):
            raise InputError(f"{k} distractors are asked for.", f"There are {len(pool)} of the kind {kind!r}; more people make more.")
        order = self._draw("distractors", *fact.triple).permutation(len(pool))
        return [pool[i] for i in order[:k].tolist()]

    def questions(self, relation: str | None = None, day: date | None = None, distractors: int = 4, form: int = 0) -> list[Question]:
        """A question about every fact that holds on a day (None: at the end of the world's time).

        Args:
            relation: only of this one; may be a consequence. None: all but these.
            day: as of when.
            distractors: wrong answers for each.
            form: which of the two wordings.

        Raises:
            InputError: an unknown relation or form, or too many distractors.
        """
        asked_at = day or self.end
        found = []
        for fact in self.valid_at(asked_at, relation):
            text = _numbered(self.relations[fact.relation].questions, form, "form").format(s=fact.subject)
            found.append(Question(text, fact.object, tuple(self.distractors(fact, distractors)), fact, asked_at))
        return found

    # --- how it is made ---------------------------------------------------------------------------------------------------------

    def _relation(self, name: str) -> Relation:
        if name not in self.relations:
            raise InputError(f"There is no relation {name!r}.", f"Choose one of {', '.join(self.relations)}.")
        return self.relations[name]

    def _template(self, fact: Fact, number: int) -> str:
        return _numbered(self._relation(fact.relation).templates, number, "template")

    def _draw(self, *what: str) -> np.random.Generator:
        """A generator for one purpose, so that no draw depends on which others were made."""
        return np.random.default_rng([self.seed, crc32("\t".join(what).encode())])

    def _fill(self, relation: Relation, changing: float) -> None:
        """Draws the values of every subject of a relation."""
        rng = self._draw("relation", relation.name)
        pool = self.entities[relation.object_kind]
        for place, subject in enumerate(self.entities[relation.subject_kind]):
            if relation.name == "country":  # the first cities go round the countries, so that each has a capital
                values = [pool[place] if place < len(pool) else pool[int(rng.integers(len(pool)))]]
            elif relation.name == "capital":
                inside = [fact.subject for fact in self._holders["country", subject]]
                values = [inside[int(rng.integers(len(inside)))]]
            else:
                amount = int(rng.integers(2, 5)) if relation.changes and rng.random() < changing else 1
                values = [pool[i] for i in rng.choice(len(pool), size=min(amount, len(pool)), replace=False).tolist()]
            self._keep(subject, relation.name, values, rng)

    def _keep(self, subject: str, relation: str, values: Sequence[str], rng: np.random.Generator) -> None:
        years = np.sort(rng.choice(np.arange(self.start.year + 1, self.end.year), size=len(values) - 1, replace=False)).tolist()
        days = [date(year, int(rng.integers(1, 13)), int(rng.integers(1, 29))) for year in years]
        history = [
            Fact(subject, relation, value, since, until)
            for value, since, until in zip(values, [self.start, *days], [*days, None], strict=True)
        ]
        self._history[subject, relation] = history
        for fact in history:
            self._holders.setdefault((relation, fact.object), []).append(fact)


def _amounts(people: int) -> dict[str, int]:
    """How many things of each kind there are."""
    some, countries = max(25, people // 8), max(5, people // 10)
    amounts = dict.fromkeys(KINDS, some) | {"person": people, "parent": people, "country": countries, "city": 3 * countries}
    amounts |= {"company": max(25, people // 4), "work": people // 2, "team": max(10, people // 10)}
    lists = ("occupation", "instrument", "currency", "product", "genre")
    return amounts | dict.fromkeys(lists, min(100, max(25, people // 4)))


def _both(first: Fact, second: Fact, relation: str) -> Fact | None:
    """What follows from two facts while both hold; None where they never do, or where it would be about one thing and itself."""
    since = max(first.valid_from, second.valid_from)
    ends = [fact.valid_to for fact in (first, second) if fact.valid_to is not None]
    until = min(ends) if ends else None
    if first.subject == second.object or (until is not None and until <= since):
        return None
    return Fact(first.subject, relation, second.object, since, until)


def _numbered(texts: Sequence[str], number: int, what: str) -> str:
    if not 0 <= number < len(texts):
        raise InputError(f"{what} is {number}.", f"Give a number from 0 to {len(texts) - 1}.")
    return texts[number]
