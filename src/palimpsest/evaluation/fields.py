"""What a text field of an item or a document may hold: text that can be written as UTF-8, or a list of such texts.

A single string where a list is due would become a tuple of its letters, each of which counts as a right answer; it is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from palimpsest.errors import InputError


def text(value: Any, what: str) -> str:
    """The value, if it is text.

    Raises:
        InputError: another type, or half of a surrogate pair, which no file can hold.
    """
    if not isinstance(value, str):
        raise InputError(f"{what} is {_shown(value)}, not text.", "Put it in quotes.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} holds {value[error.start]!r}, which is no character.", "Give text that can be written as UTF-8."
        ) from error
    return value


def texts(value: Any, what: str) -> tuple[str, ...]:
    """The texts of a list.

    Raises:
        InputError: one text, another type, or an entry that is no text.

    Example:
        >>> texts(["Paris", "Paree"], "golds")
        ('Paris', 'Paree')
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise InputError(f"{what} is {_shown(value)}, not a list.", 'Write a list of texts, such as ["Paris"].')
    return tuple(text(entry, f"an entry of {what}") for entry in value)


def _shown(value: Any) -> str:
    """A value in a message, at most a line of it."""
    written = ascii(value)
    return written if len(written) <= 80 else f"{written[:77]}..."
