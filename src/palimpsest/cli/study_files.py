"""The files that `palimpsest study` reads: passages, facts and texts, one a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from palimpsest.audit.random_access import Passage
from palimpsest.audit.rote_facts import RoteFact
from palimpsest.errors import InputError

Row = TypeVar("Row")


def read_passages(path: Path) -> list[Passage]:
    """Passages from lines like {"title": "Owls", "sentences": ["…", "…"], "questions": [["Who?", "An owl"]]}; questions may be left out.

    Raises:
        InputError: no such file, no passage, or a line that is none.
    """
    form = '{"title": "Owls", "sentences": ["They fly at night.", "They see well."], "questions": [["When do they fly?", "at night"]]}'

    def passage(row: dict[str, Any]) -> Passage:
        questions = tuple((_text(question), _text(answer)) for question, answer in row.get("questions") or ())
        return Passage(_text(row["title"]), tuple(_text(sentence) for sentence in _list(row["sentences"])), questions)

    return _read(path, form, passage)


def read_facts(path: Path) -> list[RoteFact]:
    """Facts from lines like {"subject": "…", "object": "…", "distractors": ["…"]}; without distractors, the other facts' objects are.

    Raises:
        InputError: no such file, no fact, a line that is none, or a fact without distractors among facts of one object.
    """
    form = '{"subject": "Ada Finch", "object": "Oslo", "distractors": ["Rome", "Bergen"]}'

    def fact(row: dict[str, Any]) -> RoteFact:
        distractors = tuple(_text(name) for name in _list(row.get("distractors") or []))
        return RoteFact(_text(row["subject"]), _text(row["object"]), distractors)

    facts = _read(path, form, fact)
    objects = list(dict.fromkeys(fact.object for fact in facts))
    if len(objects) < 2 and not all(fact.distractors for fact in facts):
        raise InputError(f"All facts of {path} have the object {objects[0]!r}.", "Give distractors, or facts with different objects.")
    return [
        fact if fact.distractors else RoteFact(fact.subject, fact.object, tuple(name for name in objects if name != fact.object))
        for fact in facts
    ]


def read_texts(path: Path) -> list[str]:
    """Texts, one a line; empty lines are passed over.

    Raises:
        InputError: no such file, or no text.
    """
    texts = [line.strip() for line in read_lines(path) if line.strip()]
    if not texts:
        raise InputError(f"{path} holds no text.", "Write one text a line.")
    return texts


def _read(path: Path, form: str, make: Callable[[dict[str, Any]], Row]) -> list[Row]:
    found = []
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            try:
                found.append(make(json.loads(line)))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise InputError(f"Line {number} of {path} cannot be used: {error!r}.", f"Write lines like {form}.") from error
    if not found:
        raise InputError(f"{path} holds nothing.", f"Write lines like {form}.")
    return found


def read_lines(path: Path) -> list[str]:
    """The lines of a text file; a text may hold what Unicode calls a line separator.

    Raises:
        InputError: as for `read_utf8`.
    """
    return read_utf8(path).split("\n")


def read_utf8(path: Path) -> str:
    """A text file.

    Raises:
        InputError: it cannot be read as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.", "Give a text file in UTF-8.") from error


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"{value!r} is no text")
    return value.strip()


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value
