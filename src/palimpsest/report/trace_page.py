"""The page of one traced text: the text with its passages marked by rarity, their documents with context, all documents ranked.

One self-contained HTML file with the style sheet, scripts and policy of the report's page. All text is untrusted: what a model or a
corpus holds is escaped, and made visible where it is a control character.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from palimpsest.files import write_text
from palimpsest.report.highlight import Piece, visible
from palimpsest.report.page import embedded_json, page_environment, scripts

LEVELS = (0, 100, 200)  # bits of rarity at which a passage is marked faintly, plainly, strongly
_NAMES = ("faint", "clear", "strong")
_MOST_DOCUMENTS = 50  # rows of the table of documents; all are in the page's data


def render_trace(trace: Mapping[str, Any], out: str | os.PathLike[str], title: str, byline: str) -> Path:
    """Writes the page of a traced text.

    Args:
        trace: what `TracedText.to_dict` gave, with "min_len" and, when a model wrote the text, its "prompt".
        out: the HTML file.
        title: its heading.
        byline: the line below: which corpus, which model.

    Returns:
        The path. Equal traces give equal bytes.

    Raises:
        StorageError: the file cannot be written.

    Example:
        >>> from palimpsest.corpus.traced_text import trace_text
        >>> traced = trace_text(index, index.tokenizer, ids)                                           # doctest: +SKIP
        >>> render_trace({**traced.to_dict(), "min_len": 8}, "trace.html", "A text", "The Bible")    # doctest: +SKIP
        PosixPath('trace.html')
    """
    shown = visible({"prompt": "", **trace})
    tiles = [
        {"label": "Found in the corpus", "value": shown["covered"], "format": "percent", "note": f"of {shown['tokens']} tokens"},
        {"label": "Passages", "value": len(shown["spans"]), "format": "int"},
        {"label": "Documents", "value": len(shown["documents"]), "format": "int"},
        {"label": "Rarest passage", "value": max((s["bits"] for s in shown["spans"]), default=None), "format": "float", "note": "bits"},
    ]
    columns = [
        {"key": "document", "label": "Document", "format": "text"},
        {"key": "score", "label": "BM25", "format": "float"},
        {"key": "passages", "label": "Passages", "format": "int"},
    ]
    rows = [{**document, "passages": len(document["spans"])} for document in shown["documents"][:_MOST_DOCUMENTS]]
    html = (
        page_environment()
        .get_template("trace.html")
        .render(
            trace=shown,
            title=visible(title),
            byline=visible(byline),
            tiles=tiles,
            columns=columns,
            documents=rows,
            hidden=max(0, len(shown["documents"]) - _MOST_DOCUMENTS),
            levels=LEVELS,
            rarity=_rarity,
            data=embedded_json(trace),
            **scripts(),
        )
    )
    out = Path(out)
    write_text(out, html)
    return out


def level(bits: float) -> int:
    """How strongly a passage of so many bits is marked: 0, 1 or 2.

    Example:
        >>> [level(bits) for bits in (64.0, 100.0, 950.0)]
        [0, 1, 2]
    """
    return sum(bits >= border for border in LEVELS[1:])


def _rarity(piece: Piece, spans: Sequence[Mapping[str, Any]]) -> str:
    """The class of a mark: that of the rarest passage on it."""
    return _NAMES[level(max(spans[i]["bits"] for i in piece.spans))]
