"""Four architectures at toy size, random weights, one tokenizer: what the contract suite runs over."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

ARCHITECTURES = ("llama", "gpt2", "gpt-neox", "gemma3")
CONTEXT = 64


def random_model(architecture: str, vocab: int, seed: int = 0) -> PreTrainedModel:
    """A model of 2 layers whose distributions are far from uniform."""
    shared = {"vocab_size": vocab, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "initializer_range": 0.3}
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if architecture == "llama":
            return LlamaForCausalLM(LlamaConfig(**shared, **sizes, num_key_value_heads=2, tie_word_embeddings=True))
        if architecture == "gpt2":
            return GPT2LMHeadModel(GPT2Config(**shared, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT))
        if architecture == "gpt-neox":
            return GPTNeoXForCausalLM(GPTNeoXConfig(**shared, **sizes))
        # soft-capped logits, and a sliding window shorter than the rows
        config = Gemma3TextConfig(
            **shared, **sizes, num_key_value_heads=2, head_dim=8, sliding_window=8, final_logit_softcapping=4.0, query_pre_attn_scalar=8
        )
        return Gemma3ForCausalLM(config)


@pytest.fixture(scope="session", params=ARCHITECTURES)
def architecture_model(request, tiny_tokenizer):
    """Each architecture in turn, as an `HFModel` with small batches."""
    from palimpsest.models import HFModel

    return HFModel(random_model(request.param, tiny_tokenizer.vocab_size), tiny_tokenizer, name=request.param, batch_tokens=48)


@pytest.fixture(scope="session")
def make_model(tiny_tokenizer):
    """`random_model` with the vocabulary of `tiny_tokenizer`: architecture, seed -> a fresh transformers model."""

    def make(architecture: str, seed: int = 0) -> PreTrainedModel:
        return random_model(architecture, tiny_tokenizer.vocab_size, seed)

    return make
