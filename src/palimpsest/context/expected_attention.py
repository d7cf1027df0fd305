"""Expected Attention: keys are ranked by what future queries will make of them (Devoto, Jeblick and Jégou, 2025, arXiv 2510.00636).

Queries before rotation are taken for normal, with mean mu and covariance C of those seen so far (without the first `sinks` tokens,
whose queries are outliers). Those of the next n positions are turned by R_t; with their mean rotation R the logit of key k has the
mean s k.R mu and the variance s^2 k.R C R^T k, so the expected exp of the logit is

    a_k = exp(s k.R mu + s^2 / 2 k.R C R^T k)

normalised over the keys of a head, and meant over the group of query heads. What a key adds to the output also goes with its value:
the score is (a_k + epsilon) ||v_k||. The first `sinks` tokens always stay. Mean and covariance are running sums, so chunks and
decoding go on with them; while decoding the layer grows by `interval` tokens before it is ranked again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.context.attach import LayerInfo
from palimpsest.context.eviction import EvictingMethod, RankedLayer
from palimpsest.context.rotary import turn
from palimpsest.context.scoring import over_group
from palimpsest.errors import InputError


@dataclass(frozen=True)
class ExpectedAttention(EvictingMethod):
    """The keys that future queries are expected to attend to.

    Args:
        budget: entries that every key-value head keeps.
        future: n, over how many coming positions rotations are meant.
        sinks: first tokens that always stay, and whose queries do not count.
        epsilon: how much a value counts whatever its key.

    Raises:
        InputError: a budget that the sinks fill, or no future.
    """

    future: int = 512
    sinks: int = 4
    epsilon: float = 0.02
    interval: ClassVar[int] = 64
    needs_rotary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sinks < 0 or self.budget < self.sinks + 1:
            raise InputError(f"budget is {self.budget} with {self.sinks} sinks.", "Give a budget of at least sinks + 1, and sinks >= 0.")
        if self.future < 1:
            raise InputError(f"future is {self.future}.", "Give at least 1 position.")

    def note(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor, layer: RankedLayer) -> None:
        assert info.rotary is not None
        batch, heads, _, dim = q.shape
        counted = (position_ids >= self.sinks).float().expand(batch, -1)
        queries = info.rotary.unrotate(q, position_ids).float() * counted[:, None, :, None]
        if "query_sum" not in layer.rows:
            layer.rows["query_count"] = queries.new_zeros(batch)
            layer.rows["query_sum"] = queries.new_zeros(batch, heads, dim)
            layer.rows["query_outer"] = queries.new_zeros(batch, heads, dim, dim)
        layer.rows["query_count"] += counted.sum(-1)
        layer.rows["query_sum"] += queries.sum(2)
        layer.rows["query_outer"] += queries.transpose(-1, -2) @ queries
        layer.tail = 0  # a query that has been counted cannot be taken back

    def priority(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor, layer: RankedLayer) -> Tensor:
        mean, covariance = self._ahead(info, position_ids, layer)
        grouped = (k.shape[0], k.shape[1], -1)
        mean, covariance = mean.view(*grouped, mean.shape[-1]), covariance.view(*grouped, *covariance.shape[-2:])
        keys = k.float()[:, :, None]  # (batch, kv_heads, 1, columns, head_dim)
        logits = info.scaling * (keys @ mean[..., None]).squeeze(-1)
        logits = logits + info.scaling**2 / 2 * ((keys @ covariance) * keys).sum(-1)
        valid: Any = layer.valid()
        if valid is not None:
            logits = logits.masked_fill(~valid[:, :, None], torch.finfo(torch.float32).min)
        score = (over_group(logits.softmax(-1), "mean") + self.epsilon) * v.float().norm(dim=-1)
        return score.masked_fill((layer.positions >= 0) & (layer.positions < self.sinks), torch.inf)

    def _ahead(self, info: LayerInfo, position_ids: Tensor, layer: RankedLayer) -> tuple[Tensor, Tensor]:
        """Mean (batch, heads, head_dim) and covariance of the queries to come, turned by the mean rotation of their positions."""
        assert info.rotary is not None
        count = layer.rows["query_count"].clamp_min(1)[:, None, None]
        mean = layer.rows["query_sum"] / count
        covariance = layer.rows["query_outer"] / count[..., None] - mean[..., None] * mean[..., None, :]
        last = position_ids.amax(-1, keepdim=True).expand(len(mean), 1)
        to_come = last + torch.arange(1, self.future + 1, device=last.device)
        cos, sin = (part.mean(-2)[:, None, None] for part in info.rotary.cos_sin(to_come, torch.float32))  # (batch, 1, 1, rotary_dim)
        turned = turn(turn(covariance, cos, sin).transpose(-1, -2), cos, sin)
        return turn(mean[:, :, None], cos, sin).squeeze(2), turned
