"""A prompt with sets as a model reads it: ids, positions, and who may attend to whom (system 049).

With τ(t) the position of token t, s(t) its set (-1 outside of all sets) and p(t) its piece, a token q attends to a token k when

    k <= q   and not (s(q) = s(k) >= 0 and p(q) ≠ p(k))   and, in a layer with a window w, τ(q) - τ(k) < w.

The window is measured in positions. Measured in places, as transformers does, it would cut off the pieces that happen to stand first; for
the same reason a sliding cache, which forgets what was written first, is exchanged for one that keeps everything (`keep_everything`).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from palimpsest.errors import UnsupportedModelError

LAYERS = ("full_attention", "sliding_attention")
IMPLEMENTATIONS = ("eager", "sdpa")


@dataclass(frozen=True)
class EncodedSets:
    """Tokens of a prompt with sets; all arrays are int64 of shape (T,).

    Attributes:
        ids: token ids.
        positions: τ, which several tokens share.
        sets: number of the set that a token belongs to, -1 outside.
        pieces: number of the piece within its set, -1 outside.
        after: the position of the token that follows.
    """

    ids: np.ndarray
    positions: np.ndarray
    sets: np.ndarray
    pieces: np.ndarray
    after: int

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def empty(cls) -> EncodedSets:
        """Nothing yet."""
        none = np.empty(0, np.int64)
        return cls(none, none, none, none, 0)

    def with_text(self, ids: Sequence[int] | np.ndarray) -> EncodedSets:
        """What is here, then tokens that see all of it."""
        return self._with(ids, -1, -1, self.after + len(ids))

    def with_set(self, pieces: Sequence[Sequence[int] | np.ndarray]) -> EncodedSets:
        """What is here, then pieces that all begin at the same position and do not see each other."""
        number = int(self.sets.max(initial=-1)) + 1
        longest = max(map(len, pieces))
        out = self
        for piece, ids in enumerate(pieces):
            out = replace(out._with(ids, number, piece, self.after), after=self.after)
        return replace(out, after=self.after + longest)

    def resized(self, count: int) -> EncodedSets:
        """The first `count` tokens; where there are fewer, tokens of any id follow that see everything."""
        if count >= len(self):
            return self.with_text(np.zeros(count - len(self), np.int64))
        return EncodedSets(self.ids[:count], self.positions[:count], self.sets[:count], self.pieces[:count], int(self.positions[count]))

    def _with(self, ids: Sequence[int] | np.ndarray, number: int, piece: int, after: int) -> EncodedSets:
        count = len(ids)
        return EncodedSets(
            np.concatenate([self.ids, np.asarray(ids, np.int64)]),
            np.concatenate([self.positions, np.arange(self.after, self.after + count)]),
            np.concatenate([self.sets, np.full(count, number)]),
            np.concatenate([self.pieces, np.full(count, piece)]),
            after,
        )

    def allowed(self, first: int = 0, window: int | None = None) -> np.ndarray:
        """Whether token q attends to token k, bool of shape (T - first, T): the rows from token `first` on."""
        rows, places = slice(first, None), np.arange(len(self))
        seen = places[rows, None] >= places
        apart = (self.sets[rows, None] == self.sets) & (self.sets >= 0) & (self.pieces[rows, None] != self.pieces)
        if window is not None:
            seen &= self.positions[rows, None] - self.positions < window
        return seen & ~apart


def check_architecture(model: Any) -> None:
    """Whether a transformers model can be told who attends to whom, as far as its configuration and its signature say.

    Raises:
        UnsupportedModelError: no position ids (ALiBi), an attention kernel without 4-D masks, or layers that are no plain attention.
    """
    config, name = model.config.get_text_config(), type(model).__name__
    implementation = getattr(config, "_attn_implementation", None)
    if implementation not in IMPLEMENTATIONS:
        raise UnsupportedModelError(
            f"{name} runs with the attention {implementation!r}, which takes no mask of who attends to whom.",
            'Load it with attn_implementation="sdpa" (or "eager"), outside of other context methods.',
        )
    others = sorted(set(getattr(config, "layer_types", None) or ()) - set(LAYERS))
    if others or not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", None):
        what = f"layers of the kind {', '.join(others)}" if others else "attention that is not causal"
        raise UnsupportedModelError(f"{name} has {what}: order is in its very states.", "Use a model of causal attention alone.")
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise UnsupportedModelError(f"{name} takes no position ids.", "Use a model with rotary or learned positions.")


def additive(model: Any, allowed: Sequence[EncodedSets], first: int = 0) -> Any:
    """The mask for a forward pass over rows that are padded on the right to the longest: zero where a token attends, else the least number.

    Args:
        model: a transformers model that passed `check_architecture`.
        allowed: the rows, B of them; padding attends to itself alone, and nothing attends to it.
        first: tokens of every row that the cache holds already.

    Returns:
        A tensor (B, 1, T - first, T); for a model whose layers differ in kind a dict of them by kind, as transformers has it.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if kinds is None:
        return _padded(model, allowed, first, window)
    return {kind: _padded(model, allowed, first, window if kind == "sliding_attention" else None) for kind in dict.fromkeys(kinds)}


def _padded(model: Any, rows: Sequence[EncodedSets], first: int, window: int | None) -> Tensor:
    width = max(map(len, rows))
    out = np.zeros((len(rows), 1, width - first, width), bool)
    out[:, 0] = np.eye(width, dtype=bool)[first:]  # a row of a mask that allows nothing would give NaN
    for number, row in enumerate(rows):
        out[number, 0, : len(row) - first, : len(row)] = row.allowed(first, window)
    mask = torch.from_numpy(out).to(model.device)
    # Additive and finite: the one form that eager attention, sdpa and soft-capped logits all take.
    return torch.zeros(mask.shape, dtype=model.dtype, device=model.device).masked_fill_(~mask, torch.finfo(model.dtype).min)


def keep_everything(cache: Any) -> None:
    """Exchanges the layers of a fresh cache that would forget what lies outside a window by layers that keep all."""
    for number, layer in enumerate(cache.layers):
        if getattr(layer, "is_sliding", False):
            cache.layers[number] = DynamicLayer()
