"""Rules in text: against slow definitions on random strings, and the cases that the detector is known by."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.audit.templating import huffman_code_length, period, shannon_code_length, step, units


def slow_period(text):
    return next((q for q in range(1, len(text) // 2 + 1) if all(text[i] == text[i - q] for i in range(q, len(text)))), None)


@given(st.text("ab ", max_size=14))
def test_period_is_the_shortest_that_fits_twice(text):
    assert period(text) == slow_period(text)


@given(st.text("abc1", min_size=1, max_size=4), st.integers(2, 5), st.integers(0, 3))
def test_what_is_repeated_is_found_also_when_it_is_cut(unit, times, cut):
    text = unit * times + unit[:cut]
    found = period(text)
    assert found is not None
    assert found <= len(unit)


def slow_step(text):
    """The definition, period by period and class by class, with everything written out."""
    cut = units(text)
    if len(cut) > 4:
        cut = cut[1:-1]
    if len(cut) < 3:
        return None
    for q in range(1, len(cut)):
        if q > 1 and q > len(cut) // 2:
            break
        moves = []
        for start in range(q):
            members = [cut[i] for i in range(start, len(cut), q)]
            if len({isinstance(member, int) for member in members}) == 2:
                break
            if isinstance(members[0], str):
                if len(set(members)) > 1:
                    break
                continue
            differences = [b - a for a, b in pairwise(members)]
            if len(set(differences)) > 1:
                break
            if len(members) >= 3 and differences[0] != 0:
                moves.append(differences[0])
        else:
            if moves:
                return moves[0]
    return None


@given(st.lists(st.sampled_from(["1", "2", "3", "4", "6", "9", "a", "b", "0x2", "0x3"]), max_size=9).map(" ".join))
def test_step_is_what_the_definition_says(text):
    assert step(text) == slow_step(text)


@given(st.integers(-5, 5), st.integers(0, 50), st.integers(5, 9), st.sampled_from(["", "item ", "a b "]))
def test_a_counter_counts_and_a_standing_one_does_not(by, first, rounds, word):
    numbers = [first + 60 + k * by for k in range(rounds)]
    text = " ".join(f"{word}{number}" for number in numbers)
    assert step(text) == (by or None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 2 3 4", 1),
        ("0x01 0x02 0x03 0x04", 1),
        ("0x0e, 0x0f, 0x10, 0x11,", 1),  # beside punctuation; only hexadecimal counting makes these consecutive
        ("0x39 0x3a 0x3b 0x3c 0x", 1),  # cut inside the last literal
        ("0x01 0x02", None),  # two numbers make no progression
        ("5 4 3", -1),
        ("1 2 4", None),
        ("1 3 4", None),  # the second difference is -1: the published code takes it for 0
        ("1 2", None),
        ("7 7 7 7", None),
        ("a1 b2 c3", None),
        ("A.1 , A.2 , A.3 , A.4 , A.5", 1),
        ("1 9 2 9 3 9 4 9", 1),
        ("1 9 1 7", None),  # two members of a class always have a difference
        ("2 1 2 2 2 3 2 4 2 5", 1),
        ("one 1 two 2 three 3 four 4", None),
        ("In the beginning was the word, and the word was written down.", None),
        ("", None),
        ("9" * 5000 + " 1 2 3", None),
        (" ".join(["99 1"] + [str(k) for k in range(2, 7)] + ["8"]), 1),  # both ends may be cut
    ],
)
def test_steps_of_known_texts(text, expected):
    assert step(text) == expected


def test_units_of_a_text():
    assert units("item 0x0A; a7\n\t12.5") == ["item", 10, ";", "a", 7, 12, ".", 5]
    assert units("0X1F 0x") == [31, "0x"]
    assert units("x0x1 0x1g") == ["x", 0, "x", 1, 0, "x", 1, "g"]  # no literals


def test_prose_has_no_rule_and_ababab_has():
    prose = "A palimpsest is a page that still shows what stood there before."
    assert (period(prose), step(prose)) == (None, None)
    assert (period("ababab"), step("ababab")) == (2, None)


@given(st.text("abcdefgh", min_size=1, max_size=40))
def test_huffman_is_the_shortest_prefix_code_and_shannon_is_within_a_bit_of_the_entropy(text):
    counts = Counter(text)
    entropy = -sum(c / len(text) * math.log2(c / len(text)) for c in counts.values())
    huffman, shannon = huffman_code_length(text), shannon_code_length(text)
    assert entropy - 1e-9 <= huffman <= shannon + 1e-9
    assert shannon < entropy + 1
    heap = [(count, place, {symbol: 0}) for place, (symbol, count) in enumerate(sorted(counts.items()))]
    heapq.heapify(heap)
    place = len(heap)
    while len(heap) > 1:  # the tree itself, with the depth of every symbol
        (a, _, left), (b, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (a + b, place, {symbol: depth + 1 for symbol, depth in (left | right).items()}))
        place += 1
    assert huffman == pytest.approx(sum(counts[symbol] * depth for symbol, depth in heap[0][2].items()) / len(text))


@given(st.integers(1, 6).flatmap(lambda bits: st.permutations([chr(97 + k) for k in range(2**bits)])))
def test_equally_frequent_characters_cost_their_logarithm(characters):
    text = "".join(characters)
    assert shannon_code_length(text) == huffman_code_length(text) == math.log2(len(text))


def test_code_lengths_of_nothing():
    assert shannon_code_length("") == huffman_code_length("") == 0.0
