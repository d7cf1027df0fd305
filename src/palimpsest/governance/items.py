"""What is governed: requests to change a memory, the facts in them, and the items that they become.

A `FactChange` carries all that is needed to make a change *and* to judge it: the cue after which the new value must come, other wordings
that were not used to make it, and neighbours (of the same relation and of the same subject) that must stay as they are. With `target`
None the fact is to be forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from enum import StrEnum
from typing import Any

from palimpsest.corpus.facts import Fact
from palimpsest.corpus.factworld import FactWorld
from palimpsest.errors import InputError
from palimpsest.files import sha256_json


class Kind(StrEnum):
    """What a request wants."""

    ADD = "add"
    UPDATE = "update"
    FORGET = "forget"
    DOMAIN_SHIFT = "domain_shift"
    BEHAVIOUR = "behaviour"


def is_text(value: Any) -> bool:
    """Whether a value is text that can be written as UTF-8 (half of a surrogate pair, which JSON can smuggle in, cannot).

    Example:
        >>> is_text("Ada"), is_text(5), is_text("\\ud800")
        (True, False, False)
    """
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _rows(values: dict[str, Any], name: str) -> Sequence[Any]:
    """A list among plain JSON types; text is none, though Python can go through its letters."""
    rows = values.get(name, ())
    if not isinstance(rows, list | tuple):
        raise TypeError(f"{name} is {rows!r}, not a list")
    return rows


def _pair(row: Any) -> Sequence[Any]:
    if not isinstance(row, list | tuple) or len(row) != 2:
        raise TypeError(f"{row!r} is no pair of a cue and its value")
    return row


@dataclass(frozen=True)
class FactChange:
    """One fact that is to change.

    Attributes:
        subject, relation: which fact.
        prompt: a cue that names the subject and that the value follows.
        target: the new value; None: forget it.
        old: the value until now, where there is one.
        cues: further wordings with which the change may be made; for a store, the wordings it answers.
        paraphrases: wordings with which it is judged.
        neighbours: (cue, true value) of facts that must not change.
        valid_from, valid_to: when the new value holds; None is open.
    """

    subject: str
    relation: str
    prompt: str
    target: str | None
    old: str | None = None
    cues: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[tuple[str, str], ...] = ()
    valid_from: date | None = None
    valid_to: date | None = None

    def __post_init__(self) -> None:
        texts = [
            self.subject,
            self.relation,
            self.prompt,
            *self.cues,
            *self.paraphrases,
            *(text for pair in self.neighbours for text in pair),
        ]
        texts += [value for value in (self.target, self.old) if value is not None]
        wrong = [text for text in texts if not is_text(text)]
        if wrong:
            raise InputError(f"The fact has {wrong[0]!r} where text belongs.", "See FactChange for its fields.")
        missing = [text for text in (self.prompt, *self.cues, *self.paraphrases) if self.subject not in text]
        if not self.subject or not self.relation or missing:
            raise InputError(
                f"The fact ({self.subject!r}, {self.relation!r}) has a cue that does not name its subject: {missing[:1]}.",
                "Write the subject into every cue, in the same letters.",
            )
        if not (self.target or self.old) or self.target == self.old:
            raise InputError(
                f"The fact ({self.subject}, {self.relation}) goes from {self.old!r} to {self.target!r}.",
                "Give the new value, or target null and the old value that is to be forgotten.",
            )
        if self.valid_from and self.valid_to and self.valid_to <= self.valid_from:
            raise InputError(f"The fact holds from {self.valid_from} to {self.valid_to}.", "It must end after it began.")

    @property
    def key(self) -> tuple[str, str]:
        """(subject, relation)."""
        return self.subject, self.relation

    def overlaps(self, other: FactChange) -> bool:
        """Whether there is a day on which both hold."""
        a, b = (self.valid_from or date.min, self.valid_to or date.max), (other.valid_from or date.min, other.valid_to or date.max)
        return a[0] < b[1] and b[0] < a[1]

    @classmethod
    def from_world(
        cls,
        world: FactWorld,
        fact: Fact,
        target: str | None,
        *,
        cues: Sequence[int] = (),
        paraphrases: Sequence[int] = (1, 2, 3),
        neighbours: int = 20,
        day: date | None = None,
        since: date | None = None,
        exclude: Sequence[str] = (),
    ) -> FactChange:
        """A change of a fact of a `FactWorld`.

        Args:
            target: the new value, None to forget.
            cues, paraphrases: numbers of templates.
            neighbours: how many facts must stay: half of the same relation, half of the same subject where it has as many.
            day: as of when the neighbours hold; by default at the end of the world's time.
            since: when the new value begins to hold.
            exclude: subjects that are no neighbours (those of other changes).

        Example:
            >>> world = FactWorld(people=20)
            >>> fact = world.facts("residence")[0]
            >>> change = FactChange.from_world(world, fact, "Nowhere", neighbours=4)
            >>> change.old == fact.object, len(change.neighbours)
            (True, 4)
        """
        near = [f for f in world.valid_at(day or world.end) if f.subject == fact.subject and f.relation != fact.relation]
        far = [f for f in world.valid_at(day or world.end, fact.relation) if f.subject not in (fact.subject, *exclude)]
        chosen = near[: neighbours // 2]
        chosen += far[: neighbours - len(chosen)]
        return cls(
            fact.subject,
            fact.relation,
            world.cue(fact),
            target,
            fact.object,
            tuple(world.cue(fact, number) for number in cues),
            tuple(world.cue(fact, number) for number in paraphrases),
            tuple((world.cue(f), f.object) for f in chosen),
            since,
        )

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> FactChange:
        """From plain JSON types.

        Raises:
            InputError: a field is missing, unknown or of the wrong type.
        """
        try:
            values = dict(row)
            for name in ("cues", "paraphrases"):
                values[name] = tuple(_rows(values, name))
            values["neighbours"] = tuple((cue, value) for cue, value in map(_pair, _rows(values, "neighbours")))
            for name in ("valid_from", "valid_to"):
                values[name] = date.fromisoformat(values[name]) if values.get(name) else None
            return cls(**values)
        except (TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"This is not a change of a fact: {error}.", "See FactChange for its fields.") from error

    def to_dict(self) -> dict[str, Any]:
        """The change as plain JSON types."""
        days = {name: day.isoformat() if (day := getattr(self, name)) else None for name in ("valid_from", "valid_to")}
        lists = {"cues": list(self.cues), "paraphrases": list(self.paraphrases), "neighbours": [list(pair) for pair in self.neighbours]}
        return {**asdict(self), **days, **lists}


@dataclass(frozen=True)
class ChangeRequest:
    """A wish to change a memory.

    Attributes:
        kind: what is wanted.
        facts: the facts; for a domain shift or a behaviour also `texts` to learn from.
        texts: text to train on, for "domain_shift" and "behaviour".
        owner: who asks.
        source: where it comes from; the policy says how far it is trusted.
        expected_days: how long it is expected to hold; None: for good.
        attributed: whether answers must name their source.
        scope: whether it is certain which questions it concerns.
        sensitivity: "public", "internal" or "personal".
        supersedes: the item that it replaces.
    """

    kind: Kind
    facts: tuple[FactChange, ...] = ()
    texts: tuple[str, ...] = ()
    owner: str = ""
    source: str = ""
    expected_days: int | None = None
    attributed: bool = False
    scope: bool = True
    sensitivity: str = "internal"
    supersedes: str | None = None

    def __post_init__(self) -> None:
        days, supersedes = self.expected_days, self.supersedes
        odd = {name: getattr(self, name) for name in ("owner", "source", "sensitivity") if not is_text(getattr(self, name))}
        odd |= {name: getattr(self, name) for name in ("attributed", "scope") if not isinstance(getattr(self, name), bool)}
        if not (days is None or (isinstance(days, int) and not isinstance(days, bool))):
            odd["expected_days"] = days
        if not (supersedes is None or is_text(supersedes)):
            odd["supersedes"] = supersedes
        if isinstance(self.texts, str) or not all(map(is_text, self.texts)):
            odd["texts"] = self.texts
        if odd:
            said = "; ".join(f"{name} = {value!r}" for name, value in odd.items())
            raise InputError(f"The request has values of the wrong type: {said}.", "See ChangeRequest for its fields.")
        keys = [fact.key for fact in self.facts]
        if not self.facts and not self.texts:
            raise InputError("The request changes nothing.", "Give facts, or texts to learn from.")
        twice = sorted({f"{subject} / {relation}" for subject, relation in keys if keys.count((subject, relation)) > 1})
        if twice:
            raise InputError(f"The request changes {', '.join(twice)} more than once.", "Give one value for one fact.")
        wrong = [fact.key for fact in self.facts if (fact.target is None) != (self.kind is Kind.FORGET)]
        if wrong:
            raise InputError(
                f"The request is to {self.kind}, but {wrong[0]} says otherwise.",
                "A fact has no target when, and only when, it is to be forgotten.",
            )
        if self.sensitivity not in ("public", "internal", "personal"):
            raise InputError(f"The sensitivity is {self.sensitivity!r}.", "Choose public, internal or personal.")

    @property
    def hash(self) -> str:
        """SHA-256 of the content."""
        return sha256_json(self.to_dict())

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> ChangeRequest:
        """From plain JSON types.

        Raises:
            InputError: a field is missing, unknown, or of the wrong type.
        """
        try:
            values = dict(row)
            values["kind"] = Kind(values["kind"])
            values["facts"] = tuple(FactChange.from_dict(fact) for fact in _rows(values, "facts"))
            values["texts"] = tuple(_rows(values, "texts"))
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"This is not a request: {error}.", f"See ChangeRequest for its fields; kind is one of {', '.join(Kind)}."
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """The request as plain JSON types."""
        own = {name: value for name, value in vars(self).items() if name not in ("facts", "texts")}
        return {**own, "kind": str(self.kind), "facts": [fact.to_dict() for fact in self.facts], "texts": list(self.texts)}


@dataclass(frozen=True)
class MemoryItem:
    """A request that was proposed.

    Attributes:
        id: its name in the log.
        request: what is wanted.
        version: 1, or one more than the item that it supersedes.
    """

    id: str
    request: ChangeRequest
    version: int = 1


@dataclass(frozen=True)
class Conflict:
    """A fact of a request that contradicts one in force.

    Attributes:
        key: (subject, relation).
        item: the item in force.
        new, old: the two values.
        resolved: whether the newer one may take the older one's place: its source is trusted at least as far.
    """

    key: tuple[str, str]
    item: str
    new: str | None
    old: str | None
    resolved: bool


@dataclass
class ConflictRule:
    """Newer knowledge from a source of equal or higher trust supersedes; anything else waits for a person.

    Attributes:
        trust: source -> how far it is trusted; 0 for one that is not named.
    """

    trust: dict[str, int] = field(default_factory=dict)

    def conflicts(self, request: ChangeRequest, in_force: Sequence[MemoryItem]) -> list[Conflict]:
        """Every fact of `request` for which another value holds on some of the same days.

        Args:
            in_force: items that are rolled out, oldest first.
        """
        mine = self.trust.get(request.source, 0)
        found = []
        for item in in_force:
            resolved = mine >= self.trust.get(item.request.source, 0)
            for new in request.facts:
                for old in item.request.facts:
                    if new.key == old.key and new.target != old.target and new.overlaps(old):
                        found.append(Conflict(new.key, item.id, new.target, old.target, resolved or request.supersedes == item.id))
        return found
