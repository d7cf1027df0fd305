"""H2O: heavy hitters and recent tokens stay (Zhang et al., NeurIPS 2023, arXiv 2306.14048).

The score of key j is the attention that it has received so far, summed over all queries, of a key-value head as the mean over its
group of query heads: S_j = sum_i p_ij. Of `budget` entries the `recent` last tokens stay, and of the others those with the highest S.
The choice is greedy, after every chunk and at every step, and what has gone never comes back. Scores live beside the keys; while
decoding they come out of the same product as the attention itself, during prefill out of `attention_stats`.

Early keys are seen by more queries, so S favours them; the paper does not correct for that, and neither does this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from palimpsest.context.attach import LayerInfo
from palimpsest.context.eviction import EvictingMethod, RankedLayer, protect_recent
from palimpsest.context.scoring import attention_stats
from palimpsest.errors import InputError


@dataclass(frozen=True)
class H2O(EvictingMethod):
    """The recent tokens and the keys with the most accumulated attention.

    Args:
        budget: entries that every key-value head keeps.
        recent: how many of them are the last tokens; by default half.

    Raises:
        InputError: more recent tokens than the budget holds.

    Example:
        >>> with H2O(budget=256)(model) as session:                           # doctest: +SKIP
        ...     model.generate(ids, max_new_tokens=64)
    """

    recent: int | None = None
    probabilities: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recent is not None and not 0 <= self.recent <= self.budget:
            raise InputError(f"recent is {self.recent} of a budget of {self.budget}.", "Give 0 to budget, or None for half.")

    def note(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor, layer: RankedLayer) -> None:
        if "score" not in layer.slots:
            layer.add_slot("score", torch.empty(0, 0, 0, device=k.device), 0.0)
        if q.shape[2] == 1:
            received = layer.received
            assert received is not None
            if layer.has_empty:  # a row of which only padding came
                received = received * (position_ids >= 0)[:, None]
        else:
            received = attention_stats(q, k, position_ids, layer.positions, scaling=info.scaling)
        layer.slot("score").add_(received)
        layer.tail = 0  # a query that has been counted cannot be taken back

    def priority(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor, layer: RankedLayer) -> Tensor:
        recent = self.budget // 2 if self.recent is None else self.recent
        return protect_recent(layer.slot("score"), layer, position_ids, recent)
