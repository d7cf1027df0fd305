"""The two-stage builder and its parts: any text, any number of threads, and no more memory than it says."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.corpus.alphabetic_code import LENGTH, alphabetic_code, window
from palimpsest.corpus.suffix_array import suffix_array
from palimpsest.corpus.two_stage import two_stage
from palimpsest.corpus.two_stage_groups import CHUNK, sort_keys
from palimpsest.corpus.two_stage_loops import find_peaks


def rising(values: list[int]) -> list[bool]:
    return [values[i:] < values[i + 1 :] for i in range(len(values))]


def codes(counts: np.ndarray) -> list[tuple[int, str]]:
    """Every token that occurs, with its code as a text of zeros and ones."""
    table = alphabetic_code(counts).tolist()
    return [(token, f"{table[token]:064b}"[: table[token] & 63]) for token in np.flatnonzero(counts).tolist()]


class TestTheCode:
    @given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=300))
    @settings(max_examples=100, deadline=None)
    def test_it_has_the_order_of_the_tokens_and_none_begins_another(self, counts: list[int]) -> None:
        counts[0] += 1
        found = [code for _, code in codes(np.array(counts))]
        assert all(a < b and not b.startswith(a) for a, b in pairwise(found))
        assert "1" in found[0]  # the end of the text is all zeros

    @pytest.mark.parametrize("kinds", [1, 2, 3, 60, 5000])
    def test_it_is_short(self, kinds: int) -> None:
        weights = [np.ones(kinds, np.int64), 1 << np.minimum(np.arange(kinds), 40), (1 << np.minimum(np.arange(kinds), 40))[::-1]]
        for counts in weights:
            lengths = np.array([len(code) for _, code in codes(counts)])
            least = max(1, int(counts.sum()) // (16 * kinds))
            shares = np.maximum(counts, least) / (np.maximum(counts, least).sum() + least)
            assert (lengths <= np.ceil(-np.log2(shares)) + 2).all()
            assert lengths.max() <= 30

    @given(st.lists(st.integers(0, 3), min_size=1, max_size=200), st.lists(st.integers(0, 3), min_size=1, max_size=200))
    @settings(max_examples=100, deadline=None)
    def test_windows_have_the_order_of_the_suffixes(self, a: list[int], b: list[int]) -> None:
        text = np.array([*a, *b], np.uint16)
        code = alphabetic_code(np.bincount(text, minlength=4))
        views = sorted((text[place:].tolist(), int(window(text, code, place))) for place in range(text.size))
        assert all(left <= right for (_, left), (_, right) in pairwise(views))


class TestPeaks:
    @given(st.lists(st.integers(0, 3), min_size=1, max_size=150), st.integers(1, 5), st.integers(8, 60))
    @settings(max_examples=100, deadline=None)
    def test_all_of_them_whatever_the_parts(self, values: list[int], parts: int, width: int) -> None:
        text = np.array(values, np.uint16)
        code = alphabetic_code(np.bincount(text, minlength=4))
        rises = rising(values)
        expected = [i for i in range(1, text.size) if rises[i - 1] and not rises[i]]
        cuts = sorted({text.size * part // parts for part in range(parts + 1)})
        places, steps = [], []
        for start, stop in pairwise(cuts):
            room = (stop - start) // 2 + 2
            windows, found, near = np.empty(room, np.uint64), np.empty(room, np.uint32), np.empty(room, np.uint8)
            histogram = np.zeros(4, np.int64)
            count = find_peaks(text, start, stop, code, 2, width, windows, found, near, histogram)
            assert windows[:count].tolist() == [int(window(text, code, place)) for place in found[:count].tolist()]
            assert histogram.tolist() == np.bincount((windows[:count] >> np.uint64(62)).astype(np.int64), minlength=4).tolist()
            places[:0], steps[:0] = [], []
            places += found[:count][::-1].tolist()
            steps += near[:count][::-1].tolist()
        assert places == expected
        lengths = (code[text] & LENGTH).astype(np.int64)
        for number, (place, counted) in enumerate(zip(places, steps, strict=True)):
            certain = 0  # the peaks behind whose first different token lies within the width
            for peak in places[number + 1 : number + 5]:
                other = next((i for i in range(peak, text.size) if values[i] != values[peak]), text.size)
                certain += other < text.size and int(lengths[place : other + 1].sum()) <= width
            assert counted <= certain
            if parts == 1:
                assert counted == certain


@given(st.lists(st.integers(0, 5), max_size=80), st.lists(st.integers(0, 2), max_size=80), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_any_text(first: list[int], second: list[int], threads: int) -> None:
    values = [*first, *second, *first, *second, 0]
    order = sorted(range(len(values)), key=lambda start: values[start:])
    assert two_stage(np.array(values, np.uint16), 5, threads).tolist() == order


def zigzag(n: int) -> np.ndarray:
    """Every other suffix is a peak, and each is like one in the other half."""
    rng = np.random.default_rng(3)
    half = np.stack([rng.integers(0, 2000, n // 4), rng.integers(3000, 5000, n // 4)], axis=1).ravel()
    return np.concatenate([half, half]).astype(np.uint16)


def long_runs(n: int) -> np.ndarray:
    """Peaks that are followed by runs much longer than a window, alike for the most part."""
    lengths = np.random.default_rng(4).choice([997, 998, 5, 40], n // 400)
    return np.concatenate([np.concatenate([[3, 9], np.full(length, 7), [length % 2]]) for length in lengths]).astype(np.uint16)


def few_long_runs(n: int) -> np.ndarray:
    """Three peaks, whose runs are of some tens of thousands of windows: what is walked over must not grow from window to window."""
    run = np.full(n * 4 // 3, 7)
    return np.concatenate([[3], run, [3], run, [3], run, [2]]).astype(np.uint16)


def runs_behind_a_word(n: int) -> np.ndarray:
    """The run begins some tokens behind the peak, and ends in one of two ways."""
    run = np.full(n // 12, 7)
    return np.concatenate([[3, 9, 5, 6, *run, 8 - 4 * (i % 2)] for i in range(12)]).astype(np.uint16)


def one_large_group(n: int) -> np.ndarray:
    """More peaks alike than are sorted at once."""
    assert n // 3 > 2 * CHUNK
    return np.concatenate([np.tile([5, 6, 7], n // 3), [6]]).astype(np.uint16)


@pytest.mark.parametrize("make", [zigzag, long_runs, few_long_runs, runs_behind_a_word, one_large_group])
@pytest.mark.parametrize("threads", [1, 3])
def test_what_sorting_likes_least(make: Callable[[int], np.ndarray], threads: int) -> None:
    tokens = make(120_000)
    assert np.array_equal(two_stage(tokens, int(tokens.max()), threads), suffix_array(tokens, int(tokens.max()), "sais"))


def test_repeats_in_many_parts(repeats: Callable[[int], np.ndarray]) -> None:
    tokens = repeats(300_000)
    top = int(tokens[tokens < 65535].max())
    assert np.array_equal(two_stage(tokens, top, 4), suffix_array(tokens, top, "sais"))


@pytest.mark.parametrize("kinds", [60_000, 100_000, 1 << 31])
def test_wide_tokens(kinds: int) -> None:
    tokens = np.random.default_rng(5).integers(0, kinds, 150_000).astype(np.uint32)
    tokens[::100] = (1 << 32) - 1
    top = int(tokens[tokens < (1 << 32) - 1].max())
    assert np.array_equal(two_stage(tokens, top, 2), suffix_array(tokens, top, "sais"))


@pytest.mark.parametrize("builder", ["two-stage", "divsufsort", "sais"])
def test_a_piece_is_final_when_it_is_told(builder: str) -> None:
    rng = np.random.default_rng(6)
    tokens = np.minimum(rng.geometric(0.01, 2_500_000), 60_000).astype(np.uint16)
    told: list[np.ndarray] = []
    sa = suffix_array(tokens, int(tokens.max()), builder, 2, lambda piece: told.append(piece.copy()))
    assert (len(told) > 1) == (builder == "two-stage")
    assert np.array_equal(np.concatenate(told), sa)


@given(st.lists(st.integers(0, 40), max_size=200), st.integers(0, 20))
@settings(max_examples=50, deadline=None)
def test_keys_are_sorted_where_they_stand(values: list[int], start: int) -> None:
    keys = np.array(values, np.uint64)
    start = min(start, keys.size)
    sort_keys(keys, start, keys.size)
    assert keys.tolist() == values[:start] + sorted(values[start:])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux lets a process begin its peak anew")
def test_the_memory_stays_below_what_is_said() -> None:
    script = textwrap.dedent("""
        import json
        import numpy as np
        from palimpsest.corpus.memory import resident_memory
        from palimpsest.corpus.two_stage import two_stage, two_stage_memory

        def zigzag(n, dtype, top):
            rng = np.random.default_rng(3)
            half = np.stack([rng.integers(0, top // 2, n // 4), rng.integers(top // 2, top, n // 4)], axis=1).ravel().astype(dtype)
            return np.concatenate([half, half])

        rows = []
        for dtype, top in ((np.uint16, 5000), (np.uint8, 200), (np.uint32, 3_000_000), (np.uint32, 1 << 31)):
            two_stage(zigzag(10_000, dtype, top), top, 2)
            tokens = zigzag(1_500_000, dtype, top)
            held = tokens.nbytes
            open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
            before = resident_memory()[0] - held
            two_stage(tokens, top, 2)
            rows.append((resident_memory()[1] - before, two_stage_memory(tokens.size, top, tokens.itemsize)))
            del tokens
        print(json.dumps(rows))
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    assert all(used <= said for used, said in rows)
    assert rows[0][0] > rows[0][1] / 2  # the measure measures
