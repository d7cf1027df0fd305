"""The laboratory of the study systems: names are one token, models are kept under everything that decides them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from palimpsest.audit.cued_recall import text_example
from palimpsest.experiments import study_lab
from palimpsest.experiments.study_lab import Shape, new_model, studied, word_tokenizer
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
    first = studied(model, examples, TRAIN, 2, "read", cache=tmp_path)
    vars(model).pop("fingerprint")
    assert model.fingerprint == before != first.fingerprint
    calls = []
    monkeypatch.setattr(study_lab, "study", lambda *arguments: calls.append(arguments))
    again = studied(model, examples, TRAIN, 2, "read", cache=tmp_path)
    assert again.fingerprint == first.fingerprint
    assert not calls
    others = (
        (model, examples[:1], TRAIN, 2),
        (model, examples, TrainConfig(4, lr=1e-2, cpu=True), 2),
        (model, examples, TRAIN, 1),
        (first, examples, TRAIN, 2),
    )
    for number, other in enumerate(others, 1):
        studied(*other, "other", cache=tmp_path)
        assert len(calls) == number


def test_training_is_on_one_thread_and_the_same_each_time(tmp_path):
    model = new_model(word_tokenizer(TEXTS), SHAPE, 5)
    threads = torch.get_num_threads()
    ends = [studied(model, [text_example(model, text) for text in TEXTS], TRAIN, 2, "read", cache=tmp_path / str(n)) for n in range(2)]
    assert torch.get_num_threads() == threads
    for a, b in zip(*(end.model.parameters() for end in ends), strict=True):
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())
    with pytest.raises(AssertionError):
        torch.testing.assert_close(next(iter(ends[0].model.parameters())), next(iter(model.model.parameters())))
