"""The dictionary of a chunking model, and its parser against plain recursion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.models.chunk_dictionary import Dictionary
from palimpsest.models.chunk_parse import expand, parse


def random_dictionary(rng: np.random.Generator, n_atoms: int, steps: int) -> Dictionary:
    """Chunks, and variables over anything older, variables included."""
    dictionary = Dictionary(n_atoms)
    for _ in range(steps):
        n = len(dictionary)
        if rng.random() < 0.4:
            dictionary.add_variable(rng.choice(n, min(n, int(rng.integers(2, 5))), replace=False).tolist())
        else:
            parts = rng.integers(n, size=int(rng.integers(2, 4))).tolist()
            parts = [rng.integers(n_atoms), *parts, rng.integers(n_atoms)] if rng.random() < 0.5 else parts
            if not (dictionary.is_variable(parts[0]) or dictionary.is_variable(parts[-1])):
                dictionary.add_chunk(tuple(int(part) for part in parts))
    return dictionary


def naive_parse(dictionary: Dictionary, atoms: list[int], rank: list[int]):
    def match(unit: int, start: int) -> tuple[int, list]:
        """How many atoms the unit covers from `start`, 0 if it does not match, and its bindings."""
        if dictionary.is_variable(unit):
            fits = [(-match(m, start)[0], rank[m], m) for m in dictionary.members[unit] if match(m, start)[0]]
            if not fits:
                return 0, []
            covered, _, member = min(fits)
            return -covered, [(unit, member), *match(member, start)[1]]
        if unit < dictionary.n_atoms:
            return int(start < len(atoms) and atoms[start] == unit), []
        place, bindings = start, []
        for element in dictionary.contents[unit]:
            covered, inner = match(element, place)
            if not covered:
                return 0, []
            place += covered
            bindings += inner
        return place - start, bindings

    parsed, start = [], 0
    while start < len(atoms):
        fits = [(-match(u, start)[0], rank[u], u) for u in range(len(dictionary)) if not dictionary.is_variable(u) and match(u, start)[0]]
        covered, _, unit = min(fits, default=(-1, 0, -1))
        parsed.append((unit, start, match(unit, start)[1] if unit >= 0 else []))
        start -= covered
    return parsed


@settings(max_examples=150)
@given(seed=st.integers(0, 10**6), n_atoms=st.integers(1, 4), steps=st.integers(0, 12), length=st.integers(0, 30))
def test_the_parse_is_that_of_plain_recursion(seed, n_atoms, steps, length):
    rng = np.random.default_rng(seed)
    dictionary = random_dictionary(rng, n_atoms, steps)
    rank = rng.permutation(len(dictionary))
    atoms = rng.integers(-1 if seed % 3 == 0 else 0, n_atoms, length)
    parsed = parse(dictionary, atoms, rank)
    bindings = list(zip(parsed.variables.tolist(), parsed.members.tolist(), strict=True))
    found = [
        (unit, start, bindings[begin:end])
        for unit, start, begin, end in zip(
            parsed.units.tolist(), parsed.starts[:-1].tolist(), parsed.bindings_at[:-1], parsed.bindings_at[1:], strict=True
        )
    ]
    assert found == naive_parse(dictionary, atoms.tolist(), rank.tolist())
    assert parsed.starts[-1] == length
    assert expand(dictionary, parsed.units, parsed.members) == atoms.tolist()


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_windows_do_not_show(seed):
    rng = np.random.default_rng(seed)
    dictionary = random_dictionary(rng, 3, 10)
    rank, atoms = rng.permutation(len(dictionary)), rng.integers(0, 3, 200)
    whole = parse(dictionary, atoms, rank, window=1000)
    for window in (1, 7, 64):
        cut = parse(dictionary, atoms, rank, window=window)
        for column in ("units", "starts", "bindings_at", "variables", "members"):
            assert np.array_equal(getattr(cut, column), getattr(whole, column)), (window, column)


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_forgetting_what_is_not_used_leaves_the_parse_as_it_is(seed):
    rng = np.random.default_rng(seed)
    dictionary = random_dictionary(rng, 3, 14)
    rank, atoms = np.arange(len(dictionary)), rng.integers(0, 3, 40)
    parsed = parse(dictionary, atoms, rank)
    rest, numbers = dictionary.kept(np.bincount(parsed.units, minlength=len(dictionary)) > 0)
    again = parse(rest, atoms, np.arange(len(rest)))
    assert np.array_equal(again.units, numbers[parsed.units])
    assert np.array_equal(again.members, numbers[parsed.members])
    assert np.array_equal(np.sort(numbers[numbers >= 0]), np.arange(len(rest)))
    for unit, number in enumerate(numbers.tolist()):
        if number >= 0:
            assert rest.contents[number] == tuple(numbers[list(dictionary.contents[unit])].tolist())
            assert rest.members[number] == tuple(numbers[list(dictionary.members[unit])].tolist())
            assert not rest.parts[number] or rest.joined(rest.parts[number]) == rest.contents[number]


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_what_a_unit_is_an_instance_of(seed):
    dictionary = random_dictionary(np.random.default_rng(seed), 3, 12)

    def below(unit: int) -> set[int]:
        return {x for member in dictionary.members[unit] for x in {member} | below(member)}

    at, above = dictionary.abstractions()
    for unit in range(len(dictionary)):
        kinds = above[at[unit] : at[unit + 1]].tolist()
        assert kinds[0] == unit
        assert sorted(kinds[1:]) == [v for v in dictionary.variables if unit in below(v)]
    everything = list(range(len(dictionary)))
    assert dictionary.without_abstractions(everything) == [u for u in everything if not dictionary.is_variable(u)]
    for variable in dictionary.variables:
        alone = [variable, *(u for u in everything if u not in below(variable) and not dictionary.is_variable(u))]
        assert dictionary.without_abstractions(alone) == alone
        assert dictionary.add_variable(dictionary.members[variable][:2]) <= variable


def test_a_chunk_is_one_unit_whichever_way_it_is_joined():
    dictionary = Dictionary(3)
    left, right = dictionary.add_chunk((0, 1)), dictionary.add_chunk((1, 2))
    assert dictionary.add_chunk((left, 2)) == dictionary.add_chunk((0, right)) == 5
    assert dictionary.parts[5] == (left, 2)
    dictionary.drop_last(1)
    assert len(dictionary) == 5
    assert (0, 1, 2) not in dictionary
    assert dictionary.add_chunk((0, right)) == 5


def test_nothing_is_parsed_into_nothing():
    parsed = parse(Dictionary(0), np.empty(0, np.int64), np.empty(0, np.int64))
    assert len(parsed) == 0
    assert parsed.starts.tolist() == parsed.bindings_at.tolist() == [0]


@pytest.mark.parametrize("length", [1, 5, 4096, 9000])
def test_one_long_chunk(length):
    dictionary = Dictionary(2)
    chunk = dictionary.add_chunk(tuple([0] * 4999 + [1]))
    atoms = np.array(([0] * 4999 + [1]) * 2)[:length]
    parsed = parse(dictionary, atoms, np.arange(3))
    assert parsed.units.tolist() == ([chunk] if length >= 5000 else []) + [0] * (length if length < 5000 else length - 5000)
