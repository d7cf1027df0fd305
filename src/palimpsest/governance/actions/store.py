"""Retrieval override: a bi-temporal store of facts that answers before the model does (RAG in the paper's list; SERAC's scope, lexical).

Every row has two times: from when to when its value *holds*, and from when to when the store *said so*. A new value ends the rows that it
contradicts: these are closed, never changed, and what of their validity it leaves standing is written as new rows. So what was believed
on any day about any other day can be asked for (`as_of`, Snodgrass and Ahn 1985), and a transaction is undone exactly by removing
its rows and opening again those that it closed.

A prompt is in a row's scope when it names the row's subject and what remains of it is as similar to one of the row's cues as `SCOPE`
(cosine of word counts); of several rows the most similar answers. A known wording is thus matched, an unknown one is left to the model.
Whatever the cosine, no cue counts that lacks a word of the prompt by which it may be about somebody else or say the opposite: a word with a
capital (but for the first of the prompt, unless the subject stands beside it), a possessive 's, a negation (`_NEGATIONS`, n't). So "Ada
Byron lives in" is not answered for Ada. This is a rule about English wordings; "the friend of Ada lives in" is beyond it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import Any

from palimpsest.errors import InputError
from palimpsest.files import sha256_json
from palimpsest.governance.items import FactChange

SCOPE = 0.75  # τ
_NEGATIONS = frozenset(["no", "not", "never", "none", "neither", "nor", "nobody", "nowhere", "nothing", "without", "cannot", "hardly"])


@dataclass(frozen=True)
class Row:
    """One value of one fact.

    Attributes:
        subject, relation, value: the fact.
        cues: wordings that it answers, the subject written `{s}`.
        valid_from, valid_to: when it holds, the last day excluded; None is open.
        recorded, closed: the transactions that wrote and that ended it; None: it stands.
        source: where it comes from.
    """

    subject: str
    relation: str
    value: str
    cues: tuple[str, ...]
    valid_from: date | None
    valid_to: date | None
    recorded: int
    closed: int | None = None
    source: str = ""

    @property
    def span(self) -> tuple[date, date]:
        """The days on which it holds, [from, to)."""
        return self.valid_from or date.min, self.valid_to or date.max

    def to_dict(self) -> dict[str, Any]:
        """The row as plain JSON types."""
        days = {name: day.isoformat() if (day := getattr(self, name)) else None for name in ("valid_from", "valid_to")}
        return {**asdict(self), **days, "cues": list(self.cues)}

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Row:
        """The inverse of `to_dict`."""
        days = {name: date.fromisoformat(row[name]) if row[name] else None for name in ("valid_from", "valid_to")}
        return cls(**{**row, **days, "cues": tuple(row["cues"])})


class FactStore:
    """Facts with two times, and what answers a prompt.

    Attributes:
        rows: all rows ever written, in order.

    Example:
        >>> store = FactStore()
        >>> _ = store.upsert([FactChange("Ada", "home", "Ada lives in", "Rome", "Paris")])
        >>> store.lookup("Ada lives in").value, store.lookup("Bo lives in")
        ('Rome', None)
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.rows = list(rows)

    @property
    def transactions(self) -> int:
        """How many transactions were made; the next one has this number."""
        return 1 + max((max(row.recorded, -1 if row.closed is None else row.closed) for row in self.rows), default=-1)

    @property
    def hash(self) -> str:
        """SHA-256 of all rows, closed ones included."""
        return sha256_json([row.to_dict() for row in self.rows])

    def upsert(self, facts: Sequence[FactChange], source: str = "") -> int:
        """Writes new values in one transaction; what they contradict is closed for the days that they cover.

        Args:
            facts: with targets; a fact without one ends what is known of it for these days.

        Returns:
            The number of the transaction, for `undo`.
        """
        number = self.transactions
        for fact in facts:
            since, until = fact.valid_from or date.min, fact.valid_to or date.max
            for place, row in enumerate(self.rows):
                begin, end = row.span
                if row.closed is not None or (row.subject, row.relation) != fact.key or end <= since or until <= begin:
                    continue
                self.rows[place] = replace(row, closed=number)
                if begin < since:
                    self.rows.append(replace(row, valid_to=fact.valid_from, recorded=number))
                if until < end:
                    self.rows.append(replace(row, valid_from=fact.valid_to, recorded=number))
            if fact.target is not None:
                cues = tuple(dict.fromkeys(cue.replace(fact.subject, "{s}") for cue in (fact.prompt, *fact.cues)))
                self.rows.append(Row(*fact.key, fact.target, cues, fact.valid_from, fact.valid_to, number, source=source))
        return number

    def undo(self, number: int) -> None:
        """Takes the last transaction back: the store is as before it, to the byte.

        Raises:
            InputError: it is not the last one.
        """
        if number != self.transactions - 1:
            raise InputError(f"Transaction {number} is not the last one, {self.transactions - 1}.", "Take back the later ones first.")
        kept = [row for row in self.rows if row.recorded != number]
        self.rows = [replace(row, closed=None) if row.closed == number else row for row in kept]

    def as_of(self, transaction: int | None = None) -> list[Row]:
        """The rows that stood after a transaction; None: that stand now."""
        if transaction is None:
            return [row for row in self.rows if row.closed is None]
        return [row for row in self.rows if row.recorded <= transaction and (row.closed is None or row.closed > transaction)]

    def value(self, subject: str, relation: str, day: date | None = None, transaction: int | None = None) -> Row | None:
        """What the store says, or after `transaction` said, holds on a day (None: today); None where it says nothing."""
        asked = day or date.today()
        rows = (row for row in self.as_of(transaction) if (row.subject, row.relation) == (subject, relation))
        return next((row for row in rows if row.span[0] <= asked < row.span[1]), None)

    def lookup(self, prompt: str, day: date | None = None) -> Row | None:
        """The row that answers a prompt, as of a day (None: today); None where no row has it in its scope."""
        asked = day or date.today()
        best, found = SCOPE, None
        for row in self.as_of():
            if row.span[0] <= asked < row.span[1] and _names(prompt, row.subject):
                words, telling = _words(prompt.replace(row.subject, " ")), _telling(prompt, row.subject)
                cues = (_words(cue.replace("{s}", " ")) for cue in row.cues)
                similarity = max((_cosine(words, cue) for cue in cues if telling <= cue.keys()), default=0.0)
                if similarity >= best:
                    best, found = similarity, row
        return found

    def search(self, text: str) -> list[Row]:
        """Every row, closed ones included, that holds `text` in its subject or value: what a claim of deletion must find empty."""
        return [row for row in self.rows if text in row.subject or text in row.value]

    def purge(self, facts: Sequence[FactChange]) -> list[Row]:
        """Removes every row, closed ones included, that gives one of these facts its old value, and returns them for `restore`.

        This is deletion for good: afterwards `search` finds nothing of them and `as_of` does not either.
        """
        gone = {(*fact.key, fact.old) for fact in facts}
        removed = [row for row in self.rows if (row.subject, row.relation, row.value) in gone]
        self.rows = [row for row in self.rows if (row.subject, row.relation, row.value) not in gone]
        return removed

    def to_list(self) -> list[dict[str, Any]]:
        """All rows as plain JSON types."""
        return [row.to_dict() for row in self.rows]

    @classmethod
    def from_list(cls, rows: Iterable[dict[str, Any]]) -> FactStore:
        """The inverse of `to_list`."""
        return cls(Row.from_dict(row) for row in rows)


def _names(prompt: str, subject: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt) is not None


def _telling(prompt: str, subject: str) -> set[str]:
    """The words of a prompt, as `_words` gives them, without which a cue is about something else."""
    pieces = list(re.finditer(r"\w+|\{s\}", re.sub(rf"(?<!\w){re.escape(subject)}(?!\w)", "{s}", prompt)))
    found = set()
    for place, piece in enumerate(pieces):
        word = piece.group()
        if word == "{s}":
            continue
        apostrophe = piece.start() > 0 and piece.string[piece.start() - 1] in "'’"
        beside = "{s}" in (near.group() for near in pieces[max(place - 1, 0) : place + 2])
        if word.casefold() in _NEGATIONS or (word[0].isupper() and (place > 0 or beside)):
            found.add(word.casefold())
        elif apostrophe and (word == "s" or (word == "t" and pieces[place - 1].group().endswith("n"))):
            found.add(word)
    return found


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.casefold()))


def _cosine(a: Counter[str], b: Counter[str]) -> float:
    """Cosine of word counts; two empty ones are the same."""
    if not a or not b:
        return float(not a and not b)
    dot = sum(count * b[word] for word, count in a.items())
    return dot / math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
