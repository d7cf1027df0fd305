"""The classifier of languages against the formula written out."""

from __future__ import annotations

from collections import Counter
from math import log

import numpy as np
import pytest

from palimpsest.audit.languages import LanguageIdentifier, language_shares
from palimpsest.errors import InputError
from palimpsest.experiments.cpt_forgetting_audit import other_language
from palimpsest.experiments.planted_texts import base_text

ENGLISH = ["the river runs to the sea", "a page that was written and scraped off"]
OTHER = ["der fluss läuft ins meer", "eine seite, die beschrieben und abgeschabt wurde"]


def grams(text):
    data = text.encode()
    return [data[i : i + n] for n in (1, 2, 3, 4) for i in range(len(data) - n + 1)]


def test_the_most_probable_language_is_told():
    counts = {name: Counter(g for text in texts for g in grams(text)) for name, texts in (("en", ENGLISH), ("de", OTHER))}
    known = set(counts["en"]) | set(counts["de"])
    told = LanguageIdentifier({"en": ENGLISH, "de": OTHER}, least=0)
    rng = np.random.default_rng(0)
    words = " ".join(ENGLISH + OTHER).split()
    texts = [" ".join(rng.choice(words, rng.integers(1, 6))) for _ in range(40)]
    expected = []
    for text in texts:
        scores = {}
        for name, count in counts.items():
            total = sum(count.values()) + len(known) / 2
            scores[name] = sum(log((count[g] + 0.5) / total) for g in grams(text) if g in known)
        expected.append(max(scores, key=lambda name: scores[name]))
    assert told.identify(texts) == expected
    assert set(expected) == {"en", "de"}


def test_held_out_sentences_of_two_languages():
    train, held_out = base_text().train[:60], [text[:80] for text in base_text().held_out[:40] if len(text) > 80]
    told = LanguageIdentifier({"en": train, "new": [other_language(text) for text in train]})
    assert told.identify(held_out) == ["en"] * len(held_out)
    assert told.identify([other_language(text) for text in held_out]) == ["new"] * len(held_out)


def test_short_and_strange_texts_are_not_guessed():
    told = LanguageIdentifier({"en": ENGLISH, "de": OTHER}, least=5)
    assert told.identify(["", "the", "1234 5678 9", "ωωωωωωω"]) == [None] * 4
    assert told.identify(["THE RIVER  77"]) == ["en"]


def test_shares_sum_to_one():
    shares = language_shares(["en", None, "de", "en"])
    assert shares == {"de": 0.25, "en": 0.5, "undetermined": 0.25}
    with pytest.raises(InputError, match="no texts"):
        language_shares([])


def test_bad_input():
    with pytest.raises(InputError, match="1 languages"):
        LanguageIdentifier({"en": ENGLISH})
    with pytest.raises(InputError, match="1 of them without text"):
        LanguageIdentifier({"en": ENGLISH, "de": []})
    with pytest.raises(InputError, match="features is 0"):
        LanguageIdentifier({"en": ENGLISH, "de": OTHER}, features=0)
