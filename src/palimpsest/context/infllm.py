"""InfLLM: a window and the first tokens, and a memory of everything between them, in blocks that are looked up.

Xiao et al., *InfLLM: Training-Free Long-Context Extrapolation for LLMs with an Efficient Context Memory*, NeurIPS 2024, arXiv
2402.04617; thunlp/InfLLM. Queries are worked off in execution blocks of at most `exec_block` tokens. In one,

    near:  keys n with 0 ≤ m − n < n_local, at their true distance,
    far:   the first n_init tokens, the blocks that were looked up, and the remainder: keys that have left the window and do not fill a
           block yet; unrotated, the query rotated to n_local, so that all of them are at one distance,

stand under one softmax, and every key is in exactly one of the four. A lookup is made once for an execution block with the mean q̄ of its
far queries: the `topk` blocks with the largest Σ_h q̄_h · r_h, for all heads, or for each key head on its own (`per_head`). While a key is
in the window, the probability that it receives is added up per query head, over all queries; when `block` tokens fill a block, r_h is the
mean of the `repr_topk` keys of the block that have received the most. The blocks are kept by a `BlockStore`.

Departures: the release takes one row at a time and this takes batches: rows with padding in front cut their execution blocks from their
own first token, and get what they would get alone. With topk=0 there is no memory at all, and the method is LM-Infinite with n_global =
n_init. Where all of a text fits into the window the result is the model's own, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from palimpsest.context.attach import ContextMethod, LayerInfo
from palimpsest.context.block_store import POLICIES
from palimpsest.context.infllm_layer import MemoryLayer, Stretch
from palimpsest.context.layers import EMPTY
from palimpsest.context.session import attend_dense
from palimpsest.context.two_branch import branch, one_softmax
from palimpsest.context.window import WindowSession
from palimpsest.errors import InputError


@dataclass(frozen=True)
class InfLLM(ContextMethod):
    """A window over a stream of any length, with block memory.

    Args:
        n_init: first tokens that stay visible.
        n_local: tokens of the window; at most the length that the model was trained on.
        block: tokens a block.
        topk: blocks that a lookup brings in.
        repr_topk: keys that represent a block.
        exec_block: the most queries that share a lookup, at most n_local.
        cached_blocks: blocks of a row in the device cache, at least topk.
        policy: which of them goes: "lru", or "lru-s" by received attention.
        score_decay: of "lru-s".
        per_head: look up for each key head on its own.
        offload: "cpu", or None to keep all blocks on the device.

    Raises:
        InputError: a setting out of range.

    Example:
        >>> with InfLLM(n_init=128, n_local=4096)(model) as session:                   # doctest: +SKIP
        ...     read = prefill(session, ids, chunk=2048)
        ...     model.generate(ids, past_key_values=read.cache, max_new_tokens=64)
    """

    n_init: int = 128
    n_local: int = 4096
    block: int = 128
    topk: int = 16
    repr_topk: int = 4
    exec_block: int = 512
    cached_blocks: int = 32
    policy: str = "lru"
    score_decay: float = 0.1
    per_head: bool = False
    offload: str | None = "cpu"

    keys: ClassVar = "pre_rope"
    session: ClassVar = WindowSession

    def __post_init__(self) -> None:
        least = {"n_init": 0, "n_local": 1, "block": 1, "topk": 0, "repr_topk": 1, "exec_block": 1, "cached_blocks": 1}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise InputError(f"{name} is {getattr(self, name)}.", f"Give at least {number}.")
        for low, high in (("exec_block", "n_local"), ("repr_topk", "block"), ("topk", "cached_blocks")):
            if getattr(self, low) > getattr(self, high):
                raise InputError(f"{low} is {getattr(self, low)}, and {high} is {getattr(self, high)}.", f"Give no more than {high}.")
        if self.policy not in POLICIES or not 0 <= self.score_decay <= 1 or self.offload not in ("cpu", None):
            raise InputError(
                f"policy is {self.policy!r}, score_decay {self.score_decay}, offload {self.offload!r}.",
                f"Choose a policy of {', '.join(POLICIES)}, a decay from 0 to 1, and 'cpu' or None.",
            )

    def make_layer(self, info: LayerInfo) -> CacheLayerMixin:
        """See `ContextMethod.make_layer`."""
        return MemoryLayer(info, self)

    def attend(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, pad_mask: Tensor | None, position_ids: Tensor, layer: Any) -> Tensor:
        """See `ContextMethod.attend`: execution block by execution block."""
        assert info.rotary is not None
        ranks = position_ids.expand(q.shape[0], -1)
        near, far = layer.near(q, ranks), info.rotary.rotate(q, torch.tensor([self.n_local], device=q.device))
        out = q.new_zeros(q.shape[0], q.shape[2], q.shape[1], v.shape[-1])
        for stretch in layer.stretches(self.exec_block):
            queries = stretch.queries(ranks, EMPTY)
            part = self._step(info, stretch.queries(near), stretch.queries(far), queries, stretch, layer)
            stretch.write(out, part, queries)
            layer.form_blocks(stretch)
        # While all is near: bit for bit the model's own; the steps have counted what the keys received.
        return attend_dense(info, near, k, v, layer) if layer.seen <= self.n_local else out

    def observe(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor, layer: Any) -> None:
        """See `ContextMethod.observe`."""
        layer.drop()

    def _step(self, info: LayerInfo, near: Tensor, far: Tensor, ranks: Tensor, stretch: Stretch, layer: MemoryLayer) -> Tensor:
        """One execution block, (batch, time, heads, head_dim); tells the layer what its keys and blocks have received."""
        keys, values, key_ranks = stretch.keys(layer.slot("keys")), stretch.keys(layer.slot("values")), stretch.keys(layer.ranks, EMPTY)
        distance = ranks[:, :, None] - key_ranks[:, None]  # (batch, time, columns)
        close = (distance >= 0) & (distance < self.n_local) & (key_ranks[:, None] >= 0)
        branches = [branch(near, keys, values, info.scaling, close[:, None])]
        seen = ranks[:, :, None] - torch.arange(self.n_init, device=ranks.device) >= self.n_local
        old_keys, old_values = layer.first_keys, layer.first_values
        left = keys.shape[2] - self.n_local  # columns that some query has behind its window
        if self.topk and left > 0:
            remainder = (distance[..., :left] >= self.n_local) & (key_ranks[:, None, :left] >= layer.stored[:, None, None].to(ranks.device))
            old_keys = torch.cat([old_keys, layer.far(keys[:, :, :left], key_ranks[:, :left])], dim=2)
            old_values, seen = torch.cat([old_values, values[:, :, :left]], dim=2), torch.cat([seen, remainder], dim=2)
        branches.append(branch(far, old_keys, old_values, info.scaling, seen[:, None]))
        blocks = layer.lookup(far, ranks) if self.topk else None
        if blocks is not None:
            branches.append(branch(far, blocks.keys, blocks.values, info.scaling, blocks.seen))
        out, weights = one_softmax(branches)
        if self.topk:
            layer.receive(stretch, weights[0])
        if blocks is not None:
            layer.credit(weights[-1], ranks)
        return out
