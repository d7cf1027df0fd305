"""Attention with two distances: near keys at their true distance, far keys all at one distance, under one softmax.

Shared by LM-Infinite (091, two branches), InfLLM (040, whose far branch holds looked-up blocks) and Extended Mind (028, whose far branch
is a memory). A *branch* is a set of keys that the queries see in one way,

    logits_b = q_b k_bᵀ · scale,  −∞ where the mask is False                                       (batch, heads, time, keys of b)
    out = Σ_b exp(logits_b − m) v_b / Σ_b Σ exp(logits_b − m),   m = max over all branches          (batch, time, heads, head_dim)

so that a key counts once, and a query that sees nothing (padding) gets zeros. The query is rotated twice: at its position for near keys,
at the common distance for far keys, which stay unrotated. Keys and values have one head for each group of query heads and are never
repeated. Softmax is in float32; the products are in the type of the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Branch(NamedTuple):
    """Keys that queries see in one way.

    Attributes:
        logits: (batch, heads, time, keys) float32, scaled, −∞ where a query does not see a key.
        values: (batch, kv_heads, keys, head_dim); or (batch, heads, time, keys, head_dim) where every query has its own.
    """

    logits: Tensor
    values: Tensor


def branch(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Branch:
    """All queries against all keys.

    Args:
        q: (batch, heads, time, head_dim), rotated as this branch wants it.
        k, v: (batch, kv_heads, keys, head_dim); `heads` is a multiple of `kv_heads`.
        scale: of the logits, head_dim ** −0.5 as a rule.
        mask: bool, broadcastable to (batch, heads, time, keys); False hides. None hides nothing.
    """
    batch, heads, time, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    grouped = q.reshape(batch, kv_heads, heads // kv_heads * time, head_dim)  # the heads of a group stand behind each other
    logits = (grouped @ k.transpose(-1, -2)).view(batch, heads, time, keys).float() * scale
    return Branch(logits if mask is None else logits.masked_fill(~mask, -torch.inf), v)


def nearest(logits: Tensor, values: Tensor, topk: int, rank: Tensor | None = None) -> tuple[Branch, Tensor]:
    """For each query and head, the `topk` keys that rank first.

    Args:
        logits: (batch, heads, time, keys) as of a `Branch`.
        values: (batch, kv_heads, keys, head_dim).
        topk: how many; all where there are fewer.
        rank: by what to choose, shaped as the logits; by default the logits themselves.

    Returns:
        The branch of the chosen keys, each query with its own, and their numbers (batch, heads, time, topk).
    """
    batch, heads, time, keys = logits.shape
    kv_heads, head_dim = values.shape[1], values.shape[-1]
    index = (logits if rank is None else rank).topk(min(topk, keys), dim=-1, sorted=False).indices
    flat = index.reshape(batch, kv_heads, heads // kv_heads * time * index.shape[-1], 1).expand(-1, -1, -1, head_dim)
    own = values.gather(2, flat).view(batch, heads, time, index.shape[-1], head_dim)
    return Branch(logits.gather(-1, index), own), index


def one_softmax(branches: Sequence[Branch]) -> tuple[Tensor, list[Tensor]]:
    """One softmax over the keys of all branches.

    Args:
        branches: one or more, of the same queries; a branch may hold no key.

    Returns:
        The output (batch, time, heads, head_dim) in the type of the values, and for every branch the probabilities
        (batch, heads, time, keys) float32: over all branches they sum to 1, or to 0 where a query sees nothing.
    """
    held = [one.logits for one in branches if one.logits.shape[-1]]
    top = torch.stack([logits.amax(-1, keepdim=True) for logits in held]).amax(0)
    top = top.clamp(min=torch.finfo(torch.float32).min)  # −∞ − −∞ would be NaN
    weights = [(one.logits - top).exp_() for one in branches]
    total = torch.stack([weight.sum(-1, keepdim=True) for weight in weights]).sum(0)
    total = total.clamp(min=torch.finfo(torch.float32).tiny)
    weights = [weight.div_(total) for weight in weights]
    out = _weighted(weights[0], branches[0].values)
    for weight, one in zip(weights[1:], branches[1:], strict=True):
        if weight.shape[-1]:
            out = out + _weighted(weight, one.values)
    return out.transpose(1, 2), weights


def two_branch_attention(
    near: tuple[Tensor, Tensor, Tensor, Tensor | None],
    far: tuple[Tensor, Tensor, Tensor, Tensor | None],
    scale: float,
    others: Sequence[Branch] = (),
) -> Tensor:
    """Near and far keys, and further branches if there are any, under one softmax.

    Args:
        near, far: (q, k, v, mask) as of `branch`: the same queries, rotated for near and for far keys.
        scale: of the logits.
        others: of the same queries.

    Returns:
        (batch, time, heads, head_dim).

    Example:
        >>> near = (rotate(q, positions), rotate(k, positions), v, close)                               # doctest: +SKIP
        >>> two_branch_attention(near, (rotate(q, ceiling), k, v, first), head_dim**-0.5).shape        # doctest: +SKIP
    """
    return one_softmax([branch(*near[:3], scale, near[3]), branch(*far[:3], scale, far[3]), *others])[0]


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    """(batch, heads, time, head_dim): the values of a branch, weighted."""
    batch, heads, time, keys = weights.shape
    weights = weights.to(values.dtype)
    if values.dim() == 5:
        return (weights.unsqueeze(-2) @ values).squeeze(-2)
    kv_heads, head_dim = values.shape[1], values.shape[-1]
    grouped = weights.view(batch, kv_heads, heads // kv_heads * time, keys) @ values
    return grouped.view(batch, heads, time, head_dim)
