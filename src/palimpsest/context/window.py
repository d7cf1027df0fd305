"""A window of recent keys that stays exact at any length, and the first tokens of a text kept apart: the base of LM-Infinite and InfLLM.

Both methods (091, 040) count distance in tokens of a row, so that their layers store *ranks*: the number of a token among those of its
row that are not padding. What the cache holds of a row is then the same with padding in front and without. A row's position ids may
begin anywhere but must run on by one, and padding may stand on one side only.

* Keys come in unrotated. In the window they are held rotated to `rank − anchor`, so that a decoding step rotates one key and not the
  whole window; the anchor follows the stream, because angles in float32 lose their precision at large positions. Moving it rotates the
  window anew, once in thousands of tokens, and never while all of a text fits into the window.
* The first `n_first` keys are held a second time at position 0 (`first_keys`), where a query sees them from a distance of its own choice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from palimpsest.context.layers import EMPTY, PositionedLayer
from palimpsest.context.rotary import RotaryMap
from palimpsest.context.session import Session, Step
from palimpsest.errors import InputError

ANCHOR_SPAN = 1 << 13  # angles of positions up to here are exact to 5e-4


class WindowLayer(PositionedLayer):
    """A cache layer whose keys are rotated relative to an anchor, and that keeps the first keys apart.

    Args:
        rotary: the map of the model.
        n_first: how many first tokens are kept apart.
        n_local: tokens of the window.

    Attributes:
        first_keys, first_values: (batch, kv_heads, n_first, head_dim), at position 0; zeros where a row has not come that far.
        anchor: the rank that is rotated by no angle.
    """

    def __init__(self, rotary: RotaryMap, n_first: int, n_local: int) -> None:
        super().__init__()
        self.rotary, self.n_first = rotary, n_first
        self.span = max(ANCHOR_SPAN, 2 * n_local)
        self.anchor = 0
        self._first_complete = False

    @property
    def first_keys(self) -> Tensor:
        return self.rows["first_keys"]

    @property
    def first_values(self) -> Tensor:
        return self.rows["first_values"]

    @property
    def ranks(self) -> Tensor:
        """Ranks of the columns, (batch, columns) int32, `EMPTY` where nothing is held: those of all heads are the same."""
        return self.positions[:, 0]

    def take_in(self, new: dict[str, Tensor]) -> None:
        """See `PositionedLayer.take_in`; the keys are rotated on their way in."""
        keys, ranks = new["keys"], new["positions"][:, 0]
        if not self._first_complete:
            self._keep_first(keys, new["values"], ranks)
        if self.seen + ranks.shape[1] - self.anchor > self.span and self.rotary.position_rule is None:
            self._move_anchor(self.seen)
        super().take_in({**new, "keys": self.near(keys, ranks)})

    def near(self, x: Tensor, ranks: Tensor) -> Tensor:
        """Unrotated queries or keys (batch, heads, time, head_dim), rotated as the window's keys are."""
        return self.rotary.rotate(x, ranks - self.anchor)

    def far(self, keys: Tensor, ranks: Tensor) -> Tensor:
        """Keys of the window (batch, kv_heads, time, head_dim), brought to position 0."""
        raw = self.rotary.unrotate(keys, ranks - self.anchor)
        return raw if self.rotary.scaling == 1 else self.rotary.rotate(raw, torch.zeros(1, device=raw.device))

    def _keep_first(self, keys: Tensor, values: Tensor, ranks: Tensor) -> None:
        if "first_keys" not in self.rows:
            batch, kv_heads, _, head_dim = keys.shape
            self.rows["first_keys"] = keys.new_zeros(batch, kv_heads, self.n_first, head_dim)
            self.rows["first_values"] = values.new_zeros(batch, kv_heads, self.n_first, values.shape[-1])
        row, time = ((ranks >= 0) & (ranks < self.n_first)).nonzero(as_tuple=True)
        rank = ranks[row, time].long()
        self.first_keys[row, :, rank] = self.rotary.rotate(keys, torch.zeros(1, device=keys.device))[row, :, time]
        self.first_values[row, :, rank] = values[row, :, time]
        self._first_complete = bool((ranks[:, -1] >= self.n_first - 1).all())

    def _move_anchor(self, anchor: int) -> None:
        raw = self.rotary.unrotate(self.slot("keys"), self.ranks - self.anchor)
        self.slot("keys").copy_(self.rotary.rotate(raw, self.ranks - anchor))
        self.anchor = anchor

    def crop(self, tokens_to_remove: int) -> None:
        """See `PositionedLayer.crop`."""
        super().crop(tokens_to_remove)
        self._first_complete = False

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self.anchor, self._first_complete = 0, False


class WindowSession(Session):
    """A session whose layers and methods are told ranks instead of positions."""

    def _announce(self, cache: Cache, inputs: Tensor, kwargs: dict[str, Any]) -> Step:
        seen = cache.get_seq_length()
        step = super()._announce(cache, inputs, kwargs)
        ranks, padded = torch.arange(seen, seen + inputs.shape[1], device=inputs.device)[None], False
        if step.pad_mask is not None:
            valid = step.pad_mask.int()
            if bool(((valid[:, 1:] - valid[:, :-1]) != 0).sum(1).gt(1).any()):
                raise InputError("The padding stands between the tokens of a row, or on both sides.", "Pad on the left.")
            ranks = (valid.cumsum(1) - 1).masked_fill(~step.pad_mask, EMPTY)[:, seen:]
            padded = bool((ranks < 0).any())
        offset = step.positions - ranks
        counted = (ranks >= 0).expand_as(offset)
        low, high = (offset.masked_fill(~counted, fill) for fill in (1 << 40, -(1 << 40)))
        if bool((low.amin(1) < high.amax(1)).any()):
            raise InputError(
                f"The position ids of a row do not run on by one, and {self.method!r} counts distance in tokens.",
                "Leave out position_ids, or use a method that takes positions of one's own.",
            )
        for layer in cache.layers:
            if isinstance(layer, PositionedLayer):
                layer.expect(ranks, padded)
        return Step(ranks, step.pad_mask, cache)
