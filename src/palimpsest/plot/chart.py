"""The chart of a `Curve`: bands or bars for its intervals, lines, markers, names; as Vega-Lite, SVG and PNG.

The specification is Vega-Lite (Satyanarayan et al. 2017, "Vega-Lite: A Grammar of Interactive Graphics"), rendered by the Vega
runtime inside `vl-convert-python`: an SVG needs no script to be seen, where plotly.js would add 4.8 MB to every page and a Chrome to
every PNG. Every length is fixed here (`autosize: none`), so that equal curves give equal bytes whatever
fonts are installed. Colours come as a mapping: `LIGHT` and `DARK` hold real ones; `CSS` holds `var(--series-1)` and its like, for
an SVG that is inlined in a page and follows the page's theme.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import vl_convert

from palimpsest import numbers
from palimpsest.files import write_bytes
from palimpsest.measurement import Curve
from palimpsest.plot.axes import Axis, x_axis, y_axis
from palimpsest.plot.palette import LIGHT
from palimpsest.plot.series import CHARACTER, LINE, Drawn, apart, drawn, fits_beside, key_rows, room_beside

_FONT = "Helvetica, Arial, sans-serif"
_VEGA_LITE = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])  # the version that this Altair writes
_MOST_MARKERS = 14  # a line through more points carries only so many of its markers
_MARKER = 62  # area of a marker, in px²


def chart(
    curve: Curve,
    *,
    colours: Mapping[str, str] = LIGHT,
    width: int = 720,
    height: int = 300,
    title: bool = True,
    known: Sequence[str] = (),
) -> alt.LayerChart:
    """The figure as an Altair chart; in a notebook it shows itself.

    Args:
        curve: what to draw.
        colours: `LIGHT`, `DARK`, `CSS` or a mapping with the same keys.
        width: of the whole figure, names and labels included, in px.
        height: of the plot itself, in px; title, key and axis labels come on top.
        title: whether the curve's title stands above the plot, with a margin around all.
        known: names of series that have their hue and marker by their place in this list, alike in many figures.

    Returns:
        The layers; each marker has its figures as description. A series without points is left out.

    Raises:
        InputError: no point at all, two series of one name, a missing x or an infinite coordinate, a value that a log axis cannot
            show.

    Example:
        >>> from palimpsest.measurement import Curve, Series
        >>> points = [{"x": 1, "y": 0.1, "low": 0.05, "high": 0.2, "n": 40}, {"x": 4, "y": 0.5, "low": 0.4, "high": 0.6, "n": 40}]
        >>> curve = Curve("demo", "Demo", "copies", "share", [Series("model m", points)], "log", y_format="percent")
        >>> chart(curve).to_dict()["layer"][0]["mark"]["type"]
        'area'
    """
    return alt.LayerChart.from_dict(_specification(curve, colours, width, height, title, known))


def svg(
    curve: Curve,
    *,
    colours: Mapping[str, str] = LIGHT,
    width: int = 720,
    height: int = 300,
    title: bool = True,
    known: Sequence[str] = (),
) -> str:
    """The figure as one SVG element; arguments and errors as for `chart`.

    Identifiers inside carry the curve's id and the width, so that many figures can be inlined in one page.
    """
    # The specification itself, not the chart made of it: Altair would check each of its parts against the schema again.
    specification = _specification(curve, colours, width, height, title, known)
    text = vl_convert.vegalite_to_svg(specification, vl_version=_VEGA_LITE, allowed_base_urls=[])
    numbered: dict[str, str] = {}

    def rename(found: re.Match[str]) -> str:
        # Vega counts its identifiers through the life of the process; ours begin anew in every figure
        return found[1] + numbered.setdefault(found[2], f"{curve.id}-{width}-{len(numbered)}")

    # inside tags only: the words of a label stay as they are
    return re.sub(r"<[^>]+>", lambda tag: _POINTS.sub(_to_hundredths, _REFERENCE.sub(rename, tag[0])), text)


_REFERENCE = re.compile(r"""(\sid="|url\(#)([^")]+)""")
_POINTS = re.compile(r'(?<=\s)(?:d|transform|x|y|x2|y2|width|height)="[^"]*"')


def _to_hundredths(attribute: re.Match[str]) -> str:
    """Coordinates to a hundredth of a px: fewer bytes, and no trace of how a processor rounds."""
    return re.sub(r"\d+\.\d{3,}(?:e-\d+)?", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), attribute[0])


def png(curve: Curve, path: str | os.PathLike[str], *, width: int = 720, height: int = 300, scale: float = 2.0) -> None:
    """Writes the figure as PNG in the light colours, atomically.

    Args:
        curve, width, height: as for `chart`.
        path: the file to write.
        scale: pixels of the image per px of the figure.

    Raises:
        InputError: as for `chart`.
        StorageError: the file cannot be written.
    """
    write_bytes(path, rasterise(svg(curve, width=width, height=height), scale))


def rasterise(text: str, scale: float = 2.0) -> bytes:
    """The PNG of an SVG that `svg` made in real colours, `scale` pixels per px."""
    return vl_convert.svg_to_png(text, scale=scale)


def label(curve: Curve, name: str, point: Mapping[str, Any]) -> str:
    """What a tooltip says of one point: its series, its figure with interval, how many samples stand behind it, where it is."""
    figure = numbers.interval(point["y"], point.get("low"), point.get("high"), curve.y_format)
    size = f", n = {numbers.integer(point['n'])}" if point.get("n") is not None else ""
    place = numbers.percent(point["x"]) if curve.x_format == "percent" else numbers.number(point["x"])
    return f"{name}: {figure}{size} · {curve.x_label}: {place}"


def _specification(curve: Curve, colours: Mapping[str, str], width: int, height: int, title: bool, known: Sequence[str]) -> dict[str, Any]:
    """The figure in Vega-Lite; every text of the curve stands in it as data or as a plain string, never as an expression."""
    series = drawn(curve, colours, known)
    margin = 18 if title else 0
    inside = width - 2 * margin
    heading = _wrap(curve.title, inside / 9) if title else []
    y_title = _wrap(curve.y_label, inside / CHARACTER)
    beside = fits_beside(series, inside)
    key = [] if beside else key_rows(series, inside)

    y = y_axis(curve, series, height)
    left = max(map(len, y.labels)) * CHARACTER + 12
    right = room_beside(series) if beside else 14.0
    above = len(heading) * 24 + (len(key) * 20 + 8 if key else 0) + len(y_title) * LINE + 14
    plot_width = inside - left - right
    x = x_axis(curve, series, plot_width - 16)
    x_title = _wrap(curve.x_label, plot_width / CHARACTER)
    below = 30 + len(x_title) * LINE

    x_channel = {"scale": _scale(x, [8, plot_width - 8]), "axis": _ticked(x, x_title) | {"grid": False}}
    # the title of the vertical axis lies flat above it, where it can be read
    flat = {"titleAngle": 0, "titleAlign": "left", "titleBaseline": "top", "titleX": -left, "titleY": -len(y_title) * LINE - 12}
    y_channel = {"scale": _scale(y, [height, 0]), "axis": _ticked(y, y_title) | flat}
    layers = _data_layers([row for line in series for row in _rows(curve, line, y)], series, x_channel, y_channel, colours["plot-surface"])
    if beside:
        ends = [height * (1 - y.position(y.clamp(line.points[-1]["y"]))) for line in series]
        places = [(plot_width + 6, end) for end in apart(ends, lowest=height)]
    else:
        places = [(entry - left, row * 20 + 10 - above + len(heading) * 24) for row, entries in enumerate(key) for entry in entries]
    for line, place in zip(series, places, strict=True):
        layers += _name(line, place, colours["plot-ink"])
    if heading:
        # A text mark, not Vega's title, which would move with the bounds of everything below it.
        style: dict[str, Any] = {
            "align": "left",
            "baseline": "top",
            "fontSize": 17,
            "fontWeight": 600,
            "lineHeight": 22,
            "color": colours["plot-ink"],
        }
        layers.append(_static("text", -left, -above, text=heading, **style))
    muted = dict.fromkeys(("labelColor", "titleColor", "domainColor", "tickColor"), colours["plot-muted"])
    sizes = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "titlePadding": 8}
    return {
        "$schema": alt.SCHEMA_URL,
        "layer": layers,
        "width": plot_width,
        "height": height,
        "padding": {"left": left + margin, "right": right + margin, "top": above + margin, "bottom": below + margin},
        "autosize": {"type": "none"},
        "background": colours["plot-surface"],
        "config": {
            "font": _FONT,
            "view": {"stroke": None},
            "axis": {"aria": False, "gridColor": colours["plot-grid"], **muted, **sizes},
            "axisY": {"domain": False, "ticks": False, "labelPadding": 8, "titleAnchor": "end"},
        },
    }


def _rows(curve: Curve, line: Drawn, y: Axis) -> list[dict[str, Any]]:
    """The points of a series, each with the layers that it stands in."""
    count = len(line.points)
    stride = -(-count // _MOST_MARKERS)
    rows = []
    for i, point in enumerate(line.points):
        bounded = point.get("low") is not None and point.get("high") is not None
        loose = line.style == "points"
        rows.append(
            {
                "x": point["x"],
                "y": point["y"],
                "low": y.clamp(point["low"]) if bounded else None,
                "high": y.clamp(point["high"]) if bounded else None,
                "series": line.name,
                "order": i,
                "band": bounded and not loose and count > 1,
                "bar": bounded and (loose or count == 1),
                "line": not loose,
                "marker": loose or (line.style == "line" and (i % stride == 0 or i == count - 1)),
                "label": label(curve, line.name, point),
            }
        )
    return rows


def _data_layers(
    rows: list[dict[str, Any]], series: Sequence[Drawn], x: Mapping[str, Any], y: Mapping[str, Any], surface: str
) -> list[dict[str, Any]]:
    """Bands, bars, lines and markers over common axes."""
    names = [line.name for line in series]

    def layer(kind: str, mark: Mapping[str, Any], y_field: str, **channels: Any) -> dict[str, Any]:
        encoding = {
            "x": {"field": "x", "type": "quantitative", **x},
            "y": {"field": y_field, "type": "quantitative", **y},
            "color": by_name([line.colour for line in series]),
        }
        return {"data": {"values": [row for row in rows if row[kind]]}, "mark": mark, "encoding": encoding | channels}

    def by_name(values: list[Any]) -> dict[str, Any]:
        return {"field": "series", "type": "nominal", "scale": {"domain": names, "range": values}, "legend": None}

    interval = {"y2": {"field": "high"}}
    dash = {"strokeDash": by_name([line.dash or [1, 0] for line in series]), "order": {"field": "order", "type": "quantitative"}}
    shape = {"shape": by_name([line.shape or "circle" for line in series]), "description": {"field": "label", "type": "nominal"}}
    stroke = {"strokeWidth": 2.25, "strokeCap": "round", "strokeJoin": "round"}
    # many bands over each other must not make mud
    bands = len({row["series"] for row in rows if row["band"]})
    opacity = round(0.5 / max(4, bands), 3)
    return [
        layer("band", {"type": "area", "opacity": opacity, "clip": True, "aria": False}, "low", **interval),
        layer("bar", {"type": "rule", "strokeWidth": 1.5, "clip": True, "aria": False}, "low", **interval),
        layer("line", {"type": "line", "clip": True, "aria": False, **stroke}, "y", **dash),
        layer(
            "marker", {"type": "point", "filled": True, "size": _MARKER, "opacity": 1, "stroke": surface, "strokeWidth": 1}, "y", **shape
        ),
    ]


def _scale(axis: Axis, extent: list[float]) -> dict[str, Any]:
    scale = {"type": axis.kind, "domain": list(axis.domain), "range": extent, "nice": False, "zero": False}
    return scale | ({"constant": axis.constant} if axis.kind == "symlog" else {})


def _ticked(axis: Axis, title: list[str]) -> dict[str, Any]:
    # The labels are ours, looked up by tick: Vega's own formats have no no-break space and call a milliard G.
    words = f"{axis.labels}[indexof({axis.ticks}, datum.value)]"
    return {"values": axis.ticks, "labelExpr": words, "title": title, "labelOverlap": "greedy", "labelFlush": False}


def _name(line: Drawn, place: tuple[float, float], ink: str) -> list[dict[str, Any]]:
    """Line sample, marker and name at `place` (px from the upper left corner of the plot)."""
    x, y = place
    layers = []
    if line.dash:
        layers.append(_static("rule", x, y, x + 18, color=line.colour, strokeWidth=2.25, strokeDash=line.dash))
    if line.shape:
        layers.append(_static("point", x + 9, y, filled=True, size=_MARKER, opacity=1, color=line.colour, shape=line.shape))
    layers.append(_static("text", x + 24, y, text=[line.name], align="left", baseline="middle", fontSize=12, color=ink))
    return layers


def _static(kind: str, x: float, y: float, x2: float | None = None, **style: Any) -> dict[str, Any]:
    """A mark that belongs to no data, at a place in px."""
    encoding = {"x": {"value": x}, "y": {"value": y}} | ({"x2": {"value": x2}} if x2 is not None else {})
    return {"data": {"values": [{}]}, "mark": {"type": kind, "aria": False, **style}, "encoding": encoding}


def _wrap(text: str, characters: float) -> list[str]:
    return textwrap.wrap(text, max(20, int(characters))) or [""]
