"""The claim check of attention's capacity: its smallest scale, and its verdict on figures that are known."""

from __future__ import annotations

import json

import pytest

from palimpsest.errors import InputError
from palimpsest.experiments import mha_capacity


@pytest.fixture(scope="module")
def smoke():
    return mha_capacity.run("smoke", 0)


def test_smoke_counts_the_ranks_and_decides_nothing_by_training(smoke):
    assert smoke.passed
    assert [check.threshold for check in smoke.checks[-2:]] == [None, None]
    exact = [row for row in smoke.rows if row["kind"] == "exact"]
    assert [row["rank"] for row in exact] == [row["heads"] * (row["n"] - 1) + 1 for row in exact]
    assert len(exact) == 2 * 2 * 2
    assert mha_capacity.run("smoke", 0).rows == smoke.rows
    assert json.loads(json.dumps(smoke.to_dict(), allow_nan=False))["passed"] is True


def test_a_rank_or_a_fit_that_fails_is_seen(smoke):
    rows = [row for row in smoke.rows if row["kind"] == "exact"]
    for changed, failing in (
        ({"rank": 1}, 0),
        ({"rank_own": 1}, 1),
        ({"error_at_bound": 1e-5}, 2),
        ({"error_above": 1e-4}, 3),
        ({"error_constructed_own": 1e-5}, 4),
    ):
        checks = mha_capacity._exact([*rows[:-1], rows[-1] | changed])
        assert [check.passed for check in checks] == [k != failing for k in range(5)]


@pytest.mark.parametrize(
    ("capacity", "slope", "passed"),
    [((4, 20, 52), 16.0, [True, True]), ((9, 9, 9), 0.0, [False, False]), ((4, 40, 44), 11.71, [True, False])],
)
def test_the_verdict_on_training(capacity, slope, passed):
    checks = mha_capacity._learnt(dict(zip((1, 2, 4), capacity, strict=True)), True)
    assert checks[0].ours == pytest.approx(slope, abs=0.01)
    assert [check.passed for check in checks] == passed


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        mha_capacity.run("gpu", 0)
