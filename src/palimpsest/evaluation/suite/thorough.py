"""What only the full suite asks, because it costs as much as all the rest: beam search, and membership by neighbours of a text."""

from __future__ import annotations

import warnings

from palimpsest.audit.extraction import measure_extraction
from palimpsest.audit.membership import BiasedSplitWarning, measure_membership
from palimpsest.audit.membership_passes import NEIGHBOURS
from palimpsest.evaluation import blocks
from palimpsest.evaluation.blocks import count_of, percent, rate_of
from palimpsest.evaluation.plan import AuditPlan, fingerprint_samples
from palimpsest.evaluation.record import AuditRecord
from palimpsest.evaluation.steps import Job, StepProgress
from palimpsest.evaluation.suite.detector import Detector, Headline, Need, Shown, Task, other_passages, some_passages
from palimpsest.measurement import Measurement
from palimpsest.models import LanguageModel
from palimpsest.stats import Interval

BEAMS, BEAM_PASSAGES = 16, 64
NEIGHBOURED = 100  # members, and as many others
METHODS = ("loss", "neighbour_ngram", "dc-pdd")


def beam_tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task]:
    """Beam search from the longest prompt."""
    passages = some_passages(plan, BEAM_PASSAGES)
    context = max(plan.settings.contexts)

    def run(progress: StepProgress) -> Measurement:
        return measure_extraction(model, passages, context, decode="beam", num_beams=BEAMS, progress=progress)

    written = BEAMS * sum(sample.suffix_len for sample in passages)
    key = {"beams": BEAMS, "passages": len(passages)}
    return [Task("beams", "beam search", run, read=sum(len(s.ids) for s in passages), written=written, key=key)]


def show_beams(record: AuditRecord) -> Shown:
    """What beam search finds beside greedy decoding, on the same passages."""
    table = record.result("beams", record.largest).table
    greedy = record.extracted(record.largest)
    same = greedy.filter(greedy["id"].is_in(table["id"].implode()))
    value = rate_of(table["extracted"].to_list())
    rows = [{"how": name, "n": len(part), "rate": list(rate_of(part["extracted"].to_list()))}
            for name, part in (("greedy", same), (f"{BEAMS} beams", table))]  # fmt: skip
    columns = [("how", "Decoding", "text"), ("n", "Passages", "int"), ("rate", "Written to the letter", "interval")]
    made = [blocks.table("beams", "Beam search on the same passages", columns, rows)]
    control = float(same["extracted"].cast(int).mean() or 0.0)  # type: ignore[arg-type]
    answer = (
        f"With {BEAMS} beams {count_of(int(table['extracted'].sum()), len(table))} passages come out to the letter, "
        f"where greedy decoding writes {percent(control)}."
    )
    return Shown(answer, made, Headline(value, "percent", f"with {BEAMS} beams", control, "greedily"))


def neighbour_tasks(plan: AuditPlan, model: LanguageModel, job: Job) -> list[Task]:
    """Members and others, each with its neighbours."""
    members = some_passages(plan, NEIGHBOURED)
    others = other_passages(plan, NEIGHBOURED)
    tokens = sum(len(sample.ids) for sample in (*members, *others))

    def run(progress: StepProgress) -> Measurement:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BiasedSplitWarning)  # the report says it, behind the answer
            return measure_membership(model, members, others, METHODS, index=plan.index, seed=plan.settings.seed, progress=progress)

    key = {"members": fingerprint_samples(members), "held_out": fingerprint_samples(others), "methods": METHODS}
    return [Task("neighbours", "membership by neighbours", run, read=(1 + NEIGHBOURS) * tokens, key=key)]


def show_neighbours(record: AuditRecord) -> Shown:
    """The scores that need the index, beside the plain loss on the same texts."""
    summary = record.result("neighbours", record.largest).summary
    methods = summary["methods"]
    rows = [{"method": name, "auc": [row["auc"], row["low"], row["high"]], "tpr1": row["tpr_at_0.01"]} for name, row in methods.items()]
    columns = [("method", "Score", "text"), ("auc", "AUC", "float"), ("tpr1", "Found at 1 % false alarms", "percent")]
    made = [blocks.table("membership-neighbours", "Scores that compare a text with its neighbours or its words' frequency", columns, rows)]
    name = max((name for name in methods if name != "loss"), key=lambda name: methods[name]["auc"])
    best = methods[name]
    answer = (
        f"Of the scores that use the corpus, {name} has an AUC of {best['auc']:.2f}; the plain loss on the same texts "
        f"{methods['loss']['auc']:.2f}."
    )
    value = Interval(best["auc"], best["low"], best["high"])
    answer = " ".join([answer, *summary["warnings"]])
    return Shown(answer, made, Headline(value, "float", f"AUC, {name}", methods["loss"]["auc"], "by the loss"))


BEAM_SEARCH = Detector(
    "beams", "By beam search", "extraction", "full", (11,), (Need.DISTRIBUTION,), f"one generation of {BEAMS} beams",
    beam_tasks, show_beams, needs_for="Beam search",
)  # fmt: skip
NEIGHBOUR_MEMBERSHIP = Detector(
    "neighbours", "Membership by neighbours", "membership", "full", (20,), (Need.LOGPROBS, Need.NONMEMBERS, Need.INDEX),
    f"{1 + NEIGHBOURS} forwards", neighbour_tasks, show_neighbours, needs_for="The probability of a passage",
)  # fmt: skip
