"""Attention that also says how much weight it had, and the exact union of attentions over parts of the keys.

Attention over keys that are split into parts equals a weighted mean of the attentions over the parts (Zhu, Wang, Zhang, Lau, ACL 2024,
arXiv 2402.14808, eq. 6-7 for two parts; here n). With logits x_j = scale · q·k_j and, for a part P,

    lse_P = log Σ_{j∈P} exp x_j,   o_P = Σ_{j∈P} exp(x_j - lse_P) v_j,

    lse = log Σ_P exp lse_P,       o = Σ_P exp(lse_P - lse) o_P.

The union is associative and commutative; an empty part (lse = -∞, o = 0) has no weight. No exponential is taken of anything greater than
0, since all is shifted by the greatest logit or lse. Weights and sums of the union are in float32 (float64 for such queries).

Keys and values of batch 1 are shared by all rows: the queries of the whole batch, and of the query heads that belong to one key head,
then become the rows of one matrix, (1, Hkv, B·G·T, d), and every key is read once. On a processor the work is done by the kernel behind
PyTorch's own attention, which computes lse but does not give it out publicly; it is tried out once against plain matrix products, which
do the work elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from palimpsest.errors import InputError


def attention_lse(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Attention and the logarithm of the sum of its exponentials.

    Args:
        q: queries, (B, H, T, d).
        k, v: keys and values, (B, Hkv, S, d), or (1, Hkv, S, d) that all rows share; H is a multiple of Hkv, S may be 0.
        mask: (B or 1, 1, T or 1, S) bool, True where a query attends; None: everywhere.
        scale: of the logits; by default 1/√d.

    Returns:
        Attention (B, H, T, d) in the type of q, 0 where a query attends to nothing, and lse (B, H, T) float32 (float64), there -∞.

    Raises:
        InputError: shapes that do not fit each other.

    Example:
        >>> q, k, v = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
        >>> whole, _ = attention_lse(q, k, v)
        >>> parts = [attention_lse(q, k[:, :, part], v[:, :, part]) for part in (slice(0, 2), slice(2, 6))]
        >>> torch.allclose(merge(*zip(*parts))[0], whole, atol=1e-6)
        True
    """
    batch, heads, count, dim = q.shape
    if k.shape != v.shape or k.shape[0] not in (1, batch) or k.shape[3] != dim or heads % k.shape[1]:
        raise InputError(
            f"Queries {tuple(q.shape)}, keys {tuple(k.shape)} and values {tuple(v.shape)} do not fit each other.",
            "Give (B, H, T, d) and twice (B or 1, Hkv, S, d), H a multiple of Hkv.",
        )
    kv_heads, columns = k.shape[1], k.shape[2]
    if mask is not None and (
        mask.dim() != 4 or mask.shape[1] != 1 or any(mask.shape[a] not in (1, n) for a, n in ((0, batch), (2, count), (3, columns)))
    ):
        raise InputError(
            f"The mask has the shape {tuple(mask.shape)}.", f"Give bool of shape {(batch, 1, count, columns)}, or 1 for B and T."
        )
    scale = dim**-0.5 if scale is None else scale
    precise = torch.float64 if q.dtype == torch.float64 else torch.float32
    if not columns or not q.numel():
        return torch.zeros_like(q), torch.full(q.shape[:3], -torch.inf, dtype=precise, device=q.device)
    shared = k.shape[0] == 1 and batch > 1
    groups = heads // kv_heads
    # (B, Hkv, G, T, ·), then one row per query; a shared key meets the queries of all rows of the batch at once.
    folded = q.reshape(batch, kv_heads, groups, count, dim)
    folded = folded.transpose(0, 1).reshape(1, kv_heads, -1, dim) if shared else folded.reshape(batch, kv_heads, -1, dim)
    if mask is not None:
        rows = mask.expand(batch, 1, count, columns)[:, :, None].expand(batch, 1, groups, count, columns)
        mask = rows.reshape(1 if shared else batch, 1, -1, columns)
    kernel = _fused if _has_fused(q.device.type, q.dtype) else _plain
    out, lse = kernel(folded, k, v, mask, scale)
    if mask is not None:  # kernels differ in what they say of a query that attends to nothing
        nothing = ~mask.any(-1)
        out, lse = out.masked_fill(nothing[..., None], 0), lse.masked_fill(nothing, -torch.inf)
    lse = lse.to(precise)
    if shared:
        out, lse = (x.view(kv_heads, batch, groups, count, *x.shape[3:]).transpose(0, 1) for x in (out, lse))
    return out.reshape(q.shape), lse.reshape(q.shape[:3])


def merge(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The attention over the union of parts.

    Args:
        outs: of each part the attention, (B, H, T, d).
        lses: of each part lse, (B, H, T), -∞ where a query attends to nothing in it.

    Returns:
        Attention (B, H, T, d) in the type of the first part, and lse (B, H, T): what `attention_lse` gives for all keys together.

    Raises:
        InputError: no part, or not as many of both.
    """
    if not outs or len(outs) != len(lses):
        raise InputError(f"There are {len(outs)} attentions and {len(lses)} sums.", "Give both for at least one part.")
    if len(outs) == 1:
        return outs[0], lses[0]
    stacked = torch.stack(list(lses))
    lse = stacked.logsumexp(0)
    # Shifted by the greatest part and then normalised: exp(lse_P - lse) would inherit the rounding of lse, 5e-4 where logits are 1e4.
    weights = stacked.softmax(0).masked_fill_(lse == -torch.inf, 0)
    total = outs[0].to(stacked.dtype) * weights[0, ..., None]
    for out, weight in zip(outs[1:], weights[1:], strict=True):
        total.addcmul_(out.to(stacked.dtype), weight[..., None])
    return total.to(outs[0].dtype), lse


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """By matrix products, in at least float32: attention (B, H, T, d) and lse (B, H, T)."""
    precise = torch.float64 if q.dtype == torch.float64 else torch.float32
    logits = (q.to(precise) * scale) @ k.to(precise).transpose(-1, -2)
    if mask is not None:
        logits.masked_fill_(~mask, torch.finfo(precise).min)
    most = logits.amax(-1, keepdim=True)
    weights = logits.sub_(most).exp_()
    total = weights.sum(-1, keepdim=True)
    out = (weights @ v.to(precise)).div_(total)
    return out.to(q.dtype), (most + total.log()).squeeze(-1)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """By PyTorch's kernel for processors."""
    bias = None if mask is None else torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias, scale=scale)
    return out, lse


@cache
def _has_fused(device: str, dtype: torch.dtype) -> bool:
    """Whether the kernel is there, and says what matrix products say. It is no public operator: another PyTorch may have another."""
    if device != "cpu":
        return False
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, n, 16, generator=generator).to(dtype) for n in (3, 5, 5))
    mask = torch.ones(2, 1, 3, 5, dtype=torch.bool).tril_(2)
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 3e-2
    try:
        found = [_fused(q, k, v, m, 0.3) for m in (None, mask)]
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False
    wanted = [_plain(q, k, v, m, 0.3) for m in (None, mask)]
    pairs = [(one.double(), other.double()) for f, w in zip(found, wanted, strict=True) for one, other in zip(f, w, strict=True)]
    return all(one.shape == other.shape and torch.allclose(one, other, atol=tolerance, rtol=tolerance) for one, other in pairs)
