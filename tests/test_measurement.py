"""`Measurement`: what is written reads back, NaN becomes null, and only what has a place in JSON gets in."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.errors import InputError
from palimpsest.measurement import Curve, Measurement, Series, environment, plain

CURVE = Curve(
    id="rate",
    title="Rate by copies",
    x_label="copies",
    y_label="share",
    series=[
        Series("m", [{"x": 1.0, "y": 0.5, "low": 0.25, "high": 0.75, "n": 8}]),
        Series("fit", [{"x": 1.0, "y": float("nan"), "low": None, "high": None, "n": None}, {"x": 2.0, "y": 0.5}], style="dashed"),
    ],
    x_scale="symlog",
    y_domain=(0.0, 1.0),
    y_format="percent",
    caption="What to see.",
)


def measurement() -> Measurement:
    table = pl.DataFrame(
        {
            "id": ["a", "b"],
            "hit": [True, False],
            "copies": [1, None],
            "logprob": [-0.5, float("-inf")],
            "spans": [[1, 2], []],
        }
    )
    return Measurement(
        "extraction", table, {"rate": np.float32(0.5), "worst": float("nan"), "by": {1: 0.5}}, {"seed": np.int64(3)}, {"rate": CURVE}
    )


def test_what_is_written_reads_back(tmp_path: Path):
    before = measurement()
    before.save(tmp_path / "m.json")
    after = Measurement.load(tmp_path / "m.json")
    assert after.name == "extraction"
    assert after.summary == {"rate": 0.5, "worst": None, "by": {"1": 0.5}}
    assert after.provenance == {"seed": 3}
    assert after.table["id"].to_list() == ["a", "b"]
    assert after.table["hit"].to_list() == [True, False]
    assert after.table["copies"].to_list() == [1, None]
    assert after.table["logprob"].to_list() == [-0.5, None]
    assert after.table["spans"].to_list() == [[1, 2], []]
    assert after.to_json() == Measurement.from_json(after.to_json()).to_json()


def test_the_text_is_strict_json():
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    json.loads(measurement().to_json(), parse_constant=refuse)


def test_a_curve_reads_back_with_its_domain_and_styles():
    after = Curve.from_dict(json.loads(json.dumps(CURVE.to_dict())))
    assert after.y_domain == (0.0, 1.0)
    assert [series.style for series in after.series] == ["line", "dashed"]
    assert after.series[1].points[0]["y"] is None
    assert after.to_dict() == CURVE.to_dict()


def test_an_empty_table_keeps_its_columns():
    empty = Measurement("empty", pl.DataFrame({"id": []}, schema={"id": pl.String}), {}, {})
    assert Measurement.from_json(empty.to_json()).table.columns == ["id"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", "{}", '{"name": "x", "table": 3, "summary": {}, "provenance": {}, "curves": {}}']
)
def test_a_text_that_is_no_measurement_is_refused(text):
    with pytest.raises(InputError, match="not a measurement"):
        Measurement.from_json(text)


def test_columns_of_different_lengths_are_refused():
    value = json.loads(measurement().to_json())
    value["table"]["id"].append("c")
    with pytest.raises(InputError, match="not a measurement"):
        Measurement.from_json(json.dumps(value))


def test_a_plot_that_is_not_there_is_named():
    with pytest.raises(InputError, match="Choose one of rate"):
        measurement().plot("roc")
    with pytest.raises(InputError, match="no curve"):
        Measurement("x", pl.DataFrame(), {}, {}).plot()


def test_a_plot_holds_every_series():
    gap = Curve.from_dict(CURVE.to_dict())  # the NaN is a gap now
    chart = json.loads(Measurement("x", pl.DataFrame(), {}, {}, {"rate": gap}).plot().to_json())
    assert {"m", "fit"} <= set(json.dumps(chart).replace('"', " ").split())


@given(st.floats() | st.integers() | st.booleans() | st.none() | st.text())
def test_plain_keeps_values_and_turns_what_is_not_finite_into_none(value):
    expected = None if isinstance(value, float) and not math.isfinite(value) else value
    assert plain([value]) == [expected]
    assert plain({"x": (value,)}) == {"x": [expected]}


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "uint32", "bool"])
def test_plain_unwraps_numpy(dtype):
    array = np.array([[0, 1]], dtype=dtype)
    assert plain(array) == [[0, 1]]
    assert type(plain(array[0, 0])) in (float, int, bool)
    assert plain(np.array([np.nan, 1.0])) == [None, 1.0]
    assert plain(Path("a") / "b") == "a/b"


@pytest.mark.parametrize("value", [object(), 1j, b"bytes", {"x": [object()]}])
def test_plain_refuses_what_has_no_place_in_json(value):
    with pytest.raises(InputError, match="no place in JSON"):
        plain(value)


def test_the_environment_is_json_and_names_what_decides_results():
    value = json.loads(json.dumps(environment()))
    assert {"torch", "numpy", "tokenizers"} <= set(value["packages"])
    assert value["cores"] >= 1
