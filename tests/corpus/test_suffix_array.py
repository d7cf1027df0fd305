"""All builders against the definition and against prefix doubling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.corpus.suffix_array import MAX_TOKENS, choose_builder, suffix_array
from palimpsest.errors import InputError

BUILDERS = ("two-stage", "divsufsort", "sais")


def by_definition(tokens: np.ndarray) -> list[int]:
    values = tokens.tolist()
    return sorted(range(len(values)), key=lambda start: values[start:])


def by_prefix_doubling(tokens: np.ndarray) -> np.ndarray:
    """Manber & Myers: ranks of 2h tokens from ranks of h tokens."""
    ranks = np.unique(tokens, return_inverse=True)[1].astype(np.int64)
    step = 1
    while True:
        second = np.full(ranks.size, -1)
        second[: max(ranks.size - step, 0)] = ranks[step:]
        order = np.lexsort((second, ranks))
        changed = (np.diff(ranks[order]) != 0) | (np.diff(second[order]) != 0)
        ranks[order] = np.concatenate([[0], np.cumsum(changed)])
        if ranks.max() == ranks.size - 1:
            return order
        step *= 2


def test_the_reference_is_right() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        tokens = rng.integers(0, 3, rng.integers(1, 40)).astype(np.uint16)
        assert by_prefix_doubling(tokens).tolist() == by_definition(tokens)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.sampled_from(
        [(np.uint8, [0, 1, 2, 254, 255]), (np.uint16, [0, 1, 255, 256, 65535]), (np.uint32, [0, 1, 65536, 1 << 24, (1 << 32) - 1])]
    ),
)
@settings(max_examples=300, deadline=None)
def test_builders_agree_with_the_definition(symbols: list[int], kind: tuple[type, list[int]]) -> None:
    dtype, alphabet = kind
    tokens = np.array([alphabet[s] for s in symbols], dtype)
    top = max((alphabet[s] for s in symbols if s < 4), default=0)
    expected = by_definition(tokens)
    for builder in BUILDERS:
        assert suffix_array(tokens, top, builder).tolist() == expected, builder


@pytest.mark.parametrize("builder", BUILDERS)
def test_repeats_of_every_kind(repeats, builder: str) -> None:
    tokens = repeats(20_000)
    top = int(tokens[tokens < 65535].max())
    assert np.array_equal(suffix_array(tokens, top, builder), by_prefix_doubling(tokens))


def test_wide_alphabets() -> None:
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, (1 << 32) - 1, 5000).astype(np.uint32)  # ids that no table could hold
    tokens[::50] = (1 << 32) - 1
    for builder in BUILDERS:
        assert np.array_equal(suffix_array(tokens, int(tokens[tokens < (1 << 32) - 1].max()), builder), by_prefix_doubling(tokens))


def test_one_token_and_none() -> None:
    for builder in BUILDERS:
        assert suffix_array(np.array([9], np.uint16), 9, builder).tolist() == [0]
        assert suffix_array(np.empty(0, np.uint16), 0, builder).size == 0


def test_the_choice_of_a_builder() -> None:
    assert choose_builder("auto", 1_000_000, 50_000) == "divsufsort"
    assert choose_builder("auto", 1 << 20, 50_000) == choose_builder("auto", MAX_TOKENS, 50_000) == "two-stage"
    assert choose_builder("auto", 1 << 20, 50_000, lean=True) == "divsufsort"
    assert choose_builder("auto", 1 << 30, 50_000, lean=True) == "sais"  # 2³¹ bytes no longer fit
    assert choose_builder("auto", 1 << 30, 200, lean=True) == "divsufsort"
    assert choose_builder("sais", 10, 5) == "sais"
    assert choose_builder("external", 1 << 30, 50_000) == "external"
    with pytest.raises(InputError, match="'external' sorts nothing in memory"):
        suffix_array(np.zeros(3, np.uint8), 0, "external")
    with pytest.raises(InputError, match="quick"):
        choose_builder("quick", 10, 5)
    with pytest.raises(InputError, match="shards"):
        choose_builder("auto", MAX_TOKENS + 1, 5)
    with pytest.raises(InputError, match="sais"):
        choose_builder("divsufsort", 1 << 30, 50_000)
