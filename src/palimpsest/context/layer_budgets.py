"""SnapKV with other shares: fewer entries in deeper layers (PyramidKV), or whole pieces of text (ChunkKV).

* `PyramidKV` (Cai et al., 2024, arXiv 2406.02069): attention is spread in the lower layers and gathers on few keys in the upper ones.
  Budgets fall linearly from the first to the last layer at the same total. With B' = budget - window, the last layer keeps
  B' / beta entries besides its window, the first 2 B' - B' / beta; in every layer SnapKV chooses.
* `ChunkKV` (Liu et al., 2025, arXiv 2502.00299): tokens that stand together mean something together. The score of a piece of `chunk`
  tokens (by their place in the text) is the mean of its SnapKV votes, and pieces stay or go whole. Where the budget ends inside of a
  piece, its first tokens stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsest.context.attach import LayerInfo
from palimpsest.context.eviction import RankedLayer, protect_recent
from palimpsest.context.snapkv import SnapKV
from palimpsest.errors import InputError


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """SnapKV with budgets that fall from the first to the last layer.

    Args:
        budget: entries per key-value head, the mean over all layers.
        window, kernel: as of SnapKV.
        beta: the last layer keeps 1 / beta of the mean, besides the window; above 1.

    Raises:
        InputError: a beta that is not above 1.
    """

    beta: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 1:
            raise InputError(f"beta is {self.beta}.", "Give a number above 1.")

    def entries(self, info: LayerInfo) -> int:
        free, last = self.budget - self.window, info.layers - 1
        mirror = min(info.index, last - info.index)
        # What a layer of the first half gets beyond the mean, its mirror image lacks: the total is that of equal budgets.
        gain = int((free - free / self.beta) * (1 - 2 * mirror / last)) if last else 0
        return self.window + free + (gain if info.index == mirror else -gain)


@dataclass(frozen=True)
class ChunkKV(SnapKV):
    """SnapKV that keeps whole pieces of text.

    Args:
        budget, window, kernel: as of SnapKV.
        chunk: tokens of a piece.

    Raises:
        InputError: a piece of less than one token.
    """

    chunk: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk < 1:
            raise InputError(f"chunk is {self.chunk}.", "Give at least 1.")

    def priority(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor, layer: RankedLayer) -> Tensor:
        votes = self.scores(info, k, position_ids, layer)
        inside = layer.positions >= 0
        pieces = torch.where(inside, layer.positions // self.chunk, 0).long()
        shape = (*pieces.shape[:2], int(pieces.max()) + 1)
        total = votes.new_zeros(shape).scatter_add(2, pieces, votes * inside)
        count = votes.new_zeros(shape).scatter_add(2, pieces, inside.to(votes.dtype))
        priority = protect_recent((total / count.clamp_min(1)).gather(2, pieces), layer, position_ids, self.window)
        # Ranks in place of means: tokens of a piece are equal, and of equals the first in the text stay.
        order = priority.masked_fill(~inside, -torch.inf).argsort(dim=-1, descending=True, stable=True)
        ranks = torch.arange(order.shape[-1], device=order.device).expand_as(order)
        return torch.zeros_like(priority).scatter_(2, order, -ranks.to(priority.dtype))
