import base64
import hashlib
import itertools
import json
import re
import struct
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from palimpsest.errors import InputError, StorageError
from palimpsest.report import render

VOID = {"meta", "link", "br", "img", "input", "hr", "path", "circle", "rect", "line"}


class Reader(HTMLParser):
    """Collects elements with their attributes and texts, and insists that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def find(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [
            attrs
            for name, attrs in self.elements
            if name == tag and all(attrs.get(key.strip("_")) == value for key, value in attributes.items())
        ]


@pytest.fixture(scope="module")
def html(page: Path) -> str:
    return (page / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def test_landmarks_language_and_headings(read: Reader) -> None:
    assert read.find("html", lang="en")
    for landmark in ("header", "main", "nav", "footer"):
        assert len([tag for tag, _ in read.elements if tag == landmark]) >= 1
    assert len(read.find("h1")) == 1
    levels = [int(tag[1]) for tag, _ in read.elements if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert read.find("a", class_="skip", href="#content")


def test_ids_are_unique_and_every_inner_link_and_reference_has_its_target(read: Reader) -> None:
    ids = [attrs["id"] for _, attrs in read.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in read.elements:
        href = attrs.get("href") or ""
        if href.startswith("#"):
            assert href[1:] in ids
        assert all(name in ids for name in (attrs.get("aria-labelledby") or "").split())


def test_the_page_asks_nobody_for_anything(read: Reader, html: str) -> None:
    for tag, attrs in read.elements:
        assert "src" not in attrs, tag
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in attrs), (tag, attrs)
    outward = [attrs["href"] for tag, attrs in read.elements if tag == "a" and "//" in (attrs.get("href") or "")]
    assert outward == ["https://arxiv.org/abs/2202.07646"]
    assert "javascript:" not in [(attrs.get("href") or "")[:11] for _, attrs in read.elements]
    assert "@import" not in html
    assert set(re.findall(r"url\(([^)]{1,4})", html)) <= {f"#{name[:3]}" for name in re.findall(r"url\(#([^)]*)", html)}
    policy = read.find("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"] or ""
    assert policy.startswith("default-src 'none'")
    assert policy.count("'sha256-") == 2
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_only_the_pages_own_scripts_are_there_and_their_hashes_are_in_the_policy(read: Reader, html: str) -> None:
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == 2
    assert len(read.find("script")) == 3  # and the data
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in html


def test_hostile_text_is_shown_and_is_nothing_else(read: Reader, html: str) -> None:
    evil = '</p><script>document.title="owned"</script>'
    assert evil not in html
    assert any(evil in text for text in read.texts["a"] + read.texts["mark"])
    assert any("␀ b ␛[31m�" in text for text in read.texts["span"])
    assert "planted-m <b>" in read.texts["li"]
    assert "\u202e" not in html


def test_the_data_of_the_audit_is_in_the_page_unharmed(html: str, audit: dict[str, Any]) -> None:
    data = re.search(r'<script type="application/json" id="audit">(.*?)</script>', html, re.DOTALL)
    assert data
    assert json.loads(data[1]) == audit
    assert not re.search(r"[<>&]", data[1])


def test_every_section_has_its_question_answer_and_reason(read: Reader, html: str, audit: dict[str, Any]) -> None:
    for section in audit["sections"]:
        assert read.find("section", id=f"s-{section['id']}")
        assert any(section["question"] in text for text in read.texts["p"])
        assert read.find("a", href=f"#s-{section['id']}")
    assert any("gives no weights" in text for text in read.texts["span"])
    assert "Yes. planted-l completes 93\u00a0% (83–98)" in html
    for limit in audit["limits"]:
        assert limit in html


def test_the_verdict_says_its_level_in_words_and_not_in_colour_alone(html: str) -> None:
    badge = re.search(r'<p class="badge">(.*?)</p>', html, re.DOTALL)
    assert badge
    assert "<svg" in badge[1]
    assert "Memorization: high" in badge[1]


def test_tiles_have_their_interval_and_unit(html: str) -> None:
    assert re.search(r'<dd class="figure">93\u00a0%</dd>\s*<dd class="range">83–98\u00a0%', html)
    assert re.search(r'<dd class="figure">0.987</dd>\s*<dd class="range">0.961–0.999', html)
    assert "of 100,000 tokens written" in html


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_words_have_contrast_4_5_on_whatever_they_stand(html: str, theme: int) -> None:
    pairs = dict(re.findall(r"--([\w-]+): light-dark\(([^)]*)\)", html))
    colours = {name: pair.split(", ")[theme] for name, pair in pairs.items()}
    grounds = dict.fromkeys(("ink", "muted", "accent", "good", "low", "warn", "bad"), ("paper", "surface", "sunken"))
    grounds["ink"] += ("mark", "mark-strong", "protected", "blocked")
    grounds["paper"] = ("ink",)  # the tooltip
    for word, places in grounds.items():
        for place in places:
            low, high = sorted((luminance(colours[word]), luminance(colours[place])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (word, place)


def test_figures_are_inlined_in_the_colours_of_the_page(html: str) -> None:
    figures = re.findall(r"<svg xmlns.*?</svg>", html, re.DOTALL)
    assert len(figures) == 10  # five curves, each for a wide and a narrow window
    for figure in figures:
        ET.fromstring(figure)
        assert "var(--series-1)" in figure or "var(--series-2)" in figure
        assert not re.search(r'(fill|stroke)="#', figure)
    for name in set(re.findall(r"var\((--[\w-]+)\)", html)) - {"--low", "--high", "--value", "--tone"}:
        assert re.search(rf"{name}: ", html), name


def test_one_model_looks_alike_in_every_figure(html: str) -> None:
    hues: dict[str, set[str]] = {}
    for figure in re.findall(r'<div class="wide".*?</svg>', html, re.DOTALL):
        for tag in re.findall(r"<path[^>]*aria-label=[^>]*>", figure):
            name, hue = re.search(r'aria-label="([^:"]+)', tag), re.search(r'fill="(var\(--series-\d\))"', tag)
            if name and hue:
                hues.setdefault(name[1], set()).add(hue[1])
    assert [len(hues[name]) for name in ("planted-s", "planted-m", "planted-l")] == [1, 1, 1]
    assert len(set.union(*(hues[name] for name in ("planted-s", "planted-m", "planted-l")))) == 3


def test_figures_are_files_too(page: Path, read: Reader) -> None:
    names = {path.name for path in (page / "figures").iterdir()}
    assert len(names) == 10
    for name in names:
        assert read.find("a", href=f"figures/{name}")
        data = (page / "figures" / name).read_bytes()
        if name.endswith(".svg"):
            assert ET.fromstring(data).tag.endswith("svg")
            assert b"var(" not in data
        else:
            assert data[:8] == b"\x89PNG\r\n\x1a\n"
            assert struct.unpack(">I", data[16:20])[0] == 1560


def test_tables_can_be_sorted_by_button_and_carry_plain_values(read: Reader, html: str) -> None:
    heads = read.find("th", **{"aria-sort": "none"})
    buttons = re.findall(r'<th scope="col" aria-sort="none"[^>]*><button type="button">', html)
    assert len(heads) == len(buttons) == html.count('<th scope="col"') > 20  # every table, that of the models too
    cells = [float(value) for value in re.findall(r'data-value="([^"]*)"><span class="track', html)]
    assert len(cells) == 18
    assert max(cells) > 0.9
    assert read.find("td", **{"data-value": "", "class": "number"})  # a missing loss
    assert "42\u00a0s" in html
    assert "0.93 (" not in html
    assert re.search(r"0\.969 \(0\.45–0\.99\)", html)  # a figure of format float with an interval


def test_the_table_of_models_carries_what_it_is_sorted_by(html: str, audit: dict[str, Any]) -> None:
    table = html[html.index('aria-label="Models"') :].split("</table>")[0]
    rows = re.findall(r'<th scope="row" data-value="([^"]*)">.*?<td class="number" data-value="([^"]*)">', table)
    assert rows == [(model["name"], str(model.get("parameters") or "")) for model in audit["models"]]


def test_every_figure_has_its_points_as_a_table(read: Reader, audit: dict[str, Any]) -> None:
    curves = [block for section in audit["sections"] for block in section["blocks"] if block["type"] == "curve"]
    for curve in curves:
        assert read.find("table", id=f"d-{curve['id']}")
    assert any("4th of 607 points" in text for text in read.texts["p"])


def test_a_span_leads_to_the_documents_that_it_is_from(read: Reader, html: str) -> None:
    assert 'href="#p-leaks-1-0" data-spans="0 1"' in html  # where two spans overlap
    source = re.search(r'<details class="source" id="p-leaks-1-1".*?</details>', html, re.DOTALL)
    assert source
    assert "261 times in the corpus, 2 sources shown" in source[0]
    assert re.search(r"I came to town </span><mark>having little or no money in my purse</mark>", source[0])


def test_comparisons_mark_kinds_by_more_than_colour(read: Reader) -> None:
    for kind in ("verbatim", "protected", "blocked"):
        assert read.find("mark", class_=kind, title=kind)


def test_the_page_of_a_typical_audit_is_small(page: Path) -> None:
    assert (page / "index.html").stat().st_size < 1_500_000


def test_equal_audits_give_equal_bytes(page: Path, audit: dict[str, Any], tmp_path: Path) -> None:
    again = render(json.loads(json.dumps(audit)), tmp_path / "new" / "folder").parent
    for path in [again / "index.html", *sorted((again / "figures").iterdir())]:
        assert path.read_bytes() == (page / path.relative_to(again)).read_bytes()


def bare(audit: dict[str, Any], *blocks: dict[str, Any]) -> dict[str, Any]:
    section = {"id": "s", "title": "S", "question": "Q?", "answer": None, "status": "measured", "blocks": list(blocks)}
    return {**audit, "sections": [section], "tiles": [], "limits": [], "references": None, "timing": None, "corpus": None}


def test_the_smallest_audit_has_a_page(audit: dict[str, Any], tmp_path: Path) -> None:
    empty = [
        {"type": "passages", "id": "p", "title": "P", "items": []},
        {"type": "comparison", "id": "c", "title": "C", "items": []},
        {
            "type": "table",
            "id": "t",
            "title": "T",
            "columns": [{"key": "items", "label": "A", "format": "int"}],
            "rows": [{}, {"items": 3}],
        },
        {"type": "text", "paragraphs": []},
    ]
    html = render(bare(audit, *empty), tmp_path).read_text(encoding="utf-8")
    assert "There is no passage to show." in html
    assert "There is nothing to compare." in html
    assert html.count('<td class="number"') == 2 + len(audit["models"])
    assert "page-limits" not in html.split("</style>")[1]


def test_a_figure_without_points_says_so_and_has_no_file(audit: dict[str, Any], tmp_path: Path) -> None:
    curve = next(block for section in audit["sections"] for block in section["blocks"] if block["type"] == "curve")
    series = [{"name": "a", "style": "line", "points": []}, {"name": "b", "style": "line", "points": [{"x": 1, "y": None}]}]
    html = render(bare(audit, {**curve, "series": series}), tmp_path).read_text(encoding="utf-8")
    assert "There is no point to draw" in html
    assert list((tmp_path / "figures").iterdir()) == []
    some = [{"name": "here", "style": "line", "points": [{"x": 1, "y": 0.5}, {"x": 4, "y": 0.7}]}, *series]
    html = render(bare(audit, {**curve, "series": some}), tmp_path).read_text(encoding="utf-8")
    assert "not drawn: a, b." in html


def test_a_curve_that_cannot_be_drawn_is_named_and_nothing_is_written(audit: dict[str, Any], tmp_path: Path) -> None:
    curve = next(block for section in audit["sections"] for block in section["blocks"] if block["type"] == "curve")
    with pytest.raises(InputError, match=r"sections\[0\]\.blocks\[0\]: .* logarithmic"):
        render(bare(audit, {**curve, "x_scale": "log"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failed_rendering_leaves_the_page_of_before(audit: dict[str, Any], tmp_path: Path) -> None:
    render(bare(audit), tmp_path)
    before = (tmp_path / "index.html").read_bytes()
    with pytest.raises(InputError):
        render({**bare(audit), "title": None}, tmp_path)
    assert (tmp_path / "index.html").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_a_storage_error(audit: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        render(bare(audit), tmp_path / "file" / "report")
    (tmp_path / "taken" / "index.html").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"index\.html"):
        render(bare(audit), tmp_path / "taken")
