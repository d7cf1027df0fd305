"""Vocabulary, temporary ids and batches of pairs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.errors import InputError
from palimpsest.seq2seq.pairs import BOS, EOS, PAD, UNK, PairBatch, PairBatches, Vocabulary
from palimpsest.training.batch import IGNORE

texts = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=8)
VOCAB = Vocabulary(["a", "b", "c"])


@given(source=texts, target=texts)
def test_what_source_or_vocabulary_has_comes_back(source, target):
    ids, extended, unknown = VOCAB.encode_source(source)
    assert VOCAB.decode(extended, unknown) == source
    assert [i if i < len(VOCAB) else UNK for i in extended] == ids
    back = VOCAB.decode(VOCAB.encode_target(target, unknown), unknown)
    assert back == [word if word in VOCAB or word in source else "<unk>" for word in target]


def test_a_word_of_the_form_of_a_special_one_is_unknown_and_can_be_copied():
    vocab = Vocabulary.of([["<s>", "a", "a", "b"]], min_count=2)
    assert vocab.words[4:] == ("a",)
    assert "b" not in vocab
    assert vocab.encode_source(["a", "b"]) == ([4, UNK], [4, 5], ["b"])
    with pytest.raises(InputError, match="'a' twice"):
        Vocabulary(["a", "a"])
    with pytest.raises(InputError, match="'<s>' twice"):
        Vocabulary(["<s>"])


@given(pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=6), copying=st.booleans())
def test_a_batch_holds_each_pair(pairs, copying):
    sources, targets = zip(*pairs, strict=True)
    batch = PairBatch.of(VOCAB, sources, targets, copying)
    for i, (source, target) in enumerate(pairs):
        ids, extended, unknown = VOCAB.encode_source(source)
        assert batch.source[i].tolist() == ids + [PAD] * (batch.source.shape[1] - len(source))
        assert batch.extended[i, : len(source)].tolist() == extended
        labels = VOCAB.encode_target(target, unknown if copying else [])
        assert batch.labels[i].tolist() == [*labels, EOS] + [IGNORE] * (batch.labels.shape[1] - len(target) - 1)
        assert batch.target_input[i, : len(target) + 1].tolist() == [BOS, *(j if j < len(VOCAB) else UNK for j in labels)]
    assert batch.n_target_tokens == sum(len(target) + 1 for target in targets)
    assert batch.n_tokens == batch.n_target_tokens + sum(map(len, sources))
    assert batch.n_unknown == max(len(VOCAB.encode_source(source)[2]) for source in sources)


def test_an_epoch_gives_every_pair_once_and_the_next_in_another_order():
    sources = [["a"] * (1 + i % 4) + [str(i)] for i in range(23)]
    vocab = Vocabulary.of(sources)
    data = PairBatches(vocab, sources, [source[-1:] for source in sources], batch_size=5, seed=1)
    assert len(data) == 5

    def epoch(number: int) -> list[list[int]]:
        return [data[number * 5 + k].labels[:, 0].tolist() for k in range(5)]

    for number in (0, 1):
        seen = [i for batch in epoch(number) for i in batch]
        assert sorted(seen) == sorted(vocab.encode_target([source[-1] for source in sources]))
    assert epoch(0) != epoch(1)
    assert epoch(0) == epoch(0)
    other = PairBatches(vocab, sources, [source[-1:] for source in sources], batch_size=5, seed=2)
    assert data.fingerprint != other.fingerprint
    widths = [data[k].source.shape[1] - data[k].lengths.min().item() for k in range(5)]
    assert max(widths) <= 1  # like with like


def test_moving_leaves_lengths_on_the_cpu():
    batch = PairBatch.of(VOCAB, [["a", "z"]], [["z"]]).to("meta")
    assert batch.labels.device == torch.device("meta")
    assert batch.lengths.device == torch.device("cpu")


def test_bad_input_is_refused():
    for call, message in [
        (lambda: PairBatch.of(VOCAB, []), "0 sources"),
        (lambda: PairBatch.of(VOCAB, [["a"], []]), "one is empty"),
        (lambda: PairBatch.of(VOCAB, [["a"]], []), "1 sources and 0 targets"),
        (lambda: PairBatches(VOCAB, [["a"]], [["a"]], batch_size=0), "batch_size is 0"),
        (lambda: PairBatches(VOCAB, [["a"], []], [["a"], ["b"]]), "first empty source is 1"),
        (lambda: PairBatches(VOCAB, [["a"], ["b"]], [["a"]]), "2 sources and 1 targets"),
    ]:
        with pytest.raises(InputError, match=message):
            call()
