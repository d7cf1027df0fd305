"""The page in a real browser: no error, no request, no sideways scrolling on a phone, and everything that can be operated works."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the path")

PROBE = Path(__file__).with_name("probe.html")


def browse(page: Path, width: int, profile: Path) -> tuple[dict[str, Any], str]:
    probe = page / f"probe-{width}.html"
    probe.write_text(PROBE.read_text(encoding="utf-8").replace("WIDTH", str(width)), encoding="utf-8")
    command = [
        str(CHROMIUM),
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync", "--allow-file-access-from-files", "--enable-logging=stderr"),
        *(f"--user-data-dir={profile}", f"--window-size={max(width, 600)},900", "--virtual-time-budget=6000", "--dump-dom", probe.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    assert found[1], done.stderr[-2000:]
    return json.loads(html.unescape(found[1])), "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.fixture(scope="module")
def desktop(page: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    return browse(page, 1280, tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def phone(page: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    return browse(page, 390, tmp_path_factory.mktemp("profile"))


def test_no_errors_no_hostile_script(desktop: tuple[dict[str, Any], str]) -> None:
    seen, console = desktop
    assert console == ""
    assert seen["title"] == "What the planted twins remember"
    assert seen["scripts"] == 3


def test_nothing_is_wider_than_the_window(desktop: tuple[dict[str, Any], str], phone: tuple[dict[str, Any], str]) -> None:
    for seen, _ in (desktop, phone):
        assert seen["overflow"] <= 0
        assert seen["offenders"] == []
        assert seen["shown"] == 5


def test_the_theme_reaches_page_and_figures(desktop: tuple[dict[str, Any], str]) -> None:
    seen, _ = desktop
    light, dark = seen["light"].split(",rgb"), seen["dark"].split(",rgb")
    assert light[0] != dark[0]
    assert light[1:] != dark[1:]
    assert seen["theme"] == ["dark", "Use light colours"]


def test_tables_sort_by_figure_and_by_name(desktop: tuple[dict[str, Any], str]) -> None:
    seen, _ = desktop
    down = [float(value) for value in seen["down"]]
    assert down == sorted(down, reverse=True)
    assert [float(value) for value in seen["up"]] == sorted(down)
    assert len(down) == 18
    assert seen["missing"][-3:] == ["", "", ""]
    assert seen["missing"][0] == "3.9"
    assert seen["sorts"] == ["none", "none", "none", "descending", "none", "none"]
    assert seen["names"] == sorted(seen["names"])
    assert seen["models"] == sorted(seen["models"], reverse=True)
    assert len(set(seen["models"])) > 1


def test_a_focused_span_shows_its_source(desktop: tuple[dict[str, Any], str]) -> None:
    seen, _ = desktop
    assert seen["source"] == [False, True]
    assert seen["current"] == [False, True, True]


def test_figures_speak_their_points(desktop: tuple[dict[str, Any], str], phone: tuple[dict[str, Any], str]) -> None:
    for seen, _ in (desktop, phone):
        first = "planted-s: 0\u00a0% (0–7.4), n = 48 · Copies of the text in the training data: 0"
        assert seen["tip"] == [first, False, first]
        assert seen["last"].startswith("planted-l: 9")
        assert seen["closed"] is True
        assert seen["hovered"].endswith(": 0")


def test_printing_unfolds_and_folds_again(desktop: tuple[dict[str, Any], str]) -> None:
    seen, _ = desktop
    assert seen["unfolded"] == 0
    assert seen["folded"] is True


def test_the_data_link_works_without_the_folder(desktop: tuple[dict[str, Any], str]) -> None:
    seen, _ = desktop
    assert (seen["link"], seen["data"]) == ("blob:", 6)
