"""Comparisons in a report are paired, have intervals, and are corrected for all that stand in one table."""

import json

import numpy as np
import polars as pl
import pytest

from palimpsest.evaluation.blocks import p_value
from palimpsest.evaluation.classes import _predictors
from palimpsest.evaluation.paired_rates import differences
from palimpsest.evaluation.protocol import run_audit
from palimpsest.measurement import Measurement
from palimpsest.report import check, render
from palimpsest.stats import adjusted, holm, mcnemar, wilson_interval


@pytest.fixture(scope="module")
def audited(tiny_model, other_model, small_index, passages, settings, tmp_path_factory):
    """An audit of two models, one of which has the other for its reference."""
    out = tmp_path_factory.mktemp("audit") / "out"
    card = run_audit(
        [tiny_model, other_model], small_index, out, references={tiny_model.name: other_model}, samples=passages, settings=settings
    )
    render(json.loads(json.dumps(card)), out)
    check(json.loads(json.dumps(card)))
    return card, out


def table(card, section, name):
    part = next(part for part in card["sections"] if part["id"] == section)
    return next(block for block in part["blocks"] if block.get("id") == name)


def measured(out, name):
    return Measurement.load(out / "measurements" / f"{name}.json")


def test_differences_are_mcnemars_and_corrected_together():
    rng = np.random.default_rng(0)
    pairs = [(rng.random(40) < 0.3, rng.random(40) < chance) for chance in (0.3, 0.7, 0.9)]
    cells, correction = differences([*[(a.tolist(), b.tolist()) for a, b in pairs], None, ([], [])])
    tests = [mcnemar(a, b) for a, b in pairs]
    assert correction == "Holm"
    assert [cell["over"] for cell in cells[:3]] == [list(test.difference) for test in tests]
    assert [cell["p"] for cell in cells[:3]] == [p_value(p) for p in holm([test.p_value for test in tests])]
    assert cells[3:] == [{"over": None, "p": None}] * 2
    assert differences([None]) == ([{"over": None, "p": None}], "none")
    many, correction = differences([(a.tolist(), b.tolist()) for a, b in pairs] * 8)
    assert correction == "Benjamini-Hochberg"
    assert [cell["p"] for cell in many] == [p_value(p) for p in adjusted([test.p_value for test in tests] * 8)[0]]


def test_model_and_reference_are_compared_on_the_same_passages(audited, tiny_model):
    card, out = audited
    rows = [row for row in table(card, "extraction", "extraction-kinds")["rows"] if row["model"] == tiny_model.name]
    frame = measured(out, f"extraction.{tiny_model.name}").table.filter((pl.col("context") == 8) & (pl.col("copies") >= 1))
    expected = mcnemar(frame["reference_extracted"].to_list(), frame["extracted"].to_list()).difference
    assert rows[0]["over"] == list(expected)
    assert rows[0]["floor"] == list(wilson_interval(int(frame["reference_extracted"].sum()), len(frame)))
    assert rows[0]["over"][0] == pytest.approx(rows[0]["rate"][0] - rows[0]["floor"][0])
    without = [row for row in table(card, "extraction", "extraction-kinds")["rows"] if row["model"] != tiny_model.name]
    assert all(row["over"] is None and row["p"] is None for row in without)


def test_models_are_compared_on_the_same_passages(audited, tiny_model, other_model):
    card, out = audited
    [row] = table(card, "extraction", "extraction-models")["rows"]
    hits = []
    for model in (tiny_model, other_model):
        frame = measured(out, f"extraction.{model.name}").table.filter((pl.col("context") == 8) & (pl.col("copies") >= 1))
        hits.append(frame.sort("sample")["extracted"].to_list())
    expected = mcnemar(*hits)
    assert (row["first"], row["second"], row["n"]) == (tiny_model.name, other_model.name, 12)
    assert (row["over"], row["p"]) == (list(expected.difference), p_value(expected.p_value))


def test_a_guard_is_compared_with_none_on_the_same_passages(audited, tiny_model):
    card, out = audited
    rows = table(card, "guard", "guard-differences")["rows"]
    assert len(rows) == 4 * 2 * 2  # styles, guards, kinds
    frames = {state: measured(out, f"{state}.{tiny_model.name}").table.sort("sample") for state in ("open", "guarded")}
    plainly = {state: frame.filter(pl.col("transform") == "identity")["verbatim"].to_list() for state, frame in frames.items()}
    expected = mcnemar(plainly["open"], plainly["guarded"])
    assert rows[0]["over"] == list(expected.difference)
    assert rows[0]["over"][0] == -1.0  # the model's own text came out to the letter, and under guard none of it


def test_every_share_in_the_tables_has_an_interval(audited):
    """A column in percent holds [value, low, high], but for shares of a text, which are no rates of passages."""
    card, _ = audited
    for part in card["sections"]:
        for block in part["blocks"]:
            if block["type"] != "table":
                continue
            for column in block["columns"]:
                if column["format"] in ("percent", "interval"):
                    values = [row[column["key"]] for row in block["rows"] if row.get(column["key"]) is not None]
                    assert all(isinstance(value, list) and len(value) == 3 for value in values), (block["id"], column["key"])
                    assert all(low <= value <= high for value, low, high in values), (block["id"], column["key"])


def test_every_p_value_in_the_tables_is_corrected(audited):
    card, _ = audited
    columns = [(block["id"], column["label"]) for part in card["sections"] for block in part["blocks"] if block["type"] == "table"
               for column in block["columns"] if column["key"] == "p"]  # fmt: skip
    assert {name for name, _ in columns} >= {"extraction-kinds", "extraction-models", "guard-differences", "membership-scores"}
    assert {label for _, label in columns} == {"p, corrected"}


def test_the_blind_baseline_stands_beside_every_score_and_level(audited, tiny_model):
    card, out = audited
    summary = measured(out, f"membership.{tiny_model.name}").summary
    scores = table(card, "membership", "membership-scores")["rows"]
    assert scores[-1]["method"].startswith("blind")
    assert scores[-1]["auc"][0] == summary["blind"]["estimate"]
    loss = next(row for row in scores if (row["model"], row["method"]) == (tiny_model.name, "loss"))
    over = summary["methods"]["loss"]["over_blind"]
    assert loss["over"] == [over["estimate"], over["low"], over["high"]]
    assert loss["over"][0] == pytest.approx(loss["auc"][0] - max(0.5, scores[-1]["auc"][0]))
    levels = table(card, "membership", "membership-levels")["rows"]
    assert {row["copies"] for row in levels} == {1, 2, 3}
    for row in levels:
        assert row["over"][0] == pytest.approx(row["auc"][0] - max(0.5, row["blind"][0]))
    section = next(part for part in card["sections"] if part["id"] == "membership")
    curves = {block["id"]: block for block in section["blocks"] if block["type"] == "curve"}
    for name in ("membership-copies", "membership-attacks"):
        assert [line["name"] for line in curves[name]["series"] if line["style"] == "dashed"] == ["blind (never asks the model)"]
    assert "never asks the model" in section["answer"]
    tile = next(tile for tile in card["tiles"] if tile["label"] == "membership AUC")
    best = max(summary["methods"].values(), key=lambda row: row["auc"])
    assert (tile["value"], tile["low"], tile["high"]) == (best["auc"], best["low_all"], best["high_all"])


def test_p_values_of_the_factors_are_corrected():
    rows = [{"class": "recitation", "factor": f, "coefficient": 1.0, "error": 0.4, "z": 2.5, "p": p, "standardised": 1.0}
            for f, p in (("intercept", 1e-9), ("duplicates", 0.01), ("templating", 0.04), ("code_length", 0.5))]  # fmt: skip
    rows.append({**rows[1], "factor": "templates", "coefficient": None, "error": None, "z": None, "p": None})
    [block] = _predictors({"classes": ["recitation"], "features": [], "coefficients": rows})
    assert [row["p"] for row in block["rows"]] == [p_value(p) for p in holm([0.01, 0.04, 0.5])]
    assert block["rows"][0]["coefficient"] == pytest.approx([1.0, 1 - 0.784, 1 + 0.784], abs=1e-3)
    assert "Holm" in block["caption"]
