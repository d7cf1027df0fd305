"""What stored keys are worth to the queries: statistics of attention probabilities, in blocks of queries.

For queries q_i and keys k_j of one head, p_ij = softmax_j(s q_i . k_j) over the keys at positions <= that of the query. Every method
that evicts by attention needs a sum, a mean or the last row of p over some of the queries, per key. Fused attention kernels do not
give p away, so it is computed here a second time, `block` queries at a time: at most (batch, heads, block, keys) numbers are held,
in float32. While decoding there is one query, and `attend_with_probabilities` gives output and p from the same product.

Grouped-query attention: a key belongs to one key-value head, which a group of query heads share; `group` says how their statistics
become one ("mean", "max" or "sum"), or None to keep the query heads apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from palimpsest.errors import InputError

REDUCTIONS = ("sum", "mean", "last")
GROUPS = ("mean", "max", "sum", None)


def attention_stats(
    q: Tensor,
    k: Tensor,
    q_pos: Tensor,
    k_pos: Tensor,
    *,
    scaling: float | None = None,
    rows: str = "all",
    reduce: str = "sum",
    group: str | None = "mean",
    block: int = 128,
) -> Tensor:
    """A statistic of the attention that every key receives.

    Args:
        q: queries, (batch, heads, queries, head_dim), rotated as the keys are.
        k: keys, (batch, kv_heads, keys, head_dim).
        q_pos: positions of the queries, (batch or 1, queries); negative: padding, which attends to nothing and counts for nothing.
        k_pos: positions of the keys, (batch, kv_heads or 1, keys) or (batch, keys); negative: nothing is there.
        scaling: what logits are multiplied with; by default head_dim ** -0.5.
        rows: "all" queries, or "last:w", the last w.
        reduce: "sum" or "mean" over the rows that are no padding, or "last": the last row alone.
        group: "mean", "max" or "sum" over the query heads of a group, after the reduction over rows; None keeps them apart.
        block: queries that are held at once.

    Returns:
        float32, (batch, kv_heads, keys), or (batch, heads, keys) if `group` is None; zero for a key that nothing attends to.

    Raises:
        InputError: an unknown choice, or a `block` or w below 1.

    Example:
        >>> q, k = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
        >>> attention_stats(q, k, torch.arange(6)[None], torch.arange(6)[None]).sum().item()  # 6 queries, mean over groups, 2 heads
        12.0
    """
    if reduce not in REDUCTIONS:
        raise InputError(f"reduce is {reduce!r}.", f"Choose one of {', '.join(REDUCTIONS)}.")
    if group not in GROUPS:
        raise InputError(f"group is {group!r}.", "Choose one of mean, max, sum, or None.")
    if block < 1:
        raise InputError(f"block is {block}.", "Give at least 1.")
    count = q.shape[2]
    first = 0 if rows == "all" else max(0, count - _last(rows))
    first = count - 1 if reduce == "last" else first
    batch, heads, _, dim = q.shape
    kv_heads = k.shape[1]
    q_pos = q_pos.expand(batch, count)
    k_pos = k_pos[:, None] if k_pos.dim() == 2 else k_pos
    total = torch.zeros(batch, kv_heads, heads // kv_heads, k.shape[2], device=q.device)
    grouped = q.view(batch, kv_heads, heads // kv_heads, count, dim) if q.is_contiguous() else q.unflatten(1, (kv_heads, -1))
    for begin in range(first, count, block):
        end = min(begin + block, count)
        part = grouped[:, :, :, begin:end].reshape(batch, kv_heads, -1, dim)
        logits = (part @ k.transpose(-1, -2)).float().mul_(dim**-0.5 if scaling is None else scaling)
        logits = logits.view(batch, kv_heads, -1, end - begin, k.shape[2])
        at = q_pos[:, None, begin:end, None]
        seen = (k_pos[:, :, None] <= at) & (k_pos[:, :, None] >= 0)  # (batch, kv_heads or 1, rows, keys)
        logits.masked_fill_(~seen[:, :, None], -torch.inf)
        # A row that sees nothing (padding) has only -inf, whose softmax is NaN; it counts for nothing.
        total += logits.softmax(-1).nan_to_num_(0.0).sum(-2)
    if reduce == "mean":
        total /= (q_pos[:, first:] >= 0).sum(-1).clamp_min(1)[:, None, None, None]
    if group is None:
        return total.flatten(1, 2)
    return over_group(total, group)


def over_group(statistic: Tensor, group: str) -> Tensor:
    """(batch, kv_heads, group, keys) to (batch, kv_heads, keys): "mean", "max" or "sum" over the query heads of a group."""
    return {"mean": lambda: statistic.mean(2), "max": lambda: statistic.amax(2), "sum": lambda: statistic.sum(2)}[group]()


def attend_with_probabilities(q: Tensor, k: Tensor, v: Tensor, scaling: float, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """The attention of one query per head, and its probabilities.

    Args:
        q: (batch, heads, 1, head_dim).
        k, v: (batch, kv_heads, keys, head_dim).
        scaling: what logits are multiplied with.
        valid: (batch, kv_heads, keys) bool, None if every key may be attended to.

    Returns:
        Output (batch, 1, heads, head_dim), and probabilities in float32, (batch, kv_heads, heads / kv_heads, keys).
    """
    batch, heads, _, dim = q.shape
    logits = (q.reshape(batch, k.shape[1], -1, dim) @ k.transpose(-1, -2)).float().mul_(scaling)
    if valid is not None:
        logits.masked_fill_(~valid[:, :, None], torch.finfo(torch.float32).min)
    probabilities = logits.softmax(-1)
    out = probabilities.to(v.dtype) @ v
    return out.reshape(batch, 1, heads, v.shape[-1]), probabilities


def _last(rows: str) -> int:
    kind, _, count = rows.partition(":")
    if kind != "last" or not count.isdigit() or int(count) < 1:
        raise InputError(f"rows is {rows!r}.", 'Give "all", or "last:w" with w of at least 1.')
    return int(count)
