"""Numbers as a reader wants them: shares in percent, intervals, thousands separators, durations.

One wording for the report's tables and tiles, the axes and labels of the figures and the terminal: "42 % (35–49)",
"1,234,567", "0.0042", "12 min 05 s". A missing value is an en dash, never "nan" or "None".
"""

from __future__ import annotations

import math

MISSING = "–"
_SPACE = "\u00a0"  # no-break: a unit never stands alone on the next line
_MINUS = "\u2212"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def percent(value: float | None, *, unit: bool = True) -> str:
    """A share as percent, with as many digits as it takes to tell it from 0 and from 100.

    Args:
        value: a share, 1.0 is 100 %; None is missing.
        unit: whether " %" follows.

    Example:
        >>> [percent(v, unit=False) for v in (0.0, 0.0004, 0.042, 0.42, 0.996, 1.0)]
        ['0', '0.04', '4.2', '42', '99.6', '100']
    """
    if value is None or not math.isfinite(value):
        return MISSING
    hundredths = round(value * 100, 9)  # 0.1 + 0.2 + 0.7 is all of it
    from_zero, from_all = abs(hundredths), abs(100 - hundredths)
    if from_zero == 0 or from_all == 0:
        decimals = 0
    elif from_zero < 1:
        decimals = 1 - math.floor(math.log10(from_zero))
    elif from_all < 0.95:
        decimals = -math.floor(math.log10(from_all))
    else:
        decimals = 1 if from_zero < 9.95 else 0
    if from_zero < 1 and decimals > 4:
        text = "<0.001" if value > 0 else f">{_MINUS}0.001"
    elif from_zero > 1 and decimals > 3:
        text = ">99.999" if hundredths < 100 else ">100"
    else:
        text = _signed(_strip(f"{from_zero:,.{decimals}f}"), value)
    return text + (_SPACE + "%" if unit else "")


def number(value: float | None) -> str:
    """A real number with three significant digits, whole above 1,000, in powers of ten where zeros would hide it.

    Example:
        >>> [number(v) for v in (0.93, 12.345, 123456.7, 0.0000123, -2.5)]
        ['0.93', '12.3', '123,457', '1.23\\xa0×\\xa010⁻⁵', '−2.5']
    """
    if value is None or not math.isfinite(value):
        return MISSING
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-4 or size >= 1e12:
        mantissa, exponent = f"{size:.2e}".split("e")
        return _signed(f"{_strip(mantissa)}{_SPACE}×{_SPACE}10{str(int(exponent)).translate(_SUPERSCRIPT)}", value)
    decimals = max(0, 2 - math.floor(math.log10(size)))
    return _signed(_strip(f"{size:,.{decimals}f}"), value)


def integer(value: float | None) -> str:
    """A whole number with thousands separators.

    Example:
        >>> integer(1234567)
        '1,234,567'
    """
    if value is None or not math.isfinite(value):
        return MISSING
    return _signed(f"{abs(round(value)):,}", value)


def short(value: float) -> str:
    """A number short enough for an axis: 1,000 as it is, a million as 1M, a milliard as 1B.

    Example:
        >>> [short(v) for v in (0, 0.001, 256, 1000, 135e6, 1.5e9)]
        ['0', '0.001', '256', '1,000', '135M', '1.5B']
    """
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return number(value / size) + letter
    return number(value)


def seconds(value: float | None) -> str:
    """A duration.

    Args:
        value: seconds.

    Example:
        >>> [seconds(v) for v in (0.045, 4.21, 83, 725, 12000)]
        ['45\\xa0ms', '4.2\\xa0s', '83\\xa0s', '12\\xa0min 05\\xa0s', '3\\xa0h 20\\xa0min']
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if value < 0.0995:
        return f"{value * 1000:.0f}{_SPACE}ms"
    if value < 9.95:
        return f"{value:.1f}{_SPACE}s"
    if value < 119.5:
        return f"{value:.0f}{_SPACE}s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 120:
        return f"{minutes}{_SPACE}min {rest:02d}{_SPACE}s"
    return f"{minutes // 60:,}{_SPACE}h {minutes % 60:02d}{_SPACE}min"


def interval(value: float | None, low: float | None, high: float | None, kind: str = "percent") -> str:
    """A value and its interval, the unit once.

    Args:
        value, low, high: the figure and its bounds; without both bounds only the figure is written.
        kind: "percent", "int", "seconds" or anything else for a plain number.

    Example:
        >>> interval(0.42, 0.35, 0.49).replace("\\xa0", " ")
        '42 % (35–49)'
    """
    wording = {"percent": percent, "int": integer, "seconds": seconds}.get(kind, number)
    text = wording(value)
    if text == MISSING or low is None or high is None:
        return text
    if kind == "percent":
        return f"{text} ({percent(low, unit=False)}–{percent(high, unit=False)})"
    return f"{text} ({wording(low)}–{wording(high)})"


def _strip(digits: str) -> str:
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _signed(digits: str, value: float) -> str:
    return _MINUS + digits if value < 0 and digits.strip("0.,") else digits
