"""The claim check of CItruS: its smallest scale."""

from __future__ import annotations

import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import citrus as experiment


def test_smoke_runs_and_passes(tmp_path, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))
    claim = experiment.run("smoke", 100)
    assert claim.passed
    assert claim.checks[0].threshold == 0
    peaks = {row["arm"]: row["peak_bytes"] for row in claim.rows if row["kind"] == "keys"}
    assert set(peaks) == {"full", "StreamingLLM", "standard", "shared", "individual", "individual, same bytes"}
    assert peaks["StreamingLLM"] < peaks["full"]
    assert peaks["individual, same bytes"] < peaks["individual"]


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        experiment.run("gpu", 0)
