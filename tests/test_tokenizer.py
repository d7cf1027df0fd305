"""Text to ids and back, and the text of each token."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import tokenizers
from hypothesis import given, settings
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import BPE

from palimpsest.errors import InputError, ModelNotFoundError, TokenizerMismatchError
from palimpsest.tokenizer import Tokenizer

text = st.text(st.sampled_from("ab é漢字😀\u0301\n '") | st.characters(exclude_categories=["Cs"]), max_size=60)


@settings(max_examples=150, deadline=None)
@given(text)
def test_every_text_comes_back(tiny_tokenizer, text):
    assert tiny_tokenizer.decode(tiny_tokenizer.encode(text)) == text
    assert tiny_tokenizer.encode_batch([text, "x"]) == [tiny_tokenizer.encode(text), tiny_tokenizer.encode("x")]


@settings(max_examples=200, deadline=None)
@given(text)
def test_pieces_join_to_the_text(tiny_tokenizer, text):
    ids = tiny_tokenizer.encode(text)
    pieces = tiny_tokenizer.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 319), max_size=60))
def test_pieces_join_to_the_text_of_any_ids(tiny_tokenizer, ids):
    """Also of ids that no text has: bytes that are no UTF-8, characters cut in two."""
    pieces = tiny_tokenizer.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tiny_tokenizer.decode(ids)


def test_a_character_of_several_tokens_belongs_to_the_last(tiny_tokenizer):
    ids = tiny_tokenizer.encode("a😀b")
    pieces = tiny_tokenizer.pieces(ids)
    assert [piece for piece in pieces if piece] == ["a", "😀", "b"]
    assert pieces[1] == ""


def test_pieces_keep_the_spaces_of_a_metaspace_tokenizer():
    """SentencePiece style: the decoder drops the first space, and only the first."""
    vocab = {token: index for index, token in enumerate(["▁", "a", "b", "▁a", "▁b", "ab", "▁ab"])}
    backend = tokenizers.Tokenizer(BPE(vocab, [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁", "ab")]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = Tokenizer(backend)
    for words in ("a b ab", " ".join(["ab", "a", "b"] * 30)):
        ids = tokenizer.encode(words)
        assert tokenizer.decode(ids) == words
        assert "".join(tokenizer.pieces(ids)) == words


def test_fingerprint_is_of_what_decides_the_ids(tiny_tokenizer):
    padded = tokenizers.Tokenizer.from_str(tiny_tokenizer.backend.to_str())
    padded.enable_padding(length=8)
    padded.enable_truncation(4)
    assert Tokenizer(padded).fingerprint == tiny_tokenizer.fingerprint
    other = tokenizers.Tokenizer.from_str(tiny_tokenizer.backend.to_str())
    other.add_tokens(["brand new"])
    assert Tokenizer(other).fingerprint != tiny_tokenizer.fingerprint
    tiny_tokenizer.require_same(tiny_tokenizer.fingerprint, "itself")
    with pytest.raises(TokenizerMismatchError, match="another index"):
        tiny_tokenizer.require_same(Tokenizer(other).fingerprint, "another index")


def test_files(tmp_path, tiny_tokenizer):
    path = tmp_path / "tokenizer.json"
    tiny_tokenizer.save(path)
    again = Tokenizer.from_file(path, bos_id=0)
    assert again.fingerprint == tiny_tokenizer.fingerprint
    assert again.bos_id == 0
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        Tokenizer.from_file(tmp_path / "nowhere.json")
    path.write_text('{"no": "tokenizer"}')
    with pytest.raises(InputError, match="not a tokenizer"):
        Tokenizer.from_file(path)
