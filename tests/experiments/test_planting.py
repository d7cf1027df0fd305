"""Planting: what must be in the stream, what must not have moved, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.errors import InputError
from palimpsest.experiments.planting import PlantSpec, assign, plant

EOS = 0


def occurrences(rows: np.ndarray, text: list[int]) -> list[tuple[int, int]]:
    """Every (row, position) at which `text` stands, by looking."""
    return [(i, t) for i, row in enumerate(rows.tolist()) for t in range(len(row) - len(text) + 1) if row[t : t + len(text)] == list(text)]


def base(n: int, time: int, seed: int, eos_share: float = 0.1) -> np.ndarray:
    """Rows of ids 1..49 and EOS; planted texts use ids from 50 on, so that nothing stands there by chance."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(1, 50, (n, time)).astype(np.uint16)
    rows[rng.random((n, time)) < eos_share] = EOS
    return rows


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, list[PlantSpec], int, int]:
    time, seed = draw(st.integers(4, 20)), draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    specs, fresh = [], 50
    for d in range(draw(st.integers(1, 3))):
        lengths = draw(st.lists(st.integers(1, time), min_size=3, max_size=6))
        texts = []
        for length in lengths:
            texts.append([fresh, *rng.integers(200, 300, length - 1).tolist()])  # its first token is its own
            fresh += 1
        window = draw(st.sampled_from([(0.0, 1.0), (0.0, 0.5), (0.5, 1.0), (0.25, 0.75)]))
        specs.append(PlantSpec(f"d{d}", texts, copies=(0, 1, 5), window=window, seed=seed))
    return base(240, time, seed, draw(st.sampled_from([0.0, 0.1, 0.5]))), specs, draw(st.sampled_from([1, 4, 7])), seed


@settings(max_examples=40, deadline=None)
@given(cases())
def test_every_text_stands_as_often_as_the_ledger_says_and_nothing_else_has_moved(case) -> None:
    rows, specs, batch_size, seed = case
    before = rows.copy()
    planted, ledger = plant(rows, specs, batch_size=batch_size, eos_id=EOS, seed=seed)
    assert np.array_equal(rows, before)
    assert planted.shape == rows.shape
    assert planted.dtype == rows.dtype
    assert np.array_equal(ledger.replay(rows), planted)
    assert ledger.insertions["idx"].is_unique().all()
    untouched = np.setdiff1d(np.arange(len(rows)), ledger.insertions["idx"].to_numpy())
    assert np.array_equal(planted[untouched], rows[untouched])
    for text in ledger.texts.iter_rows(named=True):
        mine = ledger.insertions.filter(ledger.insertions["id"] == text["id"]).to_dicts()
        assert len(mine) == text["copies"]
        assert occurrences(planted, text["ids"]) == sorted((r["idx"], r["offset"]) for r in mine)
        assert len({r["step"] for r in mine}) == len(mine)
        for r in mine:
            assert r["step"] == r["idx"] // batch_size
            assert text["window_start"] * len(rows) <= r["idx"] < text["window_end"] * len(rows)
            assert r["slot"] == 0 or rows[r["idx"], r["slot"] - 1] == EOS
            row, end = planted[r["idx"]], r["offset"] + len(text["ids"])
            assert end == len(row) or row[end] == EOS
            # around the text stands what stood there before: left of the slot, and from the slot on
            left = rows[r["idx"]][r["slot"] - r["offset"] : r["slot"]]
            assert np.array_equal(row[: r["offset"]], left)
            right = row[end + 1 :]
            assert np.array_equal(right, rows[r["idx"]][r["slot"] : r["slot"] + len(right)])


def test_copies_are_spread_evenly_over_the_run_and_slots_over_the_boundaries() -> None:
    rows = np.full((4000, 6), 7)
    rows[:, 1] = rows[:, 3] = EOS
    _, ledger = plant(rows, [PlantSpec("x", [[50, 51], [52, 53]], copies=(1000,))], batch_size=1, eos_id=EOS)
    idx = ledger.insertions["idx"].to_numpy()
    assert np.histogram(idx, 4, (0, 4000))[0] == pytest.approx([500] * 4, abs=80)
    slots, counts = np.unique(ledger.insertions["slot"].to_numpy(), return_counts=True)
    assert slots.tolist() == [2, 4]
    assert counts == pytest.approx([1000, 1000], abs=120)
    assert ledger.insertions["offset"].n_unique() > 3


def test_a_text_as_long_as_a_row_fills_it() -> None:
    rows = base(20, 5, 0)
    planted, ledger = plant(rows, [PlantSpec("x", [[60, 61, 62, 63, 64]], copies=(4,))], batch_size=2, eos_id=EOS)
    assert sorted(ledger.insertions["idx"].to_list()) == np.flatnonzero((planted == [60, 61, 62, 63, 64]).all(axis=1)).tolist()


def test_seq_start_overwrites_the_start_of_the_row() -> None:
    rows = base(20, 6, 0)
    planted, ledger = plant(rows, [PlantSpec("x", [[60, 61]], copies=(3,))], batch_size=2, eos_id=EOS, mode="seq_start")
    for idx in ledger.insertions["idx"]:
        assert planted[idx].tolist() == [60, 61, EOS, *rows[idx, 3:].tolist()]
    assert np.array_equal(ledger.replay(rows), planted)


def test_levels_are_drawn_by_lot_in_the_numbers_asked_for() -> None:
    texts = [[50 + i] for i in range(12)]
    spec = PlantSpec("x", texts, copies=(0, 2, 9), per_level=(7, 4, 1))
    assert sorted(assign(spec).tolist()) == [0] * 7 + [2] * 4 + [9]
    drawn = {tuple(assign(PlantSpec("x", texts, copies=(0, 2, 9), per_level=(7, 4, 1), seed=s))) for s in range(5)}
    assert len(drawn) == 5
    assert np.bincount(assign(PlantSpec("x", texts, copies=(0, 1, 4)))).tolist() == [4, 4, 0, 0, 4]


def test_the_texts_and_levels_do_not_depend_on_where_they_are_planted() -> None:
    spec = PlantSpec("x", [[60 + i, 61, 62] for i in range(6)], copies=(0, 3))
    _, short = plant(base(50, 8, 1), [spec], batch_size=2, eos_id=EOS)
    _, long = plant(base(100, 8, 2), [spec], batch_size=2, eos_id=EOS)
    assert short.texts.equals(long.texts)


X = PlantSpec("x", [[60, 61]], copies=(3,))


@pytest.mark.parametrize(
    ("specs", "change", "message"),
    [
        ([], {}, "nothing to plant"),
        ([PlantSpec("x", [list(range(50, 57))])], {}, "7 tokens, a training sequence 6"),
        ([PlantSpec("x", [[60], [61]], copies=(11,))], {}, "22 copies"),
        ([PlantSpec("x", [[60]], copies=(6,), window=(0.5, 0.75))], {}, "6 copies"),
        ([PlantSpec("x", [[60]], copies=(6,))], {"batch_size": 4}, "only 5 steps"),
        ([PlantSpec("x", [[60, 61], [60, 61]], copies=(1,))], {}, "same text as x-0000"),
        ([X, X], {}, "same domain"),
        ([PlantSpec("x", [[1, 2, 3]], copies=(0,))], {}, "stands in the training text already, in sequence 5"),
        ([X], {"mode": "burst"}, "'burst'"),
    ],
)
def test_what_cannot_be_planted_is_refused(specs: list[PlantSpec], change: dict, message: str) -> None:
    rows = np.full((20, 6), 7)
    rows[5, 2:5] = [1, 2, 3]
    with pytest.raises(InputError, match=message):
        plant(rows, specs, **{"batch_size": 2, "eos_id": EOS, **change})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"texts": []}, "no text"),
        ({"texts": [[1], []]}, "empty one"),
        ({"copies": (0, -1)}, "copies"),
        ({"copies": ()}, "copies"),
        ({"per_level": (1, 1)}, "per_level"),
        ({"window": (0.5, 0.5)}, "window"),
        ({"window": (-0.1, 0.5)}, "window"),
        ({"window": (0.5, 1.1)}, "window"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(wrong: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PlantSpec(**{"domain": "x", "texts": [[1], [2], [3]], "copies": (0, 1), **wrong})
