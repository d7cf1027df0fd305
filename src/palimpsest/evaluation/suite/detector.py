"""A detector of memorization as one entry: what it asks, what it needs of a door and of the data, what it costs, how it is run and shown.

Xiong, Zhao, Pappu and Song, *The Landscape of Memorization in LLMs* (2025, arXiv 2507.05578), sorts detectors by how they ask. An entry of
`palimpsest.evaluation.suite.registry` is one `Detector`; an audit runs those of its suite (quick ⊂ standard ⊂ full) that door and data
allow and shows them in the section of their family. What cannot be run says why: nothing is left out in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from palimpsest import numbers
from palimpsest.audit.samples import PrefixSuffix
from palimpsest.evaluation.blocks import Block
from palimpsest.evaluation.plan import AuditPlan, membership_split
from palimpsest.evaluation.record import AuditRecord
from palimpsest.evaluation.steps import Job, StepProgress
from palimpsest.evaluation.suite.language import foreign
from palimpsest.measurement import Measurement
from palimpsest.models import LanguageModel
from palimpsest.stats import Interval

SUITES = ("quick", "standard", "full")  # each holds the one before it


class Need(StrEnum):
    """What a detector needs: the first five of the door to a model, the others of what the audit was given."""

    LOGPROBS = "log-probabilities"
    GENERATION = "generation"
    DISTRIBUTION = "whole distributions"
    HIDDEN_STATES = "hidden states"
    GRADIENTS = "gradients"
    INDEX = "an index of the corpus"
    NONMEMBERS = "text that was not trained on"
    SIZES = "models of several sizes"
    ENGLISH = "English text"
    TRAINING = "the training run"
    MATERIAL = "material of its own"


CAPABILITIES = {
    Need.LOGPROBS: "logprobs",
    Need.GENERATION: "text",
    Need.DISTRIBUTION: "weights",
    Need.HIDDEN_STATES: "weights",
    Need.GRADIENTS: "weights",
}


@dataclass(frozen=True)
class Task:
    """One step of a detector on one model.

    Attributes:
        kind: name of the step's result, before the model's.
        label: what the progress bar says.
        run: does the work; called with a progress function.
        read, written: tokens that the model reads and writes, about.
        key: what the result depends on besides plan and model.
    """

    kind: str
    label: str
    run: Callable[[StepProgress], Measurement]
    read: float = 0.0
    written: float = 0.0
    key: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Headline:
    """The figure by which a detector is remembered.

    Attributes:
        value: with its interval where it has one.
        form: "percent", "float" or "int".
        what: what was counted, in a few words.
        control: the same figure where nothing can be remembered; None where there is none.
        control_what: what that is.
    """

    value: Interval | float
    form: str
    what: str
    control: float | None = None
    control_what: str = ""

    @property
    def text(self) -> str:
        """The value with its interval, as one would write it."""
        if isinstance(self.value, Interval):
            return numbers.interval(self.value.estimate, self.value.low, self.value.high, "percent" if self.form == "percent" else "float")
        return self._written(self.value)

    @property
    def control_text(self) -> str:
        """The control, and what it is."""
        return "" if self.control is None else f"{self._written(self.control)} {self.control_what}".strip()

    def _written(self, value: float) -> str:
        return {"percent": numbers.percent, "int": numbers.integer}.get(self.form, numbers.number)(value)


@dataclass(frozen=True)
class Shown:
    """What a detector adds to the report: an answer in plain words, the blocks that it rests on, its headline."""

    answer: str
    blocks: Sequence[Block]
    headline: Headline | None = None


Tasks = Callable[[AuditPlan, LanguageModel, Job], "list[Task] | str"]


@dataclass(frozen=True)
class Detector:
    """One entry of the registry.

    Attributes:
        name: unique; the kind of its first step.
        title: what it asks, as a heading.
        family: name of the section that shows it, of `palimpsest.evaluation.suite.registry.FAMILIES`.
        suite: the smallest suite that holds it.
        systems: numbers of the systems that it comes from, as in `palimpsest systems`.
        needs: of door and data.
        per_sample: what one passage or prompt costs, in words.
        tasks: the steps for a model, or the reason why this plan does not allow them; None for what no audit of a corpus can run.
        show: its part of the report; the steps of every audited model that `each` asks for have been run.
        each: whether every audited model is asked, or the largest alone.
        reason: of what no audit of a corpus can run.
        command: what runs it by itself.
        needs_for: what its door is needed for, in the words of the reason.
    """

    name: str
    title: str
    family: str
    suite: str
    systems: tuple[int, ...]
    needs: tuple[Need, ...]
    per_sample: str
    tasks: Tasks | None = None
    show: Callable[[AuditRecord], Shown] | None = None
    each: bool = False
    reason: str = ""
    command: str = ""
    needs_for: str = ""

    def within(self, suite: str) -> bool:
        """Whether a suite holds this detector."""
        return SUITES.index(self.suite) <= SUITES.index(suite)

    def unmet(self, plan: AuditPlan, models: Sequence[LanguageModel]) -> str | None:
        """Why it cannot be run on these models with this plan, as far as its needs say; None when they are met."""
        if self.tasks is None:
            return f"{self.reason} {self.command} does." if self.command else self.reason
        for need in self.needs:
            for model in models:
                if need in CAPABILITIES and CAPABILITIES[need] not in model.capabilities:
                    return str(model.lacks(CAPABILITIES[need], self.needs_for or self.title))
            said = _of_data(need, plan)
            if said:
                return said
        return None


def _of_data(need: Need, plan: AuditPlan) -> str | None:
    if need is Need.NONMEMBERS and not membership_split(plan)[1]:
        return "There is no text that the model was surely not trained on; give some of the same kind with --held-out."
    if need is Need.SIZES:
        sizes = [model.parameters for model in plan.models]
        if len(sizes) < 2 or None in sizes or len(set(sizes)) < len(sizes):
            return "It takes models of at least two sizes; give another one of the family with --also."
    if need is Need.ENGLISH:
        return foreign(plan)
    return None


def some_passages(plan: AuditPlan, n: int, seed: int | None = None) -> list[PrefixSuffix]:
    """At most `n` passages, drawn at random from those that may stand in the training data, in their order."""
    known = [sample for sample in plan.samples if sample.meta.get("copies") != 0] or list(plan.samples)
    rng = np.random.default_rng(plan.settings.seed if seed is None else seed)
    chosen = rng.choice(len(known), min(n, len(known)), replace=False, shuffle=False)
    return [known[i] for i in np.sort(chosen)]


def other_passages(plan: AuditPlan, n: int) -> list[PrefixSuffix]:
    """At most `n` passages that were surely not trained on, drawn at random."""
    others = membership_split(plan)[1]
    chosen = np.random.default_rng((plan.settings.seed, 1)).choice(len(others), min(n, len(others)), replace=False, shuffle=False)
    return [others[i] for i in np.sort(chosen)]
