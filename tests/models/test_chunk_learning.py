"""Counting, the test for independence, and the join behind abstraction, against plain loops and scipy."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from palimpsest.models.chunk_dictionary import Dictionary
from palimpsest.models.chunk_learning import (
    Evidence,
    abstraction_candidates,
    added,
    chi_square,
    chunk_candidates,
    dependent,
    observe,
    renumbered,
)
from palimpsest.models.chunk_parse import Parse, parse

seeds = st.integers(0, 10**6)


def made(seed: int, length: int = 150) -> tuple[Dictionary, Parse, Evidence]:
    """Chunks and nested variables at random, a random sequence parsed with them, and its counts."""
    rng = np.random.default_rng(seed)
    dictionary = Dictionary(5)
    for _ in range(6):
        n = len(dictionary)
        dictionary.add_variable(rng.choice(n, 3, replace=False).tolist())
        dictionary.add_chunk((int(rng.integers(5)), int(rng.integers(n)), int(rng.integers(5))))
    parsed = parse(dictionary, rng.integers(0, 5, length), np.arange(len(dictionary)))
    return dictionary, parsed, observe(dictionary, parsed)


def transitions(evidence: Evidence) -> dict[tuple[int, int], tuple[float, int]]:
    columns = (evidence.left, evidence.right, evidence.together, evidence.first)
    return {(a, b): (t, f) for a, b, t, f in zip(*(column.tolist() for column in columns), strict=True)}


@given(seed=seeds)
def test_a_parse_is_counted(seed):
    dictionary, parsed, evidence = made(seed)
    units = parsed.units.tolist()
    assert evidence.counts.tolist() == [units.count(unit) for unit in range(len(dictionary))]
    lengths = np.diff(parsed.starts)
    assert evidence.covered.tolist() == [lengths[parsed.units == unit].sum() for unit in range(len(dictionary))]
    pairs = list(pairwise(units))
    assert transitions(evidence) == {pair: (n, pairs.index(pair)) for pair, n in Counter(pairs).items()}
    bound = Counter(zip(parsed.variables.tolist(), parsed.members.tolist(), strict=True))
    assert evidence.bound.tolist() == [bound[v, m] for v in dictionary.variables for m in dictionary.members[v]]
    # conservation: a unit is followed as often as it occurs, but for the last
    followed = np.bincount(evidence.left, evidence.together, minlength=len(dictionary))
    assert (followed <= evidence.counts).all()
    assert followed.sum() == max(len(parsed) - 1, 0)


@given(seed=seeds)
def test_counts_move_with_their_units_and_decay(seed):
    dictionary, _, evidence = made(seed)
    rest, numbers = dictionary.kept(evidence.counts > 1)
    moved = renumbered(evidence, dictionary, rest, numbers)
    for unit, number in enumerate(numbers.tolist()):
        if number >= 0:
            assert (moved.counts[number], moved.covered[number]) == (evidence.counts[unit], evidence.covered[unit])
    kept = {(numbers[a], numbers[b]): value for (a, b), value in transitions(evidence).items() if numbers[a] >= 0 and numbers[b] >= 0}
    assert transitions(moved) == kept
    bound = dict(zip([(v, m) for v in dictionary.variables for m in dictionary.members[v]], evidence.bound.tolist(), strict=True))
    expected = {(numbers[v], numbers[m]): n for (v, m), n in bound.items() if numbers[v] >= 0}
    assert moved.bound.tolist() == [expected[v, m] for v in rest.variables for m in rest.members[v]]
    twice = added(evidence, 0.75, evidence)
    assert twice.counts.tolist() == (1.75 * evidence.counts).tolist()
    assert transitions(twice) == {pair: (1.75 * t, f) for pair, (t, f) in transitions(evidence).items()}


@given(
    table=st.lists(st.integers(0, 60), min_size=4, max_size=4).filter(any),
    p_left=st.floats(0.01, 0.99),
    p_right=st.floats(0.01, 0.99),
)
def test_chi_square_is_that_of_scipy(table, p_left, p_right):
    shares = np.array([p_left * p_right, p_left * (1 - p_right), (1 - p_left) * p_right, (1 - p_left) * (1 - p_right)])
    expected = shares / shares.sum() * sum(table)
    reference = stats.chisquare(table, expected, ddof=1)
    ours = chi_square(*np.array(table)[:, None], np.array([p_left]), np.array([p_right]))[0]
    assert ours == pytest.approx(reference.statistic, rel=1e-9)
    assert np.exp(-ours / 2) == pytest.approx(reference.pvalue, rel=1e-7, abs=1e-300)


def test_a_marginal_of_one_leaves_nothing_to_test():
    assert np.isnan(chi_square(*np.array([[9], [0], [0], [0]]), np.array([1.0]), np.array([1.0]))[0])
    dictionary = Dictionary(1)
    evidence = observe(dictionary, parse(dictionary, np.zeros(50, np.int64), np.arange(1)))
    assert transitions(evidence) == {(0, 0): (49, 0)}
    assert not dependent(evidence, 6, 0.05).any()


@settings(max_examples=60)
@given(seed=seeds, alpha=st.sampled_from([0.5, 0.05]), min_count=st.integers(1, 8))
def test_the_candidates_are_the_dependent_pairs_by_benefit(seed, alpha, min_count):
    _, parsed, evidence = made(seed)
    units, lengths = parsed.units.tolist(), np.diff(parsed.starts)
    pairs, total = Counter(pairwise(units)), len(units)
    expected = []
    for (a, b), both in pairs.items():
        left_only = sum(n for (x, y), n in pairs.items() if x == a and y != b)
        right_only = sum(n for (x, y), n in pairs.items() if x != a and y == b)
        neither = sum(n for (x, y), n in pairs.items() if x != a and y != b)
        p_a, p_b = units.count(a) / total, units.count(b) / total
        shares = np.array([p_a * p_b, p_a * (1 - p_b), (1 - p_a) * p_b, (1 - p_a) * (1 - p_b)])
        if both < min_count or not (shares > 0).all():
            continue
        observed = [both, left_only, right_only, neither]
        if stats.chisquare(observed, shares / shares.sum() * sum(observed), ddof=1).pvalue < alpha:
            p = both / total
            covered = lengths[parsed.units == a].mean() + lengths[parsed.units == b].mean()
            volume = parsed.starts[-1] / total
            expected.append((-(covered * p / volume) / (-p * math.log(p)), -both, list(pairwise(units)).index((a, b)), a, b))
    left, right, p, benefit = chunk_candidates(evidence, min_count, alpha)
    found = sorted(zip(left.tolist(), right.tolist(), strict=True))
    assert found == sorted((a, b) for *_, a, b in expected)
    values = {(a, b): -value for value, _, _, a, b in expected}
    assert benefit == pytest.approx([values[pair] for pair in zip(left.tolist(), right.tolist(), strict=True)])
    assert (np.diff(benefit) <= 0).all()
    assert p == pytest.approx([pairs[pair] / total for pair in zip(left.tolist(), right.tolist(), strict=True)])


@settings(max_examples=60)
@given(seed=seeds, few=st.booleans(), strict=st.booleans())
def test_the_join_finds_what_all_pairs_of_units_would(seed, few, strict):
    dictionary, _, evidence = made(seed)
    allowed = dependent(evidence, 1, 0.5) if strict else np.ones(evidence.left.size, bool)
    at, above = dictionary.abstractions()
    follows: dict[tuple[int, int], list[tuple[float, int]]] = {}
    before: set[tuple[int, int]] = set()
    for (a, b), value, counts in zip(transitions(evidence), transitions(evidence).values(), allowed, strict=True):
        if counts:
            for kind in above[at[b] : at[b + 1]].tolist():
                follows.setdefault((a, kind), []).append(value)
            before |= {(kind, b) for kind in above[at[a] : at[a + 1]].tolist()}
    least, most, total = (2, 4, 3) if few else (4, 49, 6)
    expected = {}
    for pre in range(len(dictionary)):
        for post in range(len(dictionary)):
            between = [c for c in range(len(dictionary)) if (pre, c) in follows and (c, post) in before]
            times = sum(t for c in between for t, _ in follows[pre, c])
            if least <= len(between) <= most and times > total:
                expected[pre, post] = (tuple(between), times, min(f for c in between for _, f in follows[pre, c]))
    found = abstraction_candidates(dictionary, evidence, allowed, least, most, total)
    assert {(pre, post): units for pre, post, units in found} == {pair: units for pair, (units, _, _) in expected.items()}
    keys = [(-expected[pre, post][1], expected[pre, post][2], pre, post) for pre, post, _ in found]
    assert keys == sorted(keys)
    assert not any(dictionary.is_variable(end) for pre, post, _ in found for end in (pre, post))
