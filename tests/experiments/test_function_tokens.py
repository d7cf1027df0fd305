"""The claim check of function tokens: its smallest scale, and its verdict on figures that are known."""

from __future__ import annotations

import json

import polars as pl
import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import function_tokens


@pytest.fixture(scope="module")
def smoke():
    return function_tokens.run("smoke", 0)


def test_smoke_holds_only_the_sum_of_the_cells_against_anything(smoke):
    assert smoke.passed
    assert [check.what[:3] for check in smoke.checks if check.threshold is not None] == ["sum"]
    assert {row["kind"] for row in smoke.rows} == {"layer", "losses", "losses by list", "checkpoint"}
    assert [row["step"] for row in smoke.rows if row["kind"] == "checkpoint"] == [0] * 4 + [8] * 4 + [16] * 4
    assert [curve.id for curve in smoke.curves] == ["function-tokens", "function-tokens-rarefied", "function-tokens-losses"]
    assert json.loads(json.dumps(smoke.to_dict(), allow_nan=False))["passed"] is True


def figures(c10=0.6, c100=0.9, lot=0.2, highest="f→c", excess=0.1, early=20.0, missing=False):
    """A summary of one layer, and losses at three checkpoints of which those of function targets have fallen by step `early`."""
    layer = {"coverage_10": c10, "coverage_100": c100, "coverage_random_10": None if missing else lot}
    summary = {
        "layers": [{"model": name, **layer} for name in ("trained", "untrained")],
        "losses": [{"n": 1, "loss": 2.0, "loss_share": 0.25}] * 4,
        "highest": highest,
        "excess": excess,
    }
    falls = {"f→f": [4.0, 4.0, 1.0, 1.0], "c→f": [4.0, 4.0, 1.0, 1.0], "f→c": [4.0, 4.0, 4.0, 1.0], "c→c": [4.0, 3.0, 2.0, 1.0]}
    rows = [
        {"cell": cell, "n": 5, "loss": loss, "step": step, "features": None}
        for cell, values in falls.items()
        for step, loss in zip((0, 10, int(early), 90), values, strict=True)
    ]
    return summary, pl.DataFrame(rows)


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({}, []),
        ({"c10": 0.49, "lot": 0.1}, ["least C(10) of a layer"]),
        ({"c100": 0.79}, ["least C(100) of a layer"]),
        ({"lot": 0.31}, ["ten random content tokens, as a share of C(10)"]),
        ({"missing": True}, ["ten random content tokens, as a share of C(10)"]),
        ({"highest": "c→c"}, ["the highest mean loss is of f→c"]),
        ({"excess": -0.01}, ["f→c: share of the loss less share of the positions"]),
    ],
)
def test_the_verdict(changed, failing):
    assert [check.what for check in function_tokens.verdict(*figures(**changed)) if not check.passed] == failing


def test_the_verdict_on_what_is_learnt_first():
    summary, grown = figures()
    (check,) = [check for check in function_tokens.verdict(summary, grown) if check.what.startswith("steps")]
    assert (check.ours, check.threshold) == (pytest.approx(10 + 10 * 0.8), pytest.approx(20 + 70 * 0.8))
    swapped = grown.with_columns(pl.col("cell").replace({"f→f": "f→c", "c→f": "x", "f→c": "f→f", "c→c": "c→f"}))
    (check,) = [check for check in function_tokens.verdict(summary, swapped) if check.what.startswith("steps")]
    assert not check.passed


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        function_tokens.run("gpu", 0)
