"""Matching by meaning: equal to trying all pairs, independent of order and blocks, with chunks, and with a calibrated threshold."""

from __future__ import annotations

import numpy as np
import pytest
from rapidfuzz.distance import Indel, Levenshtein

from palimpsest.audit import meaning
from palimpsest.audit.meaning import Matcher
from palimpsest.errors import InputError


class Letters:
    """Unit vectors of letter counts; with chunks of so many letters, where a number is given."""

    def __init__(self, room=None):
        if room:
            self.chunks = lambda text: [text[i : i + room] for i in range(0, len(text), room)]

    def __call__(self, texts):
        vectors = np.array([[text.count(letter) for letter in "abcdefgh"] for text in texts]) + 0.01
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def words(n, seed, length=9):
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("abcdefgh"), size=rng.integers(1, length))) for _ in range(n)]


@pytest.mark.parametrize("block", [1, 70, 1 << 22])
@pytest.mark.parametrize("room", [None, 3])
def test_equals_trying_all_pairs(monkeypatch, block, room):
    monkeypatch.setattr(meaning, "_BLOCK", block)
    items, texts = words(30, 0), words(20, 1)
    embed, split = Letters(room), getattr(Letters(room), "chunks", lambda text: [text])
    table = Matcher(items, embed).match(texts)
    for text, row in zip(texts, table.iter_rows(named=True), strict=True):
        every = [max(float(a @ b) for a in embed(split(text)) for b in embed(split(item))) for item in items]
        assert row["cosine"] == pytest.approx(max(every), abs=1e-6)
        assert every[row["nearest"]] == pytest.approx(max(every), abs=1e-6)
        item = items[row["nearest"]]
        assert (row["text"], row["nearest_text"]) == (text, item)
        assert row["edit"] == pytest.approx(1 - Levenshtein.distance(text, item) / max(len(text), len(item)))
        assert row["indel"] == pytest.approx(1 - Indel.distance(text, item) / (len(text) + len(item)))


def test_an_item_is_its_own_nearest():
    items = sorted(set(words(30, 0)), key=len)
    distinct = [item for item in items if sum(sorted(item) == sorted(other) for other in items) == 1]
    table = Matcher(distinct, Letters()).match(distinct)
    assert table["nearest"].to_list() == list(range(len(distinct)))
    np.testing.assert_allclose(table["cosine"], 1, atol=1e-6)
    assert table["edit"].to_list() == [1.0] * len(distinct)


def test_the_order_of_the_texts_does_not_count():
    matcher, texts = Matcher(words(30, 0), Letters(4)), words(20, 1)
    forwards, backwards = matcher.match(texts), matcher.match(texts[::-1])
    assert forwards.drop("cosine").equals(backwards.reverse().drop("cosine"))
    np.testing.assert_allclose(forwards["cosine"], backwards["cosine"][::-1], atol=1e-6)


def test_of_equal_items_the_first_is_the_nearest():
    assert Matcher(["ab", "c", "ba"], Letters()).match(["ab"])["nearest"].to_list() == [0]


def test_calibration_is_the_quantile_of_what_was_held_out():
    matcher, held_out = Matcher(words(10, 0), Letters()), words(200, 2)
    cosines = matcher.nearest(held_out)[1]
    threshold = matcher.calibrate(held_out, 0.9)
    assert threshold == pytest.approx(np.quantile(cosines, 0.9))
    assert (cosines >= threshold).mean() <= 0.1 + 1e-9
    assert matcher.calibrate(held_out) > threshold
    for quantile in (0.0, 1.0, float("nan")):
        with pytest.raises(InputError, match="quantile"):
            matcher.calibrate(held_out, quantile)


def test_bad_input_is_refused():
    for items in ([], ["a", " "], "abc"):
        with pytest.raises(InputError, match="items to match"):
            Matcher(items, Letters())
    matcher = Matcher(["a"], Letters())
    for texts in ([], ["a", ""], "abc"):
        with pytest.raises(InputError, match="no text to match"):
            matcher.match(texts)
    for vectors in (np.ones((1, 4)), np.ones(1), np.eye(2), np.full((1, 1), np.nan)):
        with pytest.raises(InputError, match="unit vectors"):
            Matcher(["a"], lambda texts, vectors=vectors: vectors)


def test_a_text_that_the_embedder_reads_nothing_of_is_no_match():
    embed = Letters(3)
    embed.chunks = lambda text: [text[i : i + 3] for i in range(0, len(text), 3) if text.isalpha()]
    matcher = Matcher(["abc", "def"], embed)
    assert [matcher.reads(text) for text in ("abcd", "\x03", " ")] == [True, False, False]
    for texts in (["\x03", "abc"], ["abc", "\x03"]):
        with pytest.raises(InputError, match="reads nothing"):
            matcher.match(texts)
        with pytest.raises(InputError, match="reads nothing"):
            Matcher(texts, embed)
