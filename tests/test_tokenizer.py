"""The tokenizer: round trips, the text of each token, fingerprints, and files that are not what they should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors

from palimpsest.errors import InputError, ModelNotFoundError, TokenizerMismatchError
from palimpsest.tokenizer import Tokenizer


def byte_tokenizer(*merges: tuple[str, str], adds_bos: bool = False) -> Tokenizer:
    """Every byte is a token, plus the given merges; with `adds_bos` it would put <s> before a text if asked for special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0} | {letter: i + 1 for i, letter in enumerate(alphabet)}
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if adds_bos:
        backend.add_special_tokens(["<s>"])
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return Tokenizer(backend, bos_id=0)


def metaspace_tokenizer() -> Tokenizer:
    """A Llama-2-like tokenizer: the space before a word is part of it, and the decoder drops the first one."""
    words = ["<unk>", "▁", "▁the", "▁page", "s", "▁of", "é"]
    backend = tokenizers.Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], unk_token="<unk>"))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return Tokenizer(backend)


TEXT = st.text(st.sampled_from("ab é漢字😀\u0301\n '") | st.characters(exclude_categories=["Cs"]), max_size=60)
BYTES = byte_tokenizer()
MERGED = byte_tokenizer(("t", "h"), ("th", "e"), ("Ã", "©"), ("Ġ", "the"))


@given(TEXT)
def test_text_comes_back(text):
    for tokenizer in (BYTES, MERGED):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.lists(TEXT, max_size=4))
def test_a_batch_is_encoded_as_each_text_alone(texts):
    assert MERGED.encode_batch(texts) == [MERGED.encode(text) for text in texts]


@given(TEXT)
def test_the_pieces_of_a_text_join_to_the_text(text):
    ids = MERGED.encode(text)
    pieces = MERGED.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text


@given(st.lists(st.integers(0, 256), max_size=80))
def test_the_pieces_of_any_ids_join_to_what_they_decode_to(ids):
    """Also of bytes that are no text: broken characters, special tokens in the middle."""
    for tokenizer in (BYTES, MERGED):
        assert "".join(tokenizer.pieces(ids)) == tokenizer.decode(ids)


@given(st.lists(st.integers(1, 6), max_size=60))
def test_pieces_keep_the_spaces_of_a_tokenizer_that_drops_the_first(ids):
    tokenizer = metaspace_tokenizer()
    assert "".join(tokenizer.pieces(ids)) == tokenizer.decode(ids)


def test_pieces_keep_the_spaces_of_a_metaspace_tokenizer():
    """SentencePiece style: the decoder drops the first space, and only the first."""
    vocabulary = {token: index for index, token in enumerate(["▁", "a", "b", "▁a", "▁b", "ab", "▁ab"])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁", "ab")]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = Tokenizer(backend)
    for words in ("a b ab", " ".join(["ab", "a", "b"] * 30)):
        ids = tokenizer.encode(words)
        assert tokenizer.decode(ids) == words
        assert "".join(tokenizer.pieces(ids)) == words


def test_a_truncation_or_padding_that_was_saved_cuts_no_document():
    backend = byte_tokenizer().backend
    backend.enable_padding(length=8)
    backend.enable_truncation(4)
    tokenizer = Tokenizer(backend)
    assert tokenizer.encode("a") == BYTES.encode("a")
    assert tokenizer.encode_batch(["a longer text", "b"]) == [BYTES.encode("a longer text"), BYTES.encode("b")]


def test_the_last_byte_of_a_character_carries_it():
    assert BYTES.pieces(BYTES.encode("é!")) == ["", "é", "!"]
    assert BYTES.pieces(BYTES.encode("a😀")) == ["a", "", "", "", "😀"]


def test_encode_adds_no_special_tokens():
    tokenizer = byte_tokenizer(adds_bos=True)
    assert tokenizer.backend.encode("a").ids[0] == 0
    assert 0 not in tokenizer.encode("a")
    assert tokenizer.encode_batch(["a", "b"]) == [tokenizer.encode("a"), tokenizer.encode("b")]


def test_half_a_surrogate_pair_is_no_text():
    with pytest.raises(InputError, match="not Unicode text"):
        BYTES.encode("a\ud800")


def test_decode_keeps_special_tokens():
    assert byte_tokenizer(adds_bos=True).decode([0, *BYTES.encode("a")]) == "<s>a"


def test_the_fingerprint_follows_what_decides_the_ids_and_nothing_else(tmp_path: Path):
    assert byte_tokenizer().fingerprint == BYTES.fingerprint
    assert MERGED.fingerprint != BYTES.fingerprint
    padded = byte_tokenizer()
    padded.backend.enable_padding(length=32)
    padded.backend.enable_truncation(8)
    assert padded.fingerprint == BYTES.fingerprint
    MERGED.save(tmp_path / "tokenizer.json")
    again = Tokenizer.from_file(tmp_path / "tokenizer.json", bos_id=0)
    assert again.fingerprint == MERGED.fingerprint
    assert again.encode("the page") == MERGED.encode("the page")
    assert again.bos_id == 0


def test_a_foreign_fingerprint_is_refused():
    BYTES.require_same(byte_tokenizer().fingerprint, "the index")
    with pytest.raises(TokenizerMismatchError, match="the index"):
        BYTES.require_same(MERGED.fingerprint, "the index")


def test_a_missing_file_is_not_found(tmp_path: Path):
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    with pytest.raises(ModelNotFoundError):
        Tokenizer.from_file(tmp_path)


HOSTILE = {
    "empty": "",
    "not JSON": "{",
    "a list": "[]",
    "null": "null",
    "no model": "{}",
    "an unknown model": '{"model": {"type": "Nonsense"}}',
    "deeply nested": "[" * 100_000,
    "merges of unknown tokens": json.dumps(
        {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}
    ),
    "ids beyond 32 bits": json.dumps(
        {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 1 << 40}, "merges": []}}
    ),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_file_that_is_no_tokenizer_is_an_input_error(tmp_path: Path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(InputError, match="is not a tokenizer"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_bytes_that_are_no_text_are_an_input_error(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match="is not a tokenizer"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
