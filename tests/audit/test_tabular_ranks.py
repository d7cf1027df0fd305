"""Rank tests and decoys: exact null distributions against enumeration, and what a decoy may be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from palimpsest.audit.tabular_decoys import Decoys
from palimpsest.audit.tabular_ranks import mean_rank_p, more_often, rank
from palimpsest.audit.tabular_table import Table
from palimpsest.errors import InputError


def test_the_distribution_of_the_mean_rank_is_that_of_all_outcomes():
    outcomes = [sum(ranks) for ranks in itertools.product(range(1, 5), repeat=3)]
    for total in range(3, 13):
        ranks = next(ranks for ranks in itertools.product(range(1, 5), repeat=3) if sum(ranks) == total)
        assert mean_rank_p(ranks, 3) == pytest.approx(np.mean([outcome <= total for outcome in outcomes]))
    for bad in ([], [0], [6]):
        with pytest.raises(InputError, match="no ranks"):
            mean_rank_p(bad, 4)


def test_equal_scores_share_their_places_and_ranks_are_uniform():
    rng = np.random.default_rng(0)
    scores = rng.integers(3, size=(4000, 5)).astype(float)  # many ties
    ranks = [rank(row[0], row[1:], rng) for row in scores]
    assert stats.chisquare(np.bincount(ranks, minlength=6)[1:]).pvalue > 0.001
    assert rank(5.0, [1.0, 2.0], rng) == 1
    assert rank(0.0, [1.0, 2.0], rng) == 3
    for truth, rivals in ((1.0, []), (float("nan"), [1.0]), (1.0, [float("nan")])):
        with pytest.raises(InputError, match="rank"):
            rank(truth, rivals, rng)


def test_more_often_is_the_binomial_tail_over_the_trials_that_differ():
    first, second = [True] * 7 + [False] * 2 + [True], [False] * 7 + [True] * 2 + [True]
    assert more_often(first, second) == pytest.approx(stats.binom.sf(6, 9, 0.5))
    assert more_often([True, False], [True, False]) == 1.0
    with pytest.raises(InputError, match="1 trials"):
        more_often([True], [True, False])


def table_of(n, seed=0):
    rng = np.random.default_rng(seed)
    rows = [f"{rng.integers(100, 1000)},{rng.integers(100, 1000)},{'ab'[int(rng.integers(2))]},{i % 3}" for i in range(n)]
    return Table.parse("u,v,w,k\n" + "\n".join(rows) + "\n", name="t")


def test_a_decoy_is_no_other_row_keeps_the_kept_cells_and_takes_none_of_the_shown_ones():
    table = table_of(200)
    decoys = Decoys(table, shown=5, seed=1)
    assert set(decoys.swapped) <= {0, 1, 2, 3}
    kept = [j for j in range(4) if j not in decoys.swapped and j not in decoys.redrawn]
    for row in (10, 150):
        made = decoys.of(row, 30)
        assert len(made) == 30
        assert made == decoys.of(row, 30)  # the same seed, the same decoys
        assert made[:10] == decoys.of(row, 10)
        shown = {tuple(table.cells[i][j] for j in decoys.swapped) for i in range(row - 5, row)}
        for text in made:
            cells = text.split(",")
            assert len(cells) == 4
            assert text == table.rows[row] or text not in table.rows
            assert [cells[j] for j in kept] == [table.cells[row][j] for j in kept]
            for j in decoys.redrawn:
                assert cells[j][:-1] == table.cells[row][j][:-1]
            donated = tuple(cells[j] for j in decoys.swapped)
            if donated in shown:  # another row may hold the same cells
                assert sum(tuple(row[j] for j in decoys.swapped) == donated for row in table.cells) > 1


def test_truth_and_decoys_cannot_be_told_apart_by_a_score_that_never_saw_the_table():
    """A fixed preference for some texts: the place of the true row is uniform over rows."""
    table = table_of(400, 7)
    decoys = Decoys(table, shown=5)
    places = []
    for row in range(10, 400, 3):
        score = [preference(text) for text in [table.rows[row], *decoys.of(row, 19)]]
        places.append(rank(score[0], score[1:], np.random.default_rng(row)))
    assert stats.kstest((np.array(places) - 0.5) / 20, "uniform").pvalue > 0.01


def preference(text):
    """Large numbers are liked, whoever holds them."""
    return float(sum(int(cell) if cell.isdigit() else ord(cell) for cell in text.split(",")))


def test_what_is_determined_stays_and_what_is_not_is_swapped():
    rng = np.random.default_rng(3)
    x = rng.integers(0, 100, 150)
    rows = [f"{a},{2 * a + 1},{rng.integers(0, 100)},{rng.integers(0, 100)}" for a in x]
    decoys = Decoys(Table.parse("a,b,c,d\n" + "\n".join(rows) + "\n", name="t"))
    assert decoys.determined[:2].min() > 0.9
    assert decoys.determined[2:].max() < 0.5
    assert decoys.swapped == (2, 3)


def test_two_names_of_one_thing_stay_together_also_in_a_small_table():
    rng = np.random.default_rng(0)
    grades = [("b", "7"), ("m", "2"), ("d", "11"), ("h", "5"), ("k", "3"), ("a", "9"), ("q", "1"), ("z", "14")]
    rows = [f"{rng.integers(1000, 9999)},{rng.integers(10, 99)},{a},{b}" for a, b in (grades[i] for i in rng.integers(8, size=70))]
    decoys = Decoys(Table.parse("u,v,grade,number\n" + "\n".join(rows) + "\n", name="t"))
    assert decoys.determined[2:].min() > 0.8
    assert decoys.swapped == (0, 1)
    pairs = set(grades)
    for row in (20, 60):
        assert all(tuple(text.split(",")[2:]) in pairs for text in decoys.of(row, 24))


def test_tables_without_decoys():
    same = Table.parse("a,b\n" + "1,2\n" * 20, name="t")
    with pytest.raises(InputError, match="equal"):
        _ = Decoys(same).swapped
    few = Table.parse("a,b\n" + "".join(f"{i},x\n" for i in range(12)), name="t")
    with pytest.raises(InputError, match="decoys"):
        Decoys(few, shown=10).enough([11], 49)


def test_last_digits_are_drawn_anew_only_where_they_are_uniform():
    rng = np.random.default_rng(5)
    rows = [f"{rng.integers(1000, 2000)},{10 * rng.integers(100, 200)},{i}" for i in range(300)]
    table = Table.parse("free,tens,i\n" + "\n".join(rows) + "\n", name="t")
    decoys = Decoys(table)
    assert decoys._has_free_digit(0)
    assert not decoys._has_free_digit(1)
