"""The sections of a report: one a family, then what can be done about it, then everything that was asked, and what was not and why."""

from __future__ import annotations

from typing import Any

from palimpsest.evaluation import blocks
from palimpsest.evaluation.blocks import Block
from palimpsest.evaluation.record import AuditRecord
from palimpsest.evaluation.suite.detector import Detector, Shown
from palimpsest.evaluation.suite.mitigations import mitigation_section
from palimpsest.evaluation.suite.registry import DETECTORS, FAMILIES, Family


def all_sections(record: AuditRecord) -> list[dict[str, Any]]:
    """Every section of the report, in order; what could not be measured is there with its reason."""
    here = [detector for detector in DETECTORS if detector.within(record.plan.suite)]
    made = {detector.name: detector.show(record) for detector in here if detector.show and detector.name not in record.skipped}
    sections = []
    for family in FAMILIES:
        members = [detector for detector in here if detector.family == family.name and detector.tasks is not None]
        if members:
            sections.append(_section(family, members, made, record) | {"group": family.group})
    return [*sections, mitigation_section(record) | {"group": "Mitigation"}, coverage(record, made) | {"group": "Coverage"}]


def _section(family: Family, members: list[Detector], made: dict[str, Shown], record: AuditRecord) -> dict[str, Any]:
    """One family: its first measured detector answers its question, the others follow under their own headings."""
    measured = [detector for detector in members if detector.name in made]
    if not measured:
        reasons: dict[str, list[str]] = {}
        for detector in members:
            reasons.setdefault(record.skipped[detector.name], []).append(detector.title)
        said = next(iter(reasons)) if len(reasons) == 1 else " ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
        return blocks.skipped(family.name, family.title, family.question, said)
    first, *others = measured
    shown: list[Block] = list(made[first.name].blocks)
    for detector in others:
        shown += [blocks.heading(detector.title, made[detector.name].answer), *made[detector.name].blocks]
    for detector in members:
        if detector.name not in made:
            shown.append(blocks.heading(f"{detector.title}: not measured", record.skipped[detector.name]))
    return blocks.section(family.name, family.title, family.question, made[first.name].answer, shown)


def coverage(record: AuditRecord, made: dict[str, Shown]) -> dict[str, Any]:
    """Everything in the registry: what was measured with its headline, what was not with its reason, what a larger suite would ask."""
    titles = {family.name: family.title for family in FAMILIES}
    rows, missing, larger = [], [], []
    for detector in DETECTORS:
        numbers = ", ".join(f"{number:03d}" for number in detector.systems)
        row = {"detector": f"{detector.title} ({numbers})" if numbers else detector.title, "suite": detector.suite}
        row |= {"family": titles[detector.family], "needs": ", ".join(detector.needs)}
        if detector.name in made:
            headline = made[detector.name].headline
            found = {"value": f"{headline.text} {headline.what}", "control": headline.control_text} if headline else {}
            rows.append(row | found | {"cost": detector.per_sample})
        elif detector.name in record.skipped:
            missing.append(row | {"reason": record.skipped[detector.name]})
        elif not detector.within(record.plan.suite):
            larger.append(row | {"cost": detector.per_sample})
    columns = [("detector", "Measured", "text"), ("value", "Found", "text"), ("control", "Control", "text"), ("suite", "Suite", "text")]
    columns += [("cost", "A passage costs", "text")]
    caption = "Intervals are 95 %; what a control is stands behind it. The numbers are those of palimpsest systems."
    shown = [blocks.table("coverage", "What was measured", columns, rows, caption)]
    if missing:
        columns = [("detector", "Not measured", "text"), ("reason", "Why", "text"), ("needs", "It needs", "text")]
        shown.append(blocks.table("coverage-missing", "What was not measured, and why", columns, missing))
    if larger:
        columns = [("detector", "Not asked", "text"), ("suite", "From suite", "text"), ("needs", "It needs", "text")]
        columns += [("cost", "A passage costs", "text")]
        shown.append(blocks.table("coverage-larger", f"What the {record.plan.suite} suite does not ask", columns, larger))
    answer = f"The {record.plan.suite} suite: {len(rows)} measurements were made, {len(missing)} could not be" + (
        f"; {len(larger)} more belong to a larger suite (--suite)." if larger else "."
    )
    return blocks.section("coverage", "What was asked, and what was not", "Which measurements are behind this report?", answer, shown)
