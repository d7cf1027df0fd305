"""The claim check of low-perplexity spans: its smallest scale, and the recall of planted sources."""

from __future__ import annotations

import polars as pl
import pytest

from palimpsest.audit.low_perplexity import CLASSES
from palimpsest.errors import InputError
from palimpsest.experiments import low_perplexity
from palimpsest.experiments.canaries import train_suite


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_smoke_runs_and_what_holds_for_every_model_holds():
    claim = low_perplexity.run("smoke", 0)
    assert claim.passed
    assert [check.ours for check in claim.checks if check.threshold is not None] == [0, 0]
    assert sum(row["windows"] for row in claim.rows) > 0


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        low_perplexity.run("gpu", 0)


def test_a_window_is_recalled_when_a_sequence_with_its_passage_is_named():
    suite = train_suite(low_perplexity.SMOKE)
    row = suite.ledger.filter(pl.col("copies") > 0).row(0, named=True)
    place = suite.stream.planted.insertions.filter(pl.col("id") == row["id"])["idx"][0]
    ids = row["ids"][3:9]
    windows = [
        (ids, [f"sequence-{place:05d}"], CLASSES[1]),
        (ids, ["sequence-99999"], CLASSES[1]),
        (ids, [], CLASSES[2]),
        ([1] * 6, [], CLASSES[1]),
    ]
    table = pl.DataFrame(windows, schema=["ids", "documents", "label"], orient="row", strict=False)
    assert low_perplexity.planted_recall(table, suite) == (1, 2)
    prompts, copies = low_perplexity.draw_prompts(suite, 5, 0)
    assert [len(prompt) for prompt in prompts] == [12] * 10
    assert copies[5:] == [None] * 5
