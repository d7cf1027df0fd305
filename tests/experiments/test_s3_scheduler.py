"""The claim check of reservation by predicted length: its smallest scale, its data, and its verdict on known figures."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import s3_scheduler
from palimpsest.measurement import Measurement


@pytest.fixture(scope="module")
def smoke():
    return s3_scheduler.run("smoke", 0)


def test_smoke_writes_the_same_under_both_and_decides_nothing_else(smoke):
    assert smoke.passed
    assert [check.what for check in smoke.checks if check.threshold is not None] == ["real answers that are the same under both"]
    simulated = [row for row in smoke.rows if "tokens_per_second" in row]
    assert len(simulated) == 3 * 4
    assert len({row["tokens"] for row in simulated}) == 1  # every schedule writes the same answers
    assert smoke.curves[0].id == "serving_used"
    assert json.loads(json.dumps(smoke.to_dict(), allow_nan=False))["passed"] is True


def figures(ours: float, true: float, lot: float) -> Measurement:
    names, speeds = ("longest", "S³", "true lengths", "by lot"), (100.0, ours, true, lot)
    rows = [
        {"predictor": n, "tokens_per_second": s, "speed_up": s / 100, "preempted_share": 0.1, "recomputed_tokens": 5, "tokens": 50}
        for n, s in zip(names, speeds, strict=True)
    ]
    return Measurement("schedules", pl.DataFrame(rows), {}, {})


@pytest.mark.parametrize(
    ("ours", "true", "lot", "failed"),
    [(320, 400, 200, []), (290, 400, 200, [0]), (320, 310, 200, [1]), (320, 480, 200, [2]), (320, 400, 300, [3])],
)
def test_every_check_can_fail(ours, true, lot, failed):
    checks = s3_scheduler._simulated(figures(ours, true, lot))
    assert [place for place, check in enumerate(checks) if not check.passed] == failed


def test_alpaca_is_read_where_it_is(tmp_path, monkeypatch, tiny_model):
    monkeypatch.delenv("PALIMPSEST_DATA", raising=False)
    with pytest.raises(InputError, match="stanford-alpaca"):
        s3_scheduler.alpaca(tiny_model, 0)
    entries = [{"instruction": f"Do {n}.", "input": "this" * (n % 2), "output": "word " * (n + 1)} for n in range(9)]
    entries.append({"instruction": "Say nothing.", "input": "", "output": " "})
    (tmp_path / "stanford-alpaca").mkdir()
    (tmp_path / "stanford-alpaca" / "alpaca_data.json").write_text(json.dumps(entries))
    monkeypatch.setenv("PALIMPSEST_DATA", str(tmp_path))
    prompts, lengths = s3_scheduler.alpaca(tiny_model, 0)
    assert sorted(prompts) == sorted(f"Do {n}." + "\nthis" * (n % 2) for n in range(9))
    whole = {f"Do {n}." + "\nthis" * (n % 2): len(tiny_model.tokenizer.encode("word " * (n + 1))) + 1 for n in range(9)}
    assert [whole[prompt] for prompt in prompts] == lengths.tolist()


def test_made_up_lengths_are_told_by_the_prompts():
    prompts, lengths = s3_scheduler.made_up(400, 3)
    assert lengths.min() >= 1
    assert lengths.max() <= s3_scheduler.LONGEST
    stories = np.array([prompt.startswith("Write") for prompt in prompts])
    assert lengths[stories].mean() > 4 * lengths[~stories].mean()


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="gpu"):
        s3_scheduler.run("gpu", 0)
