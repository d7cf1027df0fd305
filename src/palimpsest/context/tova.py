"""TOVA: token omission via attention (Oren, Hassid, Yarden, Adi and Schwartz, EMNLP 2024, arXiv 2401.06104).

A decoder as a multi-state RNN whose states are the cached tokens of a layer: when there are more than `budget`, those go to which
the last query pays the least attention, averaged over all heads of the layer. All heads of a layer drop the same token; no token is
protected, the newest and the first neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from palimpsest.context.attach import LayerInfo
from palimpsest.context.eviction import EvictingMethod, RankedLayer
from palimpsest.context.scoring import attention_stats


@dataclass(frozen=True)
class TOVA(EvictingMethod):
    """The tokens to which the last query pays the most attention.

    Args:
        budget: tokens that every layer keeps.

    Example:
        >>> with TOVA(budget=256)(model) as session:                          # doctest: +SKIP
        ...     model.generate(ids, max_new_tokens=64)
    """

    probabilities: ClassVar[bool] = True

    def priority(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor, layer: RankedLayer) -> Tensor:
        if q.shape[2] == 1:
            received = layer.received
        else:
            received = attention_stats(q, k, position_ids, layer.positions, scaling=info.scaling, reduce="last")
        assert received is not None
        return received.mean(1, keepdim=True)
