"""Facts that hold for a time, and the relations that they are of: what a `FactWorld` is made of.

The relations, their wording and what follows from what stand in `factworld.toml`.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Relation:
    """How subjects of one kind stand to objects of another.

    Attributes:
        name: e.g. "birthplace".
        subject_kind, object_kind: kinds of things, e.g. "person" and "city".
        templates: sentences with `{s}` and `{o}`, all of one meaning; each ends with "{o}.", the first six begin with "{s} ".
        questions: with `{s}`.
        changes: whether values may change.
        causes: why they do, with `{s}`, `{old}` and `{new}`.
        follows: for a consequence, the two relations a, b such that a(s, m) and b(m, o) give this one of s and o.
    """

    name: str
    subject_kind: str
    object_kind: str
    templates: tuple[str, ...]
    questions: tuple[str, ...]
    changes: bool = False
    causes: tuple[str, ...] = ()
    follows: tuple[str, str] | None = None


@dataclass(frozen=True)
class Fact:
    """What holds from one day on, and up to another.

    Attributes:
        subject, relation, object: the triple.
        valid_from: the first day.
        valid_to: the first day on which it no longer holds; None: it still does.
    """

    subject: str
    relation: str
    object: str
    valid_from: date
    valid_to: date | None = None

    @property
    def triple(self) -> tuple[str, str, str]:
        """(subject, relation, object)."""
        return self.subject, self.relation, self.object

    def holds(self, day: date) -> bool:
        """Whether it holds on a day."""
        return self.valid_from <= day and (self.valid_to is None or day < self.valid_to)


@dataclass(frozen=True)
class Change:
    """One value giving way to the next, on the day `after.valid_from`; `cause` is a sentence that names both."""

    before: Fact
    after: Fact
    cause: str


@dataclass(frozen=True)
class Question:
    """A question about a fact, as of a day.

    Attributes:
        text: the question.
        gold: the value that holds on `asked_at`.
        distractors: other values of the same kind, none of which the subject ever has in this relation.
        fact: what is asked about.
        asked_at: the day.
    """

    text: str
    gold: str
    distractors: tuple[str, ...]
    fact: Fact
    asked_at: date


@cache
def relations() -> dict[str, Relation]:
    """All relations by name, consequences last."""
    rows = tomllib.loads((Path(__file__).parent / "factworld.toml").read_text(encoding="utf-8"))
    return {
        name: Relation(
            name,
            row["subject"],
            row["object"],
            tuple(row["templates"]),
            tuple(row["questions"]),
            row.get("changes", False),
            tuple(row.get("causes", ())),
            tuple(row["follows"]) if "follows" in row else None,
        )
        for name, row in rows.items()
    }
