"""The claim check of forecasts: its smallest scale, its checkpoints, and its verdict on forecasts of which the truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from palimpsest.audit.forecast import forecast
from palimpsest.errors import IndexCorruptError, InputError
from palimpsest.experiments import forecast_memorization as claim_check
from palimpsest.experiments.canaries import CanaryConfig, train_suite
from palimpsest.experiments.checkpoints import seen_by, steps_at, train_checkpoints
from palimpsest.experiments.lab_data import stream


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


TINY = CanaryConfig(sizes=("s",), twins=("perturbed",), n_sequences=48, seq_len=96, levels=((0, 2), (1, 3), (6, 2)), warmup=2)


def test_the_last_checkpoint_is_the_model_that_the_suite_trains(tmp_path):
    data = stream(TINY)
    moments = train_checkpoints(TINY, data.rows["perturbed"], data.tokenizer, "s", (0.25, 0.5, 1.0), cache=tmp_path)
    suite = train_suite(TINY, data=data)
    finished = dict(suite.models["perturbed-s"].model.named_parameters())
    for name, parameter in moments[1.0].model.named_parameters():
        assert torch.equal(parameter, finished[name])
    assert not torch.equal(moments[0.5].model.get_input_embeddings().weight, moments[1.0].model.get_input_embeddings().weight)
    assert [model.name for model in moments.values()] == ["s at 25 %", "s at 50 %", "s"]
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(files) == 3
    again = train_checkpoints(TINY, data.rows["perturbed"], data.tokenizer, "s", (0.5,), cache=tmp_path)
    assert torch.equal(again[0.5].model.get_input_embeddings().weight, moments[0.5].model.get_input_embeddings().weight)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == files
    for place in files:
        place.write_bytes(b"damaged")
    with pytest.raises(IndexCorruptError, match="cannot be read"):
        train_checkpoints(TINY, data.rows["perturbed"], data.tokenizer, "s", (0.5,), cache=tmp_path)


def test_a_checkpoint_of_another_size_is_refused(tmp_path):
    data = stream(TINY)
    rows = data.rows["perturbed"]
    train_checkpoints(TINY, rows, data.tokenizer, "s", cache=tmp_path)
    (place,) = tmp_path.rglob("*.safetensors")
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, place)
    with pytest.raises(IndexCorruptError, match="other parameters"):
        train_checkpoints(TINY, rows, data.tokenizer, "s", cache=tmp_path)
    with pytest.raises(InputError, match="The rows are"):
        train_checkpoints(TINY, rows[:-1], data.tokenizer, "s", cache=tmp_path)


def test_moments_are_steps_of_the_run():
    assert steps_at(TINY, (0.25, 1.0)) == {0.25: 3, 1.0: 12}
    for wrong in ((), (0.0, 1.0), (0.5, 1.5), (0.50, 0.51), (0.01,)):
        with pytest.raises(InputError, match="give no moments"):
            steps_at(TINY, wrong)


def test_readings_are_counted_in_the_ledger():
    data = stream(TINY)
    copies = dict(data.ledger.select("id", "copies").iter_rows())
    assert seen_by(data, TINY, 1.0) == copies
    half = seen_by(data, TINY, 0.5)
    rows = data.planted.insertions
    assert half == {name: len(rows.filter((pl.col("id") == name) & (pl.col("idx") < 24))) for name in copies}
    assert 0 < sum(half.values()) < sum(copies.values())


def test_smoke_runs_and_its_invariants_hold():
    claim = claim_check.run("smoke", 0)
    held = [check for check in claim.checks if check.threshold is not None]
    assert [check.what for check in held] == [
        "passages on which the score 1 and the teacher-forced check disagree",
        "errors of the target's forecast of itself",
    ]
    assert claim.passed
    assert {row["predictor"] for row in claim.rows} >= {"s", "m", "l at 25 %", "l at 90 %"}
    assert {row["scope"] for row in claim.rows} == {"common", "all"}


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        claim_check.run("gpu", 0)


TRUTH = np.array([1.0] * 40 + [0.0] * 60)
NAMES = {0.25: "l at 25 %", 0.5: "l at 50 %", 0.75: "l at 75 %", 0.9: "l at 90 %"}


def verdict(finds, wrong=0):
    """The checks for predictors that find so many of the 40, the middle model being wrong `wrong` times."""
    frames = {}
    for name, hits in finds.items():
        scores = np.zeros(100)
        scores[:hits] = 1.0
        if name == "m":
            scores[40 : 40 + wrong] = 1.0
        frames[name] = pl.DataFrame({"index": np.arange(100), "score": scores})
    result = forecast(frames, pl.DataFrame({"index": np.arange(100), "score": TRUTH}))
    return claim_check.claimed_checks(result, ["s", "m"], NAMES, {"s": "l at 7 %", "m": "l at 34 %"}, seed=0)


GOOD = {"s": 0, "m": 10, "l at 7 %": 0, "l at 25 %": 8, "l at 34 %": 12, "l at 50 %": 20, "l at 75 %": 30, "l at 90 %": 38}


@pytest.mark.parametrize(
    ("changed", "wrong", "failing"),
    [
        ({}, 0, None),
        ({}, 3, "precision of the smaller model m"),
        ({"m": 31, "l at 34 %": 35}, 0, "recall of the smaller model m, below"),
        ({"l at 25 %": 30, "l at 50 %": 20, "m": 2, "l at 75 %": 10}, 0, "rank correlation"),
        ({"l at 34 %": 9}, 0, "recall of the checkpoint that cost as much as m"),
        ({"s": 5}, 0, "recall of the checkpoint that cost as much as s"),
    ],
)
def test_the_verdict_follows_the_forecasts(changed, wrong, failing):
    checks = [check for check in verdict({**GOOD, **changed}, wrong) if check.threshold is not None]
    assert len(checks) == 6
    failed = [check.what for check in checks if not check.passed]
    assert [what.startswith(failing) for what in failed] == ([True] if failing else [])


def test_chance_finds_its_share():
    row = {"n": 1000, "positives": 300, "target_positives": 400}
    found, chance = claim_check.permuted_recall(row, 0)
    assert chance == 0.3
    assert found == pytest.approx(0.3, abs=0.01)
    assert claim_check.permuted_recall({**row, "target_positives": 0}, 0)[0] is None


def test_the_configuration_is_that_of_the_extraction_laws():
    assert replace(claim_check.CPU, seed=3).sizes == ("s", "m", "l")
    assert claim_check.CPU.suffix_start >= claim_check.PREFIX
