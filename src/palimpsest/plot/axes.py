"""Axes of a figure: domain, ticks, their labels, and where a value stands, for linear, log and symlog scales.

Symlog is Webber's bi-symmetric log (2013, "A bi-symmetric log transformation for wide-range data"): sign(v) · ln(1 + |v| / c), so
that a count of 0 has a place. c is the smallest size that is not 0, so that ln 2 of the axis lies between 0 and it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from palimpsest import numbers
from palimpsest.errors import InputError
from palimpsest.measurement import Curve
from palimpsest.plot.series import Drawn


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        kind: "linear", "log" or "symlog".
        domain: the values at its two ends.
        ticks, labels: where it is marked, and with which words.
        constant: c of the symlog transform.
    """

    kind: str
    domain: tuple[float, float]
    ticks: list[float]
    labels: list[str]
    constant: float = 1.0

    def position(self, value: float) -> float:
        """Where `value` stands: 0 at the lower end of the domain, 1 at the upper."""
        low, high = (_transform(end, self.kind, self.constant) for end in self.domain)
        return (_transform(value, self.kind, self.constant) - low) / (high - low)

    def clamp(self, value: float) -> float:
        """`value`, or the end of the domain that it lies beyond (an interval that reaches 0 ends at the foot of a log axis)."""
        return min(max(value, self.domain[0]), self.domain[1])


def x_axis(curve: Curve, series: Sequence[Drawn], length: float) -> Axis:
    """The horizontal axis, from the least x to the greatest; where the measured values stand far enough apart, they are its ticks.

    Args:
        curve: whose scale it is.
        series: what must fit.
        length: in px.

    Raises:
        InputError: an unknown scale, a value that is not above 0 on a log axis.
    """
    values = [point["x"] for line in series for point in line.points]
    _require_scale(curve, "x", curve.x_scale, values)
    domain = _spread((min(values), max(values)), curve.x_scale)
    constant = _constant(values, domain)
    measured = sorted({float(point["x"]) for line in series if line.style != "dashed" for point in line.points})
    bare = Axis(curve.x_scale, domain, measured, [], constant)
    distances = [(bare.position(after) - bare.position(before)) * length for before, after in itertools.pairwise(measured)]
    if not distances or len(measured) > 12 or min(distances) < 30:
        measured = _ticks(domain, curve.x_scale, max(3, int(length // 70)), constant)
    wording = numbers.percent if curve.x_format == "percent" else numbers.short
    return Axis(curve.x_scale, domain, measured, [wording(tick) for tick in measured], constant)


def y_axis(curve: Curve, series: Sequence[Drawn], length: float) -> Axis:
    """The vertical axis, its ends moved out to round values, or at `curve.y_domain`.

    A measured point (but not a fit or a reference) beyond `curve.y_domain` widens it: nothing that was measured is cut off.

    Args:
        curve: whose scale and format it has.
        series: what must fit.
        length: in px.

    Raises:
        InputError: an unknown scale, a value that is not above 0 on a log axis, a `y_domain` that is empty.
    """
    kind, most = curve.y_scale, max(3, int(length // 40))
    values = [point["y"] for line in series for point in line.points]
    _require_scale(curve, "y", kind, values)
    if curve.y_domain is None:
        bounds = [point.get(end) for line in series for point in line.points for end in ("low", "high")]
        domain = _rounded([*values, *(bound for bound in bounds if bound is not None and (kind != "log" or bound > 0))], kind, most)
    else:
        low, high = curve.y_domain
        if not low < high or (kind == "log" and low <= 0):
            raise InputError(
                f"The curve {curve.id!r} has y_domain {curve.y_domain}.", "Give two ends, the lower first, above 0 on a log axis."
            )
        measured = [point["y"] for line in series if line.style != "dashed" for point in line.points]
        domain = min([low, *measured]), max([high, *measured])
    constant = _constant(values, domain)
    ticks = _ticks(domain, kind, most, constant)
    wording = numbers.percent if curve.y_format == "percent" else numbers.short
    return Axis(kind, domain, ticks, [wording(tick) for tick in ticks], constant)


def _require_scale(curve: Curve, direction: str, kind: str, values: Sequence[float]) -> None:
    if kind not in ("linear", "log", "symlog"):
        raise InputError(f"The {direction} axis of curve {curve.id!r} has the unknown scale {kind!r}.", "Choose linear, log or symlog.")
    if kind == "log" and min(values) <= 0:
        raise InputError(
            f"The {direction} axis of curve {curve.id!r} is logarithmic, but one of its values is {min(values):g}.",
            'Choose the scale "symlog", which has a place for 0.',
        )


def _constant(values: Sequence[float], domain: tuple[float, float]) -> float:
    """The smallest size that is not 0, but at least a millionth of the greatest, so that one stray value does not take the axis."""
    greatest = max(abs(end) for end in domain)
    smallest = min((abs(value) for value in values if value), default=greatest)
    return max(smallest, greatest * 1e-6)


def _transform(value: float, kind: str, constant: float) -> float:
    if kind == "log":
        return math.log10(value)
    if kind == "symlog":
        return math.copysign(math.log1p(abs(value) / constant), value)
    return value


def _spread(domain: tuple[float, float], kind: str) -> tuple[float, float]:
    """A domain with two different ends."""
    low, high = domain
    if low < high:
        return domain
    if kind == "log":
        return low / 2, high * 2
    return low - max(1.0, abs(low)) / 2, high + max(1.0, abs(high)) / 2


def _rounded(values: Sequence[float], kind: str, most_ticks: int) -> tuple[float, float]:
    """Round ends that hold all `values`."""
    low, high = domain = min(values), max(values)
    if kind == "log":
        low, high = _spread(domain, kind)
        return _round_log(low, up=False), _round_log(high, up=True)
    if low >= 0 and low < high / 2:
        low = 0.0  # a figure that can start at 0 does: lengths then compare
    low, high = _spread((low, high), kind)
    if kind == "symlog":
        return (-_round_log(-low, up=True) if low < 0 else 0.0), (_round_log(high, up=True) if high > 0 else 0.0)
    step = _step(high - low, most_ticks)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def _ticks(domain: tuple[float, float], kind: str, most: int, constant: float) -> list[float]:
    low, high = domain
    if kind == "linear":
        step = _step(high - low, most)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        return [float(f"{i * step:.12g}") for i in range(first, last + 1)]
    floor = low if kind == "log" else constant
    positive = _decades(floor, high, most) if high > 0 else []
    if kind == "log":
        return positive
    negative = [-value for value in reversed(_decades(constant, -low, most))] if low < 0 else []
    return [*negative, *([0.0] if low <= 0 <= high else []), *positive]


def _decades(low: float, high: float, most: int) -> list[float]:
    """1, 2, 5, 10, … between `low` and `high`, or only powers of ten, or only some of these: at most `most`."""
    if low > high:  # one side of a symlog axis is too short for a tick
        return []
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in ((1, 2, 5), (1, 3), (1,)):
        values = [float(f"{digit}e{power}") for power in range(first, last + 1) for digit in digits]
        values = [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(values) <= most:
            return values or [low, high]
    return values[:: -(-len(values) // most)]


def _round_log(value: float, *, up: bool) -> float:
    power = math.floor(math.log10(value))
    candidates = [float(f"{digit}e{power}") for digit in (1, 2, 5)] + [float(f"1e{power + 1}")]
    if up:
        return next(candidate for candidate in candidates if candidate >= value * (1 - 1e-9))
    return max(candidate for candidate in candidates if candidate <= value * (1 + 1e-9))


def _step(extent: float, most: int) -> float:
    """The step 1, 2, 2.5 or 5 · 10^k that gives at most `most` ticks over `extent`."""
    power = math.floor(math.log10(extent / most))
    return next(step for digit in (1, 2, 2.5, 5, 10, 20) if extent / (step := float(f"{digit}e{power}")) <= most - 1 + 1e-9)
