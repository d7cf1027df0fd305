"""The page of a benchmark: its tables and figures, and that hostile text stays text."""

from __future__ import annotations

import re

from palimpsest.measurement import Curve, Series
from palimpsest.report import render_bench


def test_tables_and_figures_stand_on_one_page(tmp_path):
    curve = Curve("c-1", "A curve", "x", "y", [Series("<b>a</b>", [{"x": 1.0, "y": 0.5}, {"x": 2.0, "y": 0.7}])])
    columns = [{"key": "name", "label": "Name", "format": "text"}, {"key": "found", "label": "Found", "format": "interval"}]
    rows = [{"name": "<script>x</script>", "found": [0.5, 0.4, 0.6]}, {"name": "none", "found": None}]
    blocks = [
        {"type": "table", "id": "t-1", "title": "All", "columns": columns, "rows": rows},
        {"type": "curve", **curve.to_dict()},
    ]
    tiles = [{"label": "best", "value": [0.5, 0.4, 0.6], "format": "percent", "note": "of 10"}]
    sections = [{"id": "s", "title": "A model", "question": "What?", "blocks": blocks}]
    page = render_bench("Bench </title>", "today", tiles, sections, tmp_path, data={"a": "</script>"})
    html = page.read_text()
    assert html.count("<script") == 3  # theme, data, page
    assert "&lt;script&gt;x&lt;/script&gt;" in html
    assert "<b>a</b>" not in html
    assert "50\u00a0% (40–60)" in html
    assert "<title>Bench &lt;/title&gt;</title>" in html
    undefined = set(re.findall(r"var\((--[\w-]+)\)", html)) - set(re.findall(r"(--[\w-]+):", html))
    assert not undefined, "a figure in undefined colours is black"
    assert (tmp_path / "figures" / "c-1.svg").is_file()
    assert (tmp_path / "figures" / "c-1.png").is_file()
    assert (
        render_bench("Bench </title>", "today", tiles, sections, tmp_path / "b", data={"a": "</script>"}).read_bytes() == page.read_bytes()
    )
