"""Caches that keep by position: everything, a window, or a window and the first tokens (StreamingLLM).

Xiao, Tian, Chen, Han and Lewis, "Efficient Streaming Language Models with Attention Sinks", ICLR 2024, arXiv 2309.17453.

Decoders put much of their attention on the first tokens whatever these are ("sinks"); a window that drops them breaks the model. So
the first `sinks` tokens and the last `budget` - `sinks` stay, and positions are *compact*: those in the cache, not in the text. With
rotary positions only differences count. Within the window they are true either way; to the sinks they shrink by the number d of
tokens that were given up between. So keys stay rotated as they came, and before each forward pass the sinks alone are turned by d:
R(d) k_i, from a copy at the position where they came in, so that errors do not add up. (The release keeps keys unrotated and
rotates the whole cache in every step.)

Positions of the model itself grow with the text; angles lose precision in float32 beyond some 10^6 tokens, as everywhere in
transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.context.attach import ContextMethod, LayerInfo
from palimpsest.context.eviction import EvictingMethod, RankedLayer
from palimpsest.context.layers import PositionedLayer, spread
from palimpsest.context.rotary import RotaryMap, turn
from palimpsest.errors import InputError


@dataclass(frozen=True)
class Full(ContextMethod):
    """Full attention, in layers that grow in place: the baseline of every comparison.

    Example:
        >>> with Full()(model) as session:                                    # doctest: +SKIP
        ...     model.generate(ids, max_new_tokens=64)
        >>> session.peak_bytes                                                # doctest: +SKIP
    """

    def make_layer(self, info: LayerInfo) -> PositionedLayer:
        return PositionedLayer()


@dataclass(frozen=True)
class SlidingWindow(EvictingMethod):
    """The last `budget` tokens at their own positions, and nothing else.

    Args:
        budget: the window.
    """

    def make_layer(self, info: LayerInfo) -> PositionedLayer:
        return SinkLayer(0)

    def observe(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor, layer: Any) -> None:
        if q.shape[2] == 1 and layer.length - self.budget == 1 and layer.alike:
            layer.give_up_oldest()
        else:
            super().observe(info, q, k, v, position_ids, layer)

    def priority(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor, layer: RankedLayer) -> Tensor:
        return layer.positions[:, :1].float()


@dataclass(frozen=True)
class StreamingLLM(SlidingWindow):
    """The first `sinks` tokens and the last `budget` - `sinks`, at compact positions.

    Args:
        budget: tokens kept, sinks included.
        sinks: first tokens that always stay.

    Raises:
        InputError: a budget that leaves no window.
    """

    sinks: int = 4
    needs_rotary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sinks < 0 or self.budget < self.sinks + 1:
            raise InputError(f"budget is {self.budget} with {self.sinks} sinks.", "Give a budget of at least sinks + 1, and sinks >= 0.")

    def make_layer(self, info: LayerInfo) -> PositionedLayer:
        return SinkLayer(self.sinks)

    def attend(
        self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, pad_mask: Tensor | None, position_ids: Tensor, layer: Any
    ) -> Tensor | None:
        if layer.given_up and self.sinks:
            assert info.rotary is not None
            layer.turn_sinks(info.rotary, position_ids)  # in the buffer that k is a view of
        return None

    def priority(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor, layer: RankedLayer) -> Tensor:
        positions = layer.positions[:, :1]
        return positions.float().masked_fill((positions >= 0) & (positions < self.sinks), torch.inf)


class SinkLayer(RankedLayer):
    """A layer that goes round in its window, and turns the first tokens to stand before it.

    Until something is given up nothing is turned. From then on `rows` holds, for each sink, its key as it came in, the column where
    it stands now, and whether the row has it at all (a much padded row may still be waiting for its first tokens).

    Without padding all rows and heads hold the same: sinks in front, and behind them a ring. Then the oldest entry and the angle of
    the sinks are plain numbers, which spares a step of decoding a dozen small operations in every layer.
    """

    def __init__(self, sinks: int) -> None:
        self.sinks = sinks
        self.oldest = sinks  # the column of the oldest entry behind the sinks, while the ring is whole
        self.complete = sinks == 0  # whether every row has all of its sinks
        self.padded = False  # whether padding ever came: rows then have given up different numbers of tokens
        super().__init__()

    @property
    def alike(self) -> bool:
        """Whether all rows hold the same positions, in all columns."""
        return not (self.padded or self.has_empty)

    def expect(self, positions: Tensor, padded: bool = False) -> None:
        super().expect(positions, padded)
        self.padded = self.padded or padded

    def give_up_oldest(self) -> None:
        """Gives up the oldest entry of the ring; only while rows are alike."""
        self.give_up(self.oldest)
        self.oldest = self.oldest + 1 if self.oldest + 1 < self.length else self.sinks

    def turn_sinks(self, rotary: RotaryMap, position_ids: Tensor) -> None:
        """Turns the sinks to stand directly before the window, for the queries that have just come in."""
        kept = self.rows["sink_keys"]
        if self.alike:
            cos, sin = _angles(rotary, self.seen - self.length, kept.dtype, kept.device)
            self.slots["keys"][:, :, : self.sinks] = turn(kept, cos, sin)
            return
        came = position_ids >= 0
        before = (self.positions[:, 0] >= 0).sum(-1) - came.sum(-1)
        start = torch.where(came, position_ids, torch.iinfo(position_ids.dtype).max).amin(-1)
        start = torch.where(came.any(-1), start, before)
        keys = rotary.shift(kept, (start - before)[:, None, None])
        columns = spread(self.rows["sink_columns"], keys)
        if not self.complete:
            there = self.rows["sink_found"][..., None]
            keys = torch.where(there, keys, self.slots["keys"].gather(2, columns))
        self.slots["keys"].scatter_(2, columns, keys)

    def keep(self, columns: Tensor, valid: Tensor | None = None, spare: int = 1) -> None:
        super().keep(columns, valid, spare)
        self.oldest = self.sinks
        self._find_sinks()

    def give_up(self, column: Tensor | int) -> None:
        super().give_up(column)
        if not self.complete:
            self._find_sinks()

    def _find_sinks(self) -> None:
        if self.sinks == 0:
            return
        wanted = torch.arange(self.sinks, device=self.positions.device)
        match = self.positions[:, :, None] == wanted[:, None]  # (batch, kv_heads, sinks, columns)
        found, columns = match.any(-1), match.int().argmax(-1)
        keys = self.slots["keys"].gather(2, spread(columns, self.slots["keys"]))
        if "sink_keys" in self.rows:  # sinks that stand turned already; a row that has just got one was never turned
            keys = torch.where(self.rows["sink_found"][..., None], self.rows["sink_keys"], keys)
        self.rows |= {"sink_keys": keys, "sink_columns": columns, "sink_found": found}
        self.complete = bool(found.all())

    def reset(self) -> None:
        super().reset()
        self.oldest, self.complete, self.padded = self.sinks, self.sinks == 0, False


@lru_cache(maxsize=4)  # all layers of a forward pass turn by the same
def _angles(rotary: RotaryMap, delta: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of a shift by `delta` positions, (rotary_dim,)."""
    return rotary.shift_cos_sin(torch.tensor(delta, device=device), dtype)
