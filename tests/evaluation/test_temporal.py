"""Answers in time: against a search day by day, the five rates, lags, refusal slices and the risk of answering."""

from __future__ import annotations

import itertools
from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.corpus import FactWorld
from palimpsest.errors import InputError
from palimpsest.evaluation.temporal import (
    Freshness,
    TimedValue,
    days_since_change,
    five_rates,
    freshness,
    history_of,
    lag_curve,
    refusal_slices,
    require_history,
    risk_coverage,
)
from palimpsest.stats import wilson_interval

START = date(2000, 1, 1)


def days(n: int) -> date:
    return START + timedelta(days=n)


HISTORIES = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=5)


@given(HISTORIES, st.integers(0, 25), st.integers(0, 4))
def test_an_answer_is_what_a_calendar_of_days_says_it_is(pieces, asked, answered):
    """Each day has a value or none; the values are cities 0..3, the fourth city is never true."""
    calendar: dict[int, int] = {}
    history, at = [], 0
    for length, city in pieces:
        history.append(TimedValue((f"city{city}",), days(at), days(at + length)))
        calendar |= dict.fromkeys(range(at, at + length), city)
        at += length
    said = freshness(f"City{answered}.", history, days(asked))
    if calendar.get(asked) == answered:
        expected = "fresh"
    elif any(city == answered for day, city in calendar.items() if day < asked):
        expected = "outdated"
    else:
        expected = "anachronism" if answered in calendar.values() else "wrong"
    assert said == expected


def test_the_first_mention_counts_and_the_longest_of_those_that_begin_together():
    history = [TimedValue(("New York",), days(0), days(10)), TimedValue(("New York City", "NYC"), days(10))]
    said = {text: freshness(text, history, days(20), rule="contains").value for text in
            ("formerly New York, now NYC", "NYC, formerly New York", "New York City", "Bern", "I don't know")}  # fmt: skip
    assert said == {
        "formerly New York, now NYC": "outdated",
        "NYC, formerly New York": "fresh",
        "New York City": "fresh",
        "Bern": "wrong",
        "I don't know": "refused",
    }


def test_the_world_of_facts_has_histories_that_can_be_asked():
    world = FactWorld(seed=1, people=20, changing=1.0)
    changed = [world.history(subject, "residence") for subject in world.entities["person"]]
    changed = [history for history in changed if len(history) > 2]
    assert changed
    for facts in changed:
        history = history_of(facts)
        middle = facts[1]
        assert freshness(middle.object, history, middle.valid_from) == "fresh"
        assert freshness(facts[0].object, history, middle.valid_from) == "outdated"
        assert freshness(facts[2].object, history, middle.valid_from) == "anachronism"
        assert days_since_change(history, middle.valid_from + timedelta(days=3)) == 3


@given(st.lists(st.sampled_from(list(Freshness)), min_size=1, max_size=40))
def test_the_five_rates_sum_to_one(outcomes):
    rates = five_rates(outcomes)
    assert sum(rate.estimate for rate in rates.values()) == pytest.approx(1, abs=1e-12)
    for kind in Freshness:
        assert rates[kind] == wilson_interval(outcomes.count(kind), len(outcomes))
    assert five_rates([str(outcome) for outcome in reversed(outcomes)]) == rates


def test_days_are_days_and_times_have_zones():
    midnight = datetime(2000, 1, 11, 0, 30, tzinfo=timezone(timedelta(hours=2)))  # still the 10th in UTC
    assert TimedValue(("a",), START, midnight).valid_to == days(9)
    history = [TimedValue(("a",), START, days(10)), TimedValue(("b",), days(10))]
    assert freshness("a", history, midnight) == "fresh"
    assert freshness("a", history, datetime(2000, 1, 11, tzinfo=UTC)) == "outdated"
    with pytest.raises(InputError, match="without a time zone"):
        freshness("a", history, datetime(2000, 1, 11))
    with pytest.raises(InputError, match="2000"):
        TimedValue(("a",), "2000-01-01")


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (lambda: TimedValue((), START), "form of it"),
        (lambda: TimedValue(("a",), days(3), days(3)), "end after"),
        (lambda: require_history([]), "empty"),
        (lambda: require_history([TimedValue(("a",), START), TimedValue(("b",), days(4))]), "a and b on 2000-01-05"),
        (
            lambda: require_history([TimedValue((name,), days(2 * i), days(2 * i + 3)) for i, name in enumerate("abc")]),
            "a and b on 2000-01-03; b and c on 2000-01-05",
        ),
        (lambda: days_since_change([TimedValue(("a",), days(5))], START), "No value"),
        (lambda: five_rates([]), "no outcomes"),
        (lambda: five_rates(["stale"]), "stale"),
        (lambda: lag_curve(["fresh"], [-1]), "1 lags"),
        (lambda: lag_curve(["fresh"], [1], edges=[5, 10]), "edges"),
    ],
)
def test_what_has_no_place_in_time_is_refused(bad, match):
    with pytest.raises(InputError, match=match):
        bad()


def test_the_lag_curve_counts_bins():
    lags, outcomes = [0, 5, 29, 30, 400, 401], ["wrong", "fresh", "outdated", "fresh", "fresh", "refused"]
    points = lag_curve(outcomes, lags).series[0].points
    assert [(point["n"], point["y"]) for point in points] == [(3, pytest.approx(1 / 3)), (1, 1.0), (2, 0.5)]
    assert points[2]["x"] == 400.5
    assert (points[0]["low"], points[0]["high"]) == wilson_interval(1, 3)[1:]


def test_refusals_are_counted_by_slice():
    right = [1, 0, 1, 0, 0, 0]
    refusal = [0, 1, 0, 1, 1, 0]
    slices = ["answerable"] * 3 + ["unanswerable"] * 2 + ["forgotten"]
    rows = refusal_slices(right, refusal, slices)
    assert list(rows) == ["all", "answerable", "forgotten", "unanswerable"]
    assert rows["all"]["refused"] == wilson_interval(3, 6)
    assert rows["answerable"]["accuracy"] == wilson_interval(2, 2)
    assert rows["unanswerable"]["accuracy"] is None
    assert rows["forgotten"]["coverage"] == wilson_interval(1, 1)
    for row in rows.values():
        assert row["coverage"].estimate + row["refused"].estimate == pytest.approx(1)
    with pytest.raises(InputError, match="right"):
        refusal_slices([1], [1], ["answerable"])


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=2, max_size=6))
def test_the_risk_is_its_mean_over_all_orders_of_equal_confidence(answers):
    confidence, right = [float(c) for c, _ in answers], [r for _, r in answers]
    orders = [order for order in itertools.permutations(answers) if [c for c, _ in order] == sorted(confidence, reverse=True)]
    naive = np.mean([[np.mean([not r for _, r in order[: i + 1]]) for i in range(len(order))] for order in orders], axis=0)
    curve = risk_coverage(confidence, right, resamples=20)
    assert curve.risk == pytest.approx(naive)
    assert curve.aurc.estimate == pytest.approx(naive.mean())
    best = min(
        np.mean([np.mean([not r for r in order[: i + 1]]) for i in range(len(order))]) for order in set(itertools.permutations(right))
    )
    assert curve.excess == pytest.approx(curve.aurc.estimate - best)
    assert curve.excess >= -1e-12


def test_confidence_that_knows_its_errors_has_no_excess():
    rng = np.random.default_rng(0)
    right = rng.random(200) < 0.7
    good, useless = risk_coverage(right.astype(float), right), risk_coverage(np.zeros(200), right)
    assert good.excess == pytest.approx(0)
    assert useless.aurc.estimate == pytest.approx(np.mean(~right))
    assert good.aurc.high < useless.aurc.low
    assert useless.aurc.low < useless.aurc.estimate < useless.aurc.high
    with pytest.raises(InputError, match="2 answers"):
        risk_coverage([1.0], [1])
