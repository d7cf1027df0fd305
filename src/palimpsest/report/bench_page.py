"""The page of a benchmark: a few figures, curves and tables, as one self-contained HTML file in the style of the report's page.

It knows nothing of what was measured: a section is a title, a question, and blocks of the report's kinds "curve" and "table"
(see `palimpsest.report.schema`). All text is escaped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from palimpsest.files import storage_errors, write_bytes, write_text
from palimpsest.report.highlight import visible
from palimpsest.report.page import drawing, embedded_json, page_environment, scripts


def render_bench(
    title: str,
    byline: str,
    tiles: Sequence[Mapping[str, Any]],
    sections: Sequence[Mapping[str, Any]],
    out: str | os.PathLike[str],
    *,
    data: Any = None,
) -> Path:
    """Writes `out/index.html`, and its figures as SVG and PNG beside it.

    Args:
        title, byline: its heading and the line below.
        tiles: figures at the top, {"label", "value", "format", "note"?}.
        sections: {"id", "title", "question", "blocks": [{"type": "curve" | "table", …}]}.
        out: the folder; made if it is not there.
        data: what the page holds for download, plain JSON types; by default the sections.

    Returns:
        The path of the page. Equal input gives equal bytes.

    Raises:
        StorageError: the folder cannot be written.

    Example:
        >>> table = {"type": "table", "id": "t", "title": "T", "columns": [{"key": "a", "label": "A", "format": "int"}], "rows": [{"a": 1}]}
        >>> render_bench("Bench", "today", [], [{"id": "s", "title": "S", "question": "?", "blocks": [table]}], "out")  # doctest: +SKIP
        PosixPath('out/index.html')
    """
    shown = visible({"title": title, "byline": byline, "tiles": list(tiles), "sections": list(sections)})
    curves = [block for section in shown["sections"] for block in section["blocks"] if block["type"] == "curve"]
    names = [series["name"] for curve in curves for series in curve["series"]]
    known = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    files: dict[str, bytes] = {}
    figures = {curve["id"]: drawing(curve, known, files) for curve in curves}
    held = embedded_json(list(sections) if data is None else data)
    html = page_environment().get_template("bench.html").render(**shown, figures=figures, data=held, **scripts())
    out = Path(out)
    with storage_errors(out):
        (out / "figures").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_bytes(out / "figures" / name, content)
    write_text(out / "index.html", html)
    return out / "index.html"
