"""Tiny random decoders of six families, and two small context methods that exercise the base."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from palimpsest.context import ContextMethod, PositionedLayer

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
CONFIGS = {
    "llama": lambda: LlamaConfig(**GROUPED),
    "qwen2": lambda: Qwen2Config(**GROUPED),
    "qwen3": lambda: Qwen3Config(**GROUPED, head_dim=8),
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=None),
    "gemma3": lambda: Gemma3TextConfig(
        **GROUPED, head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention", "full_attention"]
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES, rotary_pct=0.25),
}


def make_model(family: str, seed: int = 0):
    """A random model of three layers, four heads (two key-value heads where the family groups), 97 ids."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()


@pytest.fixture(scope="session", params=list(CONFIGS))
def model(request):
    return make_model(request.param)


@pytest.fixture(scope="session")
def llama():
    return make_model("llama")


@pytest.fixture(scope="session")
def ids():
    return torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def logits(model, ids, **options):
    return model(ids, **options).logits


def greedy(model, ids, count=12, **options):
    options.setdefault("attention_mask", torch.ones_like(ids))
    return model.generate(ids, max_new_tokens=count, do_sample=False, pad_token_id=0, **options)


@dataclass(frozen=True)
class Stored(ContextMethod):
    """Full attention over positioned layers."""

    def make_layer(self, info):
        return PositionedLayer()


@dataclass(frozen=True)
class Unrotated(ContextMethod):
    """Full attention over keys that are kept before rotation."""

    keys = "pre_rope"


@dataclass(frozen=True)
class Window(ContextMethod):
    """The last `budget` tokens, at their own positions; padding goes first."""

    budget: int = 16

    def make_layer(self, info):
        return PositionedLayer()

    def observe(self, info, q, k, v, position_ids, layer):
        surplus = layer.length - self.budget
        if surplus == 1 and q.shape[2] == 1:
            layer.give_up(layer.positions.argmin(-1))
        elif surplus > 0:
            layer.keep(layer.positions.long().topk(self.budget, dim=-1).indices.sort(-1).values)
