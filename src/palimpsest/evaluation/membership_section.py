"""The section on membership: every score beside the blind baseline, over all members and by copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from palimpsest.audit.membership_figures import BLIND, area_points
from palimpsest.evaluation import blocks
from palimpsest.evaluation.blocks import Block, count_of, percent
from palimpsest.evaluation.record import AuditRecord
from palimpsest.measurement import Curve, Measurement

LEVEL = 0.05  # of the corrected tests
SHOWN = 4  # scores in a figure; all are in the tables


def membership(record: AuditRecord) -> dict[str, Any]:
    """Membership inference against a blind baseline."""
    result = record.result("membership", record.largest)
    best = record.best_attack
    assert best is not None  # it is taken from the same result
    name = record.largest.name
    ranked = sorted(result.summary["methods"], key=lambda method: -result.summary["methods"][method]["auc"])
    shown = {*ranked[:3], "loss", "chance"}  # all are in the table; ten lines in one figure say nothing
    roc = result.curves["membership-roc"]
    title = f"{name}: members found at every rate of false alarms"
    made = [blocks.curve(replace(roc, title=title, series=[line for line in roc.series if line.name.split(" (")[0] in shown]))]
    made += _by_copies(record, result, ranked)
    made.append(_scores(record, result))
    if result.summary["by_copies"]:
        made.append(_levels(name, result))
    found = best["tpr_at_0.01_interval"]
    answer = (
        f"The best of {len(ranked)} scores ({best['method']}) ranks a member above a non-member {percent(best['auc'])} of the time on "
        f"{name} ({percent(best['low'])} to {percent(best['high'])}); allowed 1 % of false alarms, it finds {percent(found[0])} of the "
        f"members ({percent(found[1])} to {percent(found[2])})."
    )
    above = _above(result.summary["methods"])
    if above is not None:
        answer += (
            f" {count_of(above, len(ranked))} scores rank better than a classifier that never asks the model, which reaches "
            f"{percent(result.summary['blind']['estimate'])}."
        )
    return blocks.section("", "", "", " ".join([answer, *result.summary["warnings"]]), made)


def _above(methods: Mapping[str, Mapping[str, Any]]) -> int | None:
    """How many scores are above the blind baseline after correction; None where there is no baseline."""
    tests = [figures["over_blind"] for figures in methods.values()]
    if None in tests:
        return None
    return sum(test["estimate"] > 0 and test["adjusted"] <= LEVEL for test in tests)


def _by_copies(record: AuditRecord, result: Measurement, ranked: list[str]) -> list[Block]:
    """AUC by copies: of the loss, for every model, and of the best scores of the largest; the blind baseline in both."""
    dashed = [blocks.line(BLIND, area_points(result.summary["blind_by_copies"]), "dashed")] if result.summary["blind_by_copies"] else []
    models = []
    for model in record.plan.models:
        own = record.of("membership", model)
        rows = [row for row in own.summary["by_copies"] if row["method"] == "loss"] if own else []
        if rows:
            models.append(blocks.line(model.name, area_points(rows)))
    attacks = [
        blocks.line(name, area_points([row for row in result.summary["by_copies"] if row["method"] == name])) for name in ranked[:SHOWN]
    ]
    said = "members of each level against all non-members; 95 % bootstrap intervals; 0.5 is guessing."
    figures = [
        ("membership-copies", "Only repeated texts betray their membership", models, f"AUC of the plain loss: {said}"),
        ("membership-attacks", f"{record.largest.name}: the scores and the blind baseline, by copies", attacks, f"AUC: {said}"),
    ]
    return [
        blocks.curve(Curve(key, title, "copies in the training data", "AUC", [*lines, *dashed], "symlog", y_domain=(0, 1), caption=caption))
        for key, title, lines, caption in figures
        if any(len(series.points) > 1 for series in lines)
    ]


def _scores(record: AuditRecord, result: Measurement) -> Block:
    """Every score of every model over all members, and how far it is above the blind baseline."""
    rows = []
    for model in record.plan.models:
        own = record.of("membership", model)
        for name, figures in (own.summary["methods"] if own else {}).items():
            rows.append({"model": model.name, "method": name, **_cells(figures)})
    blind = result.summary["blind"]
    if blind is not None:
        cells = {"auc": [blind["estimate"], blind["low"], blind["high"]], "tpr1": blind["tpr_at_0.01_interval"]}
        rows.append({"model": "none", "method": BLIND, **cells, "tpr01": blind["tpr_at_0.001_interval"], "over": None, "p": None})
    columns = [("model", "Model", "text"), ("method", "Score", "text"), ("auc", "AUC", "float"),
               ("over", "AUC above the blind one", "float"), ("p", "p, corrected", "text"),
               ("tpr1", "Found at 1 % false alarms", "percent"), ("tpr01", "at 0.1 %", "percent")]  # fmt: skip
    caption = f"{result.summary['members']} members, {result.summary['nonmembers']} non-members; 95 % intervals."
    if blind is not None:
        caption += (
            " What is above the classifier that never asks the model is memory. The difference is taken on the same texts (DeLong's test), "
            "to guessing where the classifier is worse than that; "
            f"p is corrected for the number of scores of a model ({result.summary['correction']['methods']})."
        )
    left_out = [f"{name}: {reason}" for name, reason in result.summary["left_out"].items()]
    if left_out:
        caption += f" Not taken of {record.largest.name}: {'; '.join(left_out)}."
    return blocks.table("membership-scores", "Every score", columns, rows, caption)


def _levels(name: str, result: Measurement) -> Block:
    """Every score of the largest model at every level of copies, the blind baseline beside it."""
    blind = {row["copies"]: row for row in result.summary["blind_by_copies"]}
    rows = []
    for row in result.summary["by_copies"]:
        beside = blind.get(row["copies"])
        cells = {key: value for key, value in _cells(row).items() if key != "tpr01"}
        own = {"blind": [beside[key] for key in ("auc", "low", "high")] if beside else None}
        own["blind_tpr1"] = beside["tpr_at_0.01_interval"] if beside else None
        rows.append({"copies": row["copies"], "method": row["method"], "n": row["n"], **cells, **own})
    columns = [("copies", "Copies", "int"), ("method", "Score", "text"), ("n", "Members", "int"), ("auc", "AUC", "float"),
               ("blind", "Blind AUC", "float"), ("over", "Difference", "float"), ("p", "p, corrected", "text"),
               ("tpr1", "Found at 1 % false alarms", "percent"), ("blind_tpr1", "Found blindly", "percent")]  # fmt: skip
    caption = (
        f"{name}: the members of each level against all {result.summary['nonmembers']} non-members. Beside every figure that of the "
        "classifier that never asks the model, on the same texts; where that is worse than guessing, the difference is to guessing."
    )
    if result.summary["correction"]["by_copies"]:
        caption += f" p is corrected for all rows ({result.summary['correction']['by_copies']})."
    return blocks.table("membership-levels", "By copies", columns, rows, caption)


def _cells(figures: Mapping[str, Any]) -> dict[str, Any]:
    over = figures["over_blind"]
    return {
        "auc": [figures["auc"], figures["low"], figures["high"]],
        "over": [over["estimate"], over["low"], over["high"]] if over else None,
        "p": blocks.p_value(over["adjusted"]) if over else None,
        "tpr1": figures["tpr_at_0.01_interval"],
        "tpr01": figures["tpr_at_0.001_interval"],
    }
