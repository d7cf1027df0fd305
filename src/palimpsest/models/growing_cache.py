"""Keys and values that grow in place while a model writes.

transformers' `DynamicLayer` makes a new tensor for every token: with T tokens held, a step copies all T of them, and for small models on
a processor that is as much work as their matrices. Here a layer has room from the start for all tokens that will come; a step
writes its own columns and hands out views.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

__all__ = ["GrowingLayer", "growing"]


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` with room for `capacity` tokens; more make it grow by half.

    `keys` and `values` are views (batch, heads, tokens, head_dim) into that room, so what transformers does to them (crop, reorder,
    select) stays right: a tensor that is no longer the room's own is copied into a new one at the next step.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self._key_room: torch.Tensor | None = None
        self._value_room: torch.Tensor | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends (batch, heads, new, head_dim) and returns all that is held."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._key_room, keys = self._append(self._key_room, self.keys, key_states)
        self._value_room, values = self._append(self._value_room, self.values, value_states)
        self.keys, self.values = keys, values
        return keys, values

    def _append(self, room: torch.Tensor | None, held: torch.Tensor | None, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        length = 0 if held is None or held.numel() == 0 else held.shape[-2]
        total = length + new.shape[-2]
        own = room is not None and held is not None and length > 0 and held.data_ptr() == room.data_ptr() and len(held) == len(room)
        if room is None or not own or room.shape[-2] < total:
            batch, heads, _, width = new.shape
            room = new.new_empty(batch, heads, max(self.capacity, total if total <= self.capacity else total + total // 2), width)
            if held is not None and length:
                room[:, :, :length] = held
        room[:, :, length:total] = new
        return room, room[:, :, :total]

    def reset(self) -> None:
        """Forgets everything."""
        self._key_room = self._value_room = None
        super().reset()


def growing(cache: Cache, capacity: int) -> Cache | None:
    """Gives plain layers of `cache` room for `capacity` tokens, in place; windows are left as they are.

    None where the cache keeps other things than keys and values.
    """
    layers = cache.layers
    if not layers or any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return None
    for index, layer in enumerate(layers):
        if type(layer) is not DynamicLayer:
            continue
        grown = GrowingLayer(capacity)
        if layer.is_initialized and layer.keys is not None and layer.values is not None:
            grown.lazy_initialization(layer.keys, layer.values)
            grown.keys, grown.values = layer.keys, layer.values
        layers[index] = grown
    return cache
