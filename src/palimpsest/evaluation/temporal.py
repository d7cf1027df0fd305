"""Memory in time: is an answer fresh, outdated, ahead of its time, otherwise wrong, or refused? (system 104, section D)

A fact has a history of values, v1 on [t0, t1), v2 on [t1, t2), …; half-open, so that a day has one value. What is answered on a day is

* **fresh**: the value that is valid on it;
* **outdated**: an earlier value;
* **anachronism**: a later one, that nobody could know yet;
* **wrong**: something else;
* **refused**.

Each answer is exactly one of them, so the five rates sum to 1. Where an answer mentions several values, the first mention counts, and of
those that begin together the longest. A value that comes back is fresh whenever it is valid, and outdated between.

`risk_coverage` is for models that may abstain: answers sorted by confidence, risk = errors among the first i of n; AURC is its mean over i
(Geifman and El-Yaniv, NeurIPS 2017, arXiv 1705.08500; Geifman, Uziel and El-Yaniv, ICLR 2019, for the excess over the best order).
Answers of equal confidence have no order: inside such a group errors rise evenly, which is the mean over all its orders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from palimpsest.corpus.facts import Fact
from palimpsest.errors import InputError
from palimpsest.evaluation.answers import RefusalRules, mention, refused
from palimpsest.evaluation.fields import texts
from palimpsest.measurement import Curve, Series
from palimpsest.stats import Interval, bootstrap_interval, rate_interval, wilson_interval
from palimpsest.stats.checks import binary_row, finite_row


class Freshness(StrEnum):
    """What an answer is, in time."""

    FRESH = "fresh"
    OUTDATED = "outdated"
    ANACHRONISM = "anachronism"
    WRONG = "wrong"
    REFUSED = "refused"


@dataclass(frozen=True)
class TimedValue:
    """A value and when it holds: from `valid_from` on, up to but without `valid_to`.

    Attributes:
        golds: accepted forms of the value.
        valid_from, valid_to: days; None is without an end. A datetime must have a zone; its day in UTC counts.

    Raises:
        InputError: no golds or golds that are no list of texts, a datetime without a zone, or an end that is not after the beginning.
    """

    golds: tuple[str, ...]
    valid_from: date
    valid_to: date | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "golds", texts(self.golds, "golds of a value"))
        object.__setattr__(self, "valid_from", day(self.valid_from, "valid_from"))
        if self.valid_to is not None:
            object.__setattr__(self, "valid_to", day(self.valid_to, "valid_to"))
        if not self.golds or (self.valid_to is not None and self.valid_to <= self.valid_from):
            raise InputError(
                f"The value {self.golds} is valid from {self.valid_from} to {self.valid_to}.",
                "Give a form of it and an end after the beginning.",
            )

    def holds(self, when: date) -> bool:
        """Whether the value is valid on a day."""
        return self.valid_from <= when and (self.valid_to is None or when < self.valid_to)


def day(value: date, what: str) -> date:
    """A day as a `date`: of a datetime, its day in UTC.

    Raises:
        InputError: a datetime without a zone, or no date at all.
    """
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise InputError(f"{what} is {value.isoformat()}, without a time zone.", "Give a date, or a datetime with its zone.")
        return value.astimezone(UTC).date()
    if not isinstance(value, date):
        raise InputError(f"{what} is {value!r}.", "Give a datetime.date.")
    return value


def history_of(facts: Sequence[Fact]) -> tuple[TimedValue, ...]:
    """The history of a subject in a relation, as `FactWorld.history` gives it, as timed values."""
    return tuple(TimedValue((fact.object,), fact.valid_from, fact.valid_to) for fact in facts)


def require_history(history: Sequence[TimedValue]) -> tuple[TimedValue, ...]:
    """The values by time.

    Raises:
        InputError: no values, or two that hold on the same day; all overlaps are named.
    """
    ordered = tuple(sorted(history, key=lambda value: value.valid_from))
    overlaps = [
        f"{one.golds[0]} and {two.golds[0]} on {two.valid_from}"
        for one, two in pairwise(ordered)
        if one.valid_to is None or two.valid_from < one.valid_to
    ]
    if overlaps or not ordered:
        raise InputError(
            f"The history is {'empty' if not ordered else 'ambiguous: ' + '; '.join(overlaps)}.", "Give one value for a day, end excluded."
        )
    return ordered


def freshness(
    answer: str, history: Sequence[TimedValue], asked_at: date, *, rule: str = "exact", refusals: RefusalRules | None = None
) -> Freshness:
    """What an answer is, in time; see the module's docstring.

    Args:
        answer: what was answered.
        history: the fact's values.
        asked_at: the day as of which was asked.
        rule: how an answer and a value are compared, see `palimpsest.evaluation.answers`.
        refusals: what counts as a refusal.

    Raises:
        InputError: an empty or ambiguous history, or an unknown rule.

    Example:
        >>> rome, paris = TimedValue(("Rome",), date(2000, 1, 1), date(2010, 1, 1)), TimedValue(("Paris",), date(2010, 1, 1))
        >>> [freshness(a, [rome, paris], date(2020, 1, 1)).value for a in ("Paris", "Rome", "Bern", "")]
        ['fresh', 'outdated', 'wrong', 'refused']
    """
    ordered, when = require_history(history), day(asked_at, "asked_at")
    if refused(answer, refusals, [form for value in ordered for form in value.golds]):
        return Freshness.REFUSED
    found = [(place, not value.holds(when), value) for value in ordered if (place := mention(answer, value.golds, rule)) is not None]
    if not found:
        return Freshness.WRONG
    _, _, value = min(found, key=lambda entry: entry[:2])
    if value.holds(when):
        return Freshness.FRESH
    return Freshness.OUTDATED if value.valid_from < when else Freshness.ANACHRONISM


def days_since_change(history: Sequence[TimedValue], asked_at: date) -> int:
    """For how many days the valid value has held.

    Raises:
        InputError: no value is valid on the day.
    """
    when = day(asked_at, "asked_at")
    current = next((value for value in require_history(history) if value.holds(when)), None)
    if current is None:
        raise InputError(f"No value is valid on {when}.", "Ask within the history.")
    return (when - current.valid_from).days


def five_rates(
    outcomes: Sequence[Freshness | str], sources: Sequence[str] | None = None, *, confidence: float = 0.95
) -> dict[str, Interval]:
    """The share of every kind of answer, each with its interval; the five shares sum to 1.

    Args:
        outcomes: kinds of answers.
        sources: what each is about, where several answers are about one thing: see `palimpsest.stats.rate_interval`.
        confidence: of the intervals.

    Raises:
        InputError: no outcomes, or one that is none of the five.

    Example:
        >>> five_rates(["fresh", "fresh", "outdated", "refused"])["fresh"].estimate
        0.5
    """
    try:
        kinds = [Freshness(outcome) for outcome in outcomes]
    except ValueError as error:
        raise InputError(f"{error}.", f"Give {', '.join(Freshness)}.") from error
    if not kinds:
        raise InputError("There are no outcomes.", "Give at least one.")
    return {kind.value: rate_interval([one is kind for one in kinds], sources, confidence=confidence) for kind in Freshness}


def lag_curve(outcomes: Sequence[Freshness | str], lags: Sequence[int], edges: Sequence[int] = (0, 30, 90, 365, 1095, 3650)) -> Curve:
    """Freshness by days since the fact last changed: what is not yet known, and when it is.

    Args:
        outcomes: kinds of answers.
        lags: `days_since_change` of each.
        edges: ascending; the last bin has no end. Bins without answers are left out.

    Raises:
        InputError: different lengths, negative lags, edges that do not ascend from 0.
    """
    days = np.asarray(lags, dtype=np.int64)
    if len(outcomes) != len(days) or not len(days) or days.min() < 0:
        raise InputError(f"There are {len(outcomes)} outcomes and {len(days)} lags.", "Give one lag of at least 0 days for each.")
    if not len(edges) or edges[0] != 0 or list(edges) != sorted(set(edges)):
        raise InputError(f"The edges are {list(edges)}.", "Give ascending days, 0 first.")
    fresh = np.array([Freshness(outcome) is Freshness.FRESH for outcome in outcomes])
    bins = np.searchsorted(np.asarray(edges), days, side="right") - 1
    points: list[dict[str, float | int | None]] = []
    for number in np.unique(bins).tolist():
        here = bins == number
        rate = wilson_interval(int(fresh[here].sum()), int(here.sum()))
        points.append({"x": float(days[here].mean()), "y": rate.estimate, "low": rate.low, "high": rate.high, "n": int(here.sum())})
    caption = "Answers that give the value valid on the day of the question; 95 % Wilson intervals."
    return Curve("freshness-lag", "What is newly true is not yet known", "days since the last change", "fresh answers",
                 [Series("fresh", points)], x_scale="symlog", y_domain=(0, 1), y_format="percent", caption=caption)  # fmt: skip


def refusal_slices(
    right: ArrayLike, refusal: ArrayLike, slices: Sequence[str], sources: Sequence[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Coverage, refusals and accuracy among the answered, for all and for every slice.

    Args:
        right, refusal: (n,) truth values; what is refused cannot be right.
        slices: (n,) names, such as answerable, unanswerable, outdated-only, forgotten.
        sources: (n,) what each item is about, where several are about one thing: see `palimpsest.stats.rate_interval`.

    Returns:
        By slice ("all" first): n, refused and coverage with intervals, and accuracy among the answered (None where nothing is).

    Raises:
        InputError: different lengths, no items, or a refusal that is right.

    Example:
        >>> refusal_slices([1, 0, 0], [0, 0, 1], ["answerable", "answerable", "unanswerable"])["answerable"]["accuracy"].estimate
        0.5
    """
    correct, declined = binary_row(right, "right"), binary_row(refusal, "refusal")
    if not len(correct) == len(declined) == len(slices) or (correct & declined).any():
        raise InputError(
            f"There are {len(correct)} outcomes, {len(declined)} refusals and {len(slices)} slices, or a refusal is right.",
            "Give one of each for every item; a refusal is no right answer.",
        )
    names, of = np.asarray(slices), np.arange(len(correct)) if sources is None else np.asarray(sources)
    members = {"all": np.ones(len(correct), bool)} | {str(name): names == name for name in sorted(set(slices))}
    rows: dict[str, dict[str, Any]] = {}
    for name, here in members.items():
        answered = here & ~declined
        rows[name] = {
            "n": int(here.sum()),
            "refused": rate_interval(declined[here], of[here]),
            "coverage": rate_interval(~declined[here], of[here]),
            "accuracy": rate_interval(correct[answered], of[answered]) if answered.any() else None,
        }
    return rows


@dataclass(frozen=True)
class RiskCoverage:
    """The risk–coverage curve.

    Attributes:
        coverage, risk: (n,) at 1/n, 2/n, …, 1.
        aurc: the mean risk, with a bootstrap interval over answers.
        excess: aurc minus that of the best order: what the confidence does not know.
    """

    coverage: np.ndarray
    risk: np.ndarray
    aurc: Interval
    excess: float


def risk_coverage(confidence: ArrayLike, right: ArrayLike, *, resamples: int = 500, seed: int = 0) -> RiskCoverage:
    """How risk grows as a model answers more, the most confident answers first.

    Args:
        confidence: (n,) numbers, higher is surer.
        right: (n,) truth values.
        resamples, seed: of the bootstrap.

    Raises:
        InputError: different lengths, fewer than 2 answers, NaN, or values other than 0 and 1.

    Example:
        >>> risk_coverage([3.0, 2.0, 1.0], [1, 1, 0]).risk.round(3).tolist()
        [0.0, 0.0, 0.333]
    """
    sure, wrong = finite_row(confidence, "confidence"), ~binary_row(right, "right")
    if len(sure) != len(wrong) or len(sure) < 2:
        raise InputError(f"There are {len(sure)} confidences and {len(wrong)} outcomes.", "Give one each for at least 2 answers.")

    def statistic(positions: np.ndarray, axis: int) -> np.ndarray:
        drawn = np.atleast_2d(positions).astype(np.int64)
        areas = np.array([_risks(sure[row], wrong[row]).mean() for row in drawn])
        return areas if np.ndim(positions) > 1 else areas[0]

    risk = _risks(sure, wrong)
    aurc = bootstrap_interval(np.arange(len(sure)), statistic=statistic, resamples=resamples, seed=seed)
    best = _risks(-wrong.astype(np.float64), wrong).mean()
    return RiskCoverage(np.arange(1, len(sure) + 1) / len(sure), risk, aurc, float(risk.mean() - best))


def _risks(sure: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Risk (n,) at every coverage; inside a group of equal confidence the errors rise evenly."""
    _, group, size = np.unique(-sure, return_inverse=True, return_counts=True)
    share = np.bincount(group, wrong) / size
    return np.cumsum(np.repeat(share, size)) / np.arange(1, len(sure) + 1)


def rates_to_dict(rates: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    """Intervals by name as plain JSON types."""
    return {name: rate._asdict() for name, rate in rates.items()}
