"""The evaluation card: what it takes to read a result, and to compare it with another one (system 104, section E).

A card says which model was measured (by a hash of its parameters, or an endpoint and a day), which memories were active, on which data, in
which settings, with which prompts, decoding and budgets; every result with its interval and number of samples; the five rates in time,
refusals, leaks, raters and their agreement, compute, seeds, and known limits. A setting that was not run needs a reason, a result without
an interval is no result, and a day and hour need a zone. `problems` lists everything that is missing or wrong, not the first thing.

The JSON Schema of a card is in `card-1.json` beside this file (`palimpsest card schema` prints it).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from palimpsest.errors import InputError
from palimpsest.evaluation.settings import Setting
from palimpsest.evaluation.temporal import Freshness
from palimpsest.files import write_text
from palimpsest.stats.agreement import RELIABLE
from palimpsest.taxonomy import Quadruple

FORMAT = "palimpsest-card/1"

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256, hex")]
Text = Annotated[str, Field(min_length=1)]


def only_fields(of: type) -> BeforeValidator:
    """Refuses what a dataclass has no field for, which pydantic would leave out in silence."""
    known = {field.name for field in fields(of)}

    def check(value: Any) -> Any:
        if isinstance(value, Mapping) and value.keys() - known:
            raise ValueError(f"unknown: {', '.join(sorted(map(str, value.keys() - known)))}; the fields are {', '.join(sorted(known))}")
        return value

    return BeforeValidator(check)


class _Part(BaseModel):
    """A part of a card: nothing unknown, nothing changed afterwards, and no number that JSON cannot hold."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Estimate(_Part):
    """A figure with its interval."""

    estimate: float
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low - 1e-9 <= self.estimate <= self.high + 1e-9:
            raise ValueError(f"{self.estimate:g} lies outside its interval {self.low:g} to {self.high:g}")
        return self


class Identity(_Part):
    """Which model: `fingerprint` over its parameters, or of an endpoint, whose `accessed` day then counts."""

    name: Text
    door: Text
    fingerprint: Hash
    tokenizer: Hash
    adapters: list[Hash]
    accessed: date | None = None

    @model_validator(mode="after")
    def _dated(self) -> Self:
        if self.door == "endpoint" and self.accessed is None:
            raise ValueError("an endpoint changes without notice: accessed must say on which day it was measured")
        return self


class Data(_Part):
    """What was asked: `hash` over all items, `item_ids` those that were scored, `asked` the first and last day of a question."""

    name: Text
    hash: Hash
    size: int = Field(ge=1)
    item_ids: list[Text] = Field(min_length=1)
    asked: tuple[date, date]
    cutoff: date | None = Field(description="the last day of the model's training data, null when it is not known")
    licence: Text

    @model_validator(mode="after")
    def _counted(self) -> Self:
        wrong = []
        twice = sorted(name for name, count in Counter(self.item_ids).items() if count > 1)
        if twice:
            wrong.append(f"item_ids names twice: {', '.join(twice[:5])}")
        if self.size < len(set(self.item_ids)):
            wrong.append(f"size is {self.size}, but {len(set(self.item_ids))} items were scored")
        if self.asked[0] > self.asked[1]:
            wrong.append(f"asked ends on {self.asked[1]}, before it begins on {self.asked[0]}")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class SettingRun(_Part):
    """Whether a setting was run; if not, why."""

    run: bool
    reason: str | None = None

    @model_validator(mode="after")
    def _explained(self) -> Self:
        if not self.run and not self.reason:
            raise ValueError("a setting that was not run needs a reason")
        return self


class Settings(_Part):
    """The three settings."""

    param: SettingRun
    offline: SettingRun
    online: SettingRun


class Prompting(_Part):
    """The whole prompt and how answers were decoded and judged right."""

    template: Text
    filler: str
    separator: str
    stop: list[str]
    sampler: Text
    rule: Text
    refusals: Hash = Field(description="of the rules that say what a refusal is")


class Budgets(_Part):
    """What every setting could use."""

    evidence_tokens: int = Field(ge=0)
    answer_tokens: int = Field(ge=1)
    k: int = Field(ge=0)


class Result(_Part):
    """One figure: its layer, what it is, its value with the interval, n, and for a comparison the test and its corrected p-value."""

    layer: Literal["protocol", "parametric", "contextual", "external", "episodic"]
    metric: Text
    value: Estimate
    n: int = Field(ge=1)
    test: str | None = None
    p_adjusted: float | None = Field(default=None, ge=0, le=1)
    judged: bool = False

    @model_validator(mode="after")
    def _tested(self) -> Self:
        if (self.test is None) != (self.p_adjusted is None):
            raise ValueError("a test and its adjusted p-value belong together")
        return self


class Leaks(_Part):
    """The leak audit: how many of each kind, what was done, and what was left out."""

    policy: Literal["raise", "exclude", "flag"]
    counts: dict[Text, Annotated[int, Field(ge=0)]]
    excluded: list[Text]


class Raters(_Part):
    """People or judges that decided what is right, and how far they agree."""

    kind: Literal["human", "judge"]
    names: list[Text] = Field(min_length=2)
    coefficient: Literal["Cohen kappa", "Fleiss kappa", "Krippendorff alpha"]
    agreement: Estimate

    @property
    def reliable(self) -> bool:
        """Whether agreement reaches 0.67."""
        return self.agreement.estimate >= RELIABLE


class Compute(_Part):
    """What the run took."""

    seconds: float = Field(ge=0)
    device: Text
    packages: dict[str, str]


class EvaluationCard(_Part):
    """An evaluation card; see the module's docstring."""

    format: Literal["palimpsest-card/1"]
    created: AwareDatetime
    identity: Identity
    memory: list[Annotated[Quadruple, only_fields(Quadruple)]] = Field(min_length=1, description="the memories that were active")
    data: Data
    settings: Settings
    prompting: Prompting
    budgets: Budgets
    results: list[Result] = Field(min_length=1)
    temporal: dict[Setting, dict[Freshness, Estimate]] = Field(description="the five rates by setting; empty when no item has a history")
    refusals: dict[Setting, dict[str, Estimate]] = Field(description="share refused, by slice")
    leaks: Leaks
    snapshot: Hash | None = Field(description="of the offline store")
    live: str | None = Field(description="hash of the live store, or name of the live retriever")
    raters: list[Raters]
    compute: Compute
    seeds: list[int] = Field(min_length=1)
    limits: list[Text] = Field(min_length=1)
    governed: bool
    ledger_head: Hash | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        wrong = []
        if self.settings.offline.run != (self.snapshot is not None):
            wrong.append("snapshot belongs to an offline run, and an offline run needs the hash of its snapshot")
        if self.settings.online.run != (self.live is not None):
            wrong.append("live belongs to an online run, and an online run needs to say on what")
        if self.governed and self.ledger_head is None:
            wrong.append("a governed model needs ledger_head")
        for setting, rates in self.temporal.items():
            if set(rates) != set(Freshness) or abs(sum(rate.estimate for rate in rates.values()) - 1) > 1e-9:
                wrong.append(f"the five rates of {setting} are not five, or do not sum to 1")
        for setting in {*self.temporal, *self.refusals}:
            if not getattr(self.settings, setting).run:
                wrong.append(f"there are results of {setting}, which was not run")
        metrics = Counter((result.layer, result.metric) for result in self.results)
        wrong += [f"there are {count} results of {metric} ({layer})" for (layer, metric), count in metrics.items() if count > 1]
        if any(result.judged for result in self.results) and not self.raters:
            wrong.append("judged results need raters and their agreement")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def unreliable(self) -> list[str]:
        """Metrics that rest on judges who agree too little."""
        shaky = any(not raters.reliable for raters in self.raters)
        return [result.metric for result in self.results if result.judged and shaky]

    def to_dict(self) -> dict[str, Any]:
        """The card as plain JSON types."""
        return dict(self.model_dump(mode="json"))

    def save(self, path: str | Path) -> None:
        """Writes the card as JSON, atomically."""
        write_text(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def problems(value: Mapping[str, Any]) -> list[str]:
    """Everything that is missing or wrong in what should be a card; empty when it is one.

    Example:
        >>> problems({"format": "palimpsest-card/1"})[0]
        'created: Field required'
    """
    try:
        EvaluationCard.model_validate(value)
    except ValidationError as error:
        return [f"{'.'.join(map(str, entry['loc'])) or 'card'}: {entry['msg'].removeprefix('Value error, ')}" for entry in error.errors()]
    return []


def load_card(source: str | Path | Mapping[str, Any]) -> EvaluationCard:
    """Reads a card.

    Raises:
        InputError: not JSON, or not a card; the message lists everything that is wrong.
    """
    if isinstance(source, Mapping):
        value, name = source, "The card"
    else:
        name = str(source)
        try:
            value = json.loads(Path(source).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{source} cannot be read as JSON: {error}.", "Give the path of a card.") from error
    wrong = problems(value)
    if wrong:
        raise InputError(
            f"{name} is no evaluation card: {'; '.join(wrong)}.", "Fill in what is missing; `palimpsest card schema` shows all."
        )
    return EvaluationCard.model_validate(value)


def schema() -> dict[str, Any]:
    """The JSON Schema of a card, as in `card-1.json`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": FORMAT, **TypeAdapter(EvaluationCard).json_schema()}
