"""Texts and bytes of single tokens: together they are the text, whatever it is."""

from __future__ import annotations

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from palimpsest.serving.token_texts import TokenTexts
from palimpsest.tokenizer import Tokenizer


@settings(max_examples=100)
@given(text=st.text(max_size=20))
def test_the_bytes_of_a_texts_tokens_are_its_bytes(tiny_tokenizer, text):
    texts = TokenTexts(tiny_tokenizer)
    ids = tiny_tokenizer.encode(text)
    assert b"".join(texts.raw(token) for token in ids) == text.encode()


def test_a_token_that_is_no_character_is_spelled_out(tiny_tokenizer):
    texts = TokenTexts(tiny_tokenizer)
    euro = tiny_tokenizer.encode("€")
    assert [texts.text(token) for token in euro] == ["bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"]
    assert [texts.raw(token) for token in euro] == [b"\xe2", b"\x82", b"\xac"]
    assert texts.text(tiny_tokenizer.encode(" the")[0]) == " the"
    assert texts.text(tiny_tokenizer.eos_id) == "</s>"


@pytest.fixture(scope="module")
def sentencepiece():
    """A vocabulary as SentencePiece's: ▁ for a space, bytes for what is unknown."""
    words = ["<unk>", "▁", "a", "▁the", "the", "<0xE2>", "<0x82>", "<0xAC>"]
    backend = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return Tokenizer(backend)


def test_spaces_and_bytes_of_a_sentencepiece_vocabulary(sentencepiece):
    texts = TokenTexts(sentencepiece)
    assert [texts.text(token) for token in (3, 4, 5)] == [" the", "the", "bytes:\\xe2"]
    assert [texts.raw(token) for token in (3, 4, 5, 6)] == [b" the", b"the", b"\xe2", b"\x82"]
