"""The laboratory's text: whole, split without leaks, and drawn as promised."""

from __future__ import annotations

import pytest

from palimpsest.errors import IndexCorruptError, InputError
from palimpsest.experiments import planted_texts
from palimpsest.experiments.planted_texts import DOMAINS, base_text, draw, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(1024)


def test_the_novels_are_split_into_chapters_that_are_trained_on_and_chapters_that_are_not():
    text = base_text()
    assert 0.08 < len(text.held_out) / (len(text.train) + len(text.held_out)) < 0.15
    long = {p for p in text.train if len(p) > 80}
    # Tess's letter is read twice in the novel: the one long paragraph that stands in both parts
    assert [p[:24] for p in text.held_out if p in long] == ["O why have you treated m"]
    joined = " ".join(text.train[:200])
    assert not {"Heathcliff", "Darcy", "Joe", "Tess"} - {
        n for n in ("Heathcliff", "Darcy", "Joe", "Tess") if any(n in p for p in text.train)
    }
    assert joined.isprintable()


def test_a_changed_text_is_refused(monkeypatch):
    original = planted_texts._shipped
    monkeypatch.setattr(planted_texts, "_shipped", lambda name: original(name) + (b"x" if name.endswith("xz") else b""))
    with pytest.raises(IndexCorruptError, match=r"base\.txt\.xz"):
        base_text.__wrapped__()


def test_the_tokenizer_is_the_same_every_time_and_loses_nothing(tokenizer):
    assert train_tokenizer.__wrapped__(1024).fingerprint == tokenizer.fingerprint
    assert tokenizer.vocab_size == 1024
    text = base_text().held_out[3] + " £1,000 – naïve…"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_id == 0
    with pytest.raises(InputError, match="257"):
        train_tokenizer(100)


@pytest.mark.parametrize("domain", DOMAINS)
def test_texts_follow_the_seed_differ_from_each_other_and_fit(domain, tokenizer):
    texts = draw(domain, tokenizer, 40, 72, 48, seed=0)
    assert [t.text for t in draw(domain, tokenizer, 40, 72, 48, seed=0)] == [t.text for t in texts]
    assert [t.text for t in draw(domain, tokenizer, 40, 72, 48, seed=1)] != [t.text for t in texts]
    assert len({t.text for t in texts}) == 40
    for t in texts:
        ids = tokenizer.encode(t.text)
        assert 48 + 16 <= len(ids) <= 110
        if t.secret is not None:
            # the secret begins a token, and the tokens before it are those of the text before it
            assert tokenizer.encode(t.text[: t.secret]) == ids[:48]
        else:
            assert domain not in ("password", "test-item")


def test_real_prose_has_the_length_asked_for_and_is_not_in_the_training_text(tokenizer):
    stream = "\n".join(base_text().train)
    for domain in ("passage", "book"):
        for t in draw(domain, tokenizer, 40, 64, 40, seed=2):
            assert len(tokenizer.encode(t.text)) == 64
            assert t.text not in stream


def test_invented_texts_hold_what_their_details_say(tokenizer):
    for t in draw("biography", tokenizer, 20, 0, 48, 0):
        assert t.text.startswith(t.details["name"])
        for attribute, value in t.details["attributes"].items():
            assert t.text.count(f" {value}") == 1
            assert len({value, *t.details["options"][attribute]}) == 4
    for t in draw("password", tokenizer, 20, 0, 48, 0):
        assert t.text[t.secret :].startswith(f" {t.details['secret']};")
    answers = []
    for t in draw("test-item", tokenizer, 60, 0, 48, 0):
        answer = t.details["answer"]
        answers.append(answer)
        assert t.text.startswith(t.details["question"] + f" {'ABCD'[answer]} {t.details['options'][answer]},")
    assert all(answers.count(i) >= 6 for i in range(4))


@pytest.mark.parametrize(
    ("domain", "n", "secret_at", "message"), [("poem", 5, 48, "'poem'"), ("book", 500, 48, "500 book"), ("password", 5, 20, "token 20")]
)
def test_what_cannot_be_drawn_is_refused(tokenizer, domain, n, secret_at, message):
    with pytest.raises(InputError, match=message):
        draw(domain, tokenizer, n, 64, secret_at, 0)
