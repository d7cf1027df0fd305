"""The claim check of training orders: its smallest scale, its texts, and its verdict on figures that are known."""

from __future__ import annotations

import json

import pytest
import torch

from palimpsest.errors import InputError
from palimpsest.experiments import order_effects


@pytest.fixture(scope="module")
def smoke():
    return order_effects.run("smoke", 0)


def test_smoke_meets_the_reference_and_decides_nothing_else(smoke):
    assert smoke.passed
    assert [check.what for check in smoke.checks if check.threshold is not None] == ["greatest error for the reference order"]
    orders = [row for row in smoke.rows if row["kind"] == "order"]
    assert len(orders) == 2 * (1 + 2 * 3)
    assert [row["position"] for row in smoke.rows if row["kind"] == "position"] == [0, 1, 2]
    assert [curve.id for curve in smoke.curves] == ["order-effects-test", "order-effects-positions"]
    assert json.loads(json.dumps(smoke.to_dict(), allow_nan=False))["passed"] is True
    assert order_effects.run("smoke", 0).rows == smoke.rows


def test_batches_and_tests_share_no_place():
    batches, test, warm = order_effects.texts(order_effects.CPU, 0)
    assert len(batches) == 10
    assert {tuple(batch.shape) for batch in (*batches, *warm)} == {(8, 33)}
    assert test.shape == (32, 33)
    trained = {tuple(row.tolist()) for batch in batches for row in batch}
    assert len(trained) == 80
    assert not trained & {tuple(row.tolist()) for row in test}


def test_the_model_cannot_see_what_follows():
    torch.manual_seed(0)
    model = order_effects.ByteLM(8, 6).double()
    ids = torch.randint(256, (2, 6))
    changed = ids.clone()
    changed[:, 4:] = 7
    torch.testing.assert_close(model(ids)[:, :4], model(changed)[:, :4])
    assert not torch.allclose(model(ids)[:, 4:], model(changed)[:, 4:])
    assert sum(p.numel() for p in order_effects.ByteLM(32, 32).parameters()) == 25888


def rows(first: float, second: float, zero: float, tests: list[float]) -> list[dict]:
    """Three orders whose true test losses are 1, 2 and 3, and 0 in the reference."""
    made = []
    for number, test in enumerate(tests):
        shared = {"order": number, "true_test": number + 1.0, "own": [1.0, 2.0], "true_own": [1.0, 2.5]}
        away = {("reference", ""): 2.0}
        away |= {
            (mode, space): value
            for mode, value in (("zero", zero), ("first", first), ("second", second))
            for space in ("gradient", "update")
        }
        made += [shared | {"mode": m, "space": s, "away": a, "test": 0.0 if m == "reference" else test} for (m, s), a in away.items()]
    return made


@pytest.mark.parametrize(
    ("figures", "failing"),
    [
        ((0.19, 0.1, 0.5, [1, 2, 3]), []),
        ((0.21, 0.1, 0.5, [1, 2, 3]), ["first order: distance from the truth"]),
        ((0.19, 0.19, 0.19, [1, 2, 3]), ["second order: distance from the truth", "zero order: distance from the truth"]),
        ((0.19, 0.1, 0.5, [1, 2.3, 2.2]), ["first order: Spearman of test losses"]),
        ((0.19, 0.1, 0.5, [2, 3, 4]), ["first order: error of the test loss"]),
        ((0.19, 0.1, 0.5, [1, 1, 1]), ["first order: Spearman of test losses", "first order: error of the test loss"]),
    ],
)
def test_the_verdict_on_orders(figures, failing):
    made = rows(*figures)
    assert [check.what for check in order_effects._ends(made) + order_effects._losses(made) if not check.passed] == failing


@pytest.mark.parametrize(("own", "passed"), [((3, 2, 1), [True, True]), ((1, 2, 3), [False, False]), ((3, 1, 2.9), [False, True])])
def test_the_verdict_on_positions(own, passed):
    placed = [{"batch": 4, "position": k, "own": value, "true_own": 3.0 - k} for k, value in enumerate(own)]
    assert [check.passed for check in order_effects._positions(placed)[:2]] == passed


def test_other_scales_are_refused():
    with pytest.raises(InputError, match="'gpu'"):
        order_effects.run("gpu", 0)
