"""The detectors of the ordinary audit as entries: extraction, its classes, many tries, leaks, membership, and the guard's trial."""

from __future__ import annotations

from palimpsest.evaluation import measuring, sections
from palimpsest.evaluation.blocks import rate_of
from palimpsest.evaluation.classes import classes
from palimpsest.evaluation.guarding import guard
from palimpsest.evaluation.leaking import leaks
from palimpsest.evaluation.membership_section import membership
from palimpsest.evaluation.nearest import GREEDY
from palimpsest.evaluation.record import AuditRecord
from palimpsest.evaluation.suite.detector import Detector, Headline, Need, Shown
from palimpsest.stats import Interval


def _extraction(record: AuditRecord) -> Shown:
    rows = record.extracted(record.largest)
    floor = float(rows["reference_extracted"].cast(int).mean() or 0.0) if "reference_extracted" in rows.columns else None  # type: ignore[arg-type]
    headline = Headline(rate_of(rows["extracted"].to_list()), "percent", "of the passages", floor, "by its reference")
    return shown(sections.extraction(record), headline)


def _classes(record: AuditRecord) -> Shown:
    summary = record.result("classes", record.largest).summary
    counts = {row["class"]: row["memorized"] for row in summary["classes"]}
    found = sum(counts.values())
    headline = Headline(counts["recollection"] / found, "percent", "of what came out is recollected") if found else None
    return shown(classes(record), headline)


def _probabilistic(record: AuditRecord) -> Shown:
    summary = record.result("probabilistic", record.largest).summary
    group = summary["planted"] or summary["overall"]
    n = min(record.plan.settings.tries, key=lambda tries: abs(tries - 1000))
    row = next(row for row in group["rates"] if row["n"] == n and row["p"] == group["crossing_p"])
    zero = next((level for level in summary["by_copies"] if level["copies"] == 0), None)
    same = next((r["rate"] for r in zero["rates"] if r["n"] == n and r["p"] == group["crossing_p"]), None) if zero else None
    value = Interval(row["rate"], row["low"], row["high"])
    return shown(sections.probabilistic(record), Headline(value, "percent", f"in {n:,} tries", same, "of those with 0 copies"))


def _leaks(record: AuditRecord) -> Shown:
    near = record.result("nearest", record.largest).summary["schemes"][GREEDY]["any"]
    return shown(leaks(record), Headline(Interval(**near), "percent", "of generations near some passage"))


def _membership(record: AuditRecord) -> Shown:
    best = record.best_attack
    assert best is not None  # it is taken from the same result
    blind = record.result("membership", record.largest).summary["blind"]
    value = Interval(best["auc"], best["low"], best["high"])
    control = None if blind is None else blind["estimate"]
    return shown(membership(record), Headline(value, "float", f"AUC, {best['method']}", control, "without asking the model"))


def _guard(record: AuditRecord) -> Shown:
    rates = record.guard
    assert rates is not None  # they are taken from the same results
    control = rates["open"]["verbatim"].estimate
    return shown(guard(record), Headline(rates["guarded"]["verbatim"], "percent", "word for word under guard", control, "without it"))


def shown(section: dict[str, object], headline: Headline | None) -> Shown:
    """A section that was made whole, as a detector's part of one."""
    return Shown(str(section["answer"]), section["blocks"], headline)  # type: ignore[arg-type]


PASSAGE = "The probability of a passage"
EXTRACTION = Detector(
    "extraction", "Word for word", "extraction", "quick", (11,), (Need.GENERATION, Need.INDEX),
    "one forward of prefix and suffix a context (without log-probabilities: one generation)",
    measuring.extraction_tasks, _extraction, each=True,
)  # fmt: skip
CLASSES = Detector(
    "classes", "Why it is remembered", "classes", "quick", (3,), (Need.LOGPROBS, Need.INDEX), "one forward",
    measuring.classes_tasks, _classes, each=True, needs_for=PASSAGE,
)  # fmt: skip
PROBABILISTIC = Detector(
    "probabilistic", "With many tries", "probabilistic", "quick", (29,), (Need.LOGPROBS,), "one forward",
    measuring.probabilistic_tasks, _probabilistic, each=True, needs_for=PASSAGE,
)  # fmt: skip
MEMBERSHIP = Detector(
    "membership", "Membership inference", "membership", "quick", (), (Need.LOGPROBS, Need.NONMEMBERS),
    "two to four forwards of members and others", measuring.membership_tasks, _membership, each=True, needs_for=PASSAGE,
)  # fmt: skip
LEAKS = Detector(
    "leaks", "What leaks, traced", "leaks", "quick", (12,), (Need.GENERATION, Need.INDEX), "one generation and a trace",
    measuring.leaks_tasks, _leaks,
    command="palimpsest trace",
)  # fmt: skip
GUARD = Detector(
    "guard", "Under a guard", "guard", "quick", (1,), (Need.DISTRIBUTION, Need.INDEX),
    "four generations in four styles, freely and under each guard", measuring.guard_tasks, _guard,
    command="palimpsest guard", needs_for="A guard inside decoding",
)  # fmt: skip
