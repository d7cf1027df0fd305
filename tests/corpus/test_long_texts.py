"""Texts in pieces against texts as a whole, for the tokenizers of which it is claimed, and which they are."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, trainers

from palimpsest.corpus import CorpusIndex, Document, documents, staging, tokens
from palimpsest.corpus.long_texts import _EXPRESSIONS, may_be_cut, text_pieces
from palimpsest.errors import CorpusError, InputError
from palimpsest.tokenizer import Tokenizer

SAMPLE = [
    "it's a fox. They'll see  foxes\n\n and 12 345 dogs",
    "the fox's tail\tof the Fox, naïve é́ ﬁ ½ 中文 字",
    "x y  z",
    "don't  \n stop",
]
parts = st.sampled_from(
    [
        *"abfoxTs'1 2.,\n\t",
        "  ",
        "   ",
        " the",
        "the ",
        "'ll",
        "fox",
        " fox",
        "é",
        "é",
        "́",
        " ́",
        "中",
        "½",
        "ﬁ",
        "\u00a0",
        "<x>",
        "<y> ",
        "ſ",
    ]
)
split = {expression: pre_tokenizers.Split(Regex(expression), "isolated") for expression in sorted(_EXPRESSIONS)}
PRE_TOKENIZERS = {
    "byte level": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "byte level with a space": pre_tokenizers.ByteLevel(add_prefix_space=True),
    "digits first": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "punctuation first": pre_tokenizers.Sequence([pre_tokenizers.Punctuation("merged_with_next"), pre_tokenizers.WhitespaceSplit()]),
    "metaspace": pre_tokenizers.Metaspace(),
    "metaspace, first": pre_tokenizers.Metaspace(prepend_scheme="first"),
    "whitespace": pre_tokenizers.Whitespace(),
    "bert": pre_tokenizers.BertPreTokenizer(),
    "space": pre_tokenizers.Split(" ", "merged_with_next"),
    **{
        f"expression {i}": pre_tokenizers.Sequence([s, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        for i, s in enumerate(split.values())
    },
}
NORMALIZERS = {
    "none": None,
    "unicode": normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
    "accents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    "bert": normalizers.BertNormalizer(),
}


def trained(pre_tokenizer, normalizer, added: list[AddedToken] | None = None, model: str = "bpe") -> Tokenizer:
    """A small vocabulary of the sample, with a token for every place where something could be joined across words."""
    kind, trainer = {
        "bpe": (models.BPE(unk_token="?"), trainers.BpeTrainer(vocab_size=400, special_tokens=["?"], show_progress=False)),
        "unigram": (models.Unigram(), trainers.UnigramTrainer(vocab_size=120, special_tokens=["?"], unk_token="?", show_progress=False)),
    }[model]
    backend = tokenizers.Tokenizer(kind)
    backend.pre_tokenizer, backend.normalizer = pre_tokenizer, normalizer
    backend.train_from_iterator(SAMPLE * 3, trainer)
    backend.add_tokens(added or [])
    return Tokenizer(backend)


ADDED = [
    AddedToken("<x>", lstrip=True),
    AddedToken("  ", normalized=False),
    AddedToken("<y>", rstrip=True),
    AddedToken("fox", single_word=True),
]
TOKENIZERS = [
    trained(pre, norm, ADDED if i % 2 else None, "unigram" if name == "metaspace" else "bpe")
    for i, (name, pre) in enumerate(PRE_TOKENIZERS.items())
    for norm in NORMALIZERS.values()
]


@given(st.lists(parts, max_size=40).map("".join), st.integers(1, 12), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_the_pieces_have_the_tokens_of_the_whole(text: str, size: int, strip: int):
    strips = [text[i : i + strip] for i in range(0, len(text), strip)]
    pieces = list(text_pieces(strips, size))
    assert "".join(pieces) == text
    for tokenizer in TOKENIZERS:
        assert may_be_cut(tokenizer)
        assert [token for piece in tokenizer.encode_batch(pieces) for token in piece] == tokenizer.encode(text)


def test_pieces_are_as_short_as_may_be():
    text = "one two 3 and four, and five"
    assert list(text_pieces([text], 9)) == ["one two", " 3 and", " four, and", " five"]
    assert list(text_pieces([text[:7], text[7:]], 4)) == ["one", " two", " 3 and", " four, and", " five"]
    assert list(text_pieces(["1234567890"], 4)) == ["1234567890"]
    assert list(text_pieces([], 4)) == [""]


@pytest.mark.parametrize(
    ("pre_tokenizer", "normalizer", "added"),
    [
        (None, None, []),
        (pre_tokenizers.Digits(), None, []),
        (pre_tokenizers.Metaspace(split=False), None, []),
        (pre_tokenizers.ByteLevel(use_regex=False), None, []),
        (pre_tokenizers.Split(Regex(r".{3}"), "isolated"), None, []),
        (pre_tokenizers.Split(" ", "merged_with_previous"), None, []),
        (pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="first")]), None, []),
        (pre_tokenizers.Whitespace(), normalizers.Prepend("_"), []),
        (pre_tokenizers.Whitespace(), normalizers.Replace(" ", "_"), []),
        (pre_tokenizers.Whitespace(), normalizers.Strip(), []),
        (pre_tokenizers.ByteLevel(), None, [AddedToken("two words")]),
        (pre_tokenizers.ByteLevel(), None, [AddedToken("END", rstrip=True)]),
        (pre_tokenizers.ByteLevel(), None, [AddedToken(" x", single_word=True)]),
    ],
)
def test_of_other_tokenizers_it_is_not_claimed(pre_tokenizer, normalizer, added):
    assert not may_be_cut(trained(pre_tokenizer, normalizer, added))


def test_nor_of_one_that_draws_lots():
    backend = tokenizers.Tokenizer(models.BPE(dropout=0.5))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    assert not may_be_cut(Tokenizer(backend))


TEXT = "the fox's tail of 12 dogs. Né 中文 they'll  stop\n" * 40


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is long begins at some characters, so that every seam is met."""
    for module, name, value in [
        (tokens, "_PIECE", 30),
        (tokens, "_ENCODED", 100),
        (tokens, "_STRIP", 17),
        (staging, "_STRIP", 13),
        (staging, "_BATCH_SIZE", 500),
        (documents, "_LONG", 300),
        (documents, "_CHUNK", 7),
    ]:
        monkeypatch.setattr(module, name, value)


class TestIndex:
    def build(self, corpus, tokenizer, **options) -> tuple[str, str, list]:
        with tempfile.TemporaryDirectory() as name:
            index = CorpusIndex.build(corpus, tokenizer, Path(name) / "index", **options)
            return index.fingerprint, index.manifest["source"], [index.document_ids(i).tolist() for i in range(index.n_documents)]

    def test_a_long_document_is_as_any_other(self, request: pytest.FixtureRequest):
        tokenizer, whole = TOKENIZERS[0], trained(None, None)
        ids = np.tile(np.arange(200), 5)
        corpus = ["short", TEXT, "", Document("ids", ids=ids), TEXT[:200], ids[:10]]
        before = self.build(corpus, tokenizer), self.build(corpus, whole)
        request.getfixturevalue("short")
        after = self.build(corpus, tokenizer), self.build(corpus, whole)
        assert [part[0] for part in after] == [part[0] for part in before]
        assert [part[2] for part in after] == [part[2] for part in before]
        assert after[0][2][1] == tokenizer.encode(TEXT)

    def test_a_long_file_is_the_document_that_it_was(self, tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch):
        (tmp_path / "long.txt").write_text("\ufeff" + TEXT, encoding="utf-8")
        (tmp_path / "short.md").write_text("a fox")
        read = list(documents.read_documents(tmp_path))
        assert [type(document).__name__ for document in read] == ["LongFile", "Document"]
        assert (read[0].text, read[0].characters, read[0].id) == (TEXT, len(TEXT), "long.txt")
        found = self.build(tmp_path, TOKENIZERS[0])
        monkeypatch.setattr(documents, "_LONG", 10**9)
        assert found == self.build(tmp_path, TOKENIZERS[0])

    def test_a_long_file_that_is_not_utf8(self, tmp_path: Path, short: None):
        for broken, place in ((b"\xe4\xff", 1800), (b"\xe4", 1800)):
            data = ("中" * 600).encode() + broken
            (tmp_path / "long.txt").write_bytes(data)
            with pytest.raises(CorpusError, match=f"byte 0xe4 at offset {place}"):
                CorpusIndex.build(tmp_path, TOKENIZERS[0], tmp_path / "out" / "index")

    def test_a_surrogate_far_behind(self, tmp_path: Path, short: None):
        with pytest.raises(CorpusError, match="at character 2000"):
            CorpusIndex.build(["x" * 2000 + "\ud800"], TOKENIZERS[0], tmp_path / "index")

    def test_ids_that_do_not_fit(self, tmp_path: Path, short: None):
        for wrong, remedy in ((255, "wider"), (-1, "never negative")):
            ids = np.zeros(3000, np.int64)
            ids[2345] = wrong
            with pytest.raises(InputError, match=f"has the id {wrong}") as caught:
                CorpusIndex.build([[1], ids], None, tmp_path / "index", token_dtype="u8")
            assert remedy in caught.value.remedy

    def test_no_memory_for_what_cannot_be_cut(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(tokens, "_WHOLE", 4400)
        for text, tokenizer in ((TEXT * 40, trained(None, None)), ("中" * 70_000, TOKENIZERS[0])):
            with pytest.raises(InputError, match=r"tokenized at once.*300 MB") as caught:
                CorpusIndex.build([text], tokenizer, tmp_path / "index", memory="300MB")
            assert "at least" in caught.value.remedy
        assert CorpusIndex.build([TEXT * 40], TOKENIZERS[0], tmp_path / "index", memory="300MB").n_documents == 1

    def test_an_interrupted_long_document_begins_anew(self, tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch):
        encode = tokens._encode_group
        calls: list[int] = []

        def interrupted(*arguments):
            calls.append(1)
            if len(calls) == 9:
                raise KeyboardInterrupt
            return encode(*arguments)

        monkeypatch.setattr(tokens, "_encode_group", interrupted)
        for _ in range(2):
            try:
                index = CorpusIndex.build(["a fox", TEXT, "foxes"], TOKENIZERS[0], tmp_path / "index")
            except KeyboardInterrupt:
                continue
        assert len(calls) > 12
        assert index.document_ids(1).tolist() == TOKENIZERS[0].encode(TEXT)
        assert index.document_ids(2).tolist() == TOKENIZERS[0].encode("foxes")
