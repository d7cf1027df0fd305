"""A plan of a protocol run as a file: which model, which items, which stores; checked as a whole before anything is loaded.

A plan is a YAML or JSON object; `ProtocolPlan` has its fields. Paths in it are relative to the plan. Items and documents are JSON lines
with the fields of `Item` and `Doc` (days as 2001-02-03), or come from a made-up world, which needs no files:

    model: smollm2-135m
    world: {seed: 0, people: 40, relation: residence, cut: 2012-01-01, asked_at: 2024-01-01}
    memory: [{location: weights, persistence: permanent, write_path: pretrain, access_path: forward}]
    data: {name: a made-up world, licence: CC0}
    limits: [A made-up world says nothing of a real one.]
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from palimpsest.corpus import FactWorld
from palimpsest.errors import InputError, PalimpsestError
from palimpsest.evaluation.card import EvaluationCard, only_fields
from palimpsest.evaluation.card_making import card_of_run
from palimpsest.evaluation.card_text import render_md
from palimpsest.evaluation.items import Item, world_docs, world_items
from palimpsest.evaluation.prompting import Budget, Template
from palimpsest.evaluation.retrieval import Doc, Snapshot
from palimpsest.evaluation.settings import ThreeSettingRun
from palimpsest.evaluation.temporal import TimedValue
from palimpsest.files import write_text
from palimpsest.measurement import Measurement
from palimpsest.models import LanguageModel, load_model
from palimpsest.models.base import Progress
from palimpsest.taxonomy import MemoryKind, Quadruple


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WorldPlan(_Part):
    """Items and stores from a made-up world: the snapshot holds what was so before `cut`, the live store everything."""

    seed: int = Field(default=0, ge=0)
    people: int = Field(default=40, ge=20, le=3000)
    relation: str = "residence"
    cut: date
    asked_at: date


class DataPlan(_Part):
    """What the card says of the data."""

    name: str
    licence: str
    cutoff: date | None = None


class ProtocolPlan(_Part):
    """A plan.

    Attributes:
        model: as `palimpsest.load_model` takes it; `tokenizer` for an endpoint.
        world: a made-up world, or instead of it
        items, snapshot, live, training: files of JSON lines; `live` and `training` may be left out.
        template, budget: of all settings; the template holds the sampler.
        seeds, on_leak: see `ThreeSettingRun`.
        memory, data, limits, missing: what the card says.
    """

    model: str
    tokenizer: str | None = None
    world: WorldPlan | None = None
    items: Path | None = None
    snapshot: Path | None = None
    live: Path | None = None
    training: Path | None = None
    template: Annotated[Template, only_fields(Template)] = Field(default_factory=Template)
    budget: Annotated[Budget, only_fields(Budget)] = Field(default_factory=Budget)
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)
    on_leak: Literal["raise", "exclude", "flag"] = "raise"
    memory: list[Annotated[Quadruple, only_fields(Quadruple)]] = Field(min_length=1)
    data: DataPlan
    limits: list[str] = Field(min_length=1)
    missing: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _sourced(self) -> Self:
        files = [name for name in ("items", "snapshot", "live") if getattr(self, name) is not None]
        if self.world is not None and files:
            raise ValueError(f"a plan has a world or files, not both: {', '.join(files)}")
        if self.world is None and not {"items", "snapshot"} <= set(files):
            raise ValueError("a plan without a world needs items and snapshot")
        if self.world is None and self.live is None and "online" not in self.missing:
            raise ValueError("without live, missing.online must say why")
        return self


def load_plan(path: str | Path) -> ProtocolPlan:
    """Reads a plan (.yaml, .yml or .json); its relative paths become paths beside it.

    Raises:
        InputError: no such file, no YAML or JSON, or not a plan; the message lists everything that is wrong.
    """
    file = Path(path)
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # YAML reads days and numbers, and may find impossible ones
        raise InputError(f"{file} cannot be read as a plan: {error}.", "Give a YAML or JSON file.") from error
    if not isinstance(value, dict):
        raise InputError(f"{file} holds a {type(value).__name__}.", "A plan is one object.")
    try:
        plan = ProtocolPlan.model_validate(value)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, entry['loc'])) or 'plan'}: {entry['msg'].removeprefix('Value error, ')}" for entry in error.errors()]
        raise InputError(f"{file} is no plan: {'; '.join(wrong)}.", "See palimpsest.evaluation.protocol_plan for the fields.") from error
    here = {name: file.parent / given for name in ("items", "snapshot", "live", "training") if (given := getattr(plan, name)) is not None}
    return plan.model_copy(update=here)


def run_plan(
    plan: ProtocolPlan, out: str | Path, *, model: LanguageModel | None = None, progress: Progress | None = None
) -> tuple[Measurement, EvaluationCard]:
    """Runs a plan and writes `measurement.json`, `card.json` and `card.md` to a folder.

    Args:
        plan: by `load_plan`.
        out: the folder; it is created.
        model: instead of the plan's, already loaded.
        progress: called with (settings done, settings in all).

    Raises:
        InputError: a file that holds no items or documents.
        LeakError, SettingViolation: as the run says.

    Example:
        >>> measured, card = run_plan(load_plan("plan.yaml"), "out")   # doctest: +SKIP
    """
    items, snapshot, live = _sources(plan)
    loaded = model if model is not None else load_model(plan.model, tokenizer=plan.tokenizer)
    run = ThreeSettingRun(
        loaded,
        items,
        snapshot,
        live,
        training=read_docs(plan.training) if plan.training is not None else (),
        template=plan.template,
        budget=plan.budget,
        seeds=plan.seeds,
        on_leak=plan.on_leak,
    )
    measured = run.run(progress)
    card = card_of_run(
        measured,
        memory=plan.memory,
        data_name=plan.data.name,
        licence=plan.data.licence,
        cutoff=plan.data.cutoff,
        limits=plan.limits,
        missing=plan.missing,
    )
    folder = Path(out)
    measured.save(folder / "measurement.json")
    card.save(folder / "card.json")
    write_text(folder / "card.md", render_md(card))
    return measured, card


def _sources(plan: ProtocolPlan) -> tuple[list[Item], Snapshot, Snapshot | None]:
    if plan.world is not None:
        made = plan.world
        world = FactWorld(seed=made.seed, people=made.people)
        facts = world.facts(made.relation)
        old = [fact for fact in facts if fact.valid_from < made.cut]
        known = [fact for fact in facts if fact.valid_from <= made.asked_at]
        return world_items(world, made.relation, made.asked_at), Snapshot(world_docs(world, old)), Snapshot(world_docs(world, known))
    assert plan.items is not None  # the plan was checked
    assert plan.snapshot is not None
    live = Snapshot(read_docs(plan.live)) if plan.live is not None else None
    return read_items(plan.items), Snapshot(read_docs(plan.snapshot)), live


def read_items(path: Path) -> list[Item]:
    """Items from JSON lines.

    Raises:
        InputError: what cannot be read, with its line.
    """

    def item(row: dict[str, Any]) -> Item:
        history = [
            TimedValue(entry["golds"], date.fromisoformat(entry["valid_from"]), _day(entry.get("valid_to")))
            for entry in row.pop("history", [])
        ]
        known = {"golds": (), **row, "asked_at": date.fromisoformat(row["asked_at"])}
        if row.get("kind_hint") is not None:
            known["kind_hint"] = MemoryKind(row["kind_hint"])
        return Item(**known, history=tuple(history))

    return _lines(path, item)


def read_docs(path: Path) -> list[Doc]:
    """Dated documents from JSON lines.

    Raises:
        InputError: what cannot be read, with its line.
    """
    return _lines(path, lambda row: Doc(**{**row, "published_at": date.fromisoformat(row["published_at"])}))


def _lines(path: Path, make: Any) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.", "Give a file of JSON lines.") from error
    found = []
    # a line of JSON may hold U+2028 or U+0085, at which str.splitlines would cut it
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise InputError(f"the line holds a {type(row).__name__}.", "Every line is one object, with the fields of Item or Doc.")
                found.append(make(row))
            except PalimpsestError as error:
                raise InputError(f"{path}, line {number}: {error.problem}", error.remedy) from error
            except KeyError as error:
                raise InputError(f"{path}, line {number}: there is no {error}.", "See the fields of Item and Doc.") from error
            except (ValueError, TypeError, RecursionError) as error:
                raise InputError(f"{path}, line {number}: {error}.", "See the fields of Item and Doc.") from error
    return found


def _day(value: str | None) -> date | None:
    return date.fromisoformat(value) if value is not None else None
