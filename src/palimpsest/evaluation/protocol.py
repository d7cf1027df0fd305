"""The audit: what a model remembers of a corpus, where it has it from, and what a guard would have stopped.

One call draws passages, runs every measurement that the doors allow, traces what leaks to its documents and writes the
evaluation card `audit.json`, from which the report is rendered. What a door cannot do is a skipped section with its reason,
never a silent gap. Systems: 011 (extraction), 029 (probabilistic extraction), the membership set, 001 (guard).

Everything is done in steps that stay on the disk (`palimpsest.evaluation.steps`): a killed audit goes on where it was.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from palimpsest import __version__
from palimpsest.audit.approximate import TRANSFORMS, measure_approximate
from palimpsest.audit.extraction import measure_extraction
from palimpsest.audit.membership import BiasedSplitWarning, measure_membership
from palimpsest.audit.probabilistic import TOP_K_40, measure_probabilistic
from palimpsest.audit.samples import PrefixSuffix, corpus_samples, require_samples
from palimpsest.corpus import CorpusIndex, read_documents
from palimpsest.errors import CorpusError, InputError, StorageError
from palimpsest.evaluation.leaks import measure_leaks
from palimpsest.evaluation.sections import AuditRecord, largest, slug
from palimpsest.evaluation.steps import Job, JobProgress, Step, StepProgress
from palimpsest.evaluation.verdict import compose
from palimpsest.files import sha256_json, storage_errors, write_json
from palimpsest.guard import MemFreeProcessor, measure_guard_cost
from palimpsest.measurement import Measurement, plain
from palimpsest.models import LanguageModel, Sampler

FORMAT = "palimpsest-audit/1"
TRACED = 8  # tokens of the shortest run that is traced to its documents
WRITING = 20  # a written token costs about as much as so many tokens that are read


@dataclass(frozen=True)
class AuditSettings:
    """What an audit does; every field is in the card.

    Attributes:
        samples: passages drawn from the corpus (when none are given).
        contexts: tokens of prompt before the suffix; all contexts are asked for the *same* suffixes.
        suffix: tokens that count as the leak.
        sampler: the decoding scheme of probabilistic extraction.
        tries, confidences: the n and p of (n, p)-extraction.
        guard_n: length of the protected n-grams.
        guard_samples: passages that are generated with and without the guard, the most easily leaked first.
        leaks: passages shown in the report.
        seed: of every random choice.
    """

    samples: int = 200
    contexts: tuple[int, ...] = (25, 50, 100, 200)
    suffix: int = 50
    sampler: Sampler = TOP_K_40
    tries: tuple[int, ...] = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
    confidences: tuple[float, ...] = (0.1, 0.5, 0.9, 0.99)
    guard_n: int = 10
    guard_samples: int = 24
    leaks: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "suffix", "guard_n", "guard_samples", "leaks"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}.", "Give an integer of at least 1.")
        if not self.contexts or min(self.contexts) < 1:
            raise InputError(f"contexts are {self.contexts}.", "Give at least one length, each at least 1 token.")


@dataclass(frozen=True)
class AuditPlan:
    """Everything that an audit is asked, with the corpus opened and the passages drawn."""

    models: tuple[LanguageModel, ...]
    references: Mapping[str, LanguageModel]
    index: CorpusIndex
    corpus_name: str
    protected: CorpusIndex
    samples: tuple[PrefixSuffix, ...]
    held_out: tuple[PrefixSuffix, ...]
    unprotected: tuple[str, ...]
    settings: AuditSettings


def run_audit(
    models: LanguageModel | Sequence[LanguageModel],
    corpus: CorpusIndex | str | Path,
    out: str | Path,
    *,
    references: Mapping[str, LanguageModel] | None = None,
    samples: Sequence[PrefixSuffix] | None = None,
    held_out: str | Path | Sequence[PrefixSuffix] | None = None,
    protected: CorpusIndex | None = None,
    unprotected: Sequence[str] = (),
    settings: AuditSettings | None = None,
    corpus_name: str | None = None,
    title: str | None = None,
    demonstration: bool = False,
    progress: JobProgress | None = None,
) -> dict[str, Any]:
    """Audits models against a corpus and writes `out/audit.json` (`palimpsest.report.render` makes the page of it).

    Args:
        models: the audited model, or several (sizes of one family, say); all must share one tokenizer.
        corpus: an index, the folder of one, or text (a file or folder), which is indexed into `out/index`.
        out: the folder of the results; an earlier audit in it is continued.
        references: by name of an audited model, a model that never saw the corpus: the floor of generalization.
        samples: passages to ask for; by default drawn from the corpus.
        held_out: text that the models were not trained on, of the same kind: the non-members.
        protected: the index that the guard protects; by default the corpus.
        unprotected: texts that the guard should not touch, to measure what it costs.
        settings: see `AuditSettings`.
        corpus_name: what the report calls the corpus; by default the name of its file or folder.
        title: headline of the report.
        demonstration: marks the card of the embedded demonstration.
        progress: called with (what is being done, units done, units in all).

    Returns:
        The evaluation card, as written to `audit.json`.

    Raises:
        InputError: no model, models with different tokenizers, passages that do not fit the context.
        TokenizerMismatchError: the index belongs to another tokenizer.
        CorpusError, IndexCorruptError, StorageError: see their docstrings.

    Example:
        >>> model = palimpsest.load_model("smollm2-135m")         # doctest: +SKIP
        >>> card = palimpsest.run_audit(model, "corpus.txt", "report")  # doctest: +SKIP
    """
    settings = settings or AuditSettings()
    audited = (models,) if isinstance(models, LanguageModel) else tuple(models)
    twins = dict(references or {})
    if not audited:
        raise InputError("There is no model to audit.", "Give at least one.")
    names = [model.name for model in audited]
    if len({slug(name) for name in names}) < len(names) or not set(twins) <= set(names):
        raise InputError(
            f"The audited models are {names}, the references are for {sorted(twins)}.", "Give every audited model its own name."
        )
    folder = claim_folder(out)
    index = open_corpus(corpus, audited[0], folder / "index", progress)
    everyone = (*audited, *twins.values())
    for model in everyone:
        if index.tokenizer_fingerprint is not None:
            model.tokenizer.require_same(index.tokenizer_fingerprint, f"the index {index.path}")
    if samples is None:
        settings = replace(settings, contexts=fitting_contexts(settings, everyone, index))
        samples = corpus_samples(index, settings.samples, max(settings.contexts), settings.suffix, settings.seed)
    plan = AuditPlan(
        models=audited,
        references=twins,
        index=index,
        corpus_name=corpus_name or (Path(corpus).name if isinstance(corpus, str | Path) else index.path.name),
        protected=protected or index,
        samples=tuple(require_samples(samples)),
        held_out=tuple(read_held_out(held_out, audited[0], settings)),
        unprotected=tuple(unprotected),
        settings=settings,
    )
    job = Job(folder / "measurements", progress)
    steps, skipped = plan_steps(plan, job)
    job.run(steps)
    made = {
        "format": FORMAT,
        "title": title or f"What {' and '.join(names)} remembers of {plan.corpus_name}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "demonstration": demonstration,
        **compose(AuditRecord(plan=plan, results=job.results, skipped=skipped)),
        "timing": timing(job),
    }
    card: dict[str, Any] = plain(made)
    write_json(folder / "audit.json", card)
    return card


def claim_folder(out: str | Path) -> Path:
    """The folder of an audit, created if need be; a folder that holds other things is not touched.

    Raises:
        StorageError: a file stands there, something else lives in it, or it cannot be written.
    """
    folder = Path(out)
    with storage_errors(folder):
        if folder.is_file():
            raise StorageError(f"{folder} is a file.", "Give a folder for --out.")
        if folder.is_dir():
            names = {entry.name for entry in folder.iterdir()}
            if names and not names & {"audit.json", "measurements", "index", "index.partial"}:
                raise StorageError(
                    f"{folder} holds other files ({', '.join(sorted(names)[:3])}, …).", "Give an empty or a new folder for --out."
                )
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    return folder


def open_corpus(corpus: CorpusIndex | str | Path, model: LanguageModel, where: Path, progress: JobProgress | None) -> CorpusIndex:
    """The index of a corpus: itself, the folder of one, or text that is indexed into `where`."""
    if isinstance(corpus, CorpusIndex):
        return corpus
    path = Path(corpus)
    if (path / "manifest.json").is_file():
        return CorpusIndex.open(path)
    if progress:
        progress("indexing the corpus", 0, 1)
    try:
        return CorpusIndex.build(path, model.tokenizer, where)
    except CorpusError as error:
        if str(path) in error.problem:
            raise
        raise CorpusError(f"{path}: {error.problem}", error.remedy) from error


def fitting_contexts(settings: AuditSettings, models: Sequence[LanguageModel], index: CorpusIndex) -> tuple[int, ...]:
    """The contexts that the models can see and that some document can provide, with the suffix behind them.

    Raises:
        InputError: none is left.
    """
    room = min(model.context_length - int(model.prepends_bos) for model in models) - settings.suffix
    longest = index.longest_document - settings.suffix
    fitting = tuple(context for context in sorted(settings.contexts) if context <= min(room, longest))
    if not fitting:
        raise InputError(
            f"A context of {min(settings.contexts)} tokens with a suffix of {settings.suffix} does not fit: the models see "
            f"{room + settings.suffix} tokens and the longest document has {longest + settings.suffix}.",
            "Ask for shorter contexts or a shorter suffix (--context, --suffix).",
        )
    return fitting


def read_held_out(
    source: str | Path | Sequence[PrefixSuffix] | None, model: LanguageModel, settings: AuditSettings
) -> Sequence[PrefixSuffix]:
    """Passages that the models were not trained on: as given, or drawn from text like the passages of the corpus."""
    if source is None:
        return ()
    if not isinstance(source, str | Path):
        return require_samples(source)
    with tempfile.TemporaryDirectory() as folder:
        index = CorpusIndex.build(read_documents(source), model.tokenizer, Path(folder) / "held-out")
        drawn = corpus_samples(index, settings.samples, max(settings.contexts), settings.suffix, settings.seed)
    return [replace(sample, meta={**sample.meta, "id": f"held-out-{number}", "copies": 0}) for number, sample in enumerate(drawn)]


def membership_split(plan: AuditPlan) -> tuple[list[PrefixSuffix], list[PrefixSuffix]]:
    """Members and non-members: held-out passages where there are any, else the passages that are known to have 0 copies."""
    members = [sample for sample in plan.samples if sample.meta.get("copies") != 0]
    return members, list(plan.held_out) or [sample for sample in plan.samples if sample.meta.get("copies") == 0]


def fingerprint_samples(samples: Sequence[PrefixSuffix]) -> str:
    """SHA-256 over ids, cuts and what is known of the passages."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sha256_json([sample.prefix_len, sample.suffix_len, plain(sample.meta)]).encode())
        digest.update(sample.ids.astype("<i8").tobytes())
    return digest.hexdigest()


def plan_steps(plan: AuditPlan, job: Job) -> tuple[list[Step], dict[str, str]]:
    """Every measurement of the audit as a step; and the sections that cannot be measured, with the reason."""
    steps: list[Step] = []
    skipped: dict[str, str] = {}
    settings = plan.settings
    shared = {
        "version": __version__,
        "settings": asdict(settings),
        "samples": fingerprint_samples(plan.samples),
        "corpus": plan.index.fingerprint,
    }
    others = membership_split(plan)[1]
    read = sum(len(sample.ids) for sample in plan.samples)  # tokens of one pass over all passages

    def add(kind: str, label: str, model: LanguageModel, tokens: float, run: Callable[[StepProgress], Measurement], **key: Any) -> None:
        reference = plan.references.get(model.name)
        key = {**shared, "step": kind, "model": model.fingerprint, "reference": reference.fingerprint if reference else None, **key}
        steps.append(Step(f"{kind}.{slug(model.name)}", f"{label} · {model.name}", tokens * (model.parameters or 1), key, run))

    for model in plan.models:
        passes = len(settings.contexts) * (2 if model.name in plan.references else 1)
        add("extraction", "word for word", model, passes * read / 2, partial(_extraction, plan, model))
        if "logprobs" not in model.capabilities:
            skipped["probabilistic"] = skipped["membership"] = str(model.lacks("logprobs", "The probability of a passage"))
            continue
        add("probabilistic", "many tries", model, read, partial(_probabilistic, plan, model))
        if others:
            add("membership", "membership", model, 2 * read, partial(_membership, plan, model), held_out=fingerprint_samples(others))
        else:
            skipped["membership"] = "There is no text that the model was surely not trained on; give some of the same kind with --held-out."
    model = largest(plan.models)
    written = settings.suffix * WRITING
    key = {"protected": plan.protected.fingerprint, "unprotected": sha256_json(list(plan.unprotected))}
    add("leaks", "tracing leaks", model, settings.leaks * written, partial(_leaks, plan, model, job))
    if "weights" not in model.capabilities:
        skipped["guard"] = str(model.lacks("weights", "A guard inside decoding"))
        return steps, skipped
    tokens = settings.guard_samples * written * len(TRANSFORMS)
    add("open", "writing freely", model, tokens, partial(_write, plan, model, job, False), **key)
    add("guarded", "writing under guard", model, tokens, partial(_write, plan, model, job, True), **key)
    if plan.unprotected:
        words = sum(len(text.split()) for text in plan.unprotected)
        add("cost", "price of the guard", model, 2 * words, partial(_cost, plan, model), **key)
    return steps, skipped


def timing(job: Job) -> dict[str, Any]:
    """Seconds of every step, and what the guard took of the writing under it."""
    times: dict[str, Any] = {name: round(seconds, 2) for name, seconds in job.seconds.items()}
    for name, result in job.results.items():
        spent = result.provenance.get("guard_seconds")
        if spent is not None:
            choices = max(1, result.summary["counts"]["choices"])
            share = spent / max(job.seconds[name] - spent, 1e-9)
            times["guard"] = f"{1e6 * spent / choices:.0f} µs a token, {100 * share:.1f} % of the time without it"
    return times


def _extraction(plan: AuditPlan, model: LanguageModel, progress: StepProgress) -> Measurement:
    return measure_extraction(model, plan.samples, plan.settings.contexts, reference=plan.references.get(model.name), progress=progress)


def _probabilistic(plan: AuditPlan, model: LanguageModel, progress: StepProgress) -> Measurement:
    settings = plan.settings
    return measure_probabilistic(model, plan.samples, settings.tries, settings.confidences, settings.sampler, progress=progress)


def _membership(plan: AuditPlan, model: LanguageModel, progress: StepProgress) -> Measurement:
    members, others = membership_split(plan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BiasedSplitWarning)  # the report says it, in the answer of the section
        return measure_membership(
            model, members, others, reference=plan.references.get(model.name), seed=plan.settings.seed, progress=progress
        )


def _easiest(plan: AuditPlan, model: LanguageModel, job: Job, n: int, *, rarest: bool) -> list[PrefixSuffix]:
    """The passages that leak most easily: extracted ones first; among them the rarest (taken in turn from every kind of text), or
    the likeliest."""
    table = job.results[f"extraction.{slug(model.name)}"].table
    table = table.filter(pl.col("context") == table["context"].max()).filter(pl.col("copies").is_null() | (pl.col("copies") >= 1))
    order = [pl.col("extracted"), pl.col("matched")]
    if rarest:
        ranked = table.sort("extracted", pl.col("copies").fill_null(0), "matched", "sample", descending=[True, False, True, False])
        ranked = ranked.with_columns(turn=pl.int_range(pl.len()).over(pl.col("domain").fill_null(""))).sort("turn", maintain_order=True)
    else:
        ranked = table.sort(*order, "sample", descending=[True, True, False])
    return [plan.samples[number] for number in ranked["sample"].head(n).to_list()]


def _leaks(plan: AuditPlan, model: LanguageModel, job: Job, progress: StepProgress) -> Measurement:
    chosen = _easiest(plan, model, job, plan.settings.leaks, rarest=True)
    return measure_leaks(model, chosen, plan.index, min_len=min(TRACED, plan.settings.suffix), progress=progress)


def _write(plan: AuditPlan, model: LanguageModel, job: Job, guarded: bool, progress: StepProgress) -> Measurement:
    chosen = _easiest(plan, model, job, plan.settings.guard_samples, rarest=False)
    guard = MemFreeProcessor.for_model(model, plan.protected, plan.settings.guard_n) if guarded else None
    result = measure_approximate(model, chosen, guard=guard, progress=progress)
    if guard is not None:
        result.summary["counts"] = guard.counts.to_dict()
        result.provenance["guard_seconds"] = round(guard.seconds, 6)
    return result


def _cost(plan: AuditPlan, model: LanguageModel, progress: StepProgress) -> Measurement:
    return measure_guard_cost(model, plan.protected, list(plan.unprotected), plan.settings.guard_n, progress=progress)
