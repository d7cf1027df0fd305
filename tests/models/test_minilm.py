"""The sentence embedder: mean of the hidden states, whatever the batch; chunks that it sees whole; and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from palimpsest.errors import InputError, ModelNotFoundError
from palimpsest.models import minilm
from palimpsest.models.minilm import WINDOW, MiniLM
from palimpsest.models.quiet import quiet

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "fox", "dog", "lazy", *LETTERS, *(f"##{letter}" for letter in LETTERS)]


def write_bert(folder):
    """A random BERT of two layers with word pieces of single letters; its tokenizer cuts and pads, as the real one's file says."""
    folder.mkdir()
    backend = tokenizers.Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.enable_truncation(8)
    backend.enable_padding(length=8)
    backend.save(str(folder / "tokenizer.json"))
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.5}
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=len(PIECES), max_position_embeddings=WINDOW, **shape)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def embed(tmp_path_factory):
    return MiniLM(write_bert(tmp_path_factory.mktemp("bert") / "model"), batch_tokens=64)


TEXTS = ["The fox", "a", "the lazy dog and the quick brown fox jumped", "dog"]


def test_the_vector_is_the_mean_of_the_hidden_states(embed):
    for text, vector in zip(TEXTS, embed(TEXTS), strict=True):
        ids = embed.tokenizer.encode(text).ids
        with torch.no_grad():
            mean = embed.model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, mean / mean.norm(), atol=1e-5)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_a_text_does_not_depend_on_the_others(embed):
    together = embed(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(embed([text])[0], vector, atol=1e-5)
    np.testing.assert_allclose(embed(TEXTS[::-1]), together[::-1], atol=1e-5)


def test_long_texts_come_in_chunks_that_are_seen_whole(embed):
    rng = np.random.default_rng(0)
    text = " ".join("".join(rng.choice(list("abcdefgh"), size=rng.integers(1, 40))) for _ in range(60))
    chunks = embed.chunks(text)
    assert len(chunks) > 2
    assert "".join("".join(chunks).split()) == "".join(text.split())  # nothing is lost, nothing said twice
    assert all(0 < len(embed.tokenizer.encode(chunk).ids) <= WINDOW for chunk in chunks)
    assert embed(chunks).shape == (len(chunks), 16)
    assert embed.chunks("The fox") == ["The fox"]
    assert embed.chunks("  ") == []


def test_what_cannot_be_embedded_is_refused(embed):
    for texts in ([], "text"):
        with pytest.raises(InputError, match="texts is"):
            embed(texts)
    with pytest.raises(InputError, match="Text 1 has 0 word pieces"):
        embed(["a", " "])
    with pytest.raises(InputError, match="word pieces, the model sees"):
        embed(["a " * WINDOW])


def test_a_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(InputError, match="no sentence embedder"):
            MiniLM(folder)
    folder = write_bert(tmp_path / "bert")
    (folder / "tokenizer.json").write_text(json.dumps({"version": "9"}))
    with pytest.raises(InputError, match="no sentence embedder"):
        MiniLM(folder)


def test_the_wheel_is_unpacked_once(tmp_path, monkeypatch):
    import zipfile

    folder = write_bert(tmp_path / "bert")
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    calls = []
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(minilm, "wheel_member", lambda model, scratch, progress: calls.append(model) or tmp_path / "model.zip")
    assert not minilm.is_minilm_fetched()
    first = MiniLM()
    assert minilm.is_minilm_fetched()
    np.testing.assert_array_equal(first(TEXTS), MiniLM()(TEXTS))
    assert calls == [minilm.WHEEL]


def test_a_wheel_that_cannot_be_had(tmp_path, monkeypatch):
    def refuse(model, scratch, progress):
        raise ModelNotFoundError("pip could not fetch it.", "Check the network.")

    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(minilm, "wheel_member", refuse)
    with pytest.raises(ModelNotFoundError, match="could not fetch"):
        MiniLM()
    assert not minilm.is_minilm_fetched()


@pytest.mark.skipif(not minilm.is_minilm_fetched(), reason="needs all-minilm-l6-v2 in the cache")
def test_the_real_one_knows_meaning():
    a, b, c = MiniLM()(["A cat sat down.", "A cat was sitting.", "Taxes rise."])
    assert a @ b > 0.8 > 0.3 > a @ c
