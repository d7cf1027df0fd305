"""ThinK: the choice of channels against brute force, packed attention against a cache with zeros, bytes, padding, beams, and pairs."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from palimpsest.context import compose, prefill
from palimpsest.context.h2o import H2O
from palimpsest.context.layers import PositionedLayer
from palimpsest.context.packed import PackedKeyLayer, key_scores, largest, value_scores
from palimpsest.context.snapkv import SnapKV
from palimpsest.context.think import ThinK
from palimpsest.errors import InputError

from .conftest import Stored, Window, greedy, logits


def packed_layer(seed, size=20, kept=5, kept_values=8, recent=4, d=8, window=6, holes=None):
    """A layer of two rows and two kv heads (four query heads) that has been packed, and what went in."""
    torch.manual_seed(seed)
    layer = PackedKeyLayer()
    keys, values = torch.randn(2, 2, size, d), torch.randn(2, 2, size, d)
    positions = torch.arange(size).expand(2, -1).clone()
    if holes:
        positions[1, :holes] = -1
    layer.expect(positions, bool(holes))
    layer.update(keys, values)
    q = torch.randn(2, 4, window, d)
    layer.remember_last(q, positions[:, -window:], window)
    layer.pack(kept, kept_values, recent, 0, d**-0.5)
    return layer, q, keys, values, positions


@pytest.mark.parametrize("seed", range(5))
def test_the_channels_are_the_best_by_the_sum_of_scores(seed):
    torch.manual_seed(seed)
    q, k = torch.randn(1, 1, 6, 8), torch.randn(1, 1, 30, 8) * torch.rand(8)
    chosen = largest(key_scores(q, k), 4)[0, 0].tolist()
    lost = {c: sum(((q[0, 0, :, i : i + 1] @ k[0, 0, :, i : i + 1].T) ** 2).sum().item() for i in c) for c in combinations(range(8), 4)}
    assert chosen == sorted(set(range(8)) - set(min(lost, key=lost.get)))
    assert chosen == sorted(chosen)


def test_scores_are_norms_and_groups_are_averaged():
    torch.manual_seed(0)
    q, k = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 9, 8)
    expected = torch.stack([(q[:, 2 * h : 2 * h + 2] ** 2).sum(2).mean(1) * (k[:, h] ** 2).sum(1) for h in range(2)], 1)
    torch.testing.assert_close(key_scores(q, k), expected)
    turned = torch.randperm(8)  # channel i of the permuted is channel turned[i]
    plain, permuted = largest(key_scores(q, k), 3).long(), largest(key_scores(q[..., turned], k[..., turned]), 3).long()
    assert torch.equal(plain, turned[permuted].sort(-1).values)


def test_values_are_scored_by_what_the_window_reads():
    torch.manual_seed(1)
    q, k, v = torch.randn(1, 2, 3, 8), torch.randn(1, 1, 9, 8), torch.randn(1, 1, 9, 8)
    positions = torch.arange(9)
    found = value_scores(q, k, v, positions[None, -3:], positions[None, None], 8**-0.5)
    expected = torch.zeros(8)
    for h in range(2):
        for t in range(3):
            p = (q[0, h, t] @ k[0, 0, : 7 + t].T * 8**-0.5).softmax(0)
            expected += (p[:, None] * v[0, 0, : 7 + t]).sum(0) ** 2
    torch.testing.assert_close(found[0, 0], expected)


@pytest.mark.parametrize("kept_values", [8, 3])
@pytest.mark.parametrize("holes", [0, 7])
@pytest.mark.parametrize("count", [1, 3])
def test_packed_attention_is_that_of_a_cache_with_zeros(kept_values, holes, count):
    layer, _, keys, values, positions = packed_layer(0, kept_values=kept_values, holes=holes)
    zeroed, zeroed_values = torch.zeros_like(keys), torch.zeros_like(values)
    index = layer.rows["channels"].long()[:, :, None].expand(-1, -1, 20, -1)
    zeroed.scatter_(3, index, keys.gather(3, index))
    zeroed[:, :, -4:] = keys[:, :, -4:]
    if kept_values < 8:
        index = layer.rows["value_channels"].long()[:, :, None].expand(-1, -1, 20, -1)
        zeroed_values.scatter_(3, index, values.gather(3, index))
        zeroed_values[:, :, -4:] = values[:, :, -4:]
    else:
        zeroed_values = values
    assert (zeroed == 0).sum() == 2 * 2 * 16 * 3
    new, new_values, q = torch.randn(2, 2, count, 8), torch.randn(2, 2, count, 8), torch.randn(2, 4, count, 8)
    layer.expect(torch.arange(20, 20 + count)[None])
    layer.update(new, new_values)
    everything, all_values = torch.cat([zeroed, new], 2), torch.cat([zeroed_values, new_values], 2)
    mask = torch.ones(count, 20 + count, dtype=torch.bool).tril(20)[None, None].repeat(2, 1, 1, 1)
    mask[..., :20] &= (positions >= 0)[:, None, None]
    expected = torch.nn.functional.scaled_dot_product_attention(q, everything, all_values, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(layer.attend(q, 8**-0.5), expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_what_is_stored_is_smaller_and_every_part_moves_with_its_row():
    layer, *_ = packed_layer(0)
    # packed keys and values, channels, and five columns (one is spare) with their positions
    assert layer.nbytes() == 2 * 2 * (16 * (5 + 8) * 4 + 5 * 2 + 5 * (2 * 8 * 4 + 4))
    assert layer.rows["packed_keys"].shape == (2, 2, 16, 5)
    assert layer.rows["channels"].dtype == torch.int16
    assert layer.lengths.tolist() == [[20, 20], [20, 20]]
    before = [tensor.clone() for tensor in layer.tensors()]
    layer.reorder_cache(torch.tensor([1, 0]))
    for old, new in zip(before, layer.tensors(), strict=True):
        assert torch.equal(new, old[[1, 0]])
    smaller = [packed_layer(0, kept=kept)[0].nbytes() for kept in (8, 6, 4, 2)]
    assert smaller == sorted(set(smaller), reverse=True)


def test_holes_are_not_packed_and_the_last_keys_stay_whole():
    layer, _, keys, _, _ = packed_layer(3, holes=7)
    assert layer.rows["packed_valid"].sum(-1).tolist() == [[16, 16], [9, 9]]
    torch.testing.assert_close(layer.keys, keys[:, :, -4:])
    layer, *_ = packed_layer(3, size=20, recent=30)
    assert layer.rows["packed_keys"].shape[2] == 0
    assert layer.length == 20


def test_nothing_pruned_is_the_plain_cache(llama, ids):
    with ThinK(ratio=0.0, window=4, recent=4)(llama) as session:
        out = greedy(llama, ids)
        assert not session.cache.layers[0].packed
    with Stored()(llama):
        assert torch.equal(out, greedy(llama, ids))


def test_a_prompt_is_packed_when_it_has_been_read(llama, ids):
    method = ThinK(ratio=0.5, window=4, recent=4)
    with method(llama) as session:
        read = prefill(session, ids, chunk=13)
        layer = session.layer(1)
        assert layer.rows["packed_keys"].shape == (2, 2, 36, 4)
        chunked = logits(llama, ids[:, :1], past_key_values=read.cache)
    with method(llama) as session:
        once = llama(ids)
        assert not session.layer(1).packed
        first = logits(llama, ids[:, :1], past_key_values=once.past_key_values)
        assert session.layer(1).rows["packed_keys"].shape == (2, 2, 36, 4)
        whole = session.layer(1).length
        llama(ids[:, :5], past_key_values=once.past_key_values)
        assert session.layer(1).length == whole + 5  # later keys stay whole
    torch.testing.assert_close(chunked, first, atol=1e-4, rtol=1e-4)
    plain = logits(llama, torch.cat([ids, ids[:, :1]], 1))[:, -1:]
    assert not torch.allclose(first, plain, atol=1e-3)


def test_with_all_keys_recent_it_is_full_attention(llama, ids):
    with ThinK(ratio=0.5, window=4, recent=100)(llama):
        out = greedy(llama, ids)
    assert torch.equal(out, greedy(llama, ids))


def test_repacking_moves_later_keys_into_the_packed_part(llama, ids):
    method = ThinK(ratio=0.5, window=4, recent=4, repack=True)
    with method(llama) as session:
        greedy(llama, ids, count=12)
        layer = session.layer(0)
        assert layer.length <= 2 * 4
        assert layer.rows["packed_keys"].shape[2] + layer.length == 40 + 11
        assert layer.lengths.tolist() == [[51, 51], [51, 51]]


@pytest.mark.parametrize("value_ratio", [0.0, 0.3])
def test_a_padded_batch_gives_what_its_rows_give_alone(llama, ids, value_ratio):
    short, method = ids[1:, 12:], ThinK(ratio=0.5, window=4, recent=4, value_ratio=value_ratio)
    both = torch.cat([ids[:1], torch.cat([torch.zeros(1, 12, dtype=torch.long), short], 1)])
    mask = torch.ones_like(both)
    mask[1, :12] = 0
    with method(llama):
        together = greedy(llama, both, attention_mask=mask)
        alone = [greedy(llama, row)[0, -12:] for row in (ids[:1], short)]
    assert torch.equal(together[:, -12:], torch.stack(alone))


def test_beams(llama, ids):
    with ThinK(ratio=0.25, window=4, recent=4)(llama):
        beams = greedy(llama, ids, num_beams=3, num_return_sequences=3)
        again = greedy(llama, ids[:1], num_beams=3, num_return_sequences=3)
    assert torch.equal(beams[:3], again)


def test_after_a_method_that_evicts(llama, ids):
    pair = Window(budget=24) | ThinK(ratio=0.5, window=4, recent=4)
    assert pair == compose(ThinK(ratio=0.5, window=4, recent=4), Window(budget=24))
    assert pair == ThinK(ratio=0.5, window=4, recent=4, after=Window(budget=24))
    with pair(llama) as session:
        read = prefill(session, ids, chunk=10)
        layer = session.layer(0)
        assert layer.rows["packed_keys"].shape == (2, 2, 20, 4)
        assert layer.positions[0, 0].tolist() == [36, 37, 38, 39]
    with Window(budget=24)(llama) as session:
        assert read.nbytes < prefill(session, ids, chunk=10).nbytes * 0.85
    with (Window(budget=24) | ThinK(ratio=0.0, window=4, recent=4))(llama):
        together = greedy(llama, ids, count=1)
    with Window(budget=24)(llama):
        assert torch.equal(together, greedy(llama, ids, count=1))


@pytest.mark.parametrize("method", [H2O(24), SnapKV(24, window=4, kernel=3)], ids=repr)
def test_after_the_methods_of_the_papers_tables(llama, ids, method):
    pair = ThinK(ratio=0.5, window=4, recent=4) | method
    with method(llama) as session:
        kept = prefill(session, ids, chunk=10)
        positions = [set(row) for row in session.layer(1).positions.flatten(0, 1).tolist()]
    with pair(llama) as session:
        read = prefill(session, ids, chunk=10)
        layer = session.layer(1)
        assert layer.lengths.tolist() == [[24, 24], [24, 24]]
        assert {"packed_keys", "packed_values", "channels"} == set(layer.rows)
        for row, before in zip(layer.positions.flatten(0, 1).tolist(), positions, strict=True):
            assert sorted(before)[-4:] == row
        greedy(llama, torch.cat([ids, ids[:, :1]], 1), past_key_values=read.cache)
        assert layer.lengths.tolist() == [[36, 36], [36, 36]]  # nothing more is given up
    assert read.nbytes < 0.85 * kept.nbytes


def test_misuse_is_refused_with_a_reason(llama, ids):
    for wrong in ({"ratio": 1.0}, {"ratio": -0.1}, {"value_ratio": 1.0}, {"window": 0}, {"recent": -1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            ThinK(**wrong)
    with pytest.raises(InputError, match="recent = 0"):
        ThinK(recent=0, repack=True)
    with pytest.raises(InputError, match="cannot come after"):
        ThinK(after=ThinK())
    with ThinK(window=64)(llama), pytest.raises(InputError, match="40 tokens, fewer than the window of 64"):
        greedy(llama, ids)

    class Own(PositionedLayer):
        def update(self, *args):
            raise AssertionError

    class Strange(Window):
        def make_layer(self, info):
            return Own()

    with (ThinK() | Strange())(llama), pytest.raises(InputError, match="cannot pack the Own"):
        llama(ids)
