"""The typed blocks that a report is made of, as plain JSON: small constructors, so that every section is built the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from palimpsest.measurement import Curve, Series
from palimpsest.stats import Interval, wilson_interval

Block = dict[str, Any]


def text(*paragraphs: str) -> Block:
    """Paragraphs in plain words."""
    return {"type": "text", "paragraphs": list(paragraphs)}


def heading(title: str, *paragraphs: str) -> Block:
    """Paragraphs under a heading of their own."""
    return {"type": "text", "title": title, "paragraphs": list(paragraphs)}


def curve(figure: Curve, fits: Sequence[tuple[str, str]] = ()) -> Block:
    """A figure; `fits` are (series, what was fitted) pairs shown beside it."""
    return {"type": "curve", **figure.to_dict(), "fits": [{"series": series, "text": line} for series, line in fits]}


def table(name: str, title: str, columns: Sequence[tuple[str, str, str]], rows: Sequence[Mapping[str, Any]], caption: str = "") -> Block:
    """A table; columns are (key, label, format), format one of text, int, float, percent, interval, seconds."""
    shown = [{"key": key, "label": label, "format": form} for key, label, form in columns]
    return {"type": "table", "id": name, "title": title, "caption": caption, "columns": shown, "rows": [dict(row) for row in rows]}


def section(name: str, title: str, question: str, answer: str, blocks: Sequence[Block]) -> dict[str, Any]:
    """A section that was measured: a question, its answer in plain words, and what it rests on."""
    return {
        "id": name,
        "title": title,
        "question": question,
        "answer": answer,
        "status": "measured",
        "reason": None,
        "blocks": list(blocks),
    }


def skipped(name: str, title: str, question: str, reason: str) -> dict[str, Any]:
    """A section that could not be measured, with the reason."""
    return {"id": name, "title": title, "question": question, "answer": None, "status": "skipped", "reason": reason, "blocks": []}


def tile(label: str, rate: Interval | float | int | None, form: str = "percent", note: str = "", tone: str = "neutral") -> dict[str, Any]:
    """A key figure, with its interval when it is one."""
    made: dict[str, Any] = {"label": label, "format": form, "note": note, "tone": tone}
    if isinstance(rate, Interval):
        return made | {"value": rate.estimate, "low": rate.low, "high": rate.high}
    return made | {"value": rate, "low": None, "high": None}


def fact(label: str, value: Any, form: str = "text") -> dict[str, Any]:
    """A labelled figure beside a passage."""
    return {"label": label, "value": value, "format": form}


def rate_of(hits: Sequence[bool]) -> Interval:
    """Share of hits with its 95 % Wilson interval."""
    return wilson_interval(int(sum(hits)), len(hits))


def wilson(hits: int, n: int) -> list[float]:
    """A share of n with its 95 % Wilson interval, as a table shows it."""
    return list(wilson_interval(hits, n))


def p_value(value: float) -> str:
    """A p-value as a table shows it.

    Example:
        >>> p_value(0.0312), p_value(1e-9)
        ('0.031', '< 0.0001')
    """
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def rate_points(rows: Sequence[Mapping[str, Any]], x: str) -> list[dict[str, Any]]:
    """Points of a curve from the rows that `palimpsest.audit.laws.rates` makes."""
    return [{"x": row[x], "y": row["rate"], "low": row["low"], "high": row["high"], "n": row["n"]} for row in rows]


def line(name: str, points: list[dict[str, Any]], style: str = "line") -> Series:
    """A series of a curve."""
    return Series(name, points, style)


def percent(value: float) -> str:
    """A share in words: "42 %", with a decimal below ten."""
    scaled = 100 * value
    return f"{scaled:.0f} %" if scaled >= 10 or scaled == 0 else f"{scaled:.1f} %"


def count_of(hits: int, n: int) -> str:
    """A count in words: "54 of 64"."""
    return f"{hits:,} of {n:,}"


def edits(count: int) -> str:
    """A number of token edits in words: "1 edit", "2 edits"."""
    return f"{count:,} edit{'s' * (count != 1)}"
