"""The questions of a protocol run, on one time line: items and, from a made-up world, items and dated documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from palimpsest.corpus import Fact, FactWorld
from palimpsest.errors import InputError
from palimpsest.evaluation.fields import text, texts
from palimpsest.evaluation.retrieval import Doc
from palimpsest.evaluation.temporal import TimedValue, day, history_of, require_history
from palimpsest.files import sha256_json
from palimpsest.taxonomy import MemoryKind


@dataclass(frozen=True)
class Item:
    """One question, asked on one day.

    Attributes:
        id: its name.
        question: its text.
        golds: accepted forms of the right answer; empty when the right answer is to refuse.
        asked_at: the day; what was published later must not be used.
        history: the values of the fact over time, where it has several.
        evidence_ids: documents that hold the answer.
        source: what items share that are not independent (a fact, a session); by default the item itself.
        slice: "answerable", "unanswerable", "outdated-only", "forgotten" or another name for the refusal slices.
        kind_hint: which memory should hold the answer.
        tags: further labels.

    Raises:
        InputError: no id or question, a field that is no text or no list of texts, golds that the history does not have on the day, an
            unanswerable item with golds.
    """

    id: str
    question: str
    golds: tuple[str, ...]
    asked_at: date
    history: tuple[TimedValue, ...] = ()
    evidence_ids: frozenset[str] = frozenset()
    source: str = ""
    slice: str = "answerable"
    kind_hint: MemoryKind | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("id", "question", "source", "slice"):
            text(getattr(self, name), f"{name} of the item {self.id!a}")
        if not self.id or not self.question.strip():
            raise InputError(f"The item {self.id!r} has no name or no question.", "Give both.")
        object.__setattr__(self, "golds", texts(self.golds, f"golds of {self.id!r}"))
        object.__setattr__(self, "evidence_ids", frozenset(texts(self.evidence_ids, f"evidence_ids of {self.id!r}")))
        object.__setattr__(self, "tags", texts(self.tags, f"tags of {self.id!r}"))
        object.__setattr__(self, "asked_at", day(self.asked_at, f"asked_at of {self.id!r}"))
        object.__setattr__(self, "source", self.source or self.id)
        if bool(self.golds) == (self.slice == "unanswerable"):
            raise InputError(
                f"The item {self.id!r} is {self.slice} with {len(self.golds)} golds.", "Only unanswerable items have no golds."
            )
        if self.history:
            ordered = require_history(self.history)
            valid = next((value for value in ordered if value.holds(self.asked_at)), None)
            if valid is None or not set(self.golds) <= set(valid.golds):
                raise InputError(
                    f"The golds {self.golds} of {self.id!r} are not what its history says of {self.asked_at}.", "Give the value valid then."
                )
            object.__setattr__(self, "history", ordered)


def require_items(items: Sequence[Item]) -> tuple[Item, ...]:
    """The items, if there are some and their ids are distinct.

    Raises:
        InputError: no items, or two of one id.
    """
    names = {item.id for item in items}
    if not items or len(names) < len(items):
        raise InputError(f"There are {len(items)} items with {len(names)} ids.", "Give at least one item, each with an id of its own.")
    return tuple(items)


def items_hash(items: Sequence[Item]) -> str:
    """SHA-256 over everything that the items ask; their order does not count."""
    rows = [
        [item.id, item.question, list(item.golds), item.asked_at.isoformat(), sorted(item.evidence_ids), item.source, item.slice]
        + [[list(value.golds), str(value.valid_from), str(value.valid_to)] for value in item.history]
        for item in sorted(items, key=lambda item: item.id)
    ]
    return sha256_json(rows)


def world_docs(world: FactWorld, facts: Sequence[Fact], *, template: int = 0) -> list[Doc]:
    """One dated document for every fact, published on the first day on which it holds.

    Args:
        world: the world.
        facts: of it.
        template: which wording, 0 to 9.
    """
    return [
        Doc(_doc_id(fact), f"On {fact.valid_from.isoformat()}: {world.sentence(fact, template)}", fact.valid_from, "factworld")
        for fact in facts
    ]


def world_items(world: FactWorld, relation: str, asked_at: date, *, form: int = 0) -> list[Item]:
    """A question about every value of a relation that holds on a day, with its history up to all times and the document that answers it.

    Questions about one subject on several days share a source.

    Example:
        >>> world = FactWorld(seed=0, people=20)
        >>> item = world_items(world, "residence", date(2020, 1, 1))[0]
        >>> item.question.startswith("Where "), len(item.evidence_ids)
        (True, 1)
    """
    items = []
    for question in world.questions(relation, asked_at, distractors=0, form=form):
        fact = question.fact
        items.append(
            Item(
                id=f"{relation}/{fact.subject}/{asked_at.isoformat()}",
                question=question.text,
                golds=(question.gold,),
                asked_at=asked_at,
                history=history_of(world.history(fact.subject, relation)),
                evidence_ids=frozenset({_doc_id(fact)}),
                source=f"{relation}/{fact.subject}",
                tags=(relation,),
            )
        )
    return items


def _doc_id(fact: Fact) -> str:
    return f"{fact.relation}/{fact.subject}/{fact.valid_from.isoformat()}"
