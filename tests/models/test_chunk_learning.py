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
from palimpsest.models.chunk_evidence import Evidence, added, observe, renumbered
from palimpsest.models.chunk_learning import abstraction_candidates, chi_square, chunk_candidates
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
    assert chunk_candidates(evidence, 6, 0.05)[0].size == 0


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
@given(seed=seeds, few=st.booleans(), alpha=st.sampled_from([None, 0.5, 0.05]))
def test_the_join_finds_what_all_pairs_of_units_would(seed, few, alpha):
    dictionary, parsed, evidence = made(seed)
    n, units = len(dictionary), parsed.units.tolist()
    least, most, min_count = (2, 4, 3) if few else (4, 49, 6)
    at, above = dictionary.abstractions()
    kinds = [set(above[at[unit] : at[unit + 1]].tolist()) for unit in range(n)]
    steps = list(pairwise(units))

    def together(left: int, right: int) -> list[int]:
        """Where an instance of `left` is followed by one of `right`."""
        return [place for place, (a, b) in enumerate(steps) if left in kinds[a] and right in kinds[b]]

    def counts(left: int, right: int) -> bool:
        both = len(together(left, right))
        if alpha is None or both < min_count:
            return alpha is None and both > 0
        p_left, p_right = (sum(kind in kinds[unit] for unit in units) / len(units) for kind in (left, right))
        lefts, rights = sum(left in kinds[a] for a, _ in steps), sum(right in kinds[b] for _, b in steps)
        observed = [both, lefts - both, rights - both, len(steps) - lefts - rights + both]
        shares = np.array([p_left * p_right, p_left * (1 - p_right), (1 - p_left) * p_right, (1 - p_left) * (1 - p_right)])
        return bool((shares > 0).all()) and stats.chisquare(observed, shares / shares.sum() * len(steps), ddof=1).pvalue < alpha

    ends = [unit for unit in range(n) if unit in units]
    after = {pre: [c for c in range(n) if counts(pre, c)] for pre in ends}
    before = {post: [c for c in range(n) if counts(c, post)] for post in ends}
    expected = {}
    for pre in ends:
        for post in ends:
            between = [c for c in after[pre] if c in before[post]]
            places = [place for c in between for place in together(pre, c)]
            if least <= len(between) <= most and len(places) > min_count:
                expected[pre, post] = (tuple(between), len(places), min(places))
    found = abstraction_candidates(dictionary, evidence, least, most, min_count, alpha)
    assert {(pre, post): members for pre, post, members in found} == {pair: members for pair, (members, _, _) in expected.items()}
    keys = [(-expected[pre, post][1], expected[pre, post][2], pre, post) for pre, post, _ in found]
    assert keys == sorted(keys)
