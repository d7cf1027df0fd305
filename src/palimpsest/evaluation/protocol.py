"""The audit: what a model remembers of a corpus, where it has it from, and what a guard would have stopped.

One call draws passages, runs every measurement of a suite that the doors allow (`palimpsest.evaluation.suite`), traces what leaks to
its documents and writes the evaluation card `audit.json`, from which the report is rendered. What a door cannot do is in the report as
not measured, with its reason, never a silent gap. Systems: 020 (the catalogue of detectors), 011 (extraction), 003 (classes), 029
(probabilistic extraction), the membership set, 001 (guard), and those that the larger suites name.

Everything is done in steps that stay on the disk (`palimpsest.evaluation.steps`): a killed audit goes on where it was. The
measurements share their forward passes (`palimpsest.models.score_cache`): no passage is scored twice by a model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from palimpsest.audit.samples import PrefixSuffix, corpus_samples, require_samples
from palimpsest.corpus import CorpusIndex
from palimpsest.errors import CorpusError, InputError, StorageError
from palimpsest.evaluation.plan import AuditPlan, AuditSettings, departures, fitting_contexts, possible_sampler, read_held_out
from palimpsest.evaluation.record import AuditRecord, slug
from palimpsest.evaluation.steps import Job, JobProgress
from palimpsest.evaluation.suite.planning import Estimate, estimate, plan_steps
from palimpsest.evaluation.suite.registry import require_suite
from palimpsest.evaluation.verdict import compose
from palimpsest.files import storage_errors, write_json
from palimpsest.measurement import plain
from palimpsest.models import LanguageModel

FORMAT = "palimpsest-audit/1"


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
    general: CorpusIndex | str | Path | None = None,
    settings: AuditSettings | None = None,
    corpus_name: str | None = None,
    title: str | None = None,
    demonstration: bool = False,
    suite: str = "quick",
    announce: Callable[[Estimate], None] | None = None,
    progress: JobProgress | None = None,
    engine: str = "local",
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
        general: text of the same language, or its index, that holds neither the passages nor the held-out text: where neighbours and
            token frequencies of two of the membership scores are taken from.
        settings: see `AuditSettings`.
        corpus_name: what the report calls the corpus; by default the name of its file or folder.
        title: headline of the report.
        demonstration: marks the card of the embedded demonstration.
        suite: which detectors are run: "quick", "standard" or "full", each with all of the one before it.
        announce: called with the `Estimate` of what it will cost, before anything is measured.
        progress: called with (what is being done, units done, units in all).
        engine: where text is indexed, see `CorpusIndex.build`; models work where they were loaded.

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
    require_suite(suite)
    settings = settings or AuditSettings()
    audited = (models,) if isinstance(models, LanguageModel) else tuple(models)
    twins = dict(references or {})
    if not audited:
        raise InputError("There is no model to audit.", "Give at least one.")
    names = [model.name for model in audited]
    if len({slug(name) for name in names}) < len(names) or not set(twins) <= set(names):
        raise InputError(
            f"The audited models are called {', '.join(names)}, the references are for: {', '.join(sorted(twins)) or 'none'}.",
            "Every audited model needs a name of its own: that of its folder, or what follows # in an endpoint's address.",
        )
    with claimed(out) as folder:
        index = open_corpus(corpus, audited[0], folder / "index", progress, engine)
        everyone = (*audited, *twins.values())
        for model in everyone:
            if index.tokenizer_fingerprint is not None:
                model.tokenizer.require_same(index.tokenizer_fingerprint, f"the index {index.path}")
        asked = settings
        settings = replace(settings, sampler=possible_sampler(settings.sampler, audited))
        drawn = samples is None
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
            general=None if general is None else open_corpus(general, audited[0], folder / "general", progress, engine),
            notes=departures(asked, settings, len(samples) if drawn else asked.samples),
            suite=suite,
        )
        job = Job(folder / "measurements", progress)
        planned, skipped = plan_steps(plan, job)
        if announce:
            announce(estimate(plan, job, planned, skipped))
        job.run([entry.step for entry in planned])
        skipped |= {entry.detector.name: job.failed[entry.step.name] for entry in planned if entry.step.name in job.failed}
        made = {
            "format": FORMAT,
            "title": title or f"What {' and '.join(names)} remembers of {plan.corpus_name}",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "demonstration": demonstration,
            **compose(AuditRecord(plan=plan, results=job.results, skipped=skipped)),
            "timing": timing(job) | plan.shared(),
        }
        card: dict[str, Any] = plain(made)
        write_json(folder / "audit.json", card)
    return card


@contextmanager
def claimed(out: str | Path) -> Iterator[Path]:
    """`claim_folder`; what fails before anything was written leaves no folder behind."""
    was_there = Path(out).exists()
    folder = claim_folder(out)
    try:
        yield folder
    except BaseException:
        if not was_there:
            with suppress(OSError):  # it holds finished work, or cannot be removed
                folder.rmdir()
        raise


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
            if names and not names & {
                "audit.json",
                "measurements",
                *(f"{name}{part}" for name in ("index", "general") for part in ("", ".partial")),
            }:
                raise StorageError(
                    f"{folder} holds other files ({', '.join(sorted(names)[:3])}, …).", "Give an empty or a new folder for --out."
                )
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    return folder


def open_corpus(
    corpus: CorpusIndex | str | Path, model: LanguageModel, where: Path, progress: JobProgress | None, engine: str = "local"
) -> CorpusIndex:
    """The index of a corpus: itself, the folder of one, or text that is indexed into `where`."""
    if isinstance(corpus, CorpusIndex):
        return corpus
    path = Path(corpus)
    if (path / "manifest.json").is_file():
        return CorpusIndex.open(path)
    if progress:
        progress("indexing the corpus", 0, 1)
    try:
        return CorpusIndex.build(path, model.tokenizer, where, engine=engine)
    except CorpusError as error:
        if str(path) in error.problem:
            raise
        raise CorpusError(f"{path}: {error.problem}", error.remedy) from error


def timing(job: Job) -> dict[str, Any]:
    """Seconds of every step, and what each guard took of the writing under it."""
    times: dict[str, Any] = {name: round(seconds, 2) for name, seconds in job.seconds.items()}
    for step, result in job.results.items():
        spent = result.provenance.get("guard_seconds")
        if spent is not None:
            choices = max(1, result.summary["counts"]["choices"])
            share = spent / max(job.seconds[step] - spent, 1e-9)
            name = "approximate guard" if result.provenance["guard_options"].get("approximate") else "guard"
            times[name] = f"{1e6 * spent / choices:.0f} µs a token, {100 * share:.1f} % of the time without it"
    return times
