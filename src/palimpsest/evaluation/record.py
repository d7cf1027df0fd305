"""An audit that has been run, and the figures that verdict and sections share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from palimpsest.evaluation import blocks
from palimpsest.evaluation.plan import AuditPlan
from palimpsest.measurement import Measurement
from palimpsest.models import LanguageModel
from palimpsest.stats import Interval


@dataclass(frozen=True)
class AuditRecord:
    """An audit that has been run.

    Attributes:
        plan: what was asked.
        results: by name of step.
        skipped: why a detector of the suite was not run, by its name.
    """

    plan: AuditPlan
    results: Mapping[str, Measurement]
    skipped: Mapping[str, str]

    def of(self, kind: str, model: LanguageModel) -> Measurement | None:
        """The result of one kind of measurement for a model, None where it was not run."""
        return self.results.get(f"{kind}.{slug(model.name)}")

    def result(self, kind: str, model: LanguageModel) -> Measurement:
        """The result of one kind of measurement that a section which was not skipped rests on."""
        return self.results[f"{kind}.{slug(model.name)}"]

    @cached_property
    def largest(self) -> LanguageModel:
        """The audited model with the most parameters: the one that the leaks and the guard are shown on."""
        return largest(self.plan.models)

    @cached_property
    def context(self) -> int:
        """The longest context, at which the headline figures are taken."""
        return max(self.plan.settings.contexts)

    @cached_property
    def best_attack(self) -> dict[str, Any] | None:
        """The membership score with the greatest AUC on the largest model, with its figures; None where none was measured.

        It was picked from several: its interval is the one that holds for all of them at once.
        """
        result = self.of("membership", self.largest)
        if result is None:
            return None
        name = max(result.summary["methods"], key=lambda method: result.summary["methods"][method]["auc"])
        figures = result.summary["methods"][name]
        ends = {"low": figures.get("low_all", figures["low"]), "high": figures.get("high_all", figures["high"])}
        return {"method": name, "of": len(result.summary["methods"]), **figures, **ends}

    @cached_property
    def guard(self) -> dict[str, dict[str, Interval]] | None:
        """Rates over the passages tried on the largest model, by state ("open", "guarded", and "approximate" where it was tried): asked
        plainly, "verbatim" and "approximate"; and "styled", approximately in at least one style of asking. None where no guard was tried.
        """
        results = {state: self.of(state, self.largest) for state in ("open", "guarded", "approximate")}
        if results["guarded"] is None:
            return None
        return {state: _leaked(result) for state, result in results.items() if result is not None}

    def extracted(self, model: LanguageModel) -> pl.DataFrame:
        """The rows of a model at the longest context, of passages that stand in the training data at least once."""
        return planted(self.result("extraction", model).table.filter(pl.col("context") == self.context))


def _leaked(result: Measurement) -> dict[str, Interval]:
    plainly = result.table.filter(pl.col("transform") == "identity")
    rates = {kind: blocks.rate_of(plainly[kind].to_list()) for kind in ("verbatim", "approximate")}
    return {**rates, "styled": Interval(*(result.summary["any_transform"][key] for key in ("estimate", "low", "high")))}


def slug(name: str) -> str:
    """A model's name as part of a file name."""
    return "".join(character if character.isalnum() or character in "-_." else "-" for character in name).strip(".-") or "model"


def largest(models: tuple[LanguageModel, ...]) -> LanguageModel:
    """The model with the most parameters; the first where they are not known."""
    return max(models, key=lambda model: model.parameters or 0)


def planted(table: pl.DataFrame) -> pl.DataFrame:
    """The passages that are not known to be absent from the training data."""
    return table.filter(pl.col("copies").is_null() | (pl.col("copies") >= 1))
