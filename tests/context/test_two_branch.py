"""Branches under one softmax: equal to the softmax over all their keys, however these are dealt out, and never NaN."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.context.two_branch import Branch, branch, nearest, one_softmax, two_branch_attention


def made(seed, batch=2, heads=4, kv_heads=2, time=3, keys=7, head_dim=8):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, heads, time, head_dim, generator=generator)
    k, v = (torch.randn(batch, kv_heads, keys, head_dim, generator=generator) for _ in range(2))
    mask = torch.rand(batch, 1, time, keys, generator=generator) > 0.4
    return q, k, v, mask


def dense(q, k, v, mask):
    """Heads repeated, one softmax, zeros where nothing is seen: (batch, time, heads, head_dim)."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    logits = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~mask, -torch.inf)
    return (logits.softmax(-1).nan_to_num() @ v).transpose(1, 2)


@given(st.integers(0, 2**20), st.lists(st.integers(0, 7), min_size=0, max_size=3))
def test_equals_the_softmax_over_all_keys_however_they_are_dealt_out(seed, cuts):
    q, k, v, mask = made(seed)
    bounds = [0, *sorted(cuts), 7]
    parts = [slice(first, last) for first, last in pairwise(bounds)]
    out, weights = one_softmax([branch(q, k[:, :, part], v[:, :, part], 8**-0.5, mask[..., part]) for part in parts])
    torch.testing.assert_close(out, dense(q, k, v, mask), atol=1e-5, rtol=1e-5)
    sums = torch.cat(weights, -1).sum(-1)
    torch.testing.assert_close(sums, mask.any(-1).float().expand_as(sums))


def test_two_branches_see_their_own_queries():
    q, k, v, mask = made(0)
    twice = two_branch_attention((q, k, v, mask), (2 * q, k, v, ~mask), 8**-0.5)
    logits = [part @ k.repeat_interleave(2, 1).transpose(-1, -2) * 8**-0.5 for part in (q, 2 * q)]
    expected = (torch.where(mask, *logits).softmax(-1) @ v.repeat_interleave(2, 1)).transpose(1, 2)
    torch.testing.assert_close(twice, expected, atol=1e-5, rtol=1e-5)


def test_very_large_logits_and_queries_that_see_nothing_give_no_nan():
    q, k, v, _ = made(1)
    mask = torch.zeros(2, 1, 3, 7, dtype=torch.bool)
    mask[0, :, 1] = True
    out, _ = one_softmax([branch(1e4 * q, k, v, 1.0, mask), branch(-1e4 * q, k, v, 1.0, mask)])
    assert out.isfinite().all()
    assert out.any(-1).any(-1).tolist() == [[False, True, False], [False, False, False]]


@given(st.integers(0, 2**20), st.integers(1, 9))
def test_each_query_and_head_takes_its_own_nearest_keys(seed, topk):
    q, k, v, _ = made(seed)
    whole = branch(q, k, v, 8**-0.5)
    rank = torch.randn(whole.logits.shape, generator=torch.Generator().manual_seed(seed + 1))
    picked, index = nearest(whole.logits, v, topk, rank)
    kept = torch.zeros_like(whole.logits, dtype=torch.bool).scatter_(-1, index, True)
    assert (kept.sum(-1) == min(topk, 7)).all()
    assert (rank.masked_fill(~kept, torch.inf).amin(-1) >= rank.masked_fill(kept, -torch.inf).amax(-1)).all()
    torch.testing.assert_close(one_softmax([picked])[0], dense(q, k, v, kept), atol=1e-5, rtol=1e-5)


def test_the_nearest_are_those_of_the_largest_logits_by_default():
    q, k, v, _ = made(5)
    whole = branch(q, k, v, 1.0)
    picked, index = nearest(whole.logits, v, 1)
    assert torch.equal(index, whole.logits.argmax(-1, keepdim=True))
    torch.testing.assert_close(picked.logits, whole.logits.amax(-1, keepdim=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_full_precision(dtype):
    q, k, v, mask = made(3)
    out, _ = one_softmax([branch(q.to(dtype), k.to(dtype), v.to(dtype), 8**-0.5, mask)])
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), dense(q, k, v, mask), atol=2e-2, rtol=2e-2)


def test_branches_without_keys_are_no_burden():
    q, k, v, mask = made(4)
    none = Branch(q.new_empty(2, 4, 3, 0), v[:, :, :0])
    out, weights = one_softmax([none, branch(q, k, v, 8**-0.5, mask)])
    torch.testing.assert_close(out, dense(q, k, v, mask), atol=1e-5, rtol=1e-5)
    assert weights[0].shape[-1] == 0
