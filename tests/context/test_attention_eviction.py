"""The eviction policies in a model as it is: with room for all, against one forward pass a chunk, padded, with beams, and in bytes."""

from __future__ import annotations

import pytest
import torch

from palimpsest.context import prefill
from palimpsest.context.attention_eviction import AttentionEviction
from palimpsest.errors import CannotRollbackError, InputError

from .conftest import greedy, logits

POLICIES = ["fifo", "lra", "lfa"]


def test_with_room_for_all_it_is_the_model_itself(model, ids):
    own, text = logits(model, ids), greedy(model, ids)
    for policy in POLICIES:
        with AttentionEviction(policy, budget=64, chunk=7)(model):
            torch.testing.assert_close(logits(model, ids), own, atol=1e-4, rtol=1e-4)
            assert torch.equal(greedy(model, ids), text)


@pytest.mark.parametrize("policy", POLICIES)
def test_one_pass_and_one_pass_a_chunk_are_the_same(llama, ids, policy):
    method = AttentionEviction(policy, budget=16, sinks=2, chunk=8)
    with method(llama) as session:
        once = logits(llama, ids)
        positions = session.layer(2).positions.clone()
        read = prefill(session, ids, chunk=8, logits="all")
        torch.testing.assert_close(once, read.logits, atol=1e-5, rtol=1e-5)
        assert torch.equal(session.layer(2).positions, positions)
        assert {0, 1, *range(32, 40)} <= set(positions[0, 0].tolist())
    assert not torch.allclose(once, logits(llama, ids), atol=1e-2)


def test_the_first_layer_forgets_the_oldest(llama, ids):
    with AttentionEviction("fifo", budget=16, chunk=4)(llama) as session:
        greedy(llama, ids, count=10)
        for index in range(3):
            assert sorted(session.layer(index).positions[0, 1].tolist()) == list(range(33, 49))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_padded_batch_gives_what_its_rows_give_alone(llama, ids, policy):
    method, short = AttentionEviction(policy, budget=16, sinks=1, chunk=5), ids[1:, 12:]
    both = torch.cat([ids[:1], torch.cat([torch.zeros(1, 12, dtype=torch.long), short], 1)])
    mask = torch.ones_like(both)
    mask[1, :12] = 0
    with method(llama):
        together = greedy(llama, both, attention_mask=mask)
        alone = [greedy(llama, row)[0, -12:] for row in (ids[:1], short)]
    assert torch.equal(together[:, -12:], torch.stack(alone))


def test_beams_move_the_memory(llama, ids):
    with AttentionEviction("lfa", budget=16, chunk=4)(llama):
        beams = greedy(llama, ids, num_beams=3, num_return_sequences=3)
        again = greedy(llama, ids[:1], num_beams=3, num_return_sequences=3)
    assert torch.equal(beams[:3], again)


def test_bytes_do_not_grow(llama, ids):
    with AttentionEviction("lra", budget=16, chunk=8)(llama) as session:
        read = prefill(session, ids, chunk=8)
        assert read.nbytes == 3 * 2 * 2 * 16 * (2 * 8 * 4 + 4 + 4)
        llama(ids[:, :1], past_key_values=read.cache)
        assert session.nbytes() == read.nbytes
        assert read.peak_bytes == read.nbytes + 2 * 2 * 8 * 2 * 8 * 4  # and one layer's chunk


def test_misuse_is_refused_with_a_reason(llama, ids):
    with pytest.raises(InputError, match="chunk is 0"):
        AttentionEviction(chunk=0)
    with pytest.raises(InputError, match="capacity of at least 40"):
        AttentionEviction(budget=39, sinks=8, chunk=32)
    with pytest.raises(InputError, match="policy"):
        AttentionEviction("lru")
    with AttentionEviction(budget=16, chunk=8)(llama) as session:
        cache = prefill(session, ids).cache
        with pytest.raises(CannotRollbackError):
            cache.layers[0].crop(-1)
    with pytest.raises(InputError, match="outside of its session"):
        llama(ids[:, :1], past_key_values=cache)
