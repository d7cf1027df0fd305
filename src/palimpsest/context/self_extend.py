"""Self-Extend: distant positions in groups, near ones as they are, without training (Jin et al., ICML 2024, arXiv 2401.01325).

For a query at m and a key at n, with neighbourhood w and group size G, the relative position is

    m - n                                   if m - n < w
    m // G - n // G + (w - w // G)          otherwise

so that a model trained on L0 positions reads about (L0 - w) G + w tokens and never sees a relative position that it was not trained
on. Both kinds of logits go into one softmax.

Keys are taken before rotation and stored at their group's position, R(n // G) k; the far logits then need nothing but a query at
m // G + w - w // G. Only the last w keys are turned on, by n - n // G, to where they truly stand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.context.attach import ContextMethod, LayerInfo
from palimpsest.context.layers import PositionedLayer
from palimpsest.errors import InputError

BLOCK = 128  # queries whose logits are held at once


@dataclass(frozen=True)
class SelfExtend(ContextMethod):
    """Grouped positions beyond a neighbourhood.

    Args:
        group: G, tokens that share a position where they are far.
        neighbours: w, the distance from which positions are grouped.

    Raises:
        InputError: values below 1.

    Example:
        >>> with SelfExtend(group=4, neighbours=512)(model):                  # doctest: +SKIP
        ...     model.generate(ids, max_new_tokens=64)
    """

    group: int = 4
    neighbours: int = 512
    keys: ClassVar[Any] = "pre_rope"

    def __post_init__(self) -> None:
        if self.group < 1 or self.neighbours < 1:
            raise InputError(f"group is {self.group}, neighbours {self.neighbours}.", "Give at least 1 of each.")

    def make_layer(self, info: LayerInfo) -> PositionedLayer:
        return GroupedLayer(info, self.group)

    def attend(
        self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, pad_mask: Tensor | None, position_ids: Tensor, layer: Any
    ) -> Tensor | None:
        assert info.rotary is not None
        batch, heads, queries = q.shape[:3]
        columns, positions = k.shape[2], layer.positions[:, :1].long()  # heads hold the same
        near = info.rotary.rotate(q, position_ids)
        far = info.rotary.rotate(q, position_ids // self.group + self.neighbours - self.neighbours // self.group)
        # Columns stand in order; without empty ones among them, the neighbours of a query are the columns in front of its own.
        first = 0 if layer.has_empty else max(0, columns - queries - self.neighbours + 1)
        own = positions[:, :, first:]
        near_keys = info.rotary.shift(k[:, :, first:], own - own // self.group)
        out = []
        for begin in range(0, queries, BLOCK):
            at = position_ids[:, None, begin : begin + BLOCK, None]
            logits = _products(far[:, :, begin : begin + BLOCK], k)
            distance = at - positions[:, :, None]  # (batch, 1, rows, columns)
            close = (distance[..., first:] < self.neighbours)[:, :, None]
            logits[..., first:] = torch.where(close, _products(near[:, :, begin : begin + BLOCK], near_keys), logits[..., first:])
            hidden = (distance < 0) | (positions[:, :, None] < 0)
            logits.mul_(info.scaling).masked_fill_(hidden[:, :, None], torch.finfo(torch.float32).min)
            rows = logits.softmax(-1).to(v.dtype).flatten(2, 3) @ v
            out.append(rows.view(batch, heads, -1, v.shape[-1]))
        return torch.cat(out, dim=2).transpose(1, 2)


class GroupedLayer(PositionedLayer):
    """A layer that stores keys at the position of their group."""

    def __init__(self, info: LayerInfo, group: int) -> None:
        self.info, self.group = info, group
        super().__init__()

    def take_in(self, new: dict[str, Tensor]) -> None:
        assert self.info.rotary is not None
        super().take_in({**new, "keys": self.info.rotary.rotate(new["keys"], new["positions"] // self.group)})


def _products(q: Tensor, k: Tensor) -> Tensor:
    """(batch, kv_heads, group, queries, columns) float32 from (batch, heads, queries, d) and (batch, kv_heads, columns, d)."""
    batch, heads, queries, dim = q.shape
    products = q.reshape(batch, k.shape[1], -1, dim) @ k.transpose(-1, -2)
    return products.float().view(batch, k.shape[1], heads // k.shape[1], queries, -1)
