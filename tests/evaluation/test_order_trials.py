"""Trials of order memory: what a trial must be, whatever the book."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from palimpsest.errors import InputError
from palimpsest.evaluation.order_trials import book_words, build_trials, distance_edges, sentence_starts


def book(words: int, seed: int, vocabulary: int = 5000) -> str:
    """Sentences of 3 to 12 random words, in paragraphs and chapters."""
    rng = random.Random(seed)
    out, left = [], words
    while left > 0:
        size = min(left, rng.randint(3, 12))
        out.append(
            " ".join(f"w{rng.randrange(vocabulary)}" for _ in range(size)) + rng.choice([". ", "? ", '." ', ".\n\n", ".\n\nCHAPTER IV\n\n"])
        )
        left -= size
    return "## CHAPTER I\n\n" + "".join(out)


@pytest.fixture(scope="module")
def books():
    return {"one": book(3000, 1), "two": book(5000, 2), "short": book(100, 3)}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(5, 20), st.sampled_from([120, 250]))
def test_a_trial_is_what_the_paper_says(seed, segment, excerpt):
    texts = {"one": book(3000, 1), "two": book(5000, 2), "short": book(100, 3)}
    trials = build_trials(texts, excerpt, segment, 40, seed=seed)
    assert len(trials) == 40
    assert sum(trial.earlier_is_a for trial in trials) == 20
    for trial in trials:
        words = book_words(texts[trial.book])
        assert tuple(words[trial.start : trial.start + excerpt]) == trial.words
        earlier, later = trial.at
        assert trial.bin[0] < later - earlier <= trial.bin[1]
        assert later - earlier >= segment
        assert later + segment <= excerpt
        for place in (trial.start, trial.start + earlier, trial.start + later):
            assert place == 0 or re.search(r"[.?]\"?$", words[place - 1])
        for text in trial.segments:
            assert len(text.split()) == segment
            assert f" {trial.excerpt} ".count(f" {text} ") == 1
        assert "\n" not in trial.excerpt
        assert "CHAPTER" not in trial.excerpt
    spans = [trial.bin for trial in trials]
    assert {spans.count(span) for span in set(spans)} == {10}
    for span in set(spans):
        assert sum(trial.earlier_is_a for trial in trials if trial.bin == span) == 5
    assert sorted(trial.book for trial in trials) == ["one"] * 20 + ["two"] * 20
    shares = [trial.start / (len(book_words(texts[trial.book])) - excerpt) for trial in trials]
    assert stats.kstest(shares, "uniform").pvalue > 0.05


def test_every_pair_of_segments_at_a_distance_is_as_likely(books):
    text = " ".join(f"a{n} b{n} c{n} d{n} e{n}." for n in range(400))
    trials = build_trials({"x": text}, 40, 5, 600, edges=[10, 20])
    pairs = [trial.at for trial in trials]
    allowed = {(5 * i, 5 * j) for i in range(8) for j in range(8) if 10 < 5 * (j - i) <= 20}
    assert set(pairs) == allowed
    assert stats.chisquare([pairs.count(pair) for pair in allowed]).pvalue > 1e-4


def test_the_same_seed_draws_the_same_trials_and_leaves_the_global_state(books):
    state = np.random.get_state()[1].copy()
    assert build_trials(books, 120, 10, 8, seed=3) == build_trials(books, 120, 10, 8, seed=3)
    assert build_trials(books, 120, 10, 8, seed=3) != build_trials(books, 120, 10, 8, seed=4)
    assert np.array_equal(np.random.get_state()[1], state)


def test_a_segment_that_stands_twice_is_not_taken():
    refrain = "So it was and so it went on. "
    text = "".join(f"{refrain}Then came {n} men of the town {n} and sat down. " for n in range(200))
    for trial in build_trials({"x": text}, 150, 7, 20, seed=0):
        assert not any(text.startswith("So it was") for text in trial.segments)


def test_shuffling_keeps_the_words_and_the_segments_and_tells_no_order(books):
    trials = build_trials(books, 250, 20, 200, seed=1)
    kept = 0
    for trial in trials:
        text = trial.shuffled(5)
        assert text == trial.shuffled(5)
        assert sorted(text.split()) == sorted(trial.words)
        earlier, later = (text.index(segment) for segment in trial.segments)
        kept += earlier < later
    assert 75 < kept < 125


def test_words_without_headings_front_and_back_matter():
    long = " ".join(["He went on."] * 20)
    mark = "OF THE PROJECT GUTENBERG EBOOK X ***"
    front, back = f"Header\n*** START {mark}\n\nBy A. Nobody\n\nCHAPTER I", f"*** END {mark}\nLicence of it."
    text = f"{front}\n\n{long}\n\nThe Town\n\nIV\n\nNO!\n\nChapter 2. Home\n\nShe came.\n\n{back}"
    assert " ".join(book_words(text)) == f"{long} The Town She came."
    assert book_words("") == []


def test_titles_and_initials_end_no_sentence():
    words = book_words('He saw Mr. Dale. "It is J. Smith!" she said. Dr. No went. Then?')
    assert [words[at] for at in sentence_starts(words)] == ["He", '"It', "she", "Dr.", "Then?"]
    assert sentence_starts([]).tolist() == []


def test_the_papers_edges():
    assert distance_edges(250, 20) == (20, 62.5, 250 / 3, 125, 200)
    assert distance_edges(10000, 50) == (50, 1000, 2500, 5000, 8000)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n": 7}, "7 trials"),
        ({"excerpt_words": 6000}, "None of 3 books"),
        ({"edges": [5, 40]}, "rising edges"),
        ({"edges": [40, 20]}, "rising edges"),
        ({"edges": [300, 400]}, "No two segments"),
    ],
)
def test_what_cannot_be_drawn_is_refused(books, options, match):
    with pytest.raises(InputError, match=match):
        build_trials(books, **{"excerpt_words": 250, "segment_words": 20, "n": 8, **options})
