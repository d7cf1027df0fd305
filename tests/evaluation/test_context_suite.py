"""The whole protocol on a tiny model: every cell, reasons instead of gaps, and a run that goes on where it was stopped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from palimpsest.context.catalogue import make
from palimpsest.errors import InputError
from palimpsest.evaluation import context_suite
from palimpsest.evaluation.context_suite import MEASURES, SuiteConfig, run_suite
from palimpsest.evaluation.haystack import Haystack
from palimpsest.models import HFModel

FILLER = ["The sea was calm. Nobody spoke of it. A boat went out, and it came back.\n" * 3]
CONFIG = SuiteConfig((140, 180), (0.2, 0.8), 1, keys=2, needles=2, contexts=2, rows=2, chunk=32, new_tokens=2, threads=1)


@pytest.fixture(scope="module")
def setting(tiny_model: HFModel) -> tuple[HFModel, Haystack, np.ndarray]:
    rows = np.random.default_rng(0).integers(2, 320, (3, 180))
    return tiny_model, Haystack(tiny_model.tokenizer, FILLER, cycle=True), rows


def test_every_cell_is_measured_and_kept(setting: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, haystack, rows = setting
    methods = {"full": lambda length: None, "h2o": lambda length: make("h2o", budget=length // 2)}
    told: list[str] = []
    report = run_suite(model, methods, haystack, rows, CONFIG, out=tmp_path, progress=told.append)
    assert [(row["method"], row["length"]) for row in report.rows] == [("full", 140), ("full", 180), ("h2o", 140), ("h2o", 180)]
    assert set(report.cells) == {
        (name, measure, length)
        for name in methods
        for measure in MEASURES
        for length in (140, 180)
        if length == 180 or measure not in ("stream", "speed")
    }
    assert len(told) == len(report.cells) == 16
    last = report.rows[-1]
    assert last["settings"] == "H2O(budget=90, recent=None)"
    assert last["bytes"] < report.rows[1]["bytes"]
    assert last["passkey"][1] <= last["passkey"][0] <= last["passkey"][2]
    assert last["reasons"] == {}
    assert [curve.id.split("-")[-1] for curve in report.curves] == ["stream", "140", "180", "bytes"]
    assert [series.name for series in report.curves[0].series] == ["full", "h2o"]
    monkeypatch.setattr(context_suite, "passkey", lambda *_, **__: pytest.fail("measured again"))
    again = run_suite(model, methods, haystack, rows, CONFIG, out=tmp_path)
    assert again.rows == report.rows
    with pytest.raises(pytest.fail.Exception):
        run_suite(model, methods, haystack, rows, SuiteConfig(**{**vars(CONFIG), "seed": 1}), out=tmp_path)


def test_what_cannot_be_measured_has_a_reason(setting: Any) -> None:
    model, haystack, rows = setting
    config = SuiteConfig(**{**vars(CONFIG), "lengths": (140,), "measures": ("passkey", "multi-question"), "query_aware": True})
    methods = {"full": lambda length: None, "none": lambda length: make("streaming-llm", budget=1)}
    report = run_suite(model, methods, haystack, rows, config)
    assert "not both" in report.rows[0]["reasons"]["multi-question"]
    assert report.rows[0]["query_aware"] is True
    assert "passkey" in report.rows[0]
    assert report.rows[1]["reasons"]
    assert "passkey" not in report.rows[1]


def test_bad_input_is_refused(setting: Any) -> None:
    model, haystack, rows = setting
    with pytest.raises(InputError, match="no method"):
        run_suite(model, {}, haystack, rows, CONFIG)
    with pytest.raises(InputError, match="texts have shape"):
        run_suite(model, {"full": lambda length: None}, haystack, rows[:, :50], CONFIG)
    with pytest.raises(InputError, match="measures"):
        SuiteConfig(measures=("passkey", "beauty"))
    with pytest.raises(InputError, match="lengths"):
        SuiteConfig(lengths=(1024, 512))
    with pytest.raises(InputError, match="at least 1"):
        SuiteConfig(lengths=(-5, 512))
