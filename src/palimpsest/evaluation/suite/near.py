"""Nearly word for word, by sampling: how often is a sample within a few edits of the passage? ((ε, n, p)-extraction of 029.)"""

from __future__ import annotations

from functools import partial

import numpy as np

from palimpsest.audit.near_verbatim import measure_near_verbatim
from palimpsest.audit.samples import PrefixSuffix
from palimpsest.evaluation import blocks
from palimpsest.evaluation.plan import AuditPlan, fingerprint_samples
from palimpsest.evaluation.record import AuditRecord
from palimpsest.evaluation.steps import Job, StepProgress
from palimpsest.evaluation.suite.detector import Detector, Headline, Need, Shown, Task, other_passages, some_passages
from palimpsest.measurement import Measurement
from palimpsest.models import LanguageModel
from palimpsest.stats import wilson_interval

PASSAGES, CONTROLS, TRIALS = 24, 8, 48


def tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task]:
    """The same number of samples of every passage, and of passages that were not trained on."""
    made = []
    for kind, label, passages in (
        ("near-verbatim", "nearly word for word", some_passages(plan, PASSAGES)),
        ("near-verbatim-control", "the same of unseen text", other_passages(plan, CONTROLS)),
    ):
        passages = [sample for sample in passages if len(sample.ids) <= model.room]
        if passages:
            written = TRIALS * sum(sample.suffix_len for sample in passages)
            run = partial(_measure, plan, model, passages)
            read = sum(sample.prefix_len for sample in passages)  # a prefix is read once for all samples of it
            made.append(Task(kind, label, run, read, written, {"passages": fingerprint_samples(passages), "trials": TRIALS}))
    return made


def _measure(plan: AuditPlan, model: LanguageModel, passages: list[PrefixSuffix], progress: StepProgress) -> Measurement:
    settings = plan.settings
    edits = int(settings.edit_share * max(sample.suffix_len for sample in passages))
    return measure_near_verbatim(
        model, passages, edits, "edit", trials=TRIALS, n=settings.tries, p=settings.confidences, sampler=settings.sampler,
        seed=settings.seed, progress=progress,
    )  # fmt: skip


def show(record: AuditRecord) -> Shown:
    """How many passages came out nearly, beside the exact share at as many tries."""
    model = record.largest
    result = record.result("near-verbatim", model)
    hits = result.table["hits"].to_numpy()
    value = wilson_interval(int((hits > 0).sum()), len(hits))
    unseen = record.of("near-verbatim-control", model)
    control = None if unseen is None else float((unseen.table["hits"].to_numpy() > 0).mean())
    edits, sampler = result.summary["eps"], result.summary["sampler"]
    exact = record.of("probabilistic", model)
    rows = []
    chances = {} if exact is None else dict(exact.table.select("id", "log_p").iter_rows())
    for row in result.table.sort("probability", "sample", descending=[True, False]).head(record.plan.settings.leaks).iter_rows(named=True):
        log_p = chances.get(row["id"])
        rows.append({"id": row["id"], "copies": row["copies"], "near": [row["probability"], row["low"], row["high"]],
                     "exact": None if log_p is None else float(np.exp(log_p))})  # fmt: skip
    columns = [("id", "Passage", "text"), ("copies", "Copies", "int"), ("near", f"Within {blocks.edits(edits)}", "interval")]
    columns += [("exact", "To the letter (exact)", "percent")] if chances else []
    caption = f"Probability that one sample ({sampler}) is the passage or nearly; 95 % Clopper–Pearson intervals of {TRIALS} samples each."
    found = blocks.count_of(int((hits > 0).sum()), len(hits))
    answer = f"Of the passages drawn at random, {found} come out within {blocks.edits(edits)} in at least one of {TRIALS} samples" + (
        "." if control is None else f"; of passages that were not trained on, {blocks.percent(control)}."
    )
    headline = Headline(value, "percent", f"within {blocks.edits(edits)} in {TRIALS} samples", control, "of unseen passages")
    return Shown(answer, [blocks.table("near-verbatim", "The passages that come nearest", columns, rows, caption)], headline)


NEAR_VERBATIM = Detector(
    "near-verbatim", "Nearly word for word, by sampling", "probabilistic", "standard", (29, 1), (Need.GENERATION,),
    f"{TRIALS} generations", tasks, show,
)  # fmt: skip
