"""LZ78 and LZW against dictionaries of plain Python, and back again."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.errors import SymbolTypeError
from palimpsest.models.code_length import count_table_bits, sequence_complexity, storage_cost
from palimpsest.models.lempel_ziv import LZ78, LZW

sequences = st.one_of(st.text("ab", max_size=60), st.text("abcdef", max_size=60), st.lists(st.integers(0, 3), max_size=60))


def naive_78(sequence) -> list[tuple]:
    """The phrases themselves: the longest known one and one symbol more."""
    phrases, known, begin = [], set(), 0
    while begin < len(sequence):
        end = begin + 1
        while end < len(sequence) and tuple(sequence[begin:end]) in known:
            end += 1
        phrases.append(tuple(sequence[begin:end]))
        known.add(phrases[-1])
        begin = end
    return phrases


def naive_lzw(sequence) -> list[tuple]:
    phrases, known, begin = [], {(symbol,) for symbol in sequence}, 0
    while begin < len(sequence):
        end = begin + 1
        while end < len(sequence) and tuple(sequence[begin : end + 1]) in known:
            end += 1
        phrases.append(tuple(sequence[begin:end]))
        known.add(tuple(sequence[begin : end + 1]))
        begin = end
    return phrases


@pytest.mark.parametrize("coder", [LZ78(), LZW()], ids=["LZ78", "LZW"])
@given(sequence=sequences)
def test_what_is_encoded_is_decoded(coder, sequence):
    assert coder.decode(coder.encode(sequence)) == sequence


@pytest.mark.parametrize("coder", [LZ78(), LZW()], ids=["LZ78", "LZW"])
def test_a_repeated_symbol_runs_ahead_of_its_own_entry(coder):
    for n in range(40):
        assert coder.decode(coder.encode("a" * n)) == "a" * n


@pytest.mark.parametrize(("coder", "naive"), [(LZ78(), naive_78), (LZW(), naive_lzw)], ids=["LZ78", "LZW"])
@given(sequence=sequences)
def test_the_phrases_are_those_of_the_definition(coder, naive, sequence):
    phrases, alphabet = naive(sequence), len(set(sequence))
    lengths = coder.code_lengths(sequence)
    counts = np.array(list(Counter(phrases).values()))
    assert lengths.parse_length == len(phrases)
    assert lengths.symbols == len(sequence)
    assert lengths.complexity == pytest.approx(sequence_complexity(counts))
    assert lengths.storage == pytest.approx(storage_cost(counts))
    assert lengths.resolution == 0
    if isinstance(coder, LZ78):
        assert lengths.entries == len(set(phrases))
        new = [phrase not in phrases[:j] for j, phrase in enumerate(phrases)]
        total = sum(math.log2(j + 1) + fresh * math.log2(alphabet) for j, fresh in enumerate(new))
    else:
        assert lengths.entries == alphabet + max(len(phrases) - 1, 0)
        total = sum(math.log2(alphabet + j) for j in range(len(phrases)))
    assert lengths.total == pytest.approx(total)


def test_measures_of_nothing_are_zero():
    for coder in (LZ78(), LZW()):
        lengths = coder.code_lengths("")
        assert lengths.to_dict() == dict.fromkeys(lengths.to_dict(), 0)


def test_a_list_in_a_sequence_is_no_symbol():
    with pytest.raises(SymbolTypeError, match="list"):
        LZ78().encode(["a", ["b"]])


@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_complexity_and_storage_are_sums_over_the_parse(counts):
    total = sum(counts)
    assert sequence_complexity(np.array(counts)) == pytest.approx(sum(-math.log2(c / total) for c in counts for _ in range(c)))
    assert storage_cost(np.array(counts)) == pytest.approx(sum(-math.log2(c / total) for c in counts if c))


@pytest.mark.parametrize("kinds", [0, 1, 2, 5])
@pytest.mark.parametrize("total", [0, 1, 7])
def test_the_table_of_counts_costs_the_log_of_their_number(total, kinds):
    ways = math.comb(total + kinds - 1, kinds - 1) if kinds else 1
    assert count_table_bits(total, kinds) == pytest.approx(math.log2(ways), abs=1e-9)
