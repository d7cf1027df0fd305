"""From the registry to the steps of one audit, and what they will cost: tokens read and written, and seconds at the measured speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from palimpsest import __version__
from palimpsest.evaluation.plan import AuditPlan, fingerprint_samples
from palimpsest.evaluation.record import largest, slug
from palimpsest.evaluation.steps import Job, Step
from palimpsest.evaluation.suite.detector import Detector
from palimpsest.evaluation.suite.registry import DETECTORS
from palimpsest.models import LanguageModel

WRITING = 20  # a written token costs about as much as so many tokens that are read
_READ = 4  # passages that are read to know how fast a model reads
_WRITTEN, _PROMPT, _TOKENS = 16, 4, 8  # texts that are written on together to know how fast it writes; tokens of a prompt, and of the rest


@dataclass(frozen=True)
class Planned:
    """A step and what it will cost.

    Attributes:
        detector: whose step it is.
        step: the step.
        model: name of the model.
        read, written: tokens, about.
    """

    detector: Detector
    step: Step
    model: str
    read: float
    written: float


def plan_steps(plan: AuditPlan, job: Job, detectors: Sequence[Detector] = DETECTORS) -> tuple[list[Planned], dict[str, str]]:
    """The steps of every detector of the plan's suite, and why the others of it are not measured, by name.

    What every audited model is asked comes first, model by model; then what the largest is asked alone.
    """
    planned: list[Planned] = []
    skipped: dict[str, str] = {}
    here = [detector for detector in detectors if detector.within(plan.suite)]
    shared = {
        "version": __version__,
        "settings": asdict(plan.settings),
        "samples": fingerprint_samples(plan.samples),
        "corpus": plan.index.fingerprint,
    }
    biggest = largest(plan.models)

    def add(detector: Detector, model: LanguageModel) -> None:
        assert detector.tasks is not None  # otherwise it is unmet
        tasks = detector.tasks(plan, model, job)
        if isinstance(tasks, str):
            skipped[detector.name] = tasks
            return
        reference = plan.references.get(model.name)
        for task in tasks:
            key: dict[str, Any] = {**shared, "step": task.kind, "model": model.fingerprint}
            key |= {"reference": reference.fingerprint if reference else None, **task.key}
            units = (task.read + WRITING * task.written) * (model.parameters or 1)
            step = Step(
                f"{task.kind}.{slug(model.name)}", f"{task.label} · {model.name}", units, key, task.run, optional=detector.suite != "quick"
            )
            planned.append(Planned(detector, step, model.name, task.read, task.written))

    for detector in here:
        said = detector.unmet(plan, plan.models if detector.each else [biggest])
        if said is not None:
            skipped[detector.name] = said
    for model in plan.models:
        for detector in here:
            if detector.each and detector.name not in skipped:
                add(detector, model)
    for detector in here:
        if not detector.each and detector.name not in skipped:
            add(detector, biggest)
    return [entry for entry in planned if entry.detector.name not in skipped], skipped


@dataclass(frozen=True)
class Speed:
    """How fast a model is here: tokens read and written a second."""

    read: float
    written: float

    def seconds(self, planned: Planned) -> float:
        """What a step will take."""
        return planned.read / self.read + planned.written / self.written


def measure_speed(model: LanguageModel, plan: AuditPlan) -> Speed | None:
    """Times a few passages; None for a door that is not in this process, whose time depends on who else asks it."""
    if model.door == "endpoint" or not {"logprobs", "text"} <= model.capabilities:
        return None
    samples = sorted(plan.samples, key=lambda sample: -len(sample.ids))
    rows = [sample.ids for sample in samples[:_READ]]
    model.score(rows[:1])  # the first call of all loads and compiles what later ones find ready
    reading = sum(map(len, rows)) / _seconds(lambda: model.score(rows))
    prompts = [sample.prefix[-_PROMPT:] for sample in samples[:_WRITTEN]]
    took = _seconds(lambda: model.generate(prompts, _TOKENS, stop_at_eos=False))
    writing = max(took - sum(map(len, prompts)) / reading, took / 10)  # less the reading of the prompts
    return Speed(reading, len(prompts) * _TOKENS / writing)


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return max(time.perf_counter() - began, 1e-6)


@dataclass(frozen=True)
class Estimate:
    """What an audit will cost, said before it begins.

    Attributes:
        suite: its name.
        rows: a dict a detector: title, steps, finished (of an earlier run), read, written, seconds (None where the speed is not known).
        skipped: title -> reason.
        elsewhere: title -> command (or nothing) of what no audit of a corpus can run.
    """

    suite: str
    rows: list[dict[str, Any]]
    skipped: dict[str, str]
    elsewhere: dict[str, str]

    @property
    def seconds(self) -> float | None:
        """In all; None where a part of it is not known."""
        times = [row["seconds"] for row in self.rows]
        return None if None in times else float(np.sum(times)) if times else 0.0


def estimate(plan: AuditPlan, job: Job, planned: Sequence[Planned], skipped: dict[str, str]) -> Estimate:
    """Times every model and adds up what is left to do."""
    finished = {entry.step.name for entry in planned if job.has(entry.step)}
    asked = {entry.model for entry in planned if entry.step.name not in finished}
    speeds = {model.name: measure_speed(model, plan) for model in plan.models if model.name in asked}
    rows: dict[str, dict[str, Any]] = {}
    for entry in planned:
        new = {"title": entry.detector.title, "steps": 0, "finished": 0, "read": 0.0, "written": 0.0, "seconds": 0.0}
        row = rows.setdefault(entry.detector.name, new)
        row["steps"] += 1
        if entry.step.name in finished:
            row["finished"] += 1
            continue
        row["read"] += entry.read
        row["written"] += entry.written
        speed = speeds[entry.model]
        row["seconds"] = None if speed is None or row["seconds"] is None else row["seconds"] + speed.seconds(entry)
    left_out = [detector for detector in DETECTORS if detector.name in skipped]
    here = {detector.title: skipped[detector.name] for detector in left_out if detector.tasks is not None}
    elsewhere = {detector.title: detector.command for detector in left_out if detector.tasks is None}
    return Estimate(plan.suite, list(rows.values()), here, elsewhere)
