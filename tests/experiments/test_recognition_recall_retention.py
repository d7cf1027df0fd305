"""The claim check of few-shot memories: its smallest scale, its material, and its verdict on figures that are known."""

from __future__ import annotations

import json
import os
from pathlib import Path

import polars as pl
import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import recognition_recall_retention as check
from palimpsest.measurement import Measurement


def test_smoke_decides_nothing():
    smoke = check.run("smoke", 0)
    assert smoke.passed
    assert all(line.threshold is None for line in smoke.checks)
    assert json.loads(json.dumps(smoke.to_dict(), allow_nan=False))["passed"] is True
    assert [row["updates"] for row in smoke.rows if row["table"] == "asked" and row["phase"] == "stream"] == [0, 1, 3]
    assert [row["condition"] for row in smoke.rows if row["table"] == "conditions"] == [5, 6]
    assert [curve.id for curve in smoke.curves] == ["retention"]


def test_the_novels_give_texts_that_are_all_different():
    pairs, stream = check.novels(3)
    seen, foils = pairs[1]
    assert len(seen) == len(foils) == check.SMOKE_TEXTS
    assert not set(seen) & (set(foils) | set(stream))
    assert not set(foils) & set(stream)
    assert pairs[6][1] == pairs[5][1] == seen
    assert check.novels(3) == (pairs, stream)
    assert check.novels(4)[0][1] != pairs[1]


def test_the_papers_files_give_all_conditions():
    if not (Path(os.environ.get("PALIMPSEST_DATA", "")) / "llm-memory-recall").is_dir():
        pytest.skip("PALIMPSEST_DATA does not say where the paper's files are")
    pairs, stream = check.papers(1)
    assert sorted(pairs) == [1, 2, 3, 4, 5, 6]
    used = {text for sides in pairs.values() for side in sides for text in side}
    for seen, foils in pairs.values():
        assert len(set(seen)) == len(foils) == check.TEXTS
        assert all(a != b for a, b in zip(seen, foils, strict=True))
    assert len(set(stream)) == check.END * check.BATCH
    assert not used & set(stream)


def test_without_the_papers_files_the_claim_is_not_decided(monkeypatch):
    monkeypatch.delenv("PALIMPSEST_DATA", raising=False)
    with pytest.raises(InputError, match="PALIMPSEST_DATA is not set"):
        check.run("cpu", 0)
    with pytest.raises(InputError, match="'gpu'"):
        check.run("gpu", 0)


GOOD = {"before": (0.5, 0.1), "one": (0.95, 0.2), "three": (1.0, 0.6), "soon": (1.0, 0.3), "end": (0.95, 0.25)}
LASTS = "share of its gain that recall lost, less that of recognition"


def measured(**figures: tuple[float, float]) -> Measurement:
    """(recognition, recall) at the five moments."""
    moments = {
        "before": ("before", 0, 0),
        "one": ("study", 1, 0),
        "three": ("study", 3, 0),
        "soon": ("stream", 3, 10),
        "end": ("stream", 3, 60),
    }
    good = {"before": (0.5, 0.1), "one": (0.95, 0.2), "three": (1.0, 0.6), "soon": (1.0, 0.3), "end": (0.95, 0.25)} | figures
    asked = [
        {
            "phase": phase,
            "exposures": shown,
            "updates": at,
            "recognized": {"estimate": good[name][0]},
            "rougeL_cont": {"estimate": good[name][1]},
        }
        for name, (phase, shown, at) in moments.items()
    ]
    return Measurement("retention", pl.DataFrame(), {"asked": asked}, {})


@pytest.mark.parametrize(
    ("figures", "words", "failing"),
    [
        ({}, 0.3, []),
        ({"before": (0.65, 0.1)}, 0.3, ["distance of recognition from 0.5 before the study"]),
        ({"one": (0.89, 0.2)}, 0.3, ["recognition after one exposure"]),
        ({"one": (0.95, 0.46)}, 0.3, ["recall: three exposures less one"]),
        ({"soon": (1.0, 0.5), "end": (0.95, 0.25)}, 0.3, ["… less five times that in 10 to 60"]),
        ({"soon": (1.0, 0.6), "end": (0.95, 0.6)}, 0.3, ["recall lost per update, 1 to 10", LASTS]),
        ({"end": (0.6, 0.25)}, 0.3, [LASTS]),
        ({}, 0.6, ["recall gained from three exposures, sentences less random words"]),
    ],
)  # fmt: skip
def test_the_verdict(figures, words, failing):
    lists = [{"recognized": 0.5, "recalled": 0.0}, {"recognized": 0.9, "recalled": 0.1}, {"recognized": 1.0, "recalled": words}]
    assert [line.what for line in check.judged(measured(**figures), lists) if not line.passed] == failing
