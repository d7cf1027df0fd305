"""The format "palimpsest-audit/1": what an `audit.json` must hold before a page is made of it.

An audit is a verdict, a few key figures, and sections made of typed blocks (text, curve, table, passages, comparison). The page
knows the blocks, not the measurements, so a new measurement needs no new template. `check` refuses what it cannot draw and says
where it stands in the JSON, e.g. `sections[2].blocks[0].rows[5].rate`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from palimpsest.errors import InputError

FORMAT = "palimpsest-audit/1"
LEVELS = ("none", "low", "moderate", "high")
TONES = ("good", "warn", "bad", "neutral")
NUMERIC = ("int", "float", "percent", "interval", "seconds")
FORMATS = ("text", *NUMERIC)

Check = Callable[[Any, str], None]
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")


def check(audit: Any) -> None:
    """Raises `InputError` unless `audit` can be rendered.

    Args:
        audit: what `json.loads` made of an `audit.json`.

    Raises:
        InputError: another format or version, a missing field, a value of the wrong type or range, an unknown block type, two
            blocks of one id, a span outside its text. The message begins with the path in the JSON.

    Example:
        >>> check({"format": "palimpsest-audit/9"})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        palimpsest.errors.InputError: format: 'palimpsest-audit/9' cannot be read here. Expected 'palimpsest-audit/1': ...
    """
    if not isinstance(audit, dict):
        raise _wrong("audit.json", audit, "an object")
    version = audit.get("format")
    if version != FORMAT:
        raise InputError(
            f"format: {version!r} cannot be read here.",
            f"Expected {FORMAT!r}: run the audit again, or use the version of palimpsest that wrote this file.",
        )
    _finite(audit, "")
    _AUDIT(audit, "")
    _unique([section["id"] for section in audit["sections"]], "sections", "id")
    blocks = [block["id"] for section in audit["sections"] for block in section["blocks"] if "id" in block]
    _unique(blocks, "sections[…].blocks", "id")


def _wrong(path: str, value: Any, expected: str) -> InputError:
    shown = repr(value)
    return InputError(
        f"{path or 'audit.json'}: {shown if len(shown) < 80 else shown[:77] + '…'} is not {expected}.", f"Give {expected} there."
    )


def _unique(values: Sequence[str], path: str, key: str) -> None:
    for value in values:
        if values.count(value) > 1:
            raise InputError(f"{path}: {values.count(value)} entries have the {key} {value!r}.", f"Give each its own {key}.")


def _text(value: Any, path: str) -> None:
    if not isinstance(value, str):
        raise _wrong(path, value, "text")


def _flag(value: Any, path: str) -> None:
    if not isinstance(value, bool):
        raise _wrong(path, value, "true or false")


def _number(value: Any, path: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e308 < value < 1e308:
        raise _wrong(path, value, "a finite number")


def _count(value: Any, path: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _wrong(path, value, "a whole number of at least 0")


def _identifier(value: Any, path: str) -> None:
    # It becomes a file name and an anchor: nothing in it may lead out of the folder.
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise _wrong(path, value, "an id of letters, digits, '-', '_' and '.'")


def _ends(value: Any, path: str) -> None:
    if not isinstance(value, list) or len(value) != 2:
        raise _wrong(path, value, "a list [low, high]")
    for i, end in enumerate(value):
        _number(end, f"{path}[{i}]")


def _finite(value: Any, path: str) -> None:
    """No NaN and no infinity, however deep."""
    if isinstance(value, dict):
        for key, item in value.items():
            _finite(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _finite(item, f"{path}[{i}]")
    elif isinstance(value, float):
        _number(value, path)


def _among(choices: Sequence[str]) -> Check:
    def checker(value: Any, path: str) -> None:
        if value not in choices:
            raise _wrong(path, value, f"one of {', '.join(choices)}")

    return checker


def _list(inner: Check) -> Check:
    def checker(value: Any, path: str) -> None:
        if not isinstance(value, list):
            raise _wrong(path, value, "a list")
        for i, item in enumerate(value):
            inner(item, f"{path}[{i}]")

    return checker


def _object(fields: Mapping[str, Check]) -> Check:
    """An object with these fields; "name?" may be null or left out. Further fields are kept and not looked at."""

    def checker(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise _wrong(path, value, "an object")
        for field, inner in fields.items():
            name = field.removesuffix("?")
            where = f"{path}.{name}" if path else name
            if value.get(name) is not None or (name in value and name == field):
                inner(value[name], where)
            elif name == field:
                raise InputError(f"{where}: this field is missing.", f"Add it, or run the audit again: {FORMAT} needs it.")

    return checker


def _figure(value: Any, path: str) -> None:
    """A value with a format: `{"label", "value", "format", "low"?, "high"?}`, as tiles and facts have it."""
    _object({"label": _text, "format": _among(FORMATS), "low?": _number, "high?": _number, "note?": _text, "tone?": _among(TONES)})(
        value, path
    )
    _cell(value["format"], value.get("value"), f"{path}.value")


def _cell(kind: str, value: Any, path: str) -> None:
    """A value that suits the format of its column; null is "not measured", [value, low, high] is a figure with its interval."""
    if value is None:
        return
    if kind == "text":
        if isinstance(value, float):
            _number(value, path)
        elif not isinstance(value, str | int | bool):
            raise _wrong(path, value, "text")
        return
    if kind == "interval" or isinstance(value, list):
        if not isinstance(value, list) or len(value) != 3:
            raise _wrong(path, value, "a list [value, low, high]")
        for i, item in enumerate(value):
            if item is not None:
                _number(item, f"{path}[{i}]")
        return
    _number(value, path)


def _table(value: Any, path: str) -> None:
    _object(
        {
            "id": _identifier,
            "title": _text,
            "caption?": _text,
            "columns": _list(_object({"key": _text, "label": _text, "format": _among(FORMATS), "help?": _text})),
            "rows": _list(_object({})),
        }
    )(value, path)
    if not value["columns"]:
        raise InputError(f"{path}.columns: a table without columns.", "Give at least one.")
    _unique([column["key"] for column in value["columns"]], f"{path}.columns", "key")
    for i, row in enumerate(value["rows"]):
        for column in value["columns"]:
            _cell(column["format"], row.get(column["key"]), f"{path}.rows[{i}].{column['key']}")


def _spans(fields: Mapping[str, Check]) -> Callable[[Any, str, str], None]:
    """Spans with character offsets in a text, and these further fields."""
    listed = _list(_object({"start": _count, "end": _count, **fields}))

    def checker(value: Any, text: str, path: str) -> None:
        listed(value, path)
        for i, span in enumerate(value):
            if not span["start"] < span["end"] <= len(text):
                raise InputError(
                    f"{path}[{i}]: the span {span['start']}–{span['end']} does not lie in a text of {len(text)} characters.",
                    "Give character offsets with 0 ≤ start < end ≤ length.",
                )

    return checker


_SOURCE = _object({"document": _text, "before": _text, "match": _text, "after": _text})
_TRACED = _spans({"count?": _count, "documents": _list(_SOURCE)})
_MARKED = _spans({"kind": _among(("verbatim", "protected", "blocked"))})
_PASSAGE = _object(
    {
        **dict.fromkeys(("id", "model?", "domain?", "prefix_text", "output_text", "true_text?"), _text),
        "copies?": _count,
        "spans": _list(_object({})),
        "facts?": _list(_figure),
    }
)
_COMPARED = _object(
    {
        "id": _text,
        "prefix_text": _text,
        "true_text?": _text,
        "columns": _list(_object({"label": _text, "text": _text, "spans": _list(_object({})), "facts?": _list(_figure)})),
    }
)


def _passages(value: Any, path: str) -> None:
    _object({"id": _identifier, "title": _text, "caption?": _text, "items": _list(_PASSAGE)})(value, path)
    for i, item in enumerate(value["items"]):
        _TRACED(item["spans"], item["output_text"], f"{path}.items[{i}].spans")


def _comparison(value: Any, path: str) -> None:
    _object({"id": _identifier, "title": _text, "caption?": _text, "items": _list(_COMPARED)})(value, path)
    for i, item in enumerate(value["items"]):
        for j, column in enumerate(item["columns"]):
            _MARKED(column["spans"], column["text"], f"{path}.items[{i}].columns[{j}].spans")


_POINT = _object({"x": _number, "y?": _number, "low?": _number, "high?": _number, "n?": _count})
_SERIES = _object({"name": _text, "style": _among(("line", "points", "dashed")), "points": _list(_POINT)})
_CURVE = _object(
    {
        "id": _identifier,
        **dict.fromkeys(("title", "x_label", "y_label", "caption?"), _text),
        **dict.fromkeys(("x_scale", "y_scale"), _among(("linear", "log", "symlog"))),
        "y_domain?": _ends,
        "x_format?": _among(("percent", "number")),
        "y_format": _among(("percent", "number")),
        "series": _list(_SERIES),
        "fits?": _list(_object({"series": _text, "text": _text})),
    }
)
BLOCKS: Mapping[str, Check] = {
    "text": _object({"title?": _text, "paragraphs": _list(_text)}),
    "curve": _CURVE,
    "table": _table,
    "passages": _passages,
    "comparison": _comparison,
}


def _block(value: Any, path: str) -> None:
    _object({"type": _among(tuple(BLOCKS))})(value, path)
    BLOCKS[value["type"]](value, path)


_AUDIT = _object(
    {
        "format": _text,
        "title": _text,
        "created": _text,
        "demonstration?": _flag,
        "verdict": _object({"level": _among(LEVELS), "headline": _text, "sentences": _list(_text)}),
        "tiles": _list(_figure),
        **dict.fromkeys(("corpus?", "settings?", "environment?", "timing?"), _object({})),
        "models": _list(_object({"name": _text, "role?": _text, "parameters?": _count, "fingerprint?": _text})),
        "sections": _list(
            _object(
                {
                    "id": _identifier,
                    "title": _text,
                    "question": _text,
                    "group?": _text,
                    "answer?": _text,
                    "status": _among(("measured", "skipped")),
                    "reason?": _text,
                    "blocks": _list(_block),
                }
            )
        ),
        "limits": _list(_text),
        "references?": _list(_object({"title": _text, "url?": _text})),
    }
)
