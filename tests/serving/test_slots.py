"""Attention over slots: against the ordinary forward pass of many architectures, and the cutting of rows into runs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.errors import CapabilityError, InputError
from palimpsest.models import HFModel
from palimpsest.serving.runners import CacheRunner, SlotRunner
from palimpsest.serving.slots import CALL_COST, SlotStore, Work, _runs

SHARED = {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "initializer_range": 0.3}
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
BATCHED = {
    "Llama": {"num_key_value_heads": 2},
    "Qwen2": {"num_key_value_heads": 2},
    "GPTNeoX": {},
    "Mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "DeepseekV3": {
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 4,  # values narrower than keys
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
}
OTHERS = {
    "Gemma2": ({"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}, "softcap"),
    "Bloom": ({}, "attention be replaced"),
    "Llama": ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "length of the input"),
}


def make(kind, tokenizer, **options):
    sizes = {"hidden_size": 32, "n_layer": 2, "n_head": 4} if kind == "Bloom" else SIZES
    config = getattr(transformers, f"{kind}Config")(**SHARED, **sizes, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return HFModel(getattr(transformers, f"{kind}ForCausalLM")(config), tokenizer, name=kind)


def logits_alone(model, row):
    with torch.inference_mode():
        return model.model(input_ids=torch.tensor(row)[None], use_cache=False).logits[0]


def run_ragged(runner, rows, seed):
    """Feeds rows in pieces of random length, in a random order and company; logits of all positions of each."""
    rng = np.random.default_rng(seed)
    fed, found = [0] * len(rows), [[] for _ in rows]
    slots = rng.permutation(len(rows)).tolist()
    with runner.session():
        while any(done < len(row) for done, row in zip(fed, rows, strict=True)):
            work, owners = [], []
            for number, row in enumerate(rows):
                if fed[number] < len(row) and rng.random() < 0.7:
                    count = min(len(row) - fed[number], 1 if rng.random() < 0.5 else int(rng.integers(1, 12)))
                    work.append(Work(slots[number], fed[number], row[fed[number] : fed[number] + count], count))
                    owners.append(number)
            if not work:
                continue
            for number, one, logits in zip(owners, work, runner.step(work), strict=True):
                assert isinstance(logits, torch.Tensor), logits
                found[number].append(logits)
                fed[number] = one.end
    return [torch.cat(parts) for parts in found]


@pytest.mark.parametrize("kind", BATCHED)
@pytest.mark.parametrize("seed", [0, 1])
def test_ragged_pieces_give_the_logits_of_the_model_alone(kind, seed, tiny_tokenizer):
    """Any company, any order, any pieces; and the model is afterwards as it was before."""
    model = make(kind, tiny_tokenizer, **BATCHED[kind])
    before = model.model.config._attn_implementation
    rows = [np.random.default_rng(seed + 7).integers(0, 320, length).tolist() for length in (1, 9, 30, 17, 30)]
    for row, found in zip(rows, run_ragged(SlotRunner(model, len(rows)), rows, seed), strict=True):
        torch.testing.assert_close(found, logits_alone(model, row), rtol=1e-4, atol=1e-4)
    assert model.model.config._attn_implementation == before


@pytest.mark.parametrize("kind", OTHERS)
def test_what_cannot_be_batched_says_why_and_runs_behind_caches(kind, tiny_tokenizer):
    options, reason = OTHERS[kind]
    model = make(kind, tiny_tokenizer, **options)
    with pytest.raises(InputError, match=reason):
        SlotRunner(model, 2)
    rows = [np.random.default_rng(3).integers(0, 320, length).tolist() for length in (9, 20)]
    for row, found in zip(rows, run_ragged(CacheRunner(model), rows, 0), strict=True):
        torch.testing.assert_close(found, logits_alone(model, row), rtol=1e-4, atol=1e-4)


def test_a_model_without_cache_is_refused(tiny_tokenizer):
    config = transformers.MambaConfig(vocab_size=320, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(CapabilityError, match="keeps no cache"):
        CacheRunner(HFModel(transformers.MambaForCausalLM(config), tiny_tokenizer, name="mamba"))


def test_a_model_that_says_something_else_in_slots_is_found_out(tiny_tokenizer, monkeypatch):
    """Attention that depends on something besides queries, keys and values."""
    model = make("Llama", tiny_tokenizer)
    monkeypatch.setattr(SlotRunner, "_run", lambda self, work: [torch.zeros(one.wanted, 320) for one in work])
    with pytest.raises(InputError, match="logits differ"):
        SlotRunner(model, 2)
    assert model.model.config._attn_implementation == "sdpa"


def test_others_use_the_model_meanwhile(tiny_tokenizer):
    """Scoring a padded batch while the model's attention goes through slots, without a step under way."""
    model = make("Mistral", tiny_tokenizer, **BATCHED["Mistral"])
    rows = [list(range(2, 30)), [5, 6, 7]]
    expected = model.score(rows).logprobs
    with SlotRunner(model, 2).session():
        for own, alone in zip(model.score(rows).logprobs, expected, strict=True):
            np.testing.assert_allclose(own, alone, rtol=1e-5, atol=1e-5)
        with pytest.raises(InputError, match="being served already"):
            SlotRunner(model, 2)


def test_slots_grow_without_losing_anything(tiny_tokenizer):
    """From 256 positions to 512, in the middle of two texts."""
    model = make("Llama", tiny_tokenizer, num_key_value_heads=2)
    model.model.config.max_position_embeddings = 400
    rows = [np.random.default_rng(1).integers(0, 320, length).tolist() for length in (300, 40)]
    runner = SlotRunner(model, 2)
    with runner.session():
        first = runner.step([Work(0, 0, rows[0][:250], 250), Work(1, 0, rows[1][:20], 20)])
        capacity = runner.store.capacity
        second = runner.step([Work(0, 250, rows[0][250:], 50), Work(1, 20, rows[1][20:], 20)])
    assert (capacity, runner.store.capacity) == (256, 512)
    for row, parts in zip(rows, zip(first, second, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(parts), logits_alone(model, row), rtol=1e-4, atol=1e-4)


def test_bfloat16_slots_are_zeros():
    store = SlotStore({0: ((2, 4), (2, 4))}, 3, torch.bfloat16, torch.device("cpu"))
    keys, values = store.layer(0)
    assert keys.dtype == torch.bfloat16
    assert keys.shape == values.shape == (3, 2, store.capacity, 4)
    assert not keys.any()
    assert store.token_bytes == 2 * 2 * 4 * 2


def cost(runs, rows):
    return sum(CALL_COST + count * longest for _, count, _, longest in runs)


@settings(max_examples=60)
@given(st.dictionaries(st.integers(0, 9), st.integers(1, 2000), min_size=1, max_size=7))
def test_runs_are_the_cheapest_way_to_cut(lengths):
    """Against all ways of cutting the rows where neighbours allow it."""
    rows = sorted(lengths.items())
    runs = _runs(rows)
    assert [row for first, count, _, _ in runs for row in range(first, first + count)] == list(range(len(rows)))
    for first, count, slot, longest in runs:
        assert [rows[row][0] for row in range(first, first + count)] == list(range(slot, slot + count))
        assert longest == max(rows[row][1] for row in range(first, first + count))
    best = float("inf")
    for cuts in itertools.product([False, True], repeat=len(rows) - 1):
        borders = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(rows)]
        parts = [rows[a:b] for a, b in itertools.pairwise(borders)]
        if all(part[-1][0] - part[0][0] == len(part) - 1 for part in parts):
            best = min(best, sum(CALL_COST + len(part) * max(length for _, length in part) for part in parts))
    assert cost(runs, rows) == best
