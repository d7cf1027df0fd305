"""Verifiable forgetting: not "it no longer says so", but a certificate with its evidence, or the clause that failed (104, DMM-Gov).

The forgotten facts are held against facts of the same kind that were never seen. A fact counts as recalled when *any* of its wordings
brings its value. Forgetting is

* **certified** when every clause holds: (i) recall is equivalent to that of never-seen facts within the margin (two one-sided score tests),
  for the answers of the whole system and for the weights alone; (ii) membership: the AUC of the value's mean log-probability, forgotten
  against never seen, has an interval that holds 0.5, with an upper end at most the policy's; (iii) the store, closed rows included, and
  every other place that the policy lists return nothing; (iv) the general text did not suffer beyond the policy's drawdown;
* **suppressed** when all holds but the clauses on the weights: the system no longer says it, the weights still know. No guard can reach
  more;
* **failed** otherwise.

With a margin of 0.05, equivalence of two rates of 0 needs 52 facts a side. The membership clause asks for more: with 200 forgotten and 600
never-seen facts it holds in about 19 of 20 cases in which nothing is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from palimpsest.errors import InputError
from palimpsest.governance.admission import drawdown
from palimpsest.governance.items import FactChange
from palimpsest.governance.policy import Policy
from palimpsest.governance.system import System
from palimpsest.measurement import Measurement, environment
from palimpsest.stats import auc_interval, rates_equivalent

GRADES = ("certified", "suppressed", "failed")
_OF_WEIGHTS = ("recall_weights", "membership")


def measure_forgetting(
    system: System,
    forgotten: Sequence[FactChange],
    unseen: Sequence[FactChange],
    policy: Policy,
    *,
    before: System,
    places: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> Measurement:
    """Whether facts are forgotten, suppressed, or neither.

    Args:
        system: after the change.
        forgotten: with old values, the ones that must be gone.
        unseen: facts of the same kind, with old values, that were never in the model's data nor in the store.
        policy: margins, and the names of the places that must be searched.
        before: the system before, for the drawdown.
        places: name -> texts of backups, caches and summaries; a place that the policy names and that is not given fails the clause.
        seed: of the bootstraps.

    Returns:
        One row a fact: side, recalled by the system, by the weights, score; the summary holds `grade`, `failed` and `clauses`.

    Raises:
        InputError: fewer than 2 facts on a side, a fact without an old value, or one that stands on both sides.

    Example:
        >>> measure_forgetting(after, gone, never, Policy(), before=before).summary["grade"]     # doctest: +SKIP
    """
    sides = {"forgotten": forgotten, "unseen": unseen}
    bad = [fact.key for facts in sides.values() for fact in facts if fact.old is None]
    both = {fact.key for fact in forgotten} & {fact.key for fact in unseen}
    if bad or both or min(map(len, sides.values())) < 2:
        raise InputError(
            f"There are {len(forgotten)} forgotten and {len(unseen)} unseen facts; {len(bad)} lack a value, {len(both)} are on both sides.",
            "Give at least 2 a side, each with the value that is asked for.",
        )
    frames = {name: _recall(system, facts, name) for name, facts in sides.items()}
    clauses = {
        "recall_answers": _equivalent(frames, "answered", policy),
        "recall_weights": _equivalent(frames, "recalled", policy),
        "membership": _membership(frames, policy, seed),
        "places": _places(system, forgotten, policy, places or {}),
        "utility": _utility(before, system, policy, seed),
    }
    failed = [name for name, clause in clauses.items() if not clause["passed"]]
    grade = "certified" if not failed else "suppressed" if set(failed) <= set(_OF_WEIGHTS) else "failed"
    summary = {"grade": grade, "failed": failed, "clauses": clauses}
    provenance = {"before": before.state, "after": system.state, "policy": policy.hash, "seed": seed, "environment": environment()}
    return Measurement("forgetting", pl.concat(frames.values()), summary, provenance)


def _recall(system: System, facts: Sequence[FactChange], side: str) -> pl.DataFrame:
    wordings = [(fact.prompt, *fact.cues, *fact.paraphrases) for fact in facts]
    prompts = [cue for cues in wordings for cue in cues]
    values = [str(fact.old) for fact, cues in zip(facts, wordings, strict=True) for _ in cues]
    starts = np.cumsum([0, *map(len, wordings)])[:-1]
    scores = np.add.reduceat(system.logprobs(prompts, values), starts) / [len(cues) for cues in wordings]
    return pl.DataFrame(
        {
            "side": [side] * len(facts),
            "subject": [fact.subject for fact in facts],
            "relation": [fact.relation for fact in facts],
            "answered": np.logical_or.reduceat(system.says(prompts, values), starts),
            "recalled": np.logical_or.reduceat(system.recalls(prompts, values), starts),
            "score": scores,
        }
    )


def _equivalent(frames: Mapping[str, pl.DataFrame], column: str, policy: Policy) -> dict[str, Any]:
    forgotten, unseen = ((int(frames[side][column].sum()), len(frames[side])) for side in ("forgotten", "unseen"))
    result = rates_equivalent(unseen, forgotten, policy.forget_margin)
    return {"passed": result.equivalent, "forgotten": list(forgotten), "unseen": list(unseen), **result.to_dict()}


def _membership(frames: Mapping[str, pl.DataFrame], policy: Policy, seed: int) -> dict[str, Any]:
    area = auc_interval(frames["forgotten"]["score"].to_numpy(), frames["unseen"]["score"].to_numpy(), seed=seed)
    # an AUC far below 0.5 betrays what was forgotten as surely as one far above
    return {"passed": area.low <= 0.5 <= area.high and area.high <= policy.membership, **area._asdict(), "limit": policy.membership}


def _places(system: System, facts: Sequence[FactChange], policy: Policy, places: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """By id (subject and relation), by text, and by what answers the cues."""
    found: list[str] = []
    for fact in facts:
        value = str(fact.old)
        rows = [row for row in system.store.rows if (row.subject, row.relation, row.value) == (*fact.key, value)]
        rows += [row for row in system.store.search(fact.subject) if row.value == value and row not in rows]
        answering = [
            row for cue in (fact.prompt, *fact.cues, *fact.paraphrases) if (row := system.store.lookup(cue)) and row.value == value
        ]
        if rows or answering:
            found.append(f"store: {' / '.join(fact.key)}")
        found += [
            f"{name}: {' / '.join(fact.key)}" for name, texts in places.items() if any(fact.subject in t and value in t for t in texts)
        ]
    missing = [name for name in policy.places if name not in places]
    return {"passed": not found and not missing, "found": found, "not_searched": missing, "searched": ["store", *places]}


def _utility(before: System, after: System, policy: Policy, seed: int) -> dict[str, Any]:
    rise = drawdown(before, after, confidence=policy.confidence, seed=seed)
    return {"passed": rise.high <= policy.drawdown, **rise._asdict(), "limit": policy.drawdown}
