"""Attention with its sum of exponentials, and unions of parts, against softmax over everything in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.errors import InputError
from palimpsest.serving import lse as module
from palimpsest.serving.lse import attention_lse, merge


def drawn(*shapes, seed=0, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=generator) * scale).to(dtype) for shape in shapes]


def naive(q, k, v, mask=None, scale=None):
    """Softmax over all keys, in float64, key heads repeated, keys repeated for the batch."""
    q, k, v = q.double(), k.double(), v.double()
    groups = q.shape[1] // k.shape[1]
    k, v = (x.expand(q.shape[0], -1, -1, -1).repeat_interleave(groups, 1) for x in (k, v))
    logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    out = logits.softmax(-1).nan_to_num(0.0) @ v
    return out, logits.logsumexp(-1)


@pytest.fixture(params=["fused", "plain"])
def kernel(request, monkeypatch):
    """Both ways to compute; the fused one must be there, on the processors that these tests run on."""
    if request.param == "plain":
        monkeypatch.setattr(module, "_has_fused", lambda device, dtype: False)
    else:
        assert module._has_fused("cpu", torch.float32)
    return request.param


@settings(max_examples=60)
@given(
    st.integers(1, 3), st.sampled_from([(1, 1), (4, 1), (4, 2), (3, 3)]), st.integers(1, 4), st.integers(0, 7), st.sampled_from([8, 5]),
    st.booleans(), st.sampled_from(["none", "all", "row"]), st.integers(0, 99), st.booleans(),
)  # fmt: skip
def test_it_is_attention(batch, heads, count, columns, dim, shared, masked, seed, fused):
    q, k, v = drawn((batch, heads[0], count, dim), *[(1 if shared else batch, heads[1], columns, dim)] * 2, seed=seed)
    mask = None
    if masked != "none":  # rows that attend to nothing among them
        shape = (batch, 1, count, columns) if masked == "all" else (1, 1, 1, columns)
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    kept = module._has_fused
    module._has_fused = kept if fused else lambda device, dtype: False
    try:
        out, lse = attention_lse(q, k, v, mask)
    finally:
        module._has_fused = kept
    wanted_out, wanted_lse = naive(q, k, v, mask)
    torch.testing.assert_close(out.double(), wanted_out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), wanted_lse, atol=1e-5, rtol=1e-5)
    assert lse.dtype == torch.float32


@settings(max_examples=40)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 99), st.sampled_from([1.0, 100.0]))
def test_a_union_of_parts_is_the_whole(sizes, seed, size):
    total = sum(sizes)
    q, k, v = drawn((2, 4, 3, 8), (2, 2, total, 8), (2, 2, total, 8), seed=seed, scale=size)
    cuts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    parts = [attention_lse(q, k[:, :, a:b], v[:, :, a:b]) for a, b in itertools.pairwise(cuts)]
    out, lse = merge(*zip(*parts, strict=True))
    wanted_out, wanted_lse = naive(q, k, v)
    # What float32 makes of logits of this size, and of weights that are their exponentials.
    error = 1e-5 + 1e-6 * float(wanted_lse.abs().max() if total else 0.0)
    torch.testing.assert_close(out.double(), wanted_out, atol=error * float(v.abs().max() if total else 1.0), rtol=1e-4)
    torch.testing.assert_close(lse.double(), wanted_lse, atol=error, rtol=1e-5)


def test_the_union_is_associative_and_commutative():
    q, *kv = drawn((2, 4, 3, 8), *[(2, 2, n, 8) for n in (3, 3, 1, 1, 6, 6)])
    a, b, c = (attention_lse(q, kv[i], kv[i + 1]) for i in (0, 2, 4))

    def joined(*parts):
        return merge(*zip(*parts, strict=True))

    wanted = joined(a, b, c)
    for found in (joined(joined(a, b), c), joined(a, joined(b, c)), joined(c, a, b), joined(b, joined(a, c))):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


def test_huge_logits_neither_overflow_nor_vanish(kernel):
    q = torch.full((1, 1, 1, 4), 100.0)
    for left, right, weight in ((1e2, -1e2, 1.0), (-1e2, 1e2, 0.0), (1e2, 1e2, 0.5), (-1e2, -1e2, 0.5)):
        parts = [(torch.full((1, 1, 2, 4), key), torch.full((1, 1, 2, 4), value)) for key, value in ((left, 1.0), (right, 3.0))]
        found = [attention_lse(q, k, v, scale=0.25) for k, v in parts]  # logits of ±1e4
        out, lse = merge(*zip(*found, strict=True))
        assert torch.isfinite(out).all()
        assert torch.isfinite(lse).all()
        torch.testing.assert_close(out, torch.full_like(out, weight * 1.0 + (1 - weight) * 3.0))


def test_an_empty_part_has_no_weight(kernel):
    q, k, v = drawn((2, 2, 3, 8), (2, 2, 4, 8), (2, 2, 4, 8))
    whole = attention_lse(q, k, v)
    empty = attention_lse(q, k[:, :, :0], v[:, :, :0])
    hidden = attention_lse(q, k, v, torch.zeros(1, 1, 1, 4, dtype=torch.bool))
    for nothing in (empty, hidden):
        assert torch.equal(nothing[0], torch.zeros_like(q))
        assert bool((nothing[1] == -torch.inf).all())
        torch.testing.assert_close(merge(*zip(whole, nothing, strict=True)), whole)
    both = merge(*zip(empty, hidden, strict=True))
    assert torch.equal(both[0], torch.zeros_like(q))
    assert bool((both[1] == -torch.inf).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_joined_in_float32(kernel, dtype):
    q, k, v = drawn((2, 4, 3, 16), (2, 2, 40, 16), (2, 2, 40, 16), dtype=dtype)
    parts = [attention_lse(q, k[:, :, part], v[:, :, part]) for part in (slice(0, 30), slice(30, 39), slice(39, 40))]
    out, lse = merge(*zip(*parts, strict=True))
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    wanted = naive(q, k, v)
    assert (out.double() - wanted[0]).abs().max() <= 2e-2
    assert (lse.double() - wanted[1]).abs().max() <= 2e-2


def test_double_precision_stays_double():
    q, k, v = drawn((2, 2, 3, 8), (1, 1, 9, 8), (1, 1, 9, 8), dtype=torch.float64)
    parts = [attention_lse(q, k[:, :, part], v[:, :, part]) for part in (slice(0, 4), slice(4, 9))]
    out, lse = merge(*zip(*parts, strict=True))
    torch.testing.assert_close((out, lse), naive(q, k, v), atol=1e-12, rtol=1e-12)


def test_without_the_kernel_matrix_products_do_the_work(monkeypatch):
    q, k, v = drawn((2, 2, 3, 8), (2, 2, 4, 8), (2, 2, 4, 8))
    for broken in (lambda *a: (_ for _ in ()).throw(RuntimeError), lambda *a: (a[0] * 0, a[0][..., 0])):
        module._has_fused.cache_clear()
        monkeypatch.setattr(module, "_fused", broken)
        assert not module._has_fused("cpu", torch.float32)
        torch.testing.assert_close(attention_lse(q, k, v)[0].double(), naive(q, k, v)[0], atol=1e-5, rtol=1e-5)
    module._has_fused.cache_clear()


@pytest.mark.parametrize(
    ("shapes", "mask"),
    [
        (((2, 4, 3, 8), (3, 2, 5, 8), (3, 2, 5, 8)), None),
        (((2, 4, 3, 8), (2, 3, 5, 8), (2, 3, 5, 8)), None),
        (((2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 4, 8)), None),
        (((2, 4, 3, 8), (2, 2, 5, 4), (2, 2, 5, 4)), None),
        (((2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 8)), (2, 4, 3, 5)),
        (((2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 8)), (2, 1, 3, 4)),
        (((2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 8)), (3, 5)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, mask):
    with pytest.raises(InputError):
        attention_lse(*drawn(*shapes), None if mask is None else torch.ones(mask, dtype=torch.bool))


def test_a_union_of_nothing_is_refused():
    with pytest.raises(InputError, match="0 attentions"):
        merge([], [])
