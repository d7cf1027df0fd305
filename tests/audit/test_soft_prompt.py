"""A learned prompt: it is trained without touching the model, scores as the model does, and draws out what it was trained for."""

import numpy as np
import pytest
import torch

from palimpsest.audit.samples import PrefixSuffix
from palimpsest.audit.soft_prompt import SoftPrompt, measure_soft_prompt, train_soft_prompt
from palimpsest.errors import CapabilityError, ContextOverflowError, InputError


def passages(n, seed, suffix=None):
    rng = np.random.default_rng(seed)
    tail = rng.integers(2, 300, 5) if suffix is None else suffix
    return [PrefixSuffix(np.concatenate([rng.integers(2, 300, 6), tail]), 6, len(tail), {"id": f"{seed}-{k}"}) for k in range(n)]


def test_vectors_that_are_embeddings_of_tokens_score_as_these_tokens(tiny_model):
    """P made of the embeddings of real tokens is a prompt of these tokens: the door's own scores are the oracle."""
    prompt = SoftPrompt(tiny_model, 4, seed=3)
    ids = np.random.default_rng(3).integers(0, tiny_model.vocab_size, 4)
    row = np.random.default_rng(0).integers(2, 300, 9)
    ours = prompt(torch.from_numpy(row)[None], 5).log_softmax(-1)[0]
    own = ours.gather(-1, torch.from_numpy(row[-5:])[:, None])[:, 0].detach().numpy()
    theirs = tiny_model.score([np.concatenate([ids, row])], start=4 + 4).logprobs[0]
    np.testing.assert_allclose(own, theirs, atol=1e-5)


def test_training_lowers_the_loss_and_leaves_the_model_as_it_was(tiny_model):
    before = {name: value.clone() for name, value in tiny_model.model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in tiny_model.model.parameters()]
    _, losses = train_soft_prompt(tiny_model, passages(6, 1), vectors=4, steps=25)
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.model.state_dict().items())
    assert [parameter.requires_grad for parameter in tiny_model.model.parameters()] == flags


def test_a_suffix_that_all_share_is_learnt_and_grows_likelier_behind_other_prefixes(tiny_model):
    tail = np.array([40, 41, 42])
    known, others = passages(8, 1, tail), passages(8, 2, tail)
    measured = measure_soft_prompt(tiny_model, known, others, passages(4, 3, np.array([90, 91, 92])), vectors=8, steps=150, lr=0.1)
    gains = measured.table["soft_logprob"] - measured.table["plain_logprob"]
    assert (gains.head(8) > 0.5).all()  # nats a token, on passages that were in no loss
    assert measured.summary["gain"] == pytest.approx(gains.head(8).mean())
    assert measured.summary["gain"] > measured.summary["gain_unseen"] + 0.5
    assert measured.table["member"].to_list() == [True] * 8 + [False] * 4


def test_wrong_passages_and_doors_are_refused(tiny_model):
    some = passages(3, 1)
    with pytest.raises(InputError, match="among those"):
        measure_soft_prompt(tiny_model, some, some[:1])
    with pytest.raises(InputError, match="shapes"):
        measure_soft_prompt(tiny_model, some, [PrefixSuffix(np.arange(2, 9), 3, 4)])
    with pytest.raises(ContextOverflowError, match="200 vectors"):
        measure_soft_prompt(tiny_model, some, passages(2, 2), vectors=200)

    class Text(type(tiny_model)):
        pass

    door = Text(tiny_model.model, tiny_model.tokenizer)
    door.capabilities = frozenset({"text"})
    with pytest.raises(CapabilityError, match="Learning a prompt"):
        measure_soft_prompt(door, some, passages(2, 2))
