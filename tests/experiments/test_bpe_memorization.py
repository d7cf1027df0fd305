"""The claim check of vocabulary and memorization: its smallest scale, its texts, and its verdict on figures that are known."""

from __future__ import annotations

import json
import os

import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import bpe_memorization


@pytest.fixture(scope="module")
def smoke():
    return bpe_memorization.run("smoke", 0)


def test_smoke_holds_only_the_sizes_against_anything(smoke):
    assert smoke.passed
    assert [check.what for check in smoke.checks if check.threshold is not None] == ["spread of the models' sizes"]
    assert {row["task"] for row in smoke.rows} == {"random_labels", "membership", "recovery"}
    assert sum(row["task"] == "random_labels" for row in smoke.rows) == 5
    assert json.loads(json.dumps(smoke.to_dict(), allow_nan=False))["passed"] is True


def summaries(labels=(0.5, 0.7, 0.9), alias=0.72, membership=(0.5, 0.6, 0.7), recovery=(0.1, 0.2, 0.3), parameters=600_000):
    """What three tasks found, for vocabularies of 260, 760 and 4,260 ids."""
    made = {}
    for task, figure, values in (
        ("random_labels", "accuracy", labels),
        ("membership", "auc", membership),
        ("recovery", "recovered", recovery),
    ):
        arms = [
            {"arm": f"{m} merges", "control_of": None, "parameters": parameters if m == 500 else 600_000, figure: {"estimate": value}}
            | {"loss_others": 1.5, "recovered_others": {"estimate": 0.01}}
            for m, value in zip((0, 500, 4000), values, strict=True)
        ]
        order = sorted(values)
        rank = 1.0 if order == list(values) and len(set(values)) == 3 else 0.5
        control = {"arm": "500 merges ×4 redrawn", "base": "500 merges", "difference": alias - 0.7}
        made[task] = {"arms": arms, "spearman": rank, "controls": [control] if task == "random_labels" else []}
    return made


@pytest.mark.parametrize(
    ("figures", "failing"),
    [
        ({}, []),
        ({"labels": (0.5, 0.55, 0.64)}, ["random_labels: accuracy of the largest less the smallest vocabulary"]),
        ({"labels": (0.5, 0.95, 0.9)}, ["random_labels: Spearman of accuracy with the vocabulary"]),
        ({"alias": 0.76}, ["random_labels: 500 merges ×4 redrawn against 500 merges"]),
        ({"alias": 0.64}, ["random_labels: 500 merges ×4 redrawn against 500 merges"]),
        ({"membership": (0.6, 0.5, 0.7)}, ["membership: Spearman of auc with the vocabulary"]),
        ({"recovery": (0.2, 0.1, 0.3)}, ["recovery: Spearman of recovered with the vocabulary"]),
        ({"parameters": 607_000}, ["spread of the models' sizes"]),
    ],
)
def test_the_verdict(figures, failing):
    assert [check.what for check in bpe_memorization.verdict(summaries(**figures)) if not check.passed] == failing


def test_the_questions_are_drawn_by_the_seed(monkeypatch):
    if not os.environ.get("PALIMPSEST_DATA"):
        pytest.skip("PALIMPSEST_DATA is not set")
    drawn = bpe_memorization.questions(0)
    assert len(set(drawn)) == 3000
    assert all(30 <= len(line) <= 60 for line in drawn)
    assert drawn == bpe_memorization.questions(0) != bpe_memorization.questions(1)
    monkeypatch.setenv("PALIMPSEST_DATA", "/nowhere")
    with pytest.raises(InputError, match="PALIMPSEST_DATA"):
        bpe_memorization.questions(0)


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        bpe_memorization.run("gpu", 0)
