"""Attendre's eviction policies for a causal language model as it is (016): a cache of fixed size in every layer.

Yang and Hua (2024, arXiv 2401.04881). Every layer has an `EvictingMemory` of `budget` slots a head in place of its cache. A prompt is
read in chunks of S tokens: their keys and values take the slots of those that were attended first ("fifo"), least recently ("lra") or least
frequently ("lfa"), and only then do the chunk's queries look. What a layer gives for a chunk depends on the chunks before it at this layer
alone, so reading a long prompt in one forward pass, chunk by chunk inside of every layer, is the same as a forward pass a chunk.

Keys keep the positions that they had. The last S positions are never evicted: while decoding, tokens come one at a time, and the newest
would have the lowest count. In a batch every row is cut into chunks from its own first token, so that padding on the left changes nothing.
See `evicting_memory` for the rules and for what is not in the paper.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palimpsest.context.attach import ContextMethod, LayerInfo
from palimpsest.context.evicting_memory import EvictingMemory, MemoryState
from palimpsest.context.layers import PositionedLayer
from palimpsest.errors import InputError


@dataclass(frozen=True)
class AttentionEviction(ContextMethod):
    """Keeps `budget` tokens a head, and lets go of the oldest or the least attended.

    Args:
        policy: "fifo", "lra" or "lfa".
        budget: slots of every kv head, the capacity of its memory.
        sinks: tokens at the beginning that are never evicted.
        chunk: tokens that come in together, S; so many of the newest are never evicted.
        top_k: entries that a query reads; None: all.
        per_head: whether every kv head evicts for itself.
        decay: of the counts of "lfa", a chunk (a token while decoding).

    Raises:
        InputError: a value out of range, or a budget below sinks + chunk.

    Example:
        >>> with AttentionEviction("lfa", budget=256)(model) as session:                  # doctest: +SKIP
        ...     model.generate(ids, max_new_tokens=100)
    """

    policy: str = "lfa"
    budget: int = 512
    sinks: int = 0
    chunk: int = 64
    top_k: int | None = None
    per_head: bool = True
    decay: float = 1.0

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise InputError(f"chunk is {self.chunk}.", "Give 1 or more.")
        self.memory.check(self.chunk)

    @property
    def memory(self) -> EvictingMemory:
        """The rules of every layer's memory."""
        return EvictingMemory(self.budget, self.policy, self.top_k, self.per_head, self.decay, self.sinks, recent=self.chunk)

    def make_layer(self, info: LayerInfo) -> MemoryLayer:
        return MemoryLayer(self.memory)

    def attend(
        self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, pad_mask: Tensor | None, position_ids: Tensor, layer: MemoryLayer
    ) -> Tensor:
        batch, _, count, _ = q.shape
        positions, valid, order = position_ids.expand(batch, count), None, None
        if layer.padded:
            valid = positions >= 0
            order = valid.to(torch.uint8).argsort(dim=1, descending=True, stable=True)  # every row from its own first token
            positions, valid = positions.gather(1, order), valid.gather(1, order)
            q, k, v = (_rows(x, order) for x in (q, k, v))
        outs = []
        for begin in range(0, count, self.chunk):
            part = slice(begin, begin + self.chunk)
            some = None if valid is None else valid[:, part]
            out, _, state = self.memory.step(
                layer.state, q[:, :, part], k[:, :, part], v[:, :, part], positions[:, part], some, scale=info.scaling
            )
            layer.state = state
            outs.append(out)
        out = torch.cat(outs, 2)
        return (out if order is None else _rows(out, order.argsort(dim=1))).transpose(1, 2)


class MemoryLayer(PositionedLayer):
    """A cache layer that is the memory of one layer: its columns are the slots, in no order.

    Args:
        memory: its rules.

    Attributes:
        state: what it holds.
        padded: whether the tokens that come in now have padding among them.
    """

    def __init__(self, memory: EvictingMemory) -> None:
        super().__init__()
        self.memory = memory
        self.padded = False
        self.step = 0
        self._incoming: tuple[Tensor, ...] = ()

    @property
    def state(self) -> MemoryState:
        return MemoryState(self.slots["keys"], self.slots["values"], self.slots["positions"], self.slots["scores"], self.step)

    @state.setter
    def state(self, state: MemoryState) -> None:
        self.slots = dict(zip(("keys", "values", "positions", "scores"), state.tensors, strict=True))
        self.length, self.step, self._incoming = self.memory.capacity, state.step, ()

    def expect(self, positions: Tensor, padded: bool = False) -> None:
        super().expect(positions, padded)
        self.padded = padded

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Announces new keys and values, which `attend` writes chunk by chunk, and returns them alone."""
        self.announced()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.state = self.memory.start(key_states, value_states)
            self.has_empty = True
        self._incoming = (key_states, value_states)
        self.seen += key_states.shape[2]
        return key_states, value_states

    def tensors(self) -> Iterable[Tensor]:
        yield from super().tensors()
        yield from self._incoming

    def reset(self) -> None:
        super().reset()
        self.step, self._incoming = 0, ()


def _rows(x: Tensor, order: Tensor) -> Tensor:
    """(batch, heads, time, d) with the tokens of every row in another order, (batch, time)."""
    return x.gather(2, order[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
