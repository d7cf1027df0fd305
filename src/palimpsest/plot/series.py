"""Series of a figure: which points are drawn, in which hue, marker and dash, and where their names stand.

A series is never told by its colour alone: each has its own marker, each dashed one its own dash pattern, and its name stands
beside the end of its line, or in a key above the plot where there is no room for that. Series that differ only in a number ("4
copies", "16 copies") are amounts: their colours are steps of a ramp, not hues.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.errors import InputError
from palimpsest.measurement import Curve
from palimpsest.plot.palette import ramp

CHARACTER = 6.3  # mean width of a character at 12 px, in px
LINE = 16  # from one line of text to the next, in px
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
_DASHES = ([6, 4], [2, 3], [9, 3, 2, 3], [12, 4], [4, 2, 1, 2])
_SAMPLE = 24  # px that a line sample with its marker takes before the name


@dataclass(frozen=True)
class Drawn:
    """One series as it is drawn.

    Attributes:
        name: what its label says.
        style: "line", "points" or "dashed".
        points: those that have a y, in the order of x.
        colour: its hue.
        shape: its marker; None for a dashed series, which has none.
        dash: its dash pattern; None for loose points, which have no line.
    """

    name: str
    style: str
    points: list[Mapping[str, Any]]
    colour: str
    shape: str | None
    dash: list[int] | None


def drawn(curve: Curve, colours: Mapping[str, str], known: Sequence[str] = ()) -> list[Drawn]:
    """The series of `curve`; a dashed one takes the hue of the series that its name names ("fit of large" that of "large").

    Args:
        curve: what to draw.
        colours: a hue for "series-1" to "series-8", and "plot-muted" for a reference that belongs to no series.
        known: names that have their hue and marker by their place in this list, so that a name looks alike in many figures.

    Returns:
        The series that have a point with a y; the others are left out.

    Raises:
        InputError: no series with a point, two of one name, an unknown style, an infinite coordinate or a missing x.
    """
    names = [series.name for series in curve.series]
    amounts = _amounts([series.name for series in curve.series if series.style != "dashed"])
    free = (rank for rank in itertools.count() if rank >= len(known) or known[rank] not in names)
    ranks: dict[str, int] = {}
    hues: dict[str, str] = {}
    for series in curve.series:
        if names.count(series.name) > 1:
            raise InputError(
                f"The curve {curve.id!r} has {names.count(series.name)} series called {series.name!r}.", "Give each its own name."
            )
        if series.style not in ("line", "points", "dashed"):
            raise InputError(f"The style {series.style!r} of series {series.name!r} is unknown.", "Choose line, points or dashed.")
        if series.style == "dashed":
            continue
        if series.name in amounts:
            ranks[series.name] = amounts.index(series.name)
            hues[series.name] = ramp(colours, ranks[series.name] / (len(amounts) - 1))
        else:
            ranks[series.name] = known.index(series.name) if series.name in known else next(free)
            hues[series.name] = colours[f"series-{ranks[series.name] % 8 + 1}"]
    result = []
    dashed = 0
    for series in curve.series:
        points = _points(curve.id, series.name, series.points)
        if not points:
            continue
        if series.style == "dashed":
            owners = [name for name in hues if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", series.name)]
            hue = hues[max(owners, key=len)] if owners else colours["plot-muted"]
            result.append(Drawn(series.name, series.style, points, hue, None, _DASHES[dashed % len(_DASHES)]))
            dashed += 1
        else:
            # after eight series the hues come again, each with the next marker
            rank = ranks[series.name]
            shape = _SHAPES[(rank + rank // len(_SHAPES)) % len(_SHAPES)]
            dash = None if series.style == "points" else [1, 0]
            result.append(Drawn(series.name, series.style, points, hues[series.name], shape, dash))
    if not result:
        raise InputError(f"The curve {curve.id!r} has no point to draw.", "Leave it out, or say why there is none.")
    return result


def _amounts(names: Sequence[str]) -> list[str]:
    """Those of `names`, at least four, that differ only in a number, from the smallest number to the greatest."""
    families: dict[str, list[tuple[float, str]]] = {}
    for name in dict.fromkeys(names):
        found = re.fullmatch(r"(\D*)(\d[\d,]*(?:\.\d+)?)(\D*)", name)
        if found:
            families.setdefault(f"{found[1]}#{found[3]}", []).append((float(found[2].replace(",", "")), name))
    largest = max(families.values(), key=len, default=[])
    return [name for _, name in sorted(largest)] if len(largest) >= 4 else []


def _points(curve: str, series: str, points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    for point in points:
        for key in ("x", "y", "low", "high"):
            value = point.get(key)
            if (value is None and key == "x") or (value is not None and not math.isfinite(value)):
                raise InputError(f"Series {series!r} of curve {curve!r} has a point with {key} = {value}.", "Leave the point out.")
    return sorted((point for point in points if point.get("y") is not None), key=lambda point: point["x"])


def fits_beside(series: Sequence[Drawn], width: float) -> bool:
    """Whether every name has room at the right end of its line, in a figure `width` px wide."""
    if width < 480 or len(series) > 7 or max(len(line.name) for line in series) > 24:
        return False
    return len({line.points[-1]["x"] for line in series}) == 1


def room_beside(series: Sequence[Drawn]) -> float:
    """Width of the names beside their lines, in px."""
    return _SAMPLE + 10 + max(len(line.name) for line in series) * CHARACTER


def key_rows(series: Sequence[Drawn], width: float) -> list[list[float]]:
    """The key above the plot: for each row the x of its entries, in px from the left edge of a figure `width` px wide."""
    rows: list[list[float]] = [[]]
    x = 1.0
    for line in series:
        room = _SAMPLE + len(line.name) * CHARACTER + 18
        if rows[-1] and x + room > width:
            rows.append([])
            x = 1.0
        rows[-1].append(x)
        x += room
    return rows


def apart(heights: Sequence[float], lowest: float, gap: float = LINE) -> list[float]:
    """Heights for labels that belong at `heights`, none nearer than `gap` to the next and none below `lowest`.

    Args:
        heights: where the labels belong, in px from the top.
        lowest: the greatest height that a label may have.
        gap: the least distance, in px.

    Example:
        >>> apart([10.0, 12.0, 80.0], lowest=100)
        [3.0, 19.0, 80.0]
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    groups: list[list[int]] = []  # labels that touch, centred together on the mean of where they belong
    for i in order:
        groups.append([i])
        while len(groups) > 1 and _top(groups[-1], heights, gap) < _top(groups[-2], heights, gap) + len(groups[-2]) * gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    placed = [0.0] * len(heights)
    for group in groups:
        for rank, i in enumerate(group):
            placed[i] = _top(group, heights, gap) + rank * gap
    limit = lowest
    for i in reversed(order):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    return placed


def _top(group: Sequence[int], heights: Sequence[float], gap: float) -> float:
    return sum(heights[i] for i in group) / len(group) - (len(group) - 1) * gap / 2
