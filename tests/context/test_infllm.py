"""InfLLM: equal to a loop over tokens, to LM-Infinite at both ends, and the same wherever blocks live and whoever shares the batch."""

from __future__ import annotations

import pytest
import torch
from tests.context.two_distances import DenseLambda, LoopInfLLM, random_ids, tiny_llama

from palimpsest.context import prefill
from palimpsest.context.infllm import InfLLM
from palimpsest.context.lm_infinite import LMInfinite
from palimpsest.errors import CannotRollbackError, InputError

N_INIT, N_LOCAL = 3, 16
SMALL = {"n_init": N_INIT, "n_local": N_LOCAL, "block": 4, "repr_topk": 2, "exec_block": 8, "cached_blocks": 4}


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


def logits(model, method, ids, chunk, mask=None):
    with method(model) as session:
        return prefill(session, ids, chunk=chunk, logits="all", attention_mask=mask).logits


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("chunk", [70, 8, 5, 1])
def test_equals_a_loop_over_tokens_and_blocks(model, chunk, per_head):
    ids = random_ids(70)
    expected = logits(model, LoopInfLLM(N_INIT, N_LOCAL, 4, 2, 2, 8, per_head), ids, chunk)
    found = logits(model, InfLLM(**SMALL, topk=2, per_head=per_head), ids, chunk)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    everything = logits(model, DenseLambda(70, N_LOCAL, N_LOCAL), ids, 70)
    assert not torch.allclose(found, everything, atol=1e-2)  # two blocks are not all: the lookup decides


@pytest.mark.parametrize("block", [2, 4, 5])
def test_with_room_for_all_blocks_everything_distant_is_seen_at_one_distance(model, block):
    ids = random_ids(80, rows=2)
    expected = logits(model, DenseLambda(80, N_LOCAL, N_LOCAL), ids, 80)
    method = InfLLM(**SMALL | {"block": block, "cached_blocks": 40}, topk=40)
    for chunk in (80, 9, 1):
        torch.testing.assert_close(logits(model, method, ids, chunk), expected, atol=1e-4, rtol=1e-4)


def test_without_lookups_it_is_lm_infinite(model):
    ids = random_ids(90)
    expected = logits(model, LMInfinite(N_INIT, N_LOCAL), ids, 90)
    for chunk in (90, 9, 1):
        torch.testing.assert_close(logits(model, InfLLM(**SMALL, topk=0), ids, chunk), expected, atol=1e-4, rtol=1e-4)


def test_vanilla_bit_for_bit_while_everything_is_near(model):
    ids = random_ids(N_LOCAL, rows=2)
    with torch.no_grad():
        expected = model(ids).logits
        with InfLLM(**SMALL, topk=2)(model):
            assert torch.equal(model(ids).logits, expected)


@pytest.mark.parametrize("policy", ["lru", "lru-s"])
def test_where_the_blocks_live_changes_nothing(model, policy):
    ids = random_ids(80, rows=2)
    near, far = (InfLLM(**SMALL, topk=3, offload=where, policy=policy) for where in (None, "cpu"))
    for chunk in (80, 7):
        assert torch.equal(logits(model, near, ids, chunk), logits(model, far, ids, chunk))


@pytest.mark.parametrize("chunk", [60, 1])
@pytest.mark.parametrize("settings", [{}, {"per_head": True}, {"policy": "lru-s", "cached_blocks": 2}, {"topk": 0}])
def test_rows_with_padding_get_what_they_get_alone(model, settings, chunk):
    ids, mask = random_ids(60, rows=4), torch.ones(4, 60, dtype=torch.long)
    padding = (0, 5, 22, 55)
    for row, count in enumerate(padding):
        mask[row, :count] = 0
    method = InfLLM(**SMALL | {"topk": 2} | settings)
    together = logits(model, method, ids, chunk, mask)
    for row, count in enumerate(padding):
        alone = logits(model, method, ids[row : row + 1, count:], chunk)
        torch.testing.assert_close(together[row, count:], alone[0], atol=1e-4, rtol=1e-4)


def test_a_padded_batch_that_is_read_in_chunks_keeps_the_rows_apart(model):
    """A row's execution blocks begin at its own first token of a pass: chunks of 8 behind 24 tokens of padding are those of the row."""
    ids, mask = random_ids(96, rows=2), torch.ones(2, 96, dtype=torch.long)
    mask[1, :24] = 0
    method = InfLLM(**SMALL, topk=2)
    together = logits(model, method, ids, 8, mask)
    torch.testing.assert_close(together[1, 24:], logits(model, method, ids[1:, 24:], 8)[0], atol=1e-4, rtol=1e-4)


def test_padding_behind_changes_nothing_before_it(model):
    ids, mask = random_ids(80, rows=2), torch.ones(2, 80, dtype=torch.long)
    mask[1, 61:] = 0
    with torch.no_grad(), InfLLM(**SMALL, topk=2)(model):
        found = model(ids, attention_mask=mask).logits
        torch.testing.assert_close(found[1, :61], model(ids[1:, :61]).logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("chunk", [40, 7])
def test_every_token_is_in_exactly_one_place(model, chunk):
    ids, mask = random_ids(90, rows=2), torch.ones(2, 90, dtype=torch.long)
    mask[1, :21] = 0
    with InfLLM(**SMALL, topk=2)(model) as session:
        cache = None
        for begin in range(0, 90, chunk):
            end = min(begin + chunk, 90)
            cache = prefill(session, ids[:, begin:end], cache=cache, attention_mask=mask[:, :end], logits="none").cache
            for layer in cache.layers:
                for row, count in enumerate(mask[:, :end].sum(1).tolist()):
                    # The places of all tokens so far, as the next query finds them.
                    stored, gone = int(layer.stored[row]), max(0, count - N_LOCAL + 1)
                    near, first = set(range(gone, count)), set(range(min(N_INIT, gone)))
                    blocks, remainder = set(range(N_INIT, stored)), set(range(stored, gone))
                    assert len(near) + len(first) + len(blocks) + len(remainder) == count
                    ranks = [rank for rank in layer.ranks[row].tolist() if rank >= 0]
                    assert len(ranks) == len(set(ranks))
                    assert near | remainder <= set(ranks)
                    assert len(remainder) <= SMALL["block"]
                    assert layer.first_keys[row, 0].any(-1).tolist() == [rank < count for rank in range(N_INIT)]
                assert layer.store.counts.tolist() == layer.blocks.tolist()


def test_device_and_host_bytes_are_told_apart(model):
    sizes = []
    for tokens in (200, 400):
        with InfLLM(**SMALL, topk=2)(model) as session:
            layer = prefill(session, random_ids(tokens), chunk=50, logits="none").cache.layers[0]
            sizes.append((layer.nbytes(), layer.device_nbytes()))
    (all_200, device_200), (all_400, device_400) = sizes
    assert all_400 - all_200 > 200 * 2 * 2 * 8 * 4 * 0.9
    assert device_400 - device_200 < (all_400 - all_200) / 4


def test_beam_search_and_generation_from_a_cache(model):
    ids = random_ids(60, rows=2)
    method = InfLLM(**SMALL, topk=2)
    options = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 0}
    with method(model) as session:
        whole = model.generate(ids, num_beams=3, **options)
        for row in range(2):
            assert torch.equal(model.generate(ids[row : row + 1], num_beams=3, **options)[0], whole[row])
    with InfLLM(**SMALL | {"cached_blocks": 40}, topk=40)(model) as session:
        greedy = model.generate(ids, **options)
        read = prefill(session, ids[:, :-1], chunk=59, logits="none")
        assert torch.equal(model.generate(ids, past_key_values=read.cache, **options), greedy)


def test_repeated_and_selected_rows(model):
    ids = random_ids(60, rows=2)
    with torch.no_grad(), InfLLM(**SMALL, topk=2, per_head=True)(model) as session:
        first, second = (prefill(session, ids, logits="none").cache for _ in range(2))
        first.batch_repeat_interleave(2)
        first.batch_select_indices(torch.tensor([1, 3]))
        token = random_ids(1, rows=2, seed=5)
        expected = session.model(token, past_key_values=second, use_cache=True).logits
        torch.testing.assert_close(session.model(token, past_key_values=first, use_cache=True).logits, expected, atol=1e-5, rtol=1e-5)


def test_a_cache_that_was_reset_starts_anew(model):
    ids = random_ids(60)
    with InfLLM(**SMALL, topk=2)(model) as session:
        read = prefill(session, ids)
        read.cache.reset()
        torch.testing.assert_close(prefill(session, ids, cache=read.cache).logits, read.logits)
        with pytest.raises(CannotRollbackError):
            read.cache.crop(-2)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"exec_block": 17}, "exec_block is 17"),
        ({"topk": 5}, "topk is 5"),
        ({"repr_topk": 5}, "repr_topk is 5"),
        ({"n_local": 0}, "n_local is 0"),
        ({"n_init": -1}, "n_init is -1"),
        ({"policy": "fifo"}, "fifo"),
        ({"score_decay": 2.0}, "2.0"),
        ({"offload": "disk"}, "disk"),
    ],
)
def test_settings_out_of_range(settings, what):
    with pytest.raises(InputError, match=what):
        InfLLM(**SMALL | {"topk": 2} | settings)
