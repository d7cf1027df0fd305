"""The laboratory of the study systems: names are one token, models are kept under everything that decides them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from palimpsest.audit.cued_recall import text_example
from palimpsest.experiments import study_lab
from palimpsest.experiments.study_lab import JoinedBatches, Shape, new_model, studied, word_tokenizer
from palimpsest.training.examples import Example, ExampleBatches
from palimpsest.training.loop import TrainConfig

TEXTS = ["Ada Byron lives in Rome.", "The home of Max is Ulm."]
SHAPE, TRAIN = Shape(16, 1, 2, 32), TrainConfig(3, lr=1e-2, cpu=True)


def test_every_word_is_known_and_a_name_is_one_token():
    tokenizer = word_tokenizer(TEXTS, ["Ada Byron", "Rome"], punctuation=True)
    ids = tokenizer.encode("Ada Byron lives in Rome.")
    assert len(ids) == 5
    assert study_lab.UNKNOWN not in tokenizer.decode(ids)
    assert tokenizer.encode("Rome lives in Ada Byron.") == [ids[3], ids[1], ids[2], ids[0], ids[4]]
    assert tokenizer.encode("nobody") == [1]
    assert len(word_tokenizer(TEXTS).encode("lives in Rome.")) == 3


def test_a_model_is_trained_once(tmp_path, monkeypatch):
    model = new_model(word_tokenizer(TEXTS), SHAPE, 5)
    assert new_model(model.tokenizer, SHAPE, 5).fingerprint == model.fingerprint != new_model(model.tokenizer, SHAPE, 6).fingerprint
    before = model.fingerprint
    examples = [text_example(model, text) for text in TEXTS]
    data = ExampleBatches(examples, 2)
    first = studied(model, data, TRAIN, "read", cache=tmp_path)
    vars(model).pop("fingerprint")
    assert model.fingerprint == before != first.fingerprint
    calls = []
    monkeypatch.setattr(study_lab, "study", lambda *arguments: calls.append(arguments))
    again = studied(model, ExampleBatches(examples, 2), TRAIN, "read", cache=tmp_path)
    assert again.fingerprint == first.fingerprint
    assert not calls
    others = (
        (model, ExampleBatches(examples[:1], 2), TRAIN),
        (model, data, TrainConfig(4, lr=1e-2, cpu=True)),
        (model, ExampleBatches(examples, 1), TRAIN),
        (model, JoinedBatches(examples, 2), TRAIN),
        (first, data, TRAIN),
    )
    for number, other in enumerate(others, 1):
        studied(*other, "other", cache=tmp_path)
        assert len(calls) == number


def test_training_is_on_one_thread_and_the_same_each_time(tmp_path):
    model = new_model(word_tokenizer(TEXTS), SHAPE, 5)
    threads = torch.get_num_threads()
    data = ExampleBatches([text_example(model, text) for text in TEXTS], 2)
    ends = [studied(model, data, TRAIN, "read", cache=tmp_path / str(n)) for n in range(2)]
    assert torch.get_num_threads() == threads
    for a, b in zip(*(end.model.parameters() for end in ends), strict=True):
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())
    with pytest.raises(AssertionError):
        torch.testing.assert_close(next(iter(ends[0].model.parameters())), next(iter(model.model.parameters())))


def test_whole_examples_are_joined_in_pairs():
    examples = [Example((0, 10 + n, 0)) for n in range(5)] + [Example((0, 20 + n, 30, 0), 2) for n in range(2)]
    data = JoinedBatches(examples, 7, seed=3)
    rows = data.chosen(0)
    assert [row for row in rows if row.first > 1] == [e for e in ExampleBatches(examples, 7, seed=3).chosen(0) if e.first > 1]
    joined = [row for row in rows if row.first == 1]
    assert sorted(len(row.ids) for row in joined) == [3, 5, 5]
    assert all(row.ids[0] == row.ids[-1] == 0 and 0 not in row.ids[1:-1:2] for row in joined)
    assert sorted(token for row in joined for token in row.ids if token) == [10, 11, 12, 13, 14]
    assert data.chosen(1) != rows
    assert data[0].n_target_tokens == 5 * 2 + 2 * 2
