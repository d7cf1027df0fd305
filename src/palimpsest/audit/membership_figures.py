"""From membership scores to figures: AUC and TPR with intervals, over all members and by copies, and what is above the blind baseline.

No score is read alone. Beside it stands the blind baseline on the same texts (`palimpsest.audit.blind`), and the difference of the two
AUCs is tested with the texts paired (DeLong; `palimpsest.stats.auc_difference`): what a score does not rank better than a classifier that
never asked the model is not memory. Where the baseline is worse than guessing, the difference is taken to guessing.

Many scores are tried at many levels of copies, so the p-values are corrected within each family, that of all members and that of the
levels (Holm up to 20 comparisons, Benjamini and Hochberg above; `palimpsest.stats.adjusted`). Whoever picks the best of m scores
afterwards is given an interval that holds for all m at once (DeLong's at Bonferroni's confidence, 1 − 0.05 / m).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from palimpsest.audit.laws import copy_levels
from palimpsest.measurement import Curve, Series
from palimpsest.stats import Interval, adjusted, auc, auc_difference, auc_interval, delong_interval, roc_curve, tpr_interval

FPRS = (0.01, 0.001)
BLIND = "blind (never asks the model)"


def membership_figures(
    scores: Mapping[str, np.ndarray],
    blind: np.ndarray | None,
    is_member: np.ndarray,
    copies: Sequence[int | None],
    seed: int,
) -> dict[str, Any]:
    """The figures of every score.

    Args:
        scores: by method, float64 (texts,), higher = more likely a member.
        blind: the blind baseline's scores of the same texts, None where there are none.
        is_member: bool (texts,).
        copies: of every text, None where it is not known.
        seed: of the bootstraps.

    Returns:
        `methods`: by method AUC with interval (`low`, `high`; `low_all`, `high_all` hold for all methods at once), at each of `FPRS` the
        TPR and its interval, `n` members, and `over_blind` (difference with interval, p, adjusted p; None without a baseline).
        `by_copies`: the same for the members of each level of copies against all non-members, one row per level and method; `blind` and
        `blind_by_copies`: the figures of the baseline; `correction`: how each family of p-values was corrected.
    """
    members, others = np.flatnonzero(is_member), np.flatnonzero(~is_member)
    known = np.array([i for i in members.tolist() if copies[i] is not None], dtype=np.int64)
    values = np.array([copies[i] for i in known.tolist()], dtype=np.int64)
    levels = copy_levels(values)
    at_level = {float(values[levels == level].mean()): known[levels == level] for level in np.unique(levels)}
    everywhere = {name: _figures(score[members], score[others], seed, len(scores)) for name, score in scores.items()}
    by_copies = [
        {"copies": level, "method": name, **_figures(score[chosen], score[others], seed, 1)}
        for level, chosen in at_level.items()
        for name, score in scores.items()
    ]
    correction = {
        "methods": _over_blind(list(everywhere.values()), [(score, members) for score in scores.values()], blind, others),
        "by_copies": _over_blind(by_copies, [(score, chosen) for chosen in at_level.values() for score in scores.values()], blind, others),
    }
    baseline, baseline_by_copies = None, []
    if blind is not None:
        baseline = _figures(blind[members], blind[others], seed, 1)
        baseline = {"estimate": baseline.pop("auc"), **baseline}
        baseline_by_copies = [{"copies": level, **_figures(blind[chosen], blind[others], seed, 1)} for level, chosen in at_level.items()]
    return {
        "methods": everywhere,
        "by_copies": by_copies,
        "blind": baseline,
        "blind_by_copies": baseline_by_copies,
        "correction": correction,
    }


def _figures(members: np.ndarray, nonmembers: np.ndarray, seed: int, family: int) -> dict[str, Any]:
    area = auc_interval(members, nonmembers, seed=seed)
    found: dict[str, Any] = {"auc": area.estimate, "low": area.low, "high": area.high}
    if family > 1:
        enough = min(len(members), len(nonmembers)) > 1
        whole = delong_interval(members, nonmembers, confidence=1 - 0.05 / family) if enough else Interval(area.estimate, 0.0, 1.0)
        found |= {"low_all": min(area.low, whole.low), "high_all": max(area.high, whole.high)}
    rates: dict[int, Interval] = {}  # by the false alarms that are allowed: of a few non-members often none at either rate
    for fpr in FPRS:
        allowed = int(fpr * len(nonmembers) + 1e-9)
        if allowed not in rates:
            rates[allowed] = tpr_interval(members, nonmembers, fpr, seed=seed)
        rate = rates[allowed]
        found |= {f"tpr_at_{fpr:g}": rate.estimate, f"tpr_at_{fpr:g}_interval": list(rate)}
    return {**found, "n": len(members)}


def _over_blind(
    rows: list[dict[str, Any]], scored: list[tuple[np.ndarray, np.ndarray]], blind: np.ndarray | None, others: np.ndarray
) -> str | None:
    """Adds `over_blind` to the rows of one family; the name of the correction, None where nothing was compared."""
    compared = []
    for row, (score, members) in zip(rows, scored, strict=True):
        row["over_blind"] = None
        if blind is None or min(len(members), len(others)) < 2:
            continue
        baseline = (blind[members], blind[others])
        if auc(*baseline) < 0.5:  # cross-validation ranks sides that are alike a little the wrong way round: no merit of the score
            baseline = (np.zeros(len(members)), np.zeros(len(others)))
        test = auc_difference(baseline, (score[members], score[others]))
        row["over_blind"] = {**test.difference._asdict(), "p": test.p_value}
        compared.append(row["over_blind"])
    if not compared:
        return None
    corrected, name = adjusted([row["p"] for row in compared])
    for row, p in zip(compared, corrected.tolist(), strict=True):
        row["adjusted"] = p
    return name


def membership_curves(scores: Mapping[str, np.ndarray], found: Mapping[str, Any], is_member: np.ndarray) -> dict[str, Curve]:
    """The ROC curves, and the AUC by copies with the blind baseline beside it."""
    series = []
    for name, values in scores.items():
        curve = roc_curve(values[is_member], values[~is_member])
        last = np.flatnonzero(np.append(np.diff(curve.fpr) > 0, True))  # the best threshold of every false positive rate
        last = last[np.unique(np.linspace(0, len(last) - 1, 200).round().astype(int))]
        points = [{"x": float(curve.fpr[i]), "y": float(curve.tpr[i]), "low": None, "high": None, "n": None} for i in [0, *last]]
        series.append(Series(f"{name} (AUC {found['methods'][name]['auc']:.2f})", points))
    series.append(Series("chance", [{"x": x, "y": x, "low": None, "high": None, "n": None} for x in (0.0, 1.0)], "dashed"))
    curves = [
        Curve(
            "membership-roc",
            "Telling members from non-members",
            "false positive rate",
            "true positive rate",
            series,
            y_domain=(0, 1),
            y_format="percent",
            x_format="percent",
            caption=f"{int(is_member.sum())} members, {int((~is_member).sum())} non-members.",
        )
    ]
    if found["by_copies"]:
        lines = [Series(name, area_points([row for row in found["by_copies"] if row["method"] == name])) for name in scores]
        if found["blind_by_copies"]:
            lines.append(Series(BLIND, area_points(found["blind_by_copies"]), "dashed"))
        caption = "Members of each level against all non-members; 95 % bootstrap intervals; 0.5 is chance."
        title, x_label = "Repetition betrays members", "copies in the training data"
        curves.append(Curve("membership-copies", title, x_label, "AUC", lines, "symlog", y_domain=(0, 1), caption=caption))
    return {curve.id: curve for curve in curves}


def area_points(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float | int | None]]:
    """Points of a curve of AUC over copies."""
    return [{"x": row["copies"], "y": row["auc"], "low": row["low"], "high": row["high"], "n": row["n"]} for row in rows]
