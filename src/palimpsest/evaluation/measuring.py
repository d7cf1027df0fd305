"""The measurements of the ordinary audit as tasks; `palimpsest.evaluation.suite.core` has their entries in the registry."""

from __future__ import annotations

import warnings
from functools import partial

import polars as pl

from palimpsest.audit.approximate import TRANSFORMS, fits, measure_approximate
from palimpsest.audit.extraction import measure_extraction
from palimpsest.audit.membership import BiasedSplitWarning, impossible_methods, measure_membership
from palimpsest.audit.membership_passes import METHODS, NEIGHBOURS
from palimpsest.audit.probabilistic import measure_probabilistic
from palimpsest.audit.samples import PrefixSuffix
from palimpsest.evaluation.classes import measure_classes
from palimpsest.evaluation.leaks import measure_leaks
from palimpsest.evaluation.nearest import measure_nearest
from palimpsest.evaluation.plan import AuditPlan, AuditSettings, fingerprint_samples, membership_split
from palimpsest.evaluation.record import largest, slug
from palimpsest.evaluation.steps import Job, StepProgress
from palimpsest.evaluation.suite.detector import Task, some_passages
from palimpsest.files import sha256_json
from palimpsest.guard import MemFreeProcessor, measure_guard_cost
from palimpsest.measurement import Measurement
from palimpsest.models import LanguageModel

TRACED = 8  # tokens of the shortest run that is traced to its documents


def extraction_tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task]:
    """Word for word (011), at every context, and by the reference too."""
    passes = len(plan.settings.contexts) * (2 if model.name in plan.references else 1)
    written = 0.0 if "logprobs" in model.capabilities else passes * len(plan.samples) * plan.settings.suffix
    return [Task("extraction", "word for word", partial(_extraction, plan, model), passes * plan.tokens / 2, written)]


def classes_tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task]:
    """Why it is remembered (003)."""
    return [Task("classes", "why it is remembered", partial(_classes, plan, model), plan.tokens)]


def probabilistic_tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task]:
    """With many tries (029)."""
    return [Task("probabilistic", "many tries", partial(_probabilistic, plan, model), plan.tokens)]


def membership_tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task] | str:
    """Members against non-members, by every score that is asked for and possible."""
    attacks = membership_attacks(plan, model)
    if not attacks:
        return f"Of {model.name} none of the scores that were asked for can be taken."
    general = plan.general.fingerprint if plan.general else None
    key = {"held_out": fingerprint_samples(membership_split(plan)[1]), "general": general, "attacks": list(attacks)}
    passes = 2 + NEIGHBOURS * ("neighbour_ngram" in attacks) + 3 * ("gradnorm" in attacks)
    return [Task("membership", "membership", partial(_membership, plan, model), passes * plan.tokens, key=key)]


def leaks_tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task]:
    """What leaks, traced to its documents; and how near generations come to the corpus."""
    settings = plan.settings
    near = 2 * settings.near_samples
    leaks, nearest = partial(_leaks, plan, model, job), partial(_nearest, plan, model)
    return [
        Task("leaks", "tracing leaks", leaks, settings.leaks * plan.prompt, settings.leaks * settings.suffix),
        Task("nearest", "near the corpus", nearest, near * plan.prompt, near * settings.suffix),
    ]


def guard_tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task] | str:
    """Writing freely and under every guard, and what each costs on other text (001)."""
    settings = plan.settings
    room = fits(model, plan.samples)
    writable = frozenset(i for i, sample in enumerate(plan.samples) if room[i] and sample.meta.get("copies") != 0)
    if not writable:
        return (
            f"In capitals or with double spaces a suffix of {settings.suffix} tokens fills the {model.room} that {model.name} sees; "
            "a shorter --suffix leaves room for a prompt."
        )
    key = {"protected": plan.protected.fingerprint, "unprotected": sha256_json(list(plan.unprotected))}
    asked = settings.guard_samples * len(TRANSFORMS)
    read, written = asked * plan.prompt, asked * settings.suffix
    words = sum(len(text.split()) for text in plan.unprotected)
    tasks = [Task("open", "writing freely", partial(_write, plan, model, job, writable, None), read, written, key)]
    for kind, name, guard in guards(settings):
        run = partial(_write, plan, model, job, writable, guard)
        tasks.append(Task(kind, f"writing under {name}", run, read, written, key))
        if plan.unprotected:
            tasks.append(Task(f"{kind}-cost", f"price of {name}", partial(_cost, plan, model, guard), read=2 * words, key=key))
    return tasks


def _reference(plan: AuditPlan, model: LanguageModel) -> LanguageModel | None:
    return plan.cached(plan.references[model.name]) if model.name in plan.references else None


def _extraction(plan: AuditPlan, model: LanguageModel, progress: StepProgress) -> Measurement:
    door, reference = plan.cached(model), _reference(plan, model)
    return measure_extraction(door, plan.samples, plan.settings.contexts, reference=reference, progress=progress)


def _classes(plan: AuditPlan, model: LanguageModel, progress: StepProgress) -> Measurement:
    return measure_classes(plan.cached(model), plan.samples, plan.index, progress=progress)


def _probabilistic(plan: AuditPlan, model: LanguageModel, progress: StepProgress) -> Measurement:
    settings = plan.settings
    return measure_probabilistic(
        plan.cached(model), plan.samples, settings.tries, settings.confidences, settings.sampler, progress=progress
    )


def membership_attacks(plan: AuditPlan, model: LanguageModel) -> list[str]:
    """The membership scores that are taken of a model: those that are asked for and possible. What takes many passes a text, or another
    corpus, is taken of the largest alone, on which the section rests; what takes gradients, when it is asked for or the suite is full."""
    members, others = membership_split(plan)
    main = model is largest(plan.models)
    rows = [sample.ids for sample in (*members, *others)]
    missing = impossible_methods(model, plan.references.get(model.name), plan.general if main else None, rows, len(others))
    steep = () if main and (plan.settings.attacks is not None or plan.suite == "full") else ("gradnorm",)
    return [name for name in plan.settings.attacks or METHODS if name not in missing and name not in steep]


def _membership(plan: AuditPlan, model: LanguageModel, progress: StepProgress) -> Measurement:
    members, others = membership_split(plan)
    door, reference, attacks = plan.cached(model), _reference(plan, model), membership_attacks(plan, model)
    index, seed = plan.general if model is largest(plan.models) else None, plan.settings.seed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BiasedSplitWarning)  # the report says it, in the answer of the section
        return measure_membership(door, members, others, attacks, reference=reference, index=index, seed=seed, progress=progress)


def _easiest(
    plan: AuditPlan, model: LanguageModel, job: Job, n: int, *, rarest: bool, among: frozenset[int] | None = None
) -> list[PrefixSuffix]:
    """The passages that leak most easily: extracted ones first; among them the rarest (taken in turn from every kind of text), or
    the likeliest. `among` are the numbers of those that may be chosen, None for all."""
    table = job.results[f"extraction.{slug(model.name)}"].table
    table = table.filter(pl.col("context") == table["context"].max()).filter(pl.col("copies").is_null() | (pl.col("copies") >= 1))
    if among is not None:
        table = table.filter(pl.col("sample").is_in(sorted(among)))
    order = [pl.col("extracted"), pl.col("matched")]
    if rarest:
        ranked = table.sort("extracted", pl.col("copies").fill_null(0), "matched", "sample", descending=[True, False, True, False])
        ranked = ranked.with_columns(turn=pl.int_range(pl.len()).over(pl.col("domain").fill_null(""))).sort("turn", maintain_order=True)
    else:
        ranked = table.sort(*order, "sample", descending=[True, True, False])
    return [plan.samples[number] for number in ranked["sample"].head(n).to_list()]


def _leaks(plan: AuditPlan, model: LanguageModel, job: Job, progress: StepProgress) -> Measurement:
    chosen = _easiest(plan, model, job, plan.settings.leaks, rarest=True)
    settings = plan.settings
    door = plan.cached(model)
    return measure_leaks(door, chosen, plan.index, min_len=min(TRACED, settings.suffix), share=settings.edit_share, progress=progress)


def _nearest(plan: AuditPlan, model: LanguageModel, progress: StepProgress) -> Measurement:
    settings = plan.settings
    samples = some_passages(plan, settings.near_samples)
    return measure_nearest(
        plan.cached(model), samples, plan.index, share=settings.edit_share, sampler=settings.sampler, seed=settings.seed, progress=progress
    )


def guards(settings: AuditSettings) -> list[tuple[str, str, dict[str, int]]]:
    """The guards that are tried: the kind of their step, what the progress bar calls them, and their options."""
    tried = [("guarded", "guard", {"n": settings.guard_n})]
    if settings.guard_edits:
        tried.append(("approximate", "approximate guard", {"n": settings.near_n, "approximate": settings.guard_edits}))
    return tried


def _write(
    plan: AuditPlan, model: LanguageModel, job: Job, writable: frozenset[int], options: dict[str, int] | None, progress: StepProgress
) -> Measurement:
    chosen = _easiest(plan, model, job, plan.settings.guard_samples, rarest=False, among=writable)
    guard = None if options is None else MemFreeProcessor.for_model(model, plan.protected, **options)
    result = measure_approximate(plan.cached(model), chosen, guard=guard, progress=progress)
    if guard is not None:
        result.summary["counts"] = guard.counts.to_dict()
        result.provenance |= {"guard_options": options, "guard_seconds": round(guard.seconds, 6)}
    return result


def _cost(plan: AuditPlan, model: LanguageModel, options: dict[str, int], progress: StepProgress) -> Measurement:
    return measure_guard_cost(model, plan.protected, list(plan.unprotected), **options, progress=progress)
