"""The page of a traced text: what it shows, its colours by rarity, and that hostile text stays text."""

from __future__ import annotations

import re

import pytest

from palimpsest.report import render_trace
from palimpsest.report.trace_page import LEVELS, level


def traced(text: str, spans: list[tuple[int, int, float]], documents: int = 1):
    source = {"document": "<i>doc</i>", "index": 0, "before": "be\x00fore", "match": "match", "after": "</script><script>alert(1)</script>"}
    return {
        "text": text,
        "tokens": 10,
        "min_len": 8,
        "covered": 0.5,
        "spans": [{"start": a, "end": b, "tokens": (a, b), "count": 3, "bits": bits, "documents": [source]} for a, b, bits in spans],
        "passages": [],
        "documents": [{"document": f"d{i}", "index": i, "score": 9.0 - i, "spans": [0], "metadata": {}} for i in range(documents)],
    }


def test_a_mark_has_the_colour_of_the_rarest_passage_on_it(tmp_path):
    html = render_trace(traced("abcdefgh", [(0, 4, 50.0), (2, 6, 150.0), (5, 8, 250.0)]), tmp_path / "t.html", "T", "by").read_text()
    marks = re.findall(r'<mark class="(\w+)"><a href="#p-text-\d+" data-spans="[\d ]+">(\w+)</a></mark>', html)
    assert marks == [("faint", "ab"), ("clear", "cd"), ("clear", "e"), ("strong", "f"), ("strong", "gh")]


@pytest.mark.parametrize(("bits", "expected"), [(0, 0), (LEVELS[1] - 1, 0), (LEVELS[1], 1), (LEVELS[2], 2), (1e4, 2)])
def test_levels(bits, expected):
    assert level(bits) == expected


def test_hostile_text_stays_text(tmp_path):
    trace = traced("<script>x</script>", [(0, 8, 10.0)]) | {"prompt": "<b>p</b>"}
    html = render_trace(trace, tmp_path / "t.html", "<h1>", "<h2>").read_text()
    assert html.count("<script") == 3  # theme, data, page
    assert "alert(1)</script>" not in html
    assert "be␀fore" in html
    assert "&lt;b&gt;p&lt;/b&gt;" in html
    assert "<b>p" not in html
    assert "<title>&lt;h1&gt;</title>" in html


def test_more_documents_than_the_table_has_rows(tmp_path):
    html = render_trace(traced("abc", [(0, 3, 1.0)], documents=60), tmp_path / "t.html", "T", "by").read_text()
    assert "10 more are in the data" in html
    assert html.count("<td") == 50 * 3


def test_nothing_found_is_said(tmp_path):
    html = render_trace(traced("abc", [], documents=0), tmp_path / "t.html", "T", "by").read_text()
    assert "No passage of 8 tokens" in html
    assert "The documents" not in html
