"""The benchmark generator: what it draws from, and that the sequence is made of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.errors import InputError
from palimpsest.models.chunk_parse import expand, parse
from palimpsest.models.hierarchical_sequence import hierarchical_sequence


@settings(max_examples=40)
@given(alphabet=st.integers(2, 10), depth=st.integers(0, 12), length=st.integers(0, 200), p=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_the_inventory_is_well_formed_and_the_sequence_reproducible(alphabet, depth, length, p, seed):
    made = hierarchical_sequence(alphabet, depth, length, p, seed)
    again = hierarchical_sequence(alphabet, depth, length, p, seed)
    assert np.array_equal(made.symbols, again.symbols)
    assert made.dictionary.contents == again.dictionary.contents
    assert made.symbols.size == length
    assert made.symbols.size == 0 or 0 <= made.symbols.min() <= made.symbols.max() < alphabet
    dictionary = made.dictionary
    assert alphabet <= len(dictionary) <= alphabet + depth
    assert made.probabilities.sum() == pytest.approx(1)
    for unit in range(alphabet, len(dictionary)):
        if dictionary.is_variable(unit):
            assert made.probabilities[unit] == 0
            assert made.member_probabilities[unit].sum() == pytest.approx(1)
            assert 2 <= len(dictionary.members[unit]) <= 5
            assert not any(dictionary.is_variable(member) for member in dictionary.members[unit])
        else:
            assert 2 <= len(dictionary.parts[unit]) <= 5
            assert dictionary.contents[unit][0] < alphabet
            assert dictionary.contents[unit][-1] < alphabet
    assert made.bits >= 0


def test_only_variables_or_only_chunks():
    assert hierarchical_sequence(10, 6, 10, 1.0, 0).dictionary.variables
    only_chunks = hierarchical_sequence(10, 6, 10, 0.0, 0).dictionary
    assert (len(only_chunks.variables), len(only_chunks)) == (0, 16)


def test_the_hidden_inventory_parses_its_own_sequence():
    """Long chunks are found again by the parser; the sequence costs about what its draws cost."""
    made = hierarchical_sequence(10, 8, 5000, 0.5, 7)
    parsed = parse(made.dictionary, made.symbols, np.argsort(np.argsort(-made.probabilities)))
    assert expand(made.dictionary, parsed.units, parsed.members) == made.symbols.tolist()
    found = np.bincount(parsed.units, minlength=len(made.dictionary)) / len(parsed)
    assert np.abs(found - made.probabilities).sum() < 0.5
    entropy = -(made.probabilities[made.probabilities > 0] * np.log2(made.probabilities[made.probabilities > 0])).sum()
    assert made.bits >= 0.8 * entropy * len(parsed)


@pytest.mark.parametrize("setting", [{"alphabet": 1}, {"depth": -1}, {"length": -1}, {"p_variable": 1.5}, {"p_variable": float("nan")}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(InputError, match=next(iter(setting))):
        hierarchical_sequence(**setting)
