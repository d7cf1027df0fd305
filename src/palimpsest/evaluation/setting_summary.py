"""The figures and curves of a run of the three-setting protocol, from its table."""

from __future__ import annotations

import itertools
from typing import Any

import polars as pl

from palimpsest.evaluation.gains import accuracies, compare_settings, reading, transitions
from palimpsest.evaluation.temporal import five_rates, lag_curve, rates_to_dict, refusal_slices, risk_coverage
from palimpsest.measurement import Curve, Series, plain


def summarise(table: pl.DataFrame, leaks: dict[str, int]) -> dict[str, Any]:
    """The figures of a run, as plain JSON types; see `palimpsest.evaluation.gains` and `palimpsest.evaluation.temporal` for each.

    Args:
        table: of a run.
        leaks: how many of each kind.
    """
    names = table["setting"].unique(maintain_order=True).to_list()
    steps = list(itertools.combinations(names, 2))
    compared = compare_settings(table)
    summary: dict[str, Any] = {
        "n": table["id"].n_unique(),
        "accuracy": rates_to_dict(accuracies(table)),
        "omnibus": compared["omnibus"],
        "gains": {f"{pair['first']} to {pair['second']}": pair for pair in compared["pairs"]},
        "transitions": {f"{one} to {two}": rates_to_dict(transitions(table, one, two)) for one, two in steps},
        "reading": {},
        "freshness": {},
        "refusals": {},
        "abstention": {},
        "leaks": leaks,
        "dropped": int(table["dropped"].list.len().sum()),
    }
    for name in names:
        rows = table.filter(pl.col("setting") == name)
        if rows["hit"].is_not_null().any():
            summary["reading"][name] = reading(table, name)
        timed = rows.filter(pl.col("freshness").is_not_null())
        if not timed.is_empty():
            summary["freshness"][name] = rates_to_dict(five_rates(timed["freshness"].to_list(), timed["source"].to_list()))
        answered = (rows["right"] & ~rows["refused"]).to_numpy()  # a refusal that is right is no answer
        slices = refusal_slices(answered, rows["refused"].to_numpy(), rows["slice"].to_list(), rows["source"].to_list())
        summary["refusals"][name] = slices
        summary["abstention"][name] = abstention(rows)
    return dict(plain(_intervals_to_dict(summary)))


def _intervals_to_dict(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return value._asdict()
    if isinstance(value, dict):
        return {key: _intervals_to_dict(entry) for key, entry in value.items()}
    return value


def abstention(rows: pl.DataFrame) -> dict[str, Any] | None:
    """How well a model's own log-probability of its answers tells right from wrong: AURC, and its excess over the best order.

    Refusals have no place in it; None with fewer than 2 answers whose log-probability is known.
    """
    given = rows.filter(~pl.col("refused") & pl.col("answer_logprob").is_not_null())
    if given.height < 2:
        return None
    curve = risk_coverage(given["answer_logprob"].to_numpy(), given["right"].to_numpy())
    return {"n": given.height, "aurc": curve.aurc, "excess": curve.excess}


def curves(table: pl.DataFrame) -> dict[str, Curve]:
    """Freshness by days since the last change, and risk by coverage, one series a setting; empty where there is nothing to draw."""
    lags, risks = [], []
    for (setting,), rows in table.group_by("setting", maintain_order=True):
        timed = rows.filter(pl.col("freshness").is_not_null())
        if not timed.is_empty():
            lags.append(Series(str(setting), lag_curve(timed["freshness"].to_list(), timed["lag"].to_list()).series[0].points))
        given = rows.filter(~pl.col("refused") & pl.col("answer_logprob").is_not_null())
        if given.height >= 2:
            found = risk_coverage(given["answer_logprob"].to_numpy(), given["right"].to_numpy(), resamples=2)
            pairs = zip(found.coverage.tolist(), found.risk.tolist(), strict=True)
            risks.append(Series(str(setting), [{"x": x, "y": y, "low": None, "high": None, "n": None} for x, y in pairs]))
    made: dict[str, Curve] = {}
    if lags:
        caption = "Answers that give the value valid on the day of the question; 95 % Wilson intervals."
        made["freshness-lag"] = Curve("freshness-lag", "What is newly true is not yet known", "days since the last change", "fresh answers",
                                      lags, x_scale="symlog", y_domain=(0, 1), y_format="percent", caption=caption)  # fmt: skip
    if risks:
        caption = "Errors among the answers of which the model is surest, by its own log-probability; refusals left out."
        made["risk-coverage"] = Curve("risk-coverage", "Who answers more errs more", "share answered", "errors among them", risks,
                                      x_format="percent", y_domain=(0, 1), y_format="percent", caption=caption)  # fmt: skip
    return made
