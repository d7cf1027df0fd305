"""Attention statistics against a softmax that is written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.context.scoring import attend_with_probabilities, attention_stats
from palimpsest.errors import InputError


def naive(q, k, q_pos, k_pos, rows, reduce, group):
    batch, heads, queries, dim = q.shape
    share = heads // k.shape[1]
    out = torch.zeros(batch, heads, k.shape[2])
    for b in range(batch):
        for h in range(heads):
            chosen = list(range(queries))[-rows if rows else 0 :]
            if reduce == "last":
                chosen = [queries - 1]
            counted = 0
            for i in chosen:
                if q_pos[b, i] < 0:
                    continue
                seen = (k_pos[b, h // share] >= 0) & (k_pos[b, h // share] <= q_pos[b, i])
                logits = (k[b, h // share] @ q[b, h, i]) * dim**-0.5
                if seen.any():
                    out[b, h, seen] += logits[seen].softmax(0)
                counted += 1
            if reduce == "mean":
                out[b, h] /= max(1, counted)
    if group is None:
        return out
    grouped = out.view(batch, k.shape[1], share, -1)
    return {"mean": grouped.mean(2), "max": grouped.amax(2), "sum": grouped.sum(2)}[group]


@given(
    st.integers(0, 2**31),
    st.sampled_from([0, 1, 3]),
    st.sampled_from(["sum", "mean", "last"]),
    st.sampled_from(["mean", "max", "sum", None]),
    st.integers(1, 9),
)
def test_equals_the_written_out_softmax(seed, last, reduce, group, block):
    g = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 4, 5, 8, generator=g), torch.randn(2, 2, 7, 8, generator=g)
    q_pos = torch.tensor([[2, 3, 4, 5, 6], [-1, -1, 0, 1, 2]])
    k_pos = torch.randint(-1, 7, (2, 2, 7), generator=g)
    found = attention_stats(q, k, q_pos, k_pos, rows=f"last:{last}" if last else "all", reduce=reduce, group=group, block=block)
    torch.testing.assert_close(found, naive(q, k, q_pos, k_pos, last, reduce, group), atol=1e-5, rtol=1e-4)


def test_probability_is_conserved():
    q, k, at = torch.randn(1, 4, 300, 8), torch.randn(1, 2, 300, 8), torch.arange(300)[None]
    assert attention_stats(q, k, at, at, group="sum").sum().item() == pytest.approx(300 * 4, abs=1e-2)


def test_one_query_gives_output_and_probabilities():
    q, k, v = torch.randn(2, 4, 1, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
    valid = torch.rand(2, 2, 6) > 0.3
    valid[..., 0] = True
    out, p = attend_with_probabilities(q, k, v, 8**-0.5, valid)
    spread = valid.repeat_interleave(2, dim=1)[:, :, None]
    whole = torch.nn.functional.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), attn_mask=spread)
    torch.testing.assert_close(out, whole.transpose(1, 2), atol=1e-5, rtol=1e-4)
    at = torch.where(valid, 0, -1)
    torch.testing.assert_close(p.mean(2), attention_stats(q, k, torch.zeros(2, 1), at, group="mean"), atol=1e-5, rtol=1e-4)


def test_unknown_choices_are_refused():
    q, at = torch.randn(1, 2, 3, 4), torch.arange(3)[None]
    for options in ({"rows": "last:0"}, {"rows": "first:2"}, {"reduce": "max"}, {"group": "min"}, {"block": 0}):
        with pytest.raises(InputError):
            attention_stats(q, q, at, at, **options)
