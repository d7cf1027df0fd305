"""The procedural/episodic layer: what happened, when, in which order, what holds now, what held then? (system 104, section C.4)

A system is shown the sessions of a `TimelineWorld` one by one and then asked. The answer is a **vector**, of which each part is in [0, 1]:

* ``what``: F1 of the events of a session: a line of the answer is an event when it names its subject and its object;
* ``when``: share of dates that are exact; the share within a tolerance beside it;
* ``order``: Kendall's τ-b of the order given with the true one, mapped to [0, 1];
* ``latest``, ``replay``: share of updated facts answered with the value of today, and of the day that was asked for;
* ``consistency``: Krippendorff's α of three wordings of a question, agreement corrected for chance, cut at 0;
* ``abstain``: mean of the share of never-mentioned things that are refused and the share of mentioned ones that are not.

A composite, the mean with declared weights, is never given without the vector. The vector follows the component names of E-MARS+ in the
abstract of Zhang et al. (2025); what the acronym stands for was not verified, and the components' formulas are ours.

An answer that cannot be read (no date, no permutation of the letters) is counted as `unreadable`, and as wrong.

The control is the same system that was not shown the sessions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any, Protocol

import numpy as np
import polars as pl
from scipy import stats as scipy_stats

from palimpsest.errors import InputError
from palimpsest.evaluation.answers import RefusalRules, is_right, mention, normalise, refused
from palimpsest.evaluation.timeline import KINDS, Session, TimelineQuestion, TimelineWorld
from palimpsest.measurement import Measurement, environment, plain
from palimpsest.models.base import Progress
from palimpsest.stats import Interval, clustered_interval, krippendorff_alpha

_DATE = re.compile(r"\b(\d{4})-(\d{2})-(\d{2})\b")


class Rememberer(Protocol):
    """A system with an episodic memory."""

    def observe(self, session: Session) -> None:
        """Is shown a session."""

    def answer(self, question: str, as_of: date) -> str:
        """Answers a question on a day, or refuses."""


def measure_episodic(
    make_system: Callable[[], Rememberer],
    timeline: TimelineWorld,
    *,
    rule: str = "contains",
    tolerance_days: int = 31,
    weights: Mapping[str, float] | None = None,
    refusals: RefusalRules | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Shows a system a time line and asks it.

    Args:
        make_system: makes a fresh system; one is shown the sessions, one, the control, is not.
        timeline: sessions and questions.
        rule: when an answer gives a value.
        tolerance_days: of dates, for the second figure of "when".
        weights: of the composite, by component; equal ones by default.
        refusals: what counts as a refusal.
        seed: of the bootstraps, which resample subjects and sessions.
        progress: called with (questions done, questions in all).

    Returns:
        One row a question, shown and not: id, kind, source, group, shown, answer, refused, readable, score, near (a date within the
        tolerance). The summary has the vector and the control's, each part with its interval, unreadable answers, the composite and its
        weights.

    Raises:
        InputError: weights of unknown components, negative or all 0, or a tolerance below 0.

    Example:
        >>> m = measure_episodic(MySystem, TimelineWorld(FactWorld(seed=0)))   # doctest: +SKIP
        >>> m.summary["vector"]["replay"]                                      # doctest: +SKIP
    """
    chosen = dict(weights) if weights is not None else dict.fromkeys(KINDS, 1.0)
    if not chosen.keys() <= set(KINDS) or min(chosen.values(), default=0) < 0 or sum(chosen.values()) <= 0 or tolerance_days < 0:
        raise InputError(
            f"The weights are {chosen}, the tolerance {tolerance_days} days.", f"Weight {', '.join(KINDS)} with numbers of at least 0."
        )
    questions = timeline.questions()
    rows: list[dict[str, Any]] = []
    for shown in (True, False):
        system = make_system()
        if shown:
            for session in timeline.sessions:
                system.observe(session)
        for question in questions:
            rows.append(
                {"shown": shown, **score_answer(system.answer(question.text, question.as_of), question, rule, tolerance_days, refusals)}
            )
            if progress:
                progress(len(rows), 2 * len(questions))
    table = pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.col("near").cast(pl.Boolean))
    vectors = {name: vector(table.filter(pl.col("shown") == shown), seed=seed) for name, shown in (("vector", True), ("control", False))}
    summary: dict[str, Any] = {
        **vectors,
        "when_near": _mean(table.filter(pl.col("shown") & (pl.col("kind") == "when")), "near", seed),
        "unreadable": int((~table.filter("shown")["readable"]).sum()),
        "composite": composite(vectors["vector"], chosen),
        "weights": chosen,
        "tolerance_days": tolerance_days,
        "sessions": len(timeline.sessions),
    }
    provenance = {"world": timeline.world.seed, "seed": seed, "rule": rule, "environment": environment()}
    return Measurement("episodic", table, dict(plain(summary)), provenance)


def score_answer(
    answer: str, question: TimelineQuestion, rule: str = "contains", tolerance_days: int = 31, refusals: RefusalRules | None = None
) -> dict[str, Any]:
    """The row of an answer; see `measure_episodic`."""
    golds = [str(gold) for gold in question.golds] if question.kind in ("latest", "replay", "consistency") else []
    declined = refused(answer, refusals, golds)
    readable, near = True, None
    if question.kind == "what":
        score = event_f1(answer, question.golds) if not declined else 0.0  # type: ignore[arg-type]
    elif question.kind == "when":
        said, true = _read_date(answer), date.fromisoformat(str(question.golds[0]))
        readable = said is not None or declined
        score = float(said == true)
        near = said is not None and abs((said - true).days) <= tolerance_days
    elif question.kind == "order":
        letters = [str(letter) for letter in question.golds]
        given = re.findall(rf"\b[{''.join(sorted(letters))}]\b", answer)
        readable = sorted(given) == sorted(letters) or declined
        score = order_score(given, letters) if sorted(given) == sorted(letters) else 0.0
    elif question.kind == "abstain":
        score = float(declined)
    else:
        score = float(not declined and is_right(answer, [str(gold) for gold in question.golds], rule))
    return {
        "id": question.id,
        "kind": question.kind,
        "source": question.source,
        "group": question.group,
        "answer": answer,
        "refused": declined,
        "readable": readable,
        "score": score,
        "near": near,
    }


def event_f1(answer: str, events: tuple[tuple[str, str], ...]) -> float:
    """F1 of the events that an answer lists, one a line; every line gives at most one event and every event counts once.

    Example:
        >>> event_f1("Ann lives in Rome\\nBob left", (("Ann", "Rome"), ("Bob", "Bern")))
        0.5
    """
    lines = [line for line in answer.splitlines() if normalise(line)]
    left = list(events)
    for line in lines:
        hit = next((event for event in left if all(mention(line, [name], "contains") for name in event)), None)
        if hit is not None:
            left.remove(hit)
    found = len(events) - len(left)
    return 2 * found / (len(lines) + len(events)) if found else 0.0


def order_score(given: list[str], right: list[str]) -> float:
    """Kendall's τ-b of two orders of the same things, mapped from [−1, 1] to [0, 1].

    Example:
        >>> order_score(list("ABCD"), list("ABCD")), order_score(list("DCBA"), list("ABCD"))
        (1.0, 0.0)
    """
    place = {letter: number for number, letter in enumerate(given)}
    tau = scipy_stats.kendalltau([place[letter] for letter in right], range(len(right))).statistic
    return float((tau + 1) / 2)


def vector(rows: pl.DataFrame, *, seed: int = 0) -> dict[str, dict[str, float] | None]:
    """The seven components of one system's rows, each with its interval; None where nothing was asked."""
    parts: dict[str, Any] = {kind: _mean(rows.filter(pl.col("kind") == kind), "score", seed) for kind in KINDS}
    parts["consistency"] = _consistency(rows.filter(pl.col("kind") == "consistency"), seed)
    mentioned = rows.filter(pl.col("kind").is_in(["latest", "replay", "consistency"]))
    kept = _mean(mentioned.with_columns(score=1.0 - pl.col("refused").cast(pl.Float64)), "score", seed)
    declined = parts["abstain"]
    if kept is not None and declined is not None:
        mean = (kept["estimate"] + declined["estimate"]) / 2
        half = np.hypot(_half(kept), _half(declined)) / 2  # the two are of different subjects: independent
        parts["abstain"] = Interval(mean, max(0.0, mean - half), min(1.0, mean + half))._asdict()
        parts["abstain"] |= {"refused_unmentioned": declined["estimate"], "answered_mentioned": kept["estimate"]}
    return parts


def composite(parts: Mapping[str, Mapping[str, float] | None], weights: Mapping[str, float]) -> float | None:
    """The weighted mean of the components; None when one that counts is missing."""
    total = 0.0
    for kind, weight in weights.items():
        part = parts[kind]
        if weight > 0 and part is None:
            return None
        total += weight * part["estimate"] if part is not None else 0.0
    return total / sum(weights.values())


def _consistency(rows: pl.DataFrame, seed: int) -> dict[str, float] | None:
    if rows.is_empty():
        return None
    numbers: dict[tuple[str, ...], int] = {}
    wide = rows.with_columns(
        code=pl.Series(
            [float(numbers.setdefault(("",) if row["refused"] else normalise(row["answer"]), len(numbers))) for row in rows.to_dicts()]
        )
    ).sort("group", "id")
    codes = wide["code"].to_numpy().reshape(wide["group"].n_unique(), -1).T  # (wordings, questions)
    try:
        alpha = krippendorff_alpha(codes, seed=seed)
    except InputError:  # one and the same answer to everything: agreement says nothing
        return None
    return Interval(*(max(0.0, value) for value in alpha))._asdict()


def _mean(rows: pl.DataFrame, column: str, seed: int) -> dict[str, float] | None:
    if rows["source"].n_unique() < 2:
        return None
    return clustered_interval(rows[column].cast(pl.Float64).to_numpy(), rows["source"].to_numpy(), seed=seed)._asdict()


def _half(interval: Mapping[str, float]) -> float:
    return (interval["high"] - interval["low"]) / 2


def _read_date(answer: str) -> date | None:
    found = _DATE.search(answer)
    try:
        return date(*map(int, found.groups())) if found else None
    except ValueError:
        return None
