"""The claim check of the survey runs through, its figures are those of its table, and the window's share is counted right."""

from __future__ import annotations

import numpy as np
import pytest

from palimpsest.evaluation.context_prompts import KeySample, Question
from palimpsest.experiments import short_context_lm
from palimpsest.experiments.context_survey import in_window, run
from palimpsest.experiments.planted_texts import base_text


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))
    base = base_text()
    texts = short_context_lm.ShortTexts("novels", tuple(base.train[:300]), (tuple(base.held_out[:200]),))
    monkeypatch.setattr(short_context_lm, "short_texts", lambda: texts)


def test_smoke():
    claim = run("smoke", 3)
    assert claim.passed
    rows = {(row["method"], row["start"]): row for row in claim.rows if row["part"] == "A"}
    assert {start for _, start in rows} == {0, 16, 32, 64, 128, 192, 224}
    near = {row["method"]: row["perplexity"] for row in claim.rows if row["part"] == "A, within L0"}
    first = claim.checks[0]
    unchanged = rows["unchanged", 192]["perplexity"] / near["unchanged"]
    assert first.ours == pytest.approx(unchanged)
    # within what it was trained on, a model without scaled positions is the model itself, chunked or not
    assert rows["LM-Infinite", 0]["estimate"] == pytest.approx(rows["unchanged", 0]["estimate"], abs=1e-4)
    assert rows["PI", 192]["estimate"] != rows["unchanged", 192]["estimate"]
    asked = {row["method"]: row for row in claim.rows if row["part"] == "B"}
    assert asked["SnapKV, question seen"]["query_aware"] is True
    assert asked["full"]["bytes"]["prefill"] > 1.5 * asked["StreamingLLM"]["bytes"]["prefill"]
    assert {curve.id for curve in claim.curves} == {"context-survey-positions", "context-survey-cache"}


@pytest.mark.parametrize(("span", "inside"), [((0, 4), True), ((2, 8), False), ((43, 50), False), ((44, 50), True), ((90, 100), True)])
def test_the_share_of_a_window(span, inside):
    sample = KeySample("x", np.zeros(100, np.int64), (Question(np.zeros(3), np.zeros(5), 0.5, span),), 103, 1, 0.5, 0)
    assert in_window(sample, 60) is inside
