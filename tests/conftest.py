"""What many tests share: a tiny byte-level tokenizer and a tiny random Llama behind the ordinary door."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tiny models are slower on more, and workers share the cores

import hypothesis
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from palimpsest.tokenizer import Tokenizer

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("untimed")

PROSE = """In the beginning was the word, and the word was written down, and what was written down was scraped off and written again.
A palimpsest is a page that still shows what stood there before; the eye that knows how to look can read both hands at once.
The quick brown fox jumps over the lazy dog, and the five boxing wizards jump quickly; 0123456789 sheep were counted.
"""


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE of 320 ids: every text can be encoded and decoded; ids 0 and 1 are BOS and EOS (also padding)."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([PROSE], trainer)
    return Tokenizer(backend, bos_id=0, eos_id=1, pad_id=1)


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer: Tokenizer):
    """A random two-layer Llama (hidden 32, context 128) with `tiny_tokenizer`, as an `HFModel`."""
    return make_tiny_model(tiny_tokenizer, seed=0)


@pytest.fixture(scope="session")
def other_model(tiny_tokenizer: Tokenizer):
    """Another random Llama, half as wide, with the same tokenizer."""
    return make_tiny_model(tiny_tokenizer, seed=1, hidden=16)


def make_tiny_model(tokenizer: Tokenizer, seed: int, hidden: int = 32):
    """A random Llama of two layers; its logits are scaled up so that its distributions are far from uniform."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from palimpsest.models import HFModel

    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    return HFModel(model, tokenizer, name=f"tiny-{seed}")
