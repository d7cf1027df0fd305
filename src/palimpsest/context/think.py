"""ThinK: a key cache with fewer channels, chosen for every head by what its queries look at (117).

Xu, Jie, Dong, Wang, Lu, Zhou, Saha, Xiong and Sahoo, *ThinK: Thinner Key Cache by Query-Driven Pruning* (ICLR 2025, arXiv 2407.21018;
SalesforceAIResearch/ThinK). For a head with queries Q (w, d), the last w of the prompt, and keys K (S, d), both after rotation, those
channels C, |C| = d' = d − ⌊λd⌋, are to be kept that minimise ‖Q Kᵀ − Q_C K_Cᵀ‖_F. Greedily these are the ones of the largest

    score_i = ‖Q_{:,i} K_{:,i}ᵀ‖_F = ‖Q_{:,i}‖₂ · ‖K_{:,i}‖₂,

with the mean of Q² over the query heads that share a key head. It is done once, when the prompt has been read: all keys but the last
`recent` are stored in d' channels; those and all later keys stay whole. A logit is then q_C·k_C / √d (not √d') for the former and q·k / √d
for the latter: the few channels of the query are gathered, never those of the keys put back. With `value_ratio` the values of the same
tokens lose channels too, those of the smallest ‖softmax(Q Kᵀ/√d) V_{:,i}‖ (the paper's appendix); what is gone counts as 0.

Stored: packed_keys (batch, kv_heads, S − recent, d'), channels (batch, kv_heads, d') int16 ascending, and the layer's ordinary columns for
the rest. Where kvpress puts zeros in place of channels, the bytes are saved here, and `nbytes` sees it.

Token eviction first, as in the paper's tables: `SnapKV(budget=512) | ThinK()`, which is `ThinK(after=SnapKV(budget=512))`. The other method
works on the prompt, as in the release; once it has been packed no more tokens are given up. Channels can only be chosen among rotated
keys (rotation mixes the channels i and i + d/2), so of the methods that keep keys before rotation only those go before ThinK that can say
where their keys are in the end (`settle`), as CItruS can.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import Tensor

from palimpsest.context.attach import ContextMethod, LayerInfo
from palimpsest.context.layers import PositionedLayer
from palimpsest.context.packed import PackedKeyLayer
from palimpsest.errors import InputError


@dataclass(frozen=True)
class ThinK(ContextMethod):
    """Packs the key cache of a prompt into the channels that its last queries need.

    Args:
        ratio: share λ of the key channels that goes.
        window: queries at the end of the prompt that choose, w.
        recent: keys at its end that stay whole.
        value_ratio: share of the value channels that goes, in the same tokens.
        repack: whether later keys, once there are more than 2 · `recent` whole ones, are packed into the channels that were chosen, but for
            the last `recent`; not done in the release.
        after: a method that evicts tokens of the prompt before; None: all are kept.

    Raises:
        InputError: a value out of range, or a method that cannot come before.

    Example:
        >>> with ThinK(ratio=0.4)(model) as session:                                      # doctest: +SKIP
        ...     model.generate(ids, max_new_tokens=100)
        >>> session.nbytes()                                                              # doctest: +SKIP
    """

    ratio: float = 0.4
    window: int = 32
    recent: int = 32
    value_ratio: float = 0.0
    repack: bool = False
    after: ContextMethod | None = None

    def __post_init__(self) -> None:
        for name in ("ratio", "value_ratio"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)!r}.", "Give a share from 0 to below 1.")
        for name, least in (("window", 1), ("recent", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}.", f"Give {least} or more.")
        if self.repack and not self.recent:
            raise InputError("repack is asked for with recent = 0.", "Give the number of last keys that are to stay whole.")
        if self.after is None:
            return
        if isinstance(self.after, ThinK) or (self.after.keys == "pre_rope" and not hasattr(self.after, "settle")):
            raise InputError(f"ThinK cannot come after {self.after!r}.", "Use a method that evicts tokens among rotated keys, or CItruS.")
        for name in ("keys", "needs_rotary", "session"):  # where the other method looks at keys decides for both
            object.__setattr__(self, name, getattr(self.after, name))

    def join(self, other: ContextMethod) -> ContextMethod | None:
        return replace(self, after=other) if self.after is None and _evicts(other) else None

    def validate(self, config: Any) -> None:
        if self.after is not None:
            self.after.validate(config)

    def applies_to(self, info: LayerInfo) -> bool:
        return super().applies_to(info) and (self.after is None or self.after.applies_to(info))

    def make_layer(self, info: LayerInfo) -> PackedKeyLayer:
        inner = None if self.after is None else self.after.make_layer(info)
        if inner is None:
            return PackedKeyLayer()
        if not isinstance(inner, PositionedLayer) or type(inner).update is not PositionedLayer.update:
            raise InputError(
                f"ThinK cannot pack the {type(inner).__name__} of {self.after!r}.", "Use a method whose layers append what comes in."
            )
        layer = object.__new__(_packed_class(type(inner)))
        vars(layer).update(vars(inner))
        return layer

    def attend(
        self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, pad_mask: Tensor | None, position_ids: Tensor, layer: PackedKeyLayer
    ) -> Tensor | None:
        if q.shape[2] == 1 and layer.seen > 1 and not layer.reading:
            self._pack(info, layer, own=1)  # the first token after a prompt
        if not layer.packed:
            return None if self.after is None else self.after.attend(info, q, k, v, pad_mask, position_ids, layer)
        if self.keys == "pre_rope":
            q = self._settling.place(info, q, position_ids, layer)
        return layer.attend(q, info.scaling)

    def observe(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor, layer: PackedKeyLayer) -> None:
        if layer.packed:
            if self.repack and layer.length > 2 * self.recent:
                layer.repack(self.recent)
            return
        if self.after is not None:
            self.after.observe(info, q, k, v, position_ids, layer)
        if self._kept(info.head_dim) != (info.head_dim, info.head_dim):
            if self.keys == "pre_rope":
                q = self._settling.rotated(info, q, position_ids, layer)
            layer.remember_last(q, position_ids, self.window)

    def finish(self, info: LayerInfo, layer: PackedKeyLayer) -> None:
        self._pack(info, layer, own=0)

    @property
    def _settling(self) -> Any:
        """The method before, where it keeps keys from before rotation: it says where they are in the end."""
        return self.after

    def _kept(self, head_dim: int) -> tuple[int, int]:
        """Channels of keys and of values that stay."""
        return head_dim - int(self.ratio * head_dim), head_dim - int(self.value_ratio * head_dim)

    def _pack(self, info: LayerInfo, layer: PackedKeyLayer, own: int) -> None:
        """Packs a layer, but for the last `own` columns, which are not of the prompt."""
        keys, values = self._kept(info.head_dim)
        if layer.packed or (keys, values) == (info.head_dim, info.head_dim):
            return
        seen = layer.window_length()
        if seen < self.window:
            raise InputError(f"A prompt has {seen} tokens, fewer than the window of {self.window}.", "Give a smaller window.")
        if self.keys == "pre_rope":
            self._settling.settle(info, layer, own)
        layer.pack(keys, values, self.recent, own, info.scaling)


def _evicts(method: ContextMethod) -> bool:
    return any(getattr(type(method), place) is not getattr(ContextMethod, place) for place in ("make_layer", "attend", "observe"))


@cache
def _packed_class(inner: type[PositionedLayer]) -> type[PackedKeyLayer]:
    """A layer that is both what the other method makes and a `PackedKeyLayer`."""
    return type(f"Packed{inner.__name__}", (PackedKeyLayer, inner), {})
