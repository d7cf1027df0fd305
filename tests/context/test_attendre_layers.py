"""The layers whose queries wait: against full attention, causal and in both directions, and what comes out when."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.context.attendre import AttendreAttention, AttendreEncoder, Chunk
from palimpsest.errors import InputError


def encoder(chunk, q_delay, kv_capacity=64, causal=False, layers=2, seed=0, **settings):
    torch.manual_seed(seed)
    return AttendreEncoder(16, layers, 2, chunk=chunk, kv_capacity=kv_capacity, q_delay=q_delay, causal=causal, **settings).eval()


def full_attention(model, x, valid=None):
    """What the same weights give with ordinary attention over the whole text."""
    batch, time, _ = x.shape
    valid = torch.ones(batch, time, dtype=torch.bool) if valid is None else valid
    positions = (valid.cumsum(1) - 1).clamp_min(0)
    seen = valid[:, None, None, :].expand(-1, 1, time, -1)
    if model.layers[0].attention.causal:
        seen = seen & torch.ones(time, time, dtype=torch.bool).tril()
    for layer in model.layers:
        attention = layer.attention
        q, k, v = attention.project(layer.norms[0](x)).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = attention.rotary.rotate(q, positions), attention.rotary.rotate(k, positions)
        read = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = x + attention.output(read.transpose(1, 2).flatten(2))
        x = x + layer.narrow(torch.nn.functional.gelu(layer.wide(layer.norms[1](x))))
    return model.norm(x)


@torch.no_grad()
@settings(max_examples=20)
@given(time=st.integers(1, 30), chunk=st.sampled_from([1, 2, 5, 8]), policy=st.sampled_from(["fifo", "lra", "lfa"]))
def test_a_delay_as_long_as_the_text_is_full_bidirectional_attention(time, chunk, policy):
    delay = -(-time // chunk) * chunk
    model = encoder(chunk, delay, policy=policy)
    x = torch.randn(2, time, 16)
    torch.testing.assert_close(model(x), full_attention(model, x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@settings(max_examples=20)
@given(time=st.integers(1, 30), chunk=st.sampled_from([1, 3, 8]), delay=st.sampled_from([0, 1, 2]))
def test_a_causal_stack_is_full_causal_attention_whatever_the_chunk_and_the_delay(time, chunk, delay):
    model = encoder(chunk, delay * chunk, causal=True)
    x = torch.randn(2, time, 16)
    torch.testing.assert_close(model(x), full_attention(model, x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_token_sees_as_far_ahead_as_its_query_waits():
    model, x = encoder(4, (8, 0), layers=2), torch.randn(1, 32, 16)
    before = model(x)
    for place in (19, 20):  # chunk 2 (8 to 11) leaves when chunk 4 (16 to 19) has come
        changed = x.clone()
        changed[:, place:] = torch.randn(1, 32 - place, 16)
        same = torch.isclose(model(changed), before, atol=1e-6).all(-1)[0]
        assert bool(same[8:12].all()) is (place == 20)


@torch.no_grad()
def test_padding_on_either_side_changes_nothing():
    model, x = encoder(4, (8, 4)), torch.randn(1, 20, 16)
    alone = model(x)
    valid = torch.zeros(1, 28, dtype=torch.bool)
    valid[:, :20] = True
    right = model(torch.cat([x, torch.randn(1, 8, 16)], 1), valid)
    torch.testing.assert_close(right[:, :20], alone, atol=1e-5, rtol=1e-5)
    assert not right[:, 20:].any()
    left = model(torch.cat([torch.randn(1, 8, 16), x], 1), valid.flip(1))  # a whole number of chunks
    torch.testing.assert_close(left[:, 8:], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_every_token_comes_out_once_and_in_order():
    model = encoder(4, (8, 4))
    states, seen = model.start(1), []
    for step in range(5 + 3):
        real = step < 5
        chunk = Chunk(torch.randn(1, 4, 16), torch.arange(4)[None] + 4 * step, torch.full((1, 4), real))
        out, states = model.step(chunk, states)
        assert bool(out.valid.any()) is (step >= 3)
        seen += out.positions[out.valid].tolist()
    assert seen == list(range(20))
    assert not any(state.waiting.valid.any() for state in states)


def test_gradients_reach_keys_of_earlier_and_of_later_chunks():
    model = encoder(4, (8, 0), kv_capacity=16)
    x = torch.randn(1, 24, 16, requires_grad=True)
    model(x)[0, 9].sum().backward()
    moved = x.grad.abs().sum(-1)[0] > 0
    assert moved[4:20].all()
    assert not moved[20:].any()


def test_gradients_are_those_of_full_attention():
    model, x = encoder(4, 24), torch.randn(2, 21, 16)
    found = []
    for forward in (model, lambda x: full_attention(model, x)):
        model.zero_grad()
        forward(x).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-4)


def test_bad_sizes_are_refused():
    with pytest.raises(InputError, match="delays"):
        encoder(4, 6)
    with pytest.raises(InputError, match="delays"):
        encoder(4, (4, 4, 4))
    with pytest.raises(InputError, match="3 slots"):
        encoder(4, 4, kv_capacity=3)
    with pytest.raises(InputError, match="heads 3"):
        AttendreAttention(16, 3, 8)
    layer, x = AttendreAttention(8, 2, 16, q_delay=6), torch.randn(1, 4, 8)
    with pytest.raises(InputError, match="multiple of the chunk"):
        layer(x, Chunk(x, torch.arange(4)[None], torch.ones(1, 4, dtype=torch.bool)), layer.start(1))
