"""What all methods that give tokens up have in common: a budget of entries per key-value head, kept after every forward pass.

After the attention of a layer, entries are ranked by a `priority` (higher stays) and the lowest go until `budget` are left: at once
after a chunk of the prompt, one for one while decoding. Positions of what stays are those that it always had. Padding and places
that were given up have the lowest priority of all, so a row of a padded batch keeps what it would keep alone.

In the steady state of decoding (`interval` = 1) the column of the entry that goes is the one that the next token is written to:
nothing is copied. A method whose priority is dear, or needs the columns in their order, sets `interval` > 1: it lets the layer
grow by that many tokens before it ranks again.

A method keeps up to `budget` entries (and `interval` - 1 more while decoding) in each head of each layer, whatever the length of the
text; with a budget of at least the text it is full attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.context.attach import ContextMethod, LayerInfo
from palimpsest.context.layers import PositionedLayer
from palimpsest.context.scoring import attend_with_probabilities, over_group
from palimpsest.errors import InputError


@dataclass(frozen=True)
class EvictingMethod(ContextMethod):
    """Base of the methods that keep `budget` entries per key-value head.

    A subclass gives `priority`; one that has to see every query also overrides `note`.

    Args:
        budget: entries that every key-value head of every layer keeps.
    """

    budget: int
    interval: ClassVar[int] = 1  # tokens that come between two evictions while decoding
    probabilities: ClassVar[bool] = False  # whether `note` or `priority` wants the attention of a single query

    def __post_init__(self) -> None:
        if not isinstance(self.budget, int) or self.budget < 1:
            raise InputError(f"budget is {self.budget!r}.", "Give the number of entries that a head keeps, at least 1.")

    def entries(self, info: LayerInfo) -> int:
        """The budget of one layer."""
        return self.budget

    def make_layer(self, info: LayerInfo) -> PositionedLayer:
        return RankedLayer()

    def priority(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor, layer: RankedLayer) -> Tensor:
        """How much every entry is worth, (batch, kv_heads or 1, columns) float32; arguments as of `ContextMethod.attend`."""
        raise NotImplementedError

    def note(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor, layer: RankedLayer) -> None:
        """Called after every attention, before anything is given up."""

    def attend(
        self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, pad_mask: Tensor | None, position_ids: Tensor, layer: Any
    ) -> Tensor | None:
        if not self.probabilities or q.shape[2] > 1:
            return None
        out, probabilities = attend_with_probabilities(q, k, v, info.scaling, layer.valid())
        layer.received = over_group(probabilities, "mean")
        return out

    def observe(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor, layer: Any) -> None:
        self.note(info, q, k, v, position_ids, layer)
        single, surplus = q.shape[2] == 1, layer.length - self.entries(info)
        if surplus >= (self.interval if single else 1):
            priority = self.priority(info, q, k, v, position_ids, layer)
            evict(layer, priority, self.entries(info), in_place=single and self.interval == 1, spare=self.interval if single else 1)


class RankedLayer(PositionedLayer):
    """A layer whose method ranks entries.

    Attributes:
        received: (batch, kv_heads, columns) float32, the attention that every key got from the last query, mean over the group;
            set for single queries of methods with `probabilities`.
    """

    received: Tensor | None = None


def evict(layer: PositionedLayer, priority: Tensor, budget: int, *, in_place: bool, spare: int = 1) -> None:
    """Gives entries up until `budget` columns are in use.

    Args:
        layer: the cache layer.
        priority: (batch, kv_heads or 1, columns); the lowest go, and empty columns before all others.
        budget: columns that stay.
        in_place: give up a single column where it stands, for the next token.
        spare: columns to leave room for.
    """
    positions = layer.positions
    if layer.has_empty:
        priority = priority.masked_fill(positions[:, : priority.shape[1]] < 0, -torch.inf)
    if in_place and layer.length - budget == 1:
        layer.give_up(priority.argmin(-1).expand(positions.shape[:2]))
    else:
        columns = priority.topk(budget, dim=-1, sorted=False).indices
        # In the order of the text: where single entries were replaced, columns are not.
        columns = columns.gather(-1, positions[:, : priority.shape[1]].gather(-1, columns).argsort(dim=-1))
        layer.keep(columns.expand(*positions.shape[:2], budget), spare=spare)


def protect_recent(priority: Tensor, layer: PositionedLayer, position_ids: Tensor, recent: int) -> Tensor:
    """The priority with that of the last `recent` tokens of each row raised to infinity."""
    if recent == 0:
        return priority
    first = position_ids.amax(-1)[:, None, None] - recent
    return priority.masked_fill(layer.positions > first, torch.inf)
