"""Four architectures at toy size, random weights, one tokenizer: what the contract suite runs over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
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

from palimpsest.tokenizer import Tokenizer

ARCHITECTURES = ("llama", "gpt2", "gpt-neox", "gemma3")
CONTEXT = 64


def random_model(architecture: str, vocab: int, seed: int = 0) -> PreTrainedModel:
    """A model of 2 layers whose distributions are far from uniform."""
    shared = {"vocab_size": vocab, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "initializer_range": 0.3}
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
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


def write_gguf(path: Path, model: PreTrainedModel, tokenizer: Tokenizer, pre: str = "smollm", quantised: bool = False) -> None:
    """A Llama as llama.cpp's converter writes it: its names, and query and key rows interleaved for its rotary embedding."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    content = json.loads(tokenizer.backend.to_str())
    vocab = content["model"]["vocab"]
    special = {entry["id"] for entry in content["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(sorted(vocab, key=vocab.__getitem__))
    writer.add_token_types([gguf.TokenType.CONTROL if index in special else gguf.TokenType.NORMAL for index in range(len(vocab))])
    writer.add_token_merges([" ".join(merge) for merge in content["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for layer in range(config.num_hidden_layers):
        names |= {f"model.layers.{layer}.{ours}": f"blk.{layer}.{theirs}" for ours, theirs in parts.items()}
    for name, parameter in model.named_parameters():
        value = parameter.detach().numpy()
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        target = names[name.removesuffix(".weight")] + ".weight"
        if quantised and value.ndim == 2:
            writer.add_tensor(target, gguf.quants.quantize(value, gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(target, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def gguf_file(tmp_path, tiny_tokenizer, make_model, monkeypatch):
    """Writes a tiny Llama as a GGUF file, with the cache of models in a folder of the test's own: (file, original model)."""
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / "cache"))
    model = make_model("llama")

    def write(name: str = "tiny.gguf", **options: Any) -> tuple[Path, PreTrainedModel]:
        write_gguf(tmp_path / name, model, tiny_tokenizer, **options)
        return tmp_path / name, model

    return write
