"""Text while it is written: whole characters, nothing of a stop string, and in the end what decoding at once gives."""

from __future__ import annotations

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models

from palimpsest.serving.text_stream import TextStream
from palimpsest.tokenizer import Tokenizer


def write(stream, ids):
    """The pieces until the stream has stopped, the rest behind them."""
    pieces = []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()]


@pytest.fixture(scope="module")
def sentencepiece():
    """Words with a mark for the space in front, every byte as a fallback: what Llama 2 has."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocab |= {piece: 256 + number for number, piece in enumerate(["▁the", "▁word", "▁", "s", "é", "."])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return Tokenizer(backend)


@given(st.lists(st.integers(0, 319), max_size=60), st.lists(st.integers(0, 319), max_size=10))
def test_the_pieces_make_up_the_text(tiny_tokenizer, ids, prompt):
    """Any bytes, text or not; the prompt changes nothing for a byte-level vocabulary."""
    assert "".join(write(TextStream(tiny_tokenizer, prompt, []), ids)) == tiny_tokenizer.decode(ids)


@given(st.text(max_size=30))
def test_characters_come_whole(tiny_tokenizer, text):
    """Every proper text comes without a replacement character, none of it later than with the byte that completes it."""
    ids = tiny_tokenizer.encode(text)
    stream = TextStream(tiny_tokenizer, [], [])
    given_out = ""
    for count, token in enumerate(ids, start=1):
        given_out += stream.push(token)
        known = tiny_tokenizer.decode(ids[:count])
        assert given_out == known.rstrip("\ufffd") or "\ufffd" in text
    assert given_out + stream.finish() == text


def test_an_unfinished_character_is_given_out_at_the_end(tiny_tokenizer):
    ids = tiny_tokenizer.encode("x€")
    stream = TextStream(tiny_tokenizer, [], [])
    pieces = [stream.push(token) for token in ids[:-1]]
    assert "".join(pieces) == "x"
    assert stream.waiting
    assert stream.finish() == "\ufffd"


def test_a_prompt_that_ends_within_a_character(tiny_tokenizer):
    ids = tiny_tokenizer.encode("é")
    assert len(ids) == 2
    assert "".join(write(TextStream(tiny_tokenizer, ids[:1], []), [*ids[1:], *tiny_tokenizer.encode("a")])) == "\ufffda"


def test_words_keep_their_spaces_behind_a_prompt(sentencepiece):
    """Decoded alone, the first word would lose its space."""
    ids = [257, 259, 256, 257]  # " words the word"
    assert sentencepiece.decode(ids) == "words the word"
    assert write(TextStream(sentencepiece, [256], []), ids) == [" word", "s", " the", " word", ""]


parts = st.sampled_from(["A", "é", "€", "😀", "▁the", "▁word", "▁", "s", "."])


@given(st.lists(parts, max_size=20), st.integers(0, 3))
def test_byte_fallback(sentencepiece, parts, cut):
    """Half a character undoes the whole ones before it, in this decoder: they are neither lost nor written twice."""
    vocab = sentencepiece.backend.get_vocab()
    ids = [token for part in parts for token in ([vocab[part]] if part in vocab else part.encode())]
    expected = "".join(parts).replace("▁", " ")
    assert "".join(write(TextStream(sentencepiece, [256], []), ids)) == expected
    broken = [*ids, *"😀".encode()[:cut]]
    assert "".join(write(TextStream(sentencepiece, [256], []), broken)).startswith(expected)


@given(
    st.text("abc", max_size=40),
    st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=3),
    st.lists(st.integers(1, 4), max_size=20),
)
def test_stop_strings(text, stop, cuts):
    """However the text is cut into tokens: it ends before the first stop string, and no piece holds what might have begun one."""
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(text[at : at + cut])
        at += cut
    pieces = [piece for piece in [*pieces, text[at:]] if piece]
    vocab = {piece: number for number, piece in enumerate(sorted(set(pieces)))}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="?"))
    backend.decoder = decoders.Fuse()
    stream = TextStream(Tokenizer(backend), [], stop)
    out, seen, found = "", "", []
    for piece in pieces:
        seen += piece
        found = [at for one in stop if (at := seen.find(one)) >= 0]
        out += stream.push(vocab[piece])
        assert not any(one in out for one in stop)
        assert stream.stopped == bool(found)
        if found:  # a longer one that begins earlier and is not whole yet never will be
            break
    out += stream.finish()
    assert out == (seen[: min(found)] if found else text)


def test_text_is_not_held_longer_than_it_must_be(tiny_tokenizer):
    stream = TextStream(tiny_tokenizer, [], ["\n\nUser"])
    pieces = [stream.push(token) for text in ("Hello", "\n", "\n", "U", "n", "til") for token in tiny_tokenizer.encode(text)]
    assert "".join(pieces) == "Hello\n\nUntil"
    assert not stream.waiting
