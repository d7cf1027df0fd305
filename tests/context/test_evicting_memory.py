"""The memory that evicts: against a naive one that follows the rules entry by entry, and against attention without a limit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.context.evicting_memory import EvictingMemory
from palimpsest.errors import InputError


def drawn(seed, time, batch=2, heads=4, kv_heads=2, d=8):
    torch.manual_seed(seed)
    return torch.randn(batch, heads, time, d) * 2, torch.randn(batch, kv_heads, time, d), torch.randn(batch, kv_heads, time, d)


def run(memory, q, k, v, chunk, valid=None, causal=True):
    """Reads a text chunk by chunk: outputs, and the state at the end."""
    batch, _, time, _ = q.shape
    positions = torch.arange(time).expand(batch, -1)
    state, outs = memory.start(k, v), []
    for at in range(0, time, chunk):
        part = slice(at, at + chunk)
        out, _, state = memory.step(
            state,
            q[:, :, part],
            k[:, :, part],
            v[:, :, part],
            positions[:, part],
            None if valid is None else valid[:, part],
            causal=causal,
        )
        outs.append(out)
    return torch.cat(outs, 2), state


def naive(memory, q, k, v, chunk):
    """One row, one kv head, its query heads: lists and loops. Gives outputs and the positions that are left."""
    group, time, d = q.shape
    entries, outs = [], torch.zeros(group, time, v.shape[-1])
    for number, at in enumerate(range(0, time, chunk)):
        new = range(at, min(at + chunk, time))
        may_go = [e for e in entries if e["position"] >= memory.sinks and e["position"] <= new[-1] - memory.recent]
        excess = len(entries) + len(new) - memory.capacity
        gone = sorted(may_go, key=lambda e: (e["score"], e["position"]))[: max(0, excess)]
        entries = [e for e in entries if e not in gone]
        entries += [{"position": j, "score": float(number) if memory.policy == "lra" else 0.0} for j in new]
        gained = {e["position"]: 0.0 for e in entries}
        attended = set()
        for h in range(group):
            for i in new:
                seen = [e["position"] for e in entries if e["position"] <= i]
                logits = torch.stack([q[h, i] @ k[j] for j in seen]) / d**0.5
                if memory.top_k is not None and memory.top_k < len(seen):
                    best = logits.topk(memory.top_k).indices.tolist()
                    seen, logits = [seen[b] for b in best], logits[best]
                    n_seen = None
                else:
                    n_seen = len(seen)
                probs = logits.softmax(0)
                outs[h, i] = sum(p * v[j] for p, j in zip(probs, seen, strict=True))
                for p, j in zip(probs.tolist(), seen, strict=True):
                    gained[j] += p
                    if memory.top_k is not None or p > 0.5 / n_seen:
                        attended.add(j)
        for e in entries:
            if memory.policy == "lfa":
                e["score"] = memory.decay * e["score"] + gained[e["position"]]
            if memory.policy == "lra" and e["position"] in attended:
                e["score"] = float(number)
    return outs, sorted(e["position"] for e in entries)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    policy=st.sampled_from(["fifo", "lra", "lfa"]),
    chunk=st.sampled_from([1, 3, 4]),
    capacity=st.integers(6, 14),
    top_k=st.sampled_from([None, 3]),
    sinks=st.sampled_from([0, 2]),
    recent=st.sampled_from([0, 4]),
    decay=st.sampled_from([1.0, 0.5]),
)
def test_it_evicts_as_the_rules_say(seed, policy, chunk, capacity, top_k, sinks, recent, decay):
    memory = EvictingMemory(capacity, policy, top_k, decay=decay, sinks=sinks, recent=recent)
    q, k, v = drawn(seed, 18)
    out, state = run(memory, q, k, v, chunk)
    for row in range(2):
        for head in range(2):
            expected, left = naive(memory, q[row, 2 * head : 2 * head + 2], k[row, head], v[row, head], chunk)
            torch.testing.assert_close(out[row, 2 * head : 2 * head + 2], expected, atol=1e-5, rtol=1e-4)
            assert sorted(state.positions[row, head][state.valid[row, head]].tolist()) == left


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), policy=st.sampled_from(["fifo", "lra", "lfa"]), chunk=st.sampled_from([1, 2, 7, 20]))
def test_with_room_for_all_it_is_full_causal_attention_whatever_the_chunk(seed, policy, chunk):
    q, k, v = drawn(seed, 20)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(run(EvictingMemory(25, policy), q, k, v, chunk)[0], expected, atol=1e-5, rtol=1e-5)


def test_scores_of_lfa_are_the_attention_that_was_given():
    q, k, v = drawn(0, 20)
    _, state = run(EvictingMemory(64, "lfa"), q, k, v, 4)
    torch.testing.assert_close(state.scores.sum(-1), torch.full((2, 2), 2 * 20.0), atol=1e-4, rtol=0)  # one a query and head


@pytest.mark.parametrize("policy", ["fifo", "lra", "lfa"])
def test_padding_displaces_nothing(policy):
    memory = EvictingMemory(8, policy, recent=2)
    q, k, v = drawn(1, 20, batch=1)
    alone, state = run(memory, q, k, v, 4)
    padded = [torch.cat([x, torch.randn_like(x[:, :, :8])], 2) for x in (q, k, v)]
    valid = torch.arange(28)[None] < 20
    out, after = run(memory, *padded, 4, valid)
    torch.testing.assert_close(out[:, :, :20], alone)
    assert not out[:, :, 20:].any()
    assert torch.equal(after.positions, state.positions)
    q, k, v = drawn(1, 18, batch=1)  # a chunk that ends in padding writes only its tokens
    valid = torch.arange(20)[None] < 18
    _, after = run(memory, *(torch.cat([x, torch.randn_like(x[:, :, :2])], 2) for x in (q, k, v)), 4, valid)
    assert after.valid.all()
    assert after.positions.max() == 17


def test_one_memory_for_all_heads_evicts_the_same_everywhere():
    q, k, v = drawn(2, 30)
    for policy in ("lra", "lfa"):
        _, own = run(EvictingMemory(8, policy, top_k=1), q, k, v, 2)
        _, shared = run(EvictingMemory(8, policy, top_k=1, per_head=False), q, k, v, 2)
        assert not torch.equal(own.positions.sort(-1).values[:, 0], own.positions.sort(-1).values[:, 1])
        assert torch.equal(shared.positions[:, 0], shared.positions[:, 1])


def test_policies_differ_where_an_old_entry_is_asked_for_again_and_again():
    d = 8
    k, v = torch.zeros(1, 1, 40, d), torch.randn(1, 1, 40, d)
    k[..., 0, 0] = 1.0
    q = torch.zeros(1, 1, 40, d)
    q[..., 0] = 30.0  # everyone looks for the first entry
    left = {p: run(EvictingMemory(8, p, recent=2), q, k, v, 2)[1].positions.flatten().tolist() for p in ("fifo", "lra", "lfa")}
    assert 0 not in left["fifo"]
    assert 0 in left["lra"]
    assert 0 in left["lfa"]


def test_a_state_can_be_reordered_and_weighed():
    q, k, v = drawn(3, 10)
    memory = EvictingMemory(6, "lfa")
    _, state = run(memory, q, k, v, 2)
    turned = state.map(lambda part: part[torch.tensor([1, 0])])
    assert torch.equal(turned.keys[0], state.keys[1])
    assert torch.equal(turned.scores[1], state.scores[0])
    assert state.nbytes == 2 * 2 * 6 * (8 * 4 + 8 * 4 + 4 + 4)


def test_bad_settings_are_refused():
    for wrong in ({"capacity": 0}, {"policy": "lru"}, {"top_k": 0}, {"decay": 0.0}, {"decay": 1.5}, {"sinks": -1}, {"recent": -1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            EvictingMemory(**{"capacity": 8, **wrong})
    with pytest.raises(InputError, match="capacity of at least 9"):
        EvictingMemory(8, sinks=4, recent=5)
    q, k, v = drawn(0, 9)
    with pytest.raises(InputError, match="chunks of 9"):
        run(EvictingMemory(8), q, k, v, 9)
    assert replace(EvictingMemory(8), policy="lra").policy == "lra"
