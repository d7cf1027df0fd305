"""The long-context recipe: positions, lengths and tokens, operations, the law, and questions that a model asks itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from palimpsest.errors import InputError, UnsupportedModelError
from palimpsest.training.long_context import (
    GrowingRows,
    LengthCurriculum,
    LongContextRecipe,
    extend,
    fit_context_law,
    flops,
    set_rotary,
)
from palimpsest.training.long_instructions import self_instruct_long

CURRICULUM = LengthCurriculum(((0.0, 8), (0.5, 16)))


def small(tie: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0}, tie_word_embeddings=tie, bos_token_id=None, eos_token_id=None,
        initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(shape).eval()


def test_another_base_is_exact_and_the_old_one_is_the_identity() -> None:
    model = small()
    before = model.model.rotary_emb.inv_freq.clone()
    ids = torch.arange(12)[None]
    logits = model(ids).logits
    set_rotary(model, base=1000.0)
    assert torch.equal(model.model.rotary_emb.inv_freq, before)
    assert torch.equal(model(ids).logits, logits)
    set_rotary(model, base=50_000.0, length=64)
    assert torch.allclose(model.model.rotary_emb.inv_freq, 50_000.0 ** -(torch.arange(0, 8, 2) / 8))
    assert model.config.max_position_embeddings == 64
    assert not torch.allclose(model(ids).logits, logits, atol=1e-4)


def test_interpolated_positions_are_positions_divided_and_are_saved(tmp_path) -> None:
    model, plain = small(), small()
    set_rotary(model, factor=4.0)
    ids = torch.arange(12)[None]
    scaled = plain(ids, position_ids=torch.arange(12)[None] / 4).logits
    assert torch.allclose(model(ids).logits, scaled, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert torch.allclose(LlamaForCausalLM.from_pretrained(tmp_path).eval()(ids).logits, model(ids).logits, atol=1e-6)
    with pytest.raises(UnsupportedModelError, match="linear"):
        set_rotary(model, factor=2.0)


@given(st.integers(1, 40), st.integers(0, 39))
def test_every_step_has_as_many_tokens_whatever_its_length(steps: int, k: int) -> None:
    recipe = LongContextRecipe(CURRICULUM, steps, 32)
    batch = GrowingRows({"a": np.arange(40), "b": np.arange(20)}, recipe)[min(k, steps - 1)]
    assert batch.input_ids.numel() == 32
    assert batch.input_ids.shape[1] == CURRICULUM.at(min(k, steps - 1), steps)
    assert (batch.input_ids[:, 1:] - batch.input_ids[:, :-1] == 1).all()


def test_a_source_is_drawn_by_its_weight() -> None:
    recipe = LongContextRecipe(LengthCurriculum(((0.0, 4),)), 50, 80, mix=(("a", 1.0), ("b", 3.0)))
    data = GrowingRows({"a": np.zeros(10, int), "b": np.ones(1000, int)}, recipe)
    share = float(np.mean([float(data[k].input_ids.float().mean()) for k in range(50)]))
    assert share == pytest.approx(0.75, abs=0.05)
    assert torch.equal(data[3].input_ids, data[3].input_ids)
    assert data.fingerprint != GrowingRows({"a": np.ones(10, int), "b": np.ones(1000, int)}, recipe).fingerprint


def test_a_recipe_changes_positions_and_trains() -> None:
    model = small()
    recipe = LongContextRecipe(CURRICULUM, 4, 32, base=50_000.0, lr=1e-2)
    metrics = extend(model, recipe, {"a": np.arange(200) % 32})
    assert [one["tokens"] for one in metrics] == [32] * 4
    assert [one["target_tokens"] for one in metrics] == [28, 28, 30, 30]
    assert model.config.max_position_embeddings == 16
    assert metrics[-1]["loss"] < metrics[0]["loss"]


@pytest.mark.parametrize("tie", [False, True])
def test_operations_are_counted_by_hand(tie: bool) -> None:
    model = small(tie)
    layer = 4 * 16 * 16 + 3 * 16 * 24 + 2 * 16
    parameters = 2 * layer + 16 + 32 * 16  # the head, which a tied model shares with the embedding
    recipe = LongContextRecipe(CURRICULUM, 2, 32)
    expected = sum(32 * (6 * parameters + 6 * 2 * 16 * length) for length in (8, 16))
    assert flops(model, recipe) == expected
    longer = LongContextRecipe(LengthCurriculum(((0.0, 16),)), 2, 32)
    assert flops(model, longer) > flops(model, recipe)


@pytest.mark.parametrize(("alpha", "beta", "gamma"), [(25.4, 0.45, 1.56), (60.0, 0.8, 3.0), (10.0, 0.3, 2.0)])
def test_the_law_finds_what_was_planted_under_noise(alpha: float, beta: float, gamma: float) -> None:
    lengths = np.geomspace(16, 32768, 24)
    clean = (alpha / lengths) ** beta + gamma
    law = fit_context_law(lengths.tolist(), clean.tolist())
    assert (law.alpha, law.beta, law.gamma) == pytest.approx((alpha, beta, gamma), rel=1e-3)
    noise = 1 + 0.01 * np.random.default_rng(0).standard_normal(24) * (clean - gamma) / clean
    noisy = fit_context_law(lengths.tolist(), (clean * noise).tolist())
    assert noisy.gamma == pytest.approx(gamma, rel=0.05)
    assert noisy.beta == pytest.approx(beta, rel=0.05)
    assert noisy.r_squared > 0.99
    for name in ("alpha", "beta", "gamma"):
        low, high = noisy.intervals[name]
        assert low <= getattr(noisy, name) <= high
    assert law.loss(100.0) == pytest.approx((alpha / 100) ** beta + gamma, rel=1e-3)


class _Scripted:
    """A model that asks a good question of the first text, none of the second, and contradicts itself about the third."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def require(self, capability, need):
        assert capability == "text"

    def generate(self, prefixes, max_new_tokens):
        out = []
        for ids in prefixes:
            text = self.tokenizer.decode(ids)
            if "Answer:" in text:
                said = " Rome." if "capital" in text else " Monday"
            elif "one" in text:
                said = " What is the capital?\nAnswer: Rome\nAnd more"
            else:
                said = " Nothing to ask." if "two" in text else " Which day?\nAnswer: Friday"
            out.append([np.array(self.tokenizer.encode(said))])
        return out


def test_only_questions_that_are_answered_alike_are_kept(tiny_tokenizer) -> None:
    kept = self_instruct_long(["Text one.", "Text two.", "Text three."], _Scripted(tiny_tokenizer))
    assert [(one.prompt, one.answer) for one in kept] == [("Text one.\n\nQuestion: What is the capital?\nAnswer:", "Rome")]
    with pytest.raises(InputError, match="no document"):
        self_instruct_long([], _Scripted(tiny_tokenizer))


@pytest.mark.parametrize("stages", [(), ((0.1, 8),), ((0.0, 16), (0.5, 8)), ((0.0, 8), (0.0, 16)), ((0.0, 8), (1.0, 16)), ((0.0, 1),)])
def test_a_curriculum_that_falls_is_refused(stages) -> None:
    with pytest.raises(InputError, match="curriculum"):
        LengthCurriculum(stages)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="no whole rows"):
        LongContextRecipe(CURRICULUM, 2, 24)
    with pytest.raises(InputError, match="factor"):
        LongContextRecipe(CURRICULUM, 2, 32, factor=0.5)
    with pytest.raises(InputError, match="base"):
        set_rotary(small(), base=1.0)
    recipe = LongContextRecipe(CURRICULUM, 2, 32)
    for streams in ({}, {"a": np.arange(8)}):
        with pytest.raises(InputError):
            GrowingRows(streams, recipe)
    with pytest.raises(InputError, match="mix"):
        GrowingRows({"a": np.arange(99)}, LongContextRecipe(CURRICULUM, 2, 32, mix=(("b", 1.0),)))
    for lengths, losses in (([1, 2, 3], [3, 2, 1]), ([1, 2, 3, 4], [1, 1, 1, 1]), ([0, 2, 3, 4], [4, 3, 2, 1]), ([1, 2, 3, 4], [1, 2])):
        with pytest.raises(InputError):
            fit_context_law(lengths, losses)
