import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest import numbers


def read(text: str) -> float:
    """What a reader takes a wording for."""
    return float(text.replace("\u2212", "-").replace(",", "").lstrip("<>"))


@given(st.floats(0, 1))
def test_a_share_reads_back_within_half_a_digit_and_never_reaches_an_end_that_it_does_not_have(share: float) -> None:
    text = numbers.percent(share, unit=False)
    hundredths = round(share * 100, 9)
    assert abs(read(text) - hundredths) <= (0.5 if 9.95 <= hundredths <= 99.05 else 0.05)
    if 0 < hundredths < 100:
        assert text not in ("0", "100")


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0"),
        (1, "100"),
        (1e-9, "<0.001"),
        (0.999999, ">99.999"),
        (0.0042, "0.42"),
        (0.42, "42"),
        (0.996, "99.6"),
        (-0.032, "−3.2"),
        (1.5, "150"),
    ],
)
def test_shares(share: float, text: str) -> None:
    assert numbers.percent(share, unit=False) == text
    assert numbers.percent(share) == text + "\u00a0%"


@given(st.floats(-1e11, 1e11).filter(lambda value: abs(value) >= 1e-4))
def test_a_number_reads_back_with_three_digits(value: float) -> None:
    tolerance = max(0.5 if abs(value) >= 100 else 0, abs(value) * 0.00501)
    assert abs(read(numbers.number(value)) - value) <= tolerance


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_what_is_missing_is_a_dash(missing: float | None) -> None:
    for wording in (numbers.percent, numbers.number, numbers.integer, numbers.seconds):
        assert wording(missing) == "–"
    assert numbers.interval(missing, 0.1, 0.2) == "–"


def test_intervals_carry_their_unit_once() -> None:
    assert numbers.interval(0.42, 0.35, 0.49) == "42\u00a0% (35–49)"
    assert numbers.interval(0.93, 0.9, 0.957, "float") == "0.93 (0.9–0.957)"
    assert numbers.interval(0.42, None, 0.49) == "42\u00a0%"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.045, "45 ms"),
        (4.21, "4.2 s"),
        (119.4, "119 s"),
        (119.6, "2 min 00 s"),
        (725, "12 min 05 s"),
        (7199.6, "2 h 00 min"),
        (12_000, "3 h 20 min"),
    ],
)
def test_durations(value: float, text: str) -> None:
    assert numbers.seconds(value).replace("\u00a0", " ") == text


def test_whole_and_short_numbers() -> None:
    assert numbers.integer(-1234567) == "−1,234,567"
    assert [numbers.short(value) for value in (0, 256, 1000, 135e6, 1.5e9, 2e12)] == ["0", "256", "1,000", "135M", "1.5B", "2T"]
