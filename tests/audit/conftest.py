"""Samples whose extraction from the tiny models is known by construction, and doors that can do less."""

from __future__ import annotations

import numpy as np
import pytest

from palimpsest.audit.samples import PrefixSuffix
from palimpsest.models import LanguageModel

PREFIX, SUFFIX = 24, 8


class NarrowDoor(LanguageModel):
    """Another door to a model, with fewer capabilities; a tokenizer or context can be put in the place of the model's own."""

    def __init__(self, model, capabilities, context_length=None, tokenizer=None):
        self.inner = model
        self.name, self.door, self.tokenizer = model.name, "narrow", tokenizer or model.tokenizer
        self.capabilities = frozenset(capabilities)
        self.context_length = context_length or model.context_length
        self.parameters, self.prepends_bos = model.parameters, model.prepends_bos

    @property
    def fingerprint(self):
        return self.inner.fingerprint

    def score(self, *args, **kwargs):
        self.require("logprobs", "score")
        return self.inner.score(*args, **kwargs)

    def generate(self, *args, **kwargs):
        self.require("text", "generate")
        return self.inner.generate(*args, **kwargs)


@pytest.fixture(scope="session")
def narrow_door():
    return NarrowDoor


@pytest.fixture(scope="session")
def known_samples(tiny_model):
    """40 samples, prefix 24 and suffix 8: the suffix of sample i is the model's own greedy text up to token `right`, then wrong.

    meta: "copies" (0, 1, 4, 16, 64; eight samples each) and "right"; more copies, more samples that are right to the end.
    """
    rng = np.random.default_rng(0)
    vocab = tiny_model.tokenizer.vocab_size
    prefixes = rng.integers(2, vocab, size=(40, PREFIX))
    greedy = [rows[0] for rows in tiny_model.generate(list(prefixes), SUFFIX, stop_at_eos=False)]
    samples = []
    for i, (prefix, suffix) in enumerate(zip(prefixes, greedy, strict=True)):
        level, place = divmod(i, 8)
        right = SUFFIX if place < 2 * level else int(rng.integers(SUFFIX))
        suffix = suffix.copy()
        if right < SUFFIX:
            suffix[right] = (suffix[right] + 1 + rng.integers(vocab - 1)) % vocab
        meta = {"id": f"s{i}", "copies": [0, 1, 4, 16, 64][level], "domain": "ab"[i % 2], "right": right}
        samples.append(PrefixSuffix(np.concatenate([prefix, suffix]), PREFIX, SUFFIX, meta))
    return samples


@pytest.fixture(scope="session")
def toy_model():
    """A random Llama with a vocabulary of five ids."""
    import tokenizers
    import torch
    from tokenizers import models
    from transformers import LlamaConfig, LlamaForCausalLM

    from palimpsest.models import HFModel
    from palimpsest.tokenizer import Tokenizer

    config = LlamaConfig(
        vocab_size=5,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    words = tokenizers.Tokenizer(models.WordLevel({c: i for i, c in enumerate("abcde")}, unk_token="a"))
    return HFModel(model, Tokenizer(words), name="toy")
