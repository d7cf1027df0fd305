"""What comes out by beam search, where greedy decoding misses the passage (011); asked by the full suite alone, for its cost."""

from __future__ import annotations

from palimpsest.audit.extraction import measure_extraction
from palimpsest.evaluation import blocks
from palimpsest.evaluation.blocks import count_of, percent, rate_of
from palimpsest.evaluation.plan import AuditPlan
from palimpsest.evaluation.record import AuditRecord
from palimpsest.evaluation.steps import Job, StepProgress
from palimpsest.evaluation.suite.detector import Detector, Headline, Need, Shown, Task, some_passages
from palimpsest.measurement import Measurement
from palimpsest.models import LanguageModel

BEAMS, BEAM_PASSAGES = 16, 64


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


BEAM_SEARCH = Detector(
    "beams", "By beam search", "extraction", "full", (11,), (Need.DISTRIBUTION,), f"one generation of {BEAMS} beams",
    beam_tasks, show_beams, needs_for="Beam search",
)  # fmt: skip
