"""The page: an audit in, one self-contained `index.html` and its figures out.

The page holds its styles, scripts and figures itself and asks nobody for anything; a content security policy, with the hashes of
its own two scripts, says so to the browser too. All text of the audit is untrusted (it is what a model wrote): it is escaped by
Jinja, made visible where it is a control character, and never becomes markup, a path or an address that runs.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from palimpsest import numbers, plot
from palimpsest.errors import InputError
from palimpsest.files import storage_errors, write_bytes, write_text
from palimpsest.measurement import Curve
from palimpsest.report.highlight import pieces, visible
from palimpsest.report.schema import LEVELS, NUMERIC, check

_TEMPLATES = Path(__file__).parent / "templates"
_WIDE, _NARROW = 780, 340  # px: the column of the page, and that of a phone of 390 px
_MOST_ROWS = 200  # rows of a figure's table on the page; all are in audit.json
_LEVELS = dict(zip(LEVELS, ("none found", "low", "moderate", "high"), strict=True))


def render(audit: Mapping[str, Any], out: str | os.PathLike[str]) -> Path:
    """Writes `out/index.html` and `out/figures/*.svg` and `*.png`.

    The page is made whole before anything is written, and `index.html` is written last, atomically: a failed run leaves the
    page of the run before it.

    Args:
        audit: the content of an `audit.json`, format "palimpsest-audit/1" (see `palimpsest.report.schema`).
        out: the folder; made if it is not there. `audit.json` is expected beside the page, which links it.

    Returns:
        The path of `index.html`. Equal audits give equal bytes.

    Raises:
        InputError: the audit is not of this format; the message names the place in the JSON.
        StorageError: the folder cannot be written.

    Example:
        >>> import json, pathlib
        >>> from palimpsest.report import render
        >>> render(json.loads(pathlib.Path("report/audit.json").read_text()), "report")  # doctest: +SKIP
        PosixPath('report/index.html')
    """
    check(audit)
    shown = visible(dict(audit))
    files: dict[str, bytes] = {}
    figures: dict[str, dict[str, Any]] = {}
    known = _known(shown)
    for i, section in enumerate(shown["sections"]):
        for j, block in enumerate(section["blocks"]):
            if block["type"] == "curve" and _measured(block):
                try:
                    figures[block["id"]] = drawing(block, known, files)
                except InputError as error:
                    raise InputError(f"sections[{i}].blocks[{j}]: {error.problem}", error.remedy) from error
    html = (
        page_environment()
        .get_template("page.html")
        .render(audit=shown, figures=figures, levels=_LEVELS, data=embedded_json(audit), **scripts())
    )
    out = Path(out)
    with storage_errors(out):
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for old in (out / "figures").iterdir():  # an earlier audit may have had figures that this one has not
            if old.suffix in (".svg", ".png") and old.name not in files:
                old.unlink()
    for name, content in files.items():
        write_bytes(out / "figures" / name, content)
    write_text(out / "index.html", html)
    return out / "index.html"


def embedded_json(value: Any) -> Markup:
    """`value` as JSON that may stand inside a `<script>` element: nothing in it can close the element or open a comment.

    Example:
        >>> str(embedded_json("</script>"))
        '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _measured(curve: Mapping[str, Any]) -> bool:
    """Whether a curve has a point to draw; the page says so of one that has none."""
    return any(point.get("y") is not None for series in curve["series"] for point in series["points"])


def _known(audit: Mapping[str, Any]) -> list[str]:
    """Names of series that stand in more than one figure, in the order in which they appear: each keeps its hue and marker."""
    curves = [block for section in audit["sections"] for block in section["blocks"] if block["type"] == "curve"]
    names = [series["name"] for curve in curves for series in curve["series"] if series["style"] != "dashed"]
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def drawing(block: Mapping[str, Any], known: list[str], files: dict[str, bytes]) -> dict[str, Any]:
    """Draws a curve for the page (wide and narrow, in the page's colours) and for files of its own (in real ones)."""
    fields = ("id", "title", "x_label", "y_label", "series", "x_scale", "y_scale", "y_domain", "y_format", "caption")
    curve = Curve.from_dict({field: block.get(field) for field in fields} | {"x_format": block.get("x_format") or "number"})
    standalone = plot.svg(curve, width=_WIDE, known=known)
    files[f"{curve.id}.svg"] = standalone.encode("utf-8")
    files[f"{curve.id}.png"] = plot.rasterise(standalone)
    kind = "percent" if curve.y_format == "percent" else "float"
    rows = [
        {"series": series.name, "x": point["x"], "y": [point.get("y"), point.get("low"), point.get("high")], "n": point.get("n")}
        for series in curve.series
        for point in series.points
    ]
    stride = -(-len(rows) // _MOST_ROWS)
    columns = [
        {"key": "series", "label": "Series", "format": "text"},
        {"key": "x", "label": curve.x_label, "format": "percent" if curve.x_format == "percent" else "float"},
        {"key": "y", "label": curve.y_label, "format": kind},
    ]
    if any(row["n"] is not None for row in rows):
        columns.append({"key": "n", "label": "Samples", "format": "int"})
    return {
        "wide": Markup(plot.svg(curve, colours=plot.CSS, width=_WIDE, height=320, title=False, known=known)),
        "narrow": Markup(plot.svg(curve, colours=plot.CSS, width=_NARROW, height=230, title=False, known=known)),
        "columns": columns,
        "rows": rows[::stride],
        "all_rows": len(rows),
        "absent": [series.name for series in curve.series if all(point.get("y") is None for point in series.points)],
        "stride": stride,
    }


def page_environment() -> jinja2.Environment:
    """Jinja with the templates, filters and escaping of every page."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        value=_value, span=_span, cell=_cell, sort_key=_sort_key, share=_share, short=_short, words=_words, plain=_plain
    )
    environment.filters.update(kinds=_kinds, moment=_moment, prose=_prose, seconds=numbers.seconds, integer=numbers.integer)
    environment.tests.update(numeric=lambda kind: kind in NUMERIC, digest=_is_digest, web_address=_is_web_address)
    environment.globals.update(pieces=pieces)
    return environment


def _value(figure: Mapping[str, Any]) -> str:
    """The value of a tile or fact, without its interval."""
    value = figure.get("value")
    return _cell([value[0], None, None] if isinstance(value, list) else value, figure["format"])


def _kinds(comparison: Mapping[str, Any]) -> set[str]:
    """Which kinds of span a comparison shows: its legend names these."""
    return {span["kind"] for item in comparison["items"] for column in item["columns"] for span in column["spans"]}


def _moment(text: str) -> str:
    """A moment in ISO 8601 as one writes it, anything else as it is."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    written = f"{moment.day} {moment:%B %Y}"
    if "T" in text:
        written += f", {moment:%H:%M}" + (f" {moment.tzname()}" if moment.tzinfo else "")
    return written


def _prose(text: str) -> str:
    """A sentence in which no unit begins a line: "42 %" keeps together."""
    return re.sub(r"(?<=\d) (?=%)", "\u00a0", text)


def _span(triple: list[float], kind: str) -> str:
    """The interval of a tile alone, e.g. "35–49 %"."""
    if kind in ("percent", "interval"):
        return f"{numbers.percent(triple[1], unit=False)}–{numbers.percent(triple[2])}"
    return f"{_cell(triple[1], kind)}–{_cell(triple[2], kind)}"


def _cell(value: Any, kind: str) -> str:
    """A value in the wording of its format; [value, low, high] with its interval."""
    if value is None:
        return numbers.MISSING
    if isinstance(value, list):
        return numbers.interval(value[0], value[1], value[2], "percent" if kind == "interval" else kind)
    if kind == "text":
        return ("yes" if value else "no") if isinstance(value, bool) else str(value)
    return {"percent": numbers.percent, "int": numbers.integer, "seconds": numbers.seconds}.get(kind, numbers.number)(value)


def _sort_key(value: Any) -> str:
    """What a column is sorted by: the figure itself, not its wording; "" for a missing one, which goes last."""
    value = value[0] if isinstance(value, list) else value
    return "" if value is None else str(value)


def _share(value: Any) -> bool:
    """Whether [value, low, high] can be drawn on a track from 0 to 100 %."""
    return isinstance(value, list) and all(part is not None and 0 <= part <= 1 for part in value)


def _short(text: str) -> str:
    """A fingerprint by its first twelve characters."""
    return text[:12] + ("…" if len(text) > 12 else "")


def _words(name: str) -> str:
    """The key of a setting as words: "context_length" as "context length"."""
    return str(name).replace("_", " ")


def _plain(value: Any) -> str:
    """A setting: text as it is, numbers as a reader wants them."""
    if value is None:
        return numbers.MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return numbers.integer(value) if abs(value) >= 1_000 else str(value)
    if isinstance(value, float):
        return numbers.number(value)
    return str(value)


def _is_digest(text: Any) -> bool:
    return isinstance(text, str) and re.fullmatch(r"[0-9a-f]{16,}", text) is not None


def _is_web_address(text: Any) -> bool:
    """Only these become links: "javascript:" and its like are shown as text."""
    return isinstance(text, str) and re.match(r"https?://[^\s]+$", text) is not None


def _colours() -> str:
    """The colours of figures as variables of the style sheet."""
    lines = (f"  --{name}: light-dark({plot.LIGHT[name]}, {plot.DARK[name]});\n" for name in plot.LIGHT)
    return ":root {\n" + "".join(lines) + "}\n"


def scripts() -> dict[str, Any]:
    """Styles and scripts, to be written into the page as they are, and the hashes by which its policy lets the scripts run."""
    texts = {name: (_TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "theme.js", "page.js")}
    hashes = [base64.b64encode(hashlib.sha256(texts[name].encode("utf-8")).digest()).decode() for name in ("theme.js", "page.js")]
    return {
        "style": Markup(_colours() + texts["page.css"]),
        "theme_script": Markup(texts["theme.js"]),
        "page_script": Markup(texts["page.js"]),
        "script_hashes": hashes,
    }
