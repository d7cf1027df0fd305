"""Spans laid over a text: the text cut wherever a span begins or ends, so that overlapping spans can both be shown."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Piece:
    """A stretch of text.

    Attributes:
        text: the characters, never empty.
        spans: indices of the spans that cover it, in rising order; empty outside all spans.
    """

    text: str
    spans: tuple[int, ...]


def pieces(text: str, spans: Sequence[Mapping[str, Any]]) -> list[Piece]:
    """Cuts `text` at the ends of `spans`.

    Args:
        text: any text.
        spans: objects with "start" and "end", character offsets with 0 <= start < end <= len(text); they may overlap.

    Returns:
        Pieces that add up to `text`.

    Example:
        >>> [(p.text, p.spans) for p in pieces("abcdef", [{"start": 1, "end": 4}, {"start": 3, "end": 5}])]
        [('a', ()), ('bc', (0,)), ('d', (0, 1)), ('e', (1,)), ('f', ())]
    """
    cuts = sorted({0, len(text), *(span["start"] for span in spans), *(span["end"] for span in spans)})
    return [
        Piece(text[start:end], tuple(i for i, span in enumerate(spans) if span["start"] <= start and end <= span["end"]))
        for start, end in itertools.pairwise(cuts)
    ]


def visible(value: Any) -> Any:
    """`value` with every control character and lone surrogate in its texts made visible, one for one.

    HTML and XML cannot carry them, and a leaked passage may hold any; marks that turn the direction of text around could show it
    as another text than it is. Tabs and line breaks stay; offsets stay valid.

    Example:
        >>> visible({"text": "a\\x00b"})
        {'text': 'a␀b'}
    """
    if isinstance(value, str):
        return value.translate(_VISIBLE)
    if isinstance(value, dict):
        return {visible(key): visible(item) for key, item in value.items()}
    if isinstance(value, list):
        return [visible(item) for item in value]
    return value


_VISIBLE = (
    {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"}
    | {0x7F: 0x2421}
    | dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF], 0xFFFD)
)
