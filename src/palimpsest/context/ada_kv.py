"""AdaKV: heads of a layer share one budget, and those that spread their attention get more of it (Feng et al., arXiv 2407.11550).

Scores are those of SnapKV. A layer of H key-value heads keeps H x `budget` entries in all; instead of `budget` from each head, the
best of all heads together stay, so that the attention that is lost is the least for the layer. Each head keeps at least its window
and its best `floor` x `budget` (the paper's safeguard). Heads then hold different numbers of entries, and the bytes are those of what
they hold (`ragged.py`), where a cache of rectangular tensors saves nothing.

The floor is met first and the rest chosen over all heads, as later implementations do; the authors' code mixes each head's share
with the mean instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palimpsest.context.attach import LayerInfo
from palimpsest.context.layers import PositionedLayer
from palimpsest.context.ragged import RaggedLayer
from palimpsest.context.scoring import attention_stats
from palimpsest.context.snapkv import SnapKV, smooth
from palimpsest.errors import InputError


@dataclass(frozen=True)
class AdaKV(SnapKV):
    """SnapKV with one budget for all heads of a layer.

    Args:
        budget: entries per key-value head, the mean over the heads of a layer.
        window, kernel: as of SnapKV.
        floor: the share of `budget` that every head keeps.

    Raises:
        InputError: a floor that is not between 0 and 1.

    Example:
        >>> with AdaKV(budget=256)(model) as session:                         # doctest: +SKIP
        ...     prefill(session, ids)
        ...     session.layer(0).lengths
    """

    floor: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.floor <= 1:
            raise InputError(f"floor is {self.floor}.", "Give a share between 0 and 1.")

    def make_layer(self, info: LayerInfo) -> PositionedLayer:
        return RaggedLayer(self.window)

    def attend(
        self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, pad_mask: Tensor | None, position_ids: Tensor, layer: Any
    ) -> Tensor | None:
        return layer.attend(info, q, k, v) if layer.pages else None

    def observe(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor, layer: Any) -> None:
        layer.remember(q, position_ids)
        single = q.shape[2] == 1
        if layer.pages:  # filled to the budget already: what came since is the tail
            due = layer.length >= (self.window if single else 1)
        else:
            due = layer.length - self.budget >= (self.window if single else 1)
        if not due:
            return
        whole = layer.in_order()
        positions = whole["positions"]
        votes = attention_stats(
            layer.rows["queries"], whole["keys"], layer.rows["query_positions"], positions, scaling=info.scaling, reduce="mean"
        )
        inside = positions > position_ids.amax(-1)[:, None, None] - self.window
        scores = smooth(votes.masked_fill(inside, 0.0), self.kernel).masked_fill(inside, torch.inf)
        layer.pack(whole, self.shared(scores.masked_fill(positions < 0, -torch.inf)))

    def shared(self, scores: Tensor) -> Tensor:
        """Which entries stay, (batch, kv_heads, columns) bool, from scores: infinite for the window, -infinite for empty columns."""
        batch, heads, columns = scores.shape
        least = min(int(self.floor * self.budget), columns)
        assured = scores
        if least:
            best = scores.topk(least, dim=-1).indices
            assured = scores.scatter(2, best, torch.inf).masked_fill(scores == -torch.inf, -torch.inf)
        flat = assured.view(batch, heads * columns)
        best = flat.topk(min(heads * self.budget, heads * columns), dim=-1).indices
        kept = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, best, True).view_as(scores)
        return kept & (scores > -torch.inf)
