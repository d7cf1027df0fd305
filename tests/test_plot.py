import itertools
import re
import struct
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import altair
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest import plot
from palimpsest.errors import InputError, StorageError
from palimpsest.measurement import Curve, Measurement, Series
from palimpsest.plot.axes import x_axis, y_axis
from palimpsest.plot.series import apart, drawn, fits_beside

SVG = "{http://www.w3.org/2000/svg}"


def points(*rows: tuple[float, float | None], spread: float | None = 0.05) -> list[dict[str, Any]]:
    return [
        {
            "x": x,
            "y": y,
            "low": None if spread is None or y is None else y - spread,
            "high": None if spread is None or y is None else y + spread,
            "n": 40,
        }
        for x, y in rows
    ]


@pytest.fixture
def curve() -> Curve:
    copies = (0, 1, 4, 16, 64)
    return Curve(
        "copies",
        "More copies, more leaks",
        "copies",
        "share written out",
        [
            Series("small", points(*((c, 0.06 + c / 1000) for c in copies))),
            Series("large", points(*((c, 0.1 + c / 100) for c in copies))),
            Series("fit of large", points((1, 0.1), (64, 1.3), spread=None), "dashed"),
        ],
        x_scale="symlog",
        y_domain=(0, 1),
        y_format="percent",
    )


def markers(text: str) -> list[ET.Element]:
    return [node for node in ET.fromstring(text).iter(f"{SVG}path") if node.get("aria-label") and node.get("role") == "graphics-symbol"]


def place(node: ET.Element) -> tuple[float, float]:
    x, y = re.findall(r"-?[\d.]+", node.get("transform", ""))
    return float(x), float(y)


def texts(text: str) -> list[str]:
    return [node.text or "" for node in ET.fromstring(text).iter(f"{SVG}text") if node.get("opacity") != "0"]


def test_every_measured_point_is_a_marker_that_says_its_figures(curve: Curve) -> None:
    found = markers(plot.svg(curve))
    assert len(found) == 10  # the fit has none
    assert found[0].get("aria-label") == "small: 6\u00a0% (1–11), n = 40 · copies: 0"


def test_markers_stand_where_the_axes_say(curve: Curve) -> None:
    height = 300
    series = drawn(curve, plot.LIGHT)
    x, y = x_axis(curve, series, 100), y_axis(curve, series, height)
    found = [place(node) for node in markers(plot.svg(curve, height=height))]
    expected = [point for line in series if line.shape for point in line.points]
    left, right = found[0][0], found[4][0]
    for (px, py), point in zip(found, expected, strict=True):
        assert py == pytest.approx(height * (1 - y.position(point["y"])), abs=0.02)
        assert px == pytest.approx(left + (right - left) * x.position(point["x"]), abs=0.02)


def test_zero_has_a_place_on_a_symlog_axis_one_step_before_the_smallest_count(curve: Curve) -> None:
    axis = x_axis(curve, drawn(curve, plot.LIGHT), 500)
    assert axis.labels == ["0", "1", "4", "16", "64"]
    assert [round(axis.position(value), 4) for value in (0, 1, 64)] == [0, 0.166, 1]  # log 2 / log 65
    rates = replace(curve, series=[Series("roc", points((0, 0), (0.001, 0.2), (1, 1)))])
    assert x_axis(rates, drawn(rates, plot.LIGHT), 500).constant == 0.001


def test_series_differ_in_more_than_hue(curve: Curve) -> None:
    many = replace(
        curve,
        series=[Series(f"m{i}", points((1, i / 20), (2, i / 20))) for i in range(12)]
        + [Series(f"ref {i}", points((1, 0.5)), "dashed") for i in range(3)],
    )
    lines = drawn(many, plot.LIGHT)
    looks = {(line.colour, line.shape, tuple(line.dash or ())) for line in lines}
    assert len(looks) == 15
    assert len({line.shape for line in lines[:8]}) == 8
    assert len({tuple(line.dash or ()) for line in lines[12:]}) == 3


def test_a_fit_takes_the_hue_of_the_series_that_it_names(curve: Curve) -> None:
    small, large, fit = drawn(curve, plot.LIGHT)
    assert fit.colour == large.colour != small.colour
    other = replace(curve, series=[Series("all", points((1, 0.1))), Series("overall mean", points((1, 0.2)), "dashed")])
    assert drawn(other, plot.LIGHT)[1].colour == plot.LIGHT["plot-muted"]


def test_known_names_look_alike_in_every_figure(curve: Curve) -> None:
    known = ["other", "large", "small"]
    turned = replace(curve, series=[curve.series[1], Series("new", points((1, 0.1))), curve.series[0]])
    by_name = [{line.name: (line.colour, line.shape) for line in drawn(figure, plot.LIGHT, known)} for figure in (curve, turned)]
    assert by_name[0]["small"] == by_name[1]["small"] == (plot.LIGHT["series-3"], "triangle-up")
    assert by_name[1]["new"] == (plot.LIGHT["series-1"], "circle")  # the place of a name that this figure lacks is free


def test_colours_for_a_page_are_variables_and_for_a_file_are_real(curve: Curve) -> None:
    inlined, file = plot.svg(curve, colours=plot.CSS), plot.svg(curve)
    assert set(re.findall(r"var\(--[\w-]+\)", inlined)) >= {"var(--series-1)", "var(--plot-ink)", "var(--plot-grid)"}
    assert not re.search(r'"(#[0-9a-f]{3,6}|white|black)"', inlined)
    assert "var(" not in file
    assert plot.LIGHT.keys() == plot.DARK.keys() == plot.CSS.keys()


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [plot.LIGHT, plot.DARK])
def test_words_have_contrast_4_5_and_lines_3(theme: dict[str, str]) -> None:
    for name, colour in theme.items():
        if name in ("plot-surface", "plot-grid"):
            continue
        low, high = sorted((luminance(colour), luminance(theme["plot-surface"])))
        assert (high + 0.05) / (low + 0.05) >= (3 if name.startswith(("series", "ramp")) else 4.5), name


def test_equal_curves_give_equal_bytes_and_ids_do_not_collide(curve: Curve) -> None:
    text = plot.svg(curve)
    assert text == plot.svg(Curve.from_dict(curve.to_dict()))
    ids = [node.get("id", "") for node in ET.fromstring(text).iter() if node.get("id")]
    assert ids
    assert all(name.startswith("copies-720-") for name in ids)
    assert {f"url(#{name})" for name in ids} >= set(re.findall(r"url\([^)]*\)", text))


def test_png_is_written_whole(curve: Curve, tmp_path: Path) -> None:
    plot.png(curve, tmp_path / "f.png", width=600, scale=2)
    data = (tmp_path / "f.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[-8:-4] == b"IEND"
    assert struct.unpack(">I", data[16:20]) == (1200,)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        plot.png(curve, tmp_path / "file" / "f.png")


@pytest.mark.parametrize("width", [340, 720])
def test_the_figure_is_as_wide_as_asked_and_names_every_series(curve: Curve, width: int) -> None:
    text = plot.svg(curve, width=width)
    assert ET.fromstring(text).get("width") == str(width)
    assert {"small", "large", "fit of large", "More copies, more leaks", "0\u00a0%", "100\u00a0%"} <= set(texts(text))
    assert fits_beside(drawn(curve, plot.LIGHT), width) == (width == 720)


def test_hostile_words_stay_words(curve: Curve) -> None:
    evil = '"><script>alert(1)</script> id="x" 0.123456 datum.x'
    text = plot.svg(replace(curve, title=evil, y_label=evil, series=[Series(evil, points((1, 0.1), (2, 0.3)))]), width=1400)
    assert "<script" not in text
    assert evil in texts(text)


def test_intervals_that_reach_zero_end_at_the_foot_of_a_log_axis(curve: Curve) -> None:
    low = replace(curve, y_scale="log", y_domain=None, series=[Series("s", points((1, 0.02), (2, 0.5)))])
    axis = y_axis(low, drawn(low, plot.LIGHT), 300)
    assert axis.domain[0] > 0
    assert axis.clamp(-0.03) == axis.domain[0]
    assert "NaN" not in plot.svg(low)


def test_a_measured_point_widens_a_fixed_axis_and_a_fit_does_not(curve: Curve) -> None:
    assert y_axis(curve, drawn(curve, plot.LIGHT), 300).domain == (0, 1)  # the fit ends at 1.3
    beyond = replace(curve, series=[Series("s", points((1, 1.2), (2, 0.5)))])
    assert y_axis(beyond, drawn(beyond, plot.LIGHT), 300).domain == (0, 1.2)


@given(
    st.lists(st.tuples(st.floats(1e-6, 1e9), st.floats(-1e6, 1e6)), min_size=1, max_size=12),
    st.sampled_from(["linear", "log", "symlog"]),
    st.sampled_from(["linear", "symlog"]),
)
def test_axes_hold_every_point_and_have_few_ticks_inside(rows: list[tuple[float, float]], x_scale: str, y_scale: str) -> None:
    figure = Curve("c", "t", "x", "y", [Series("s", points(*rows))], x_scale, y_scale)
    lines = drawn(figure, plot.LIGHT)
    for axis, key in ((x_axis(figure, lines, 500), "x"), (y_axis(figure, lines, 300), "y")):
        for point in lines[0].points:
            assert -1e-9 <= axis.position(point[key]) <= 1 + 1e-9
        assert 1 <= len(axis.ticks) == len(axis.labels) <= 17
        assert axis.ticks == sorted(set(axis.ticks))
        assert all(-1e-6 <= axis.position(tick) <= 1 + 1e-6 for tick in axis.ticks)


@given(st.lists(st.floats(0, 300), min_size=1, max_size=7))
def test_names_do_not_cover_each_other_and_keep_their_order(heights: list[float]) -> None:
    placed = apart(heights, lowest=300)
    ordered = sorted(range(len(heights)), key=lambda i: heights[i])
    for above, below in itertools.pairwise(ordered):
        assert placed[below] - placed[above] >= 16 - 1e-6
    assert max(placed) <= 300 + 1e-9
    if all(b - a >= 16 for a, b in itertools.pairwise(sorted(heights))):
        assert placed == pytest.approx(heights)


def test_loose_points_and_single_points_have_bars_and_no_line(curve: Curve) -> None:
    loose = replace(curve, series=[Series("s", points((1, 0.2), (4, 0.4), (16, 0.6)), "points")])
    layers = plot.chart(loose).to_dict()["layer"]
    shown = {layer["mark"]["type"]: len(layer["data"]["values"]) for layer in layers[:4]}
    assert shown == {"area": 0, "rule": 3, "line": 0, "point": 3}


def test_a_long_line_carries_few_markers_and_all_its_points(curve: Curve) -> None:
    dense = replace(curve, x_scale="linear", series=[Series("s", points(*((i / 500, i / 500) for i in range(501))))])
    layers = plot.chart(dense).to_dict()["layer"]
    assert len(layers[2]["data"]["values"]) == 501
    assert len(layers[3]["data"]["values"]) <= 16
    assert layers[3]["data"]["values"][-1]["x"] == 1


def test_a_missing_y_is_a_gap_and_a_series_without_any_is_left_out(curve: Curve) -> None:
    gaps = replace(
        curve, series=[Series("s", points((1, 0.2), (4, None), (16, 0.6))), Series("none", points((1, None))), Series("empty", [])]
    )
    assert [(line.name, len(line.points)) for line in drawn(gaps, plot.LIGHT)] == [("s", 2)]


def test_chart_is_what_a_measurement_plots(curve: Curve) -> None:
    import polars as pl

    measurement = Measurement("m", pl.DataFrame({"a": [1]}), {}, {}, {"copies": curve})
    assert isinstance(measurement.plot(), altair.LayerChart)
    assert measurement.plot("copies").to_dict() == plot.chart(curve).to_dict()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"series": []}, "no point"),
        ({"series": [Series("s", points((1, None)))]}, "no point"),
        ({"series": [Series("s", points((1, 0.1))), Series("s", points((1, 0.2)))]}, "2 series called 's'"),
        ({"series": [Series("s", points((1, 0.1)), "wavy")]}, "'wavy'"),
        ({"series": [Series("s", points((1, float("nan"))))]}, "y = nan"),
        ({"series": [Series("s", [{"x": None, "y": 1.0}])]}, "x = None"),
        ({"x_scale": "log"}, "symlog"),
        ({"x_scale": "cubic"}, "'cubic'"),
        ({"y_scale": "log", "y_domain": (0, 1)}, "y_domain"),
        ({"y_domain": (1, 1)}, "y_domain"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(curve: Curve, change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        plot.chart(replace(curve, **change))
