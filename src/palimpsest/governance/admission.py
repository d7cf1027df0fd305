"""Admission: a change is tried on a shadow copy and held against the thresholds before anyone sees it (104, DMM-Gov, stage 1).

By fact: *edit success*, the new value is preferred to the old after the cue; *freshness*, it is the answer, word for word; *paraphrase*, it
is preferred after other wordings; *locality*, neighbours that the system knew (true value preferred to the new one) still are known;
*drawdown*, the relative rise of perplexity on the general text,

    exp(Σ nats after / Σ tokens − Σ nats before / Σ tokens) − 1.

Where what is tested is a sample (wordings, neighbours, texts), the unfavourable end of its interval is held against the threshold: Wilson's
for shares, a bootstrap over texts for drawdown. Edit success and freshness are counted on *all* changed facts, so they have no sampling
error and stand for themselves; with lower bounds, as the spec asks for them too, no change of fewer than 35 facts could be admitted.

For a fact to forget, success means that the system does not answer with the old value, and neighbours are held against that value.
For texts to learn from, success is the share of texts whose loss fell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import numpy as np
import polars as pl

from palimpsest.errors import InputError
from palimpsest.governance.items import ChangeRequest, Conflict, FactChange
from palimpsest.governance.policy import Policy
from palimpsest.governance.system import System
from palimpsest.measurement import Measurement, environment
from palimpsest.stats import Interval, bootstrap_interval, wilson_interval


@dataclass(frozen=True)
class Clause:
    """One threshold of the admission.

    Attributes:
        name: of the threshold in the policy.
        value, low, high: what was measured; None where there was nothing to measure.
        n: on how many.
        held: the figure that is held against the threshold: the value, or an end of its interval.
        threshold: what it must reach, or may not exceed.
        at_most: whether it is an upper limit.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    held: float | None
    threshold: float
    at_most: bool = False

    @property
    def passed(self) -> bool:
        """Whether it is met; what could not be measured is not."""
        if self.held is None:
            return False
        return self.held <= self.threshold if self.at_most else self.held >= self.threshold

    def to_dict(self) -> dict[str, Any]:
        """The clause as plain JSON types."""
        return {**asdict(self), "passed": self.passed}


def measure_change(
    before: System,
    after: System,
    request: ChangeRequest,
    policy: Policy,
    *,
    conflicts: Sequence[Conflict] = (),
    secrets: Sequence[tuple[str, str]] = (),
    mediated: float | None = None,
    strays: int | None = None,
    day: date | None = None,
    seed: int = 0,
) -> Measurement:
    """What a change did, held against the thresholds.

    Args:
        before, after: the system without and with the change.
        request: what was wanted.
        policy: the thresholds.
        conflicts: of the request with what is in force.
        secrets: (cue, text) that must not be written: no more of them than before.
        mediated: share of the effect that goes when the edited weights alone are put back; None where the action is no edit.
        strays: how many weights changed that the edit does not claim; none may.
        day: as of when questions are asked; by default for each fact the first day of its new value, or today.
        seed: of the bootstrap.

    Returns:
        One row a test: kind, prompt, value, before, after; the summary holds `clauses` and whether the change is `admitted`.

    Raises:
        InputError: fewer than 2 general texts.
    """
    rows: list[dict[str, Any]] = []
    for fact in request.facts:
        rows += _fact_rows(before, after, fact, day)
    if request.texts:
        rows += _text_rows(before, after, request.texts)
    table = pl.DataFrame(
        rows,
        schema={"kind": pl.String, "fact": pl.String, "prompt": pl.String, "value": pl.String, "before": pl.Boolean, "after": pl.Boolean},
    )
    clauses = [
        _all("edit_success", table, "edit", policy.edit_success),
        _share("paraphrase", table, "paraphrase", policy.paraphrase, policy.confidence) if request.facts else None,
        _all("freshness", table, "answer", policy.freshness) if request.facts else None,
        _share("locality", table.filter(pl.col("before")), "neighbour", policy.locality, policy.confidence) if request.facts else None,
        _drawdown(before, after, policy, seed),
    ]
    if request.facts:
        unresolved = {conflict.key for conflict in conflicts if not conflict.resolved}
        share = len(unresolved) / len(request.facts)
        clauses.append(Clause("conflicts", share, None, None, len(request.facts), share, policy.conflicts, at_most=True))
    if secrets:
        cues, texts = zip(*secrets, strict=True)
        more = float(after.says(cues, texts).sum() - before.says(cues, texts).sum())
        clauses.append(Clause("leaks", more, None, None, len(secrets), more, policy.leaks, at_most=True))
    if mediated is not None:
        clauses.append(Clause("mediation", mediated, None, None, len(request.facts), mediated, policy.mediation))
    if strays is not None:
        clauses.append(Clause("strays", float(strays), None, None, 1, float(strays), 0.0, at_most=True))
    kept = [clause for clause in clauses if clause is not None]
    summary = {
        "admitted": all(clause.passed for clause in kept),
        "failed": [clause.name for clause in kept if not clause.passed],
        "clauses": {clause.name: clause.to_dict() for clause in kept},
        "conflicts": [asdict(conflict) for conflict in conflicts],
    }
    provenance = {"request": request.hash, "policy": policy.hash, "before": before.state, "after": after.state, "seed": seed}
    return Measurement("admission", table, summary, {**provenance, "environment": environment()})


def _fact_rows(before: System, after: System, fact: FactChange, day: date | None) -> list[dict[str, Any]]:
    """The tests of one fact."""
    asked = day or fact.valid_from
    name = f"{fact.subject} / {fact.relation}"
    value, wordings = fact.target or fact.old, [fact.prompt, *fact.paraphrases]
    assert value is not None
    values = [value] * len(wordings)
    rows = []
    for which, system in (("before", before), ("after", after)):
        said = system.says(wordings, values, asked)
        if fact.target is None:
            wanted = ~said
        elif fact.old is None:
            wanted = said
        else:
            wanted = system.prefers(wordings, values, [fact.old] * len(wordings), asked)
        cues = [cue for cue, _ in fact.neighbours]
        stay = system.prefers(cues, [true for _, true in fact.neighbours], [value] * len(cues), asked)
        outcome = [bool(wanted[0]), bool(said[0]) != (fact.target is None), *wanted[1:].tolist(), *stay.tolist()]
        if which == "before":
            kinds = ["edit", "answer", *["paraphrase"] * len(fact.paraphrases), *["neighbour"] * len(cues)]
            prompts = [fact.prompt, *wordings, *cues]
            shown = [value, *values, *(true for _, true in fact.neighbours)]
            rows = [
                {"kind": kind, "fact": name, "prompt": prompt, "value": text}
                for kind, prompt, text in zip(kinds, prompts, shown, strict=True)
            ]
        for row, passed in zip(rows, outcome, strict=True):
            row[which] = passed
    return rows


def _text_rows(before: System, after: System, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Whether the loss of each text fell."""
    rows = [ids[: before.model.room] for ids in before.model.tokenizer.encode_batch(list(texts))]
    if any(len(row) < 2 for row in rows):
        raise InputError("A text to learn from has fewer than 2 tokens.", "Leave it out.")
    first, second = ([float(row.mean()) for row in system.model.logprobs(rows)] for system in (before, after))
    return [
        {"kind": "edit", "fact": "", "prompt": text, "value": "", "before": False, "after": new > old}
        for text, old, new in zip(texts, first, second, strict=True)
    ]


def _all(name: str, table: pl.DataFrame, kind: str, threshold: float) -> Clause:
    after = table.filter(pl.col("kind") == kind)["after"]
    share = float(after.cast(pl.Float64).mean()) if len(after) else None  # type: ignore[arg-type]
    return Clause(name, share, None, None, len(after), share, threshold)


def _share(name: str, table: pl.DataFrame, kind: str, threshold: float, confidence: float) -> Clause:
    after = table.filter(pl.col("kind") == kind)["after"]
    if not len(after):
        return Clause(name, None, None, None, 0, None, threshold)
    share = wilson_interval(int(after.sum()), len(after), confidence)
    return Clause(name, *share, len(after), share.low, threshold)


def _drawdown(before: System, after: System, policy: Policy, seed: int) -> Clause:
    rise = drawdown(before, after, confidence=policy.confidence, seed=seed)
    return Clause("drawdown", *rise, len(before.general), rise.high, policy.drawdown, at_most=True)


def drawdown(before: System, after: System, *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """The relative rise of perplexity on the general texts, with a bootstrap interval over texts.

    Raises:
        InputError: fewer than 2 general texts.
    """
    (old, count), (new, _) = before.nats(), after.nats()

    def rise(nats: np.ndarray, tokens: np.ndarray, axis: int) -> np.ndarray:
        return np.expm1(np.minimum(nats.sum(axis=axis) / tokens.sum(axis=axis), 700.0))

    return bootstrap_interval(new - old, count, statistic=rise, paired=True, confidence=confidence, seed=seed)
