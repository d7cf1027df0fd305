"""Attaching: full attention through every path equals the model's own, and the model is afterwards what it was before."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, GPT2Config, LlamaConfig, LlamaForCausalLM, MistralConfig, StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from palimpsest.context import ContextMethod, RotaryMap, compose
from palimpsest.errors import AlreadyAttachedError, CannotRollbackError, InputError, UnsupportedModelError

from .conftest import GROUPED, Stored, Unrotated, Window, greedy, logits, make_model

FULL = [Stored(), Unrotated(), Window(1000)]


@pytest.mark.parametrize("method", FULL, ids=repr)
def test_full_attention_through_a_session_is_the_models_own(model, method, ids):
    plain, text = logits(model, ids), greedy(model, ids)
    with method(model):
        inside, inside_text = model(ids).logits, greedy(model, ids)
        uncached = model(ids, use_cache=False).logits
    assert torch.equal(inside, plain)
    assert torch.equal(uncached, plain)
    assert torch.equal(inside_text, text)
    assert torch.equal(logits(model, ids), plain)


def broken(model, method, ids):
    with method(model):
        model(ids)
        raise RuntimeError("in the middle")


@pytest.mark.parametrize("method", [Stored(), Unrotated(), Window(9)], ids=repr)
def test_the_model_is_as_before_also_after_an_exception(model, method, ids):
    decoder = model.get_decoder()
    before = (logits(model, ids), decoder.config._attn_implementation, dict(vars(decoder.rotary_emb)))
    table = dict(ALL_ATTENTION_FUNCTIONS)
    with pytest.raises(RuntimeError, match="in the middle"):
        broken(model, method, ids)
    assert torch.equal(logits(model, ids), before[0])
    assert decoder.config._attn_implementation == before[1]
    assert dict(vars(decoder.rotary_emb)) == before[2]
    assert all("_palimpsest_layer" not in vars(module) for module in decoder.modules())
    assert not decoder._forward_pre_hooks
    assert not any(module._forward_pre_hooks for module in decoder.modules())
    assert torch.is_grad_enabled()
    assert {name: ALL_ATTENTION_FUNCTIONS[name] for name in table} == table


@pytest.mark.parametrize("method", [Stored(), Unrotated(), Window(9)], ids=repr)
def test_a_padded_batch_gives_what_its_rows_give_alone(model, method, ids):
    short = ids[1:, :25]
    padded = torch.cat([torch.zeros(1, 15, dtype=torch.long), short], dim=1)
    batch = torch.cat([ids[:1], padded])
    mask = torch.ones_like(batch)
    mask[1, :15] = 0
    with method(model):
        together = model.generate(
            batch, attention_mask=mask, max_new_tokens=12, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        alone = [
            model.generate(
                row,
                attention_mask=torch.ones_like(row),
                max_new_tokens=12,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
            for row in (ids[:1], short)
        ]
    for row in range(2):
        for step in range(12):
            torch.testing.assert_close(together.logits[step][row], alone[row].logits[step][0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", FULL, ids=repr)
def test_beams_and_returned_sequences(model, method, ids):
    plain = greedy(model, ids, num_beams=3, num_return_sequences=2)
    with method(model):
        assert torch.equal(greedy(model, ids, num_beams=3, num_return_sequences=2), plain)


@pytest.mark.parametrize("method", FULL, ids=repr)
def test_a_cache_of_the_caller_and_a_second_turn(model, method, ids):
    more = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(1))
    own = DynamicCache()
    first = greedy(model, ids, past_key_values=own)
    second = greedy(model, torch.cat([first, more], dim=1), past_key_values=own)
    for cache in (DynamicCache(), DynamicCache(config=model.config)):
        with method(model) as session:
            assert torch.equal(greedy(model, ids, past_key_values=cache), first)
            assert session.cache is cache
        with method(model):  # the second turn may come in another session
            assert torch.equal(greedy(model, torch.cat([first, more], dim=1), past_key_values=cache), second)
        assert cache.get_seq_length() == second.shape[1] - 1


def test_a_second_turn_after_eviction_equals_one_token_at_a_time(llama, ids):
    method = Window(9)
    with method(llama) as session:
        for begin in range(0, 40, 5):
            chunked = llama(ids[:, begin : begin + 5], past_key_values=session.cache if begin else None).logits
        held = session.layer(0).positions.clone()
    assert held.shape == (2, 2, 9)
    assert torch.equal(held[0, 0].sort().values, torch.arange(31, 40, dtype=torch.int32))
    with method(llama) as session:
        llama(ids[:, :30])
        greedy(llama, ids[:, :35], past_key_values=session.cache, count=6)
        layer = session.layer(2)
        assert sorted(layer.positions[1, 1].tolist()) == [-1, *range(31, 40)]
        with pytest.raises(CannotRollbackError):
            session.cache.crop(-1)
    assert chunked.isfinite().all()


def test_gemma_windows_are_left_to_the_model(ids):
    model = make_model("gemma3")
    with Window(9)(model) as session:
        model(ids)
        kinds = [type(layer).__name__ for layer in session.cache.layers]
    assert kinds == ["DynamicSlidingWindowLayer", "PositionedLayer", "PositionedLayer"]
    assert sorted(session.infos) == [1, 2]
    assert session.infos[1].rotary.base == 1_000_000.0


@dataclass(frozen=True)
class Stretch(ContextMethod):
    factor: float = 2.0

    def rotary(self, rotary: RotaryMap) -> RotaryMap:
        return rotary if self.factor == 1 else replace(rotary, inv_freq=rotary.inv_freq / self.factor)


def test_a_changed_rotary_map_is_used_everywhere_and_composes(model, ids):
    plain = logits(model, ids)
    spread = torch.arange(40)[None] * 2
    with Stretch(2.0)(model):
        stretched = model(ids, position_ids=spread).logits
        other = model(ids).logits
    if model.config.model_type == "gemma3_text":
        assert not torch.equal(other, plain)
    torch.testing.assert_close(stretched, plain, atol=2e-4, rtol=1e-3)
    assert (other - plain).abs().max() > 1e-3
    with Stretch(1.0)(model):
        assert torch.equal(model(ids).logits, plain)
    for both in (compose(Stretch(2.0), Stored()), compose(Unrotated(), Stretch(2.0))):
        with both(model):
            torch.testing.assert_close(model(ids).logits, other, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(model, ids), plain)


def test_what_cannot_be_composed_says_why():
    with pytest.raises(InputError, match="both have their own make_layer"):
        compose(Stored(), Window(4))
    with pytest.raises(InputError, match="before rotation"):
        compose(Unrotated(), Window(4))
    with pytest.raises(InputError, match="everything"):
        compose(Stretch(2.0), Stretch(2.0))


def test_the_door_of_the_library_takes_sessions(tiny_model):
    prompt = [5, 6, 7, 8, 9, 10]
    plain = tiny_model.generate([prompt], 8)[0][0]
    with Stored()(tiny_model) as session:
        assert tiny_model.generate([prompt], 8)[0][0].tolist() == plain.tolist()
        # continuations of one prefix, which the door would otherwise read once
        options = {"temperature": 1.0, "seed": 3}
        one, several = (tiny_model.generate([prompt], 8, n=n, **options)[0] for n in (1, 3))
        assert several[0].tolist() == one[0].tolist()
    assert session.model is tiny_model.model


def test_misuse_is_refused_with_a_reason(llama, ids):
    with Stored()(llama), pytest.raises(AlreadyAttachedError, match="already has"), Window(4)(llama):
        pass
    cases = [
        (InputError, "output_attentions", {"output_attentions": True}),
        (InputError, "StaticCache", {"past_key_values": StaticCache(config=llama.config, max_cache_len=64)}),
        (InputError, "columns", {"attention_mask": torch.ones(2, 7)}),
        (InputError, "ready-made", {"attention_mask": torch.ones(2, 1, 40, 40)}),
        (InputError, "3 axes", {"position_ids": torch.zeros(3, 2, 40, dtype=torch.long)}),
    ]
    for error, message, options in cases:
        with Stored()(llama), pytest.raises(error, match=message):
            llama(ids, **options)
    filled = DynamicCache()
    logits(llama, ids, past_key_values=filled)
    with Stored()(llama), pytest.raises(InputError, match="already holds 40 tokens"):
        llama(ids, past_key_values=filled)
    theirs = DynamicCache()
    with Window(9)(llama):
        llama(ids, past_key_values=theirs)
    with Stored()(llama), pytest.raises(InputError, match=r"written by Window\(budget=9\)"):
        llama(ids, past_key_values=theirs)
    with pytest.raises(InputError, match="outside of its session"):
        logits(llama, ids, past_key_values=theirs)
    with pytest.raises(InputError, match="eval"), Stored()(make_model("llama").train()):
        pass


def test_an_assistant_is_followed_where_tokens_can_be_taken_back(llama, ids):
    assistant = make_model("llama", 1)
    plain = greedy(llama, ids[:1])
    with Stored()(llama):
        assert torch.equal(greedy(llama, ids[:1], assistant_model=assistant), plain)
    with Window(9)(llama), pytest.raises(CannotRollbackError, match="taken back"):
        greedy(llama, ids[:1], assistant_model=assistant)


def test_models_that_cannot_are_refused_with_a_reason():
    windowed = AutoModelForCausalLM.from_config(MistralConfig(**GROUPED, sliding_window=8)).eval()
    with pytest.raises(UnsupportedModelError, match="full attention"), Stored()(windowed):
        pass
    learned = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=97, n_embd=16, n_layer=1, n_head=2, n_positions=64)).eval()
    with pytest.raises(UnsupportedModelError, match="rotary"), Unrotated()(learned):
        pass
    with pytest.raises(UnsupportedModelError, match="no transformers model"), Stored()(object()):
        pass
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    moving = LlamaForCausalLM(LlamaConfig(**GROUPED, rope_parameters=scaled)).eval()
    with pytest.raises(UnsupportedModelError, match="dynamic"), Unrotated()(moving):
        pass


def test_a_method_says_what_it_is():
    assert Window(4).to_dict() == {"method": "Window", "budget": 4}
    assert hash(Window(4)) == hash(Window(4))
    assert compose(Stretch(), Stored()).to_dict()["first"] == {"method": "Stretch", "factor": 2.0}
