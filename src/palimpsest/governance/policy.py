"""The thresholds Θ of a governed memory, as data with a hash: what a change must reach, how it is rolled out, and when it is taken back.

A policy is a TOML or JSON table; what it does not name has the default (all defaults are ours). Its hash stands in every entry of the
log, so that a decision can be held against the thresholds that were in force.
"""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from palimpsest.errors import InputError
from palimpsest.files import sha256_json
from palimpsest.governance.items import is_text

WATCHED = ("harm", "outdated", "refusal", "slow")


@dataclass(frozen=True)
class Policy:
    """Thresholds of the loop. Rates are shares.

    Attributes:
        edit_success: least share of the changed facts whose new value is preferred. All changed facts are tested, so there is no interval.
        freshness: least share of the changed facts that are answered with the new value, word for word.
        paraphrase: what the lower bound of the same share on other wordings must reach.
        locality: what the lower bound of the share of neighbours that stay as they were must reach.
        drawdown: the most that the upper bound of the relative rise of perplexity on the general text may be.
        conflicts: the greatest share of a request's facts that may contradict a fact in force.
        leaks: how many more of the secrets may be written out than before.
        confidence: of the intervals at admission.
        mediation: least share of the effect that must go when the edited weights alone are put back; asked of edits (proposition 3).
        stages: shares of the sessions that see the change, ascending, the last one 1.
        min_sample: sessions observed without a breach before the next stage.
        holdout: share of the sessions that never see a change before it is full.
        harm, outdated, refusal, slow: the greatest rate that is tolerated among sessions that see the change: a right answer became wrong;
            the value before the change was given; no answer; the answer took more than `latency` times as long.
        latency: see `slow`.
        alpha: probability that a sound change is taken back, over all watched rates, stages and looks together.
        drift: greatest population stability index of the questions.
        volatile_days: what is expected to hold for less goes to the store.
        edit_max: the most facts that are edited into weights.
        forget_margin: recall on forgotten and on never-seen facts must be the same within it.
        membership: what the upper bound of the membership AUC of forgotten facts may be at most.
        places: names of the places besides the live store that forgetting must search: backups, caches, summaries.
        trust: how far a source is trusted; a source that is not named has 0.

    Raises:
        InputError: values out of range, all of them named.

    Example:
        >>> Policy().hash == Policy.from_dict({}).hash, Policy(locality=0.9).hash == Policy().hash
        (True, False)
    """

    edit_success: float = 0.90
    freshness: float = 0.90
    paraphrase: float = 0.80
    locality: float = 0.95
    drawdown: float = 0.02
    conflicts: float = 0.0
    leaks: int = 0
    confidence: float = 0.95
    mediation: float = 0.90
    stages: tuple[float, ...] = (0.01, 0.05, 0.25, 1.0)
    min_sample: int = 100
    holdout: float = 0.05
    harm: float = 0.05
    outdated: float = 0.10
    refusal: float = 0.10
    slow: float = 0.10
    latency: float = 2.0
    alpha: float = 0.05
    drift: float = 0.25
    volatile_days: int = 90
    edit_max: int = 100
    forget_margin: float = 0.05
    membership: float = 0.60
    places: tuple[str, ...] = ()
    trust: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        odd = [
            f"{field.name} = {getattr(self, field.name)!r}" for field in fields(self) if not _fits(field.name, getattr(self, field.name))
        ]
        if odd:
            raise InputError(f"The policy holds values of the wrong type: {'; '.join(odd)}.", "See the types in Policy's docstring.")
        shares = ("edit_success", "freshness", "paraphrase", "locality", "conflicts", "mediation", "membership")
        inner = ("confidence", "holdout", "alpha", "forget_margin", *WATCHED)
        stages = self.stages
        wrong = {name: not 0 <= getattr(self, name) <= 1 for name in shares} | {name: not 0 < getattr(self, name) < 1 for name in inner}
        wrong |= {name: not getattr(self, name) >= 0 for name in ("drawdown", "leaks", "drift", "volatile_days", "edit_max")}
        wrong |= {
            "min_sample": self.min_sample < 1,
            "latency": not self.latency > 1,
            "stages": not stages or stages[-1] != 1 or stages[0] <= 0 or list(stages) != sorted(set(stages)),
        }
        bad = [f"{name} = {getattr(self, name)!r}" for name, is_wrong in wrong.items() if is_wrong]
        if not wrong["stages"] and len(stages) > 1 and stages[-2] > 1 - self.holdout:
            bad.append(f"holdout = {self.holdout!r} (the stage of {stages[-2]:g} needs its sessions)")
        if bad:
            raise InputError(f"The policy has values out of range: {'; '.join(bad)}.", "See the ranges in Policy's docstring.")

    @property
    def hash(self) -> str:
        """SHA-256 of all thresholds."""
        return sha256_json(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The policy as plain JSON types."""
        return {**asdict(self), "stages": list(self.stages), "places": list(self.places), "trust": dict(self.trust)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Policy:
        """The inverse of `to_dict`; what is missing has its default.

        Raises:
            InputError: names that a policy does not have, values of another type, or out of range.
        """
        known = {field.name: type(field.default) for field in fields(cls)}
        unknown = [name for name in values if name not in known]
        if unknown:
            raise InputError(f"A policy has no {', '.join(map(repr, unknown))}.", f"It has: {', '.join(known)}.")
        odd = [name for name in values if known[name] is tuple and not isinstance(values[name], dict if name == "trust" else list | tuple)]
        if odd:
            raise InputError(f"The policy holds a value of the wrong type: {odd[0]} = {values[odd[0]]!r}.", "See Policy's docstring.")
        try:
            given: dict[str, Any] = {
                name: tuple(sorted(value.items())) if name == "trust" else tuple(value) if known[name] is tuple else value
                for name, value in values.items()
            }
            return cls(**given)
        except (TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"The policy holds a value of the wrong type: {error}.", "See the types in Policy's docstring.") from error

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Reads a `.toml` or `.json` file.

        Raises:
            InputError: it cannot be read, or is not a policy.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path} cannot be read as a policy: {error}.", "Give a TOML or JSON table of thresholds.") from error
        if not isinstance(values, dict):
            raise InputError(f"{path} holds a {type(values).__name__}.", "Give a TOML or JSON table of thresholds.")
        return cls.from_dict(values)


def _fits(name: str, value: Any) -> bool:
    """Whether a value has the type of a threshold; numbers are finite."""
    if name in ("trust", "places", "stages") and not isinstance(value, list | tuple):
        return False
    if name == "trust":
        return all(is_text(source) and _number(trust, int) for source, trust in value)
    if name == "places":
        return all(map(is_text, value))
    if name == "stages":
        return all(_number(stage, float) for stage in value)
    return _number(value, type(Policy.__dataclass_fields__[name].default))


def _number(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False
