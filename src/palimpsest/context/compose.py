"""Two context methods on one model at once, where they do not get into each other's way.

Methods touch a model at five places: the rotary map, the cache layers (`make_layer`), the attention (`attend`), what happens after it
(`observe`), and the session. Rotary changes are applied one after the other. Each other place may be taken by one of the two. A
method that keeps keys before rotation goes together with one that changes only the rotary map, not with one that reads keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from palimpsest.context.attach import ContextMethod, LayerInfo
from palimpsest.context.rotary import RotaryMap
from palimpsest.errors import InputError

PLACES = ("make_layer", "attend", "observe", "session")


def compose(first: ContextMethod, second: ContextMethod) -> ContextMethod:
    """One method that does what both do.

    Args:
        first, second: the methods; rotary maps are changed by `first` before `second`.

    Raises:
        InputError: both want the same place, or one reads keys that the other keeps unrotated.

    Example:
        >>> both = compose(YaRN(factor=4), SnapKV(budget=512))                # doctest: +SKIP
    """
    joined = first.join(second) or second.join(first)
    if joined is not None:
        return joined
    touched = {method: {place for place in PLACES if _takes(method, place)} for method in (first, second)}
    both = sorted(touched[first] & touched[second]) if first != second else ["everything"]
    if both:
        raise InputError(
            f"{first!r} and {second!r} cannot be composed: both have their own {', '.join(both)}.",
            "Compose a method that changes positions with one that changes the cache.",
        )
    pre = [method for method in (first, second) if method.keys == "pre_rope"]
    post = [method for method in (first, second) if method.keys == "post_rope" and touched[method]]
    if pre and post:
        raise InputError(
            f"{pre[0]!r} keeps keys before rotation, and {post[0]!r} reads them after it.",
            "Compose it with a method that only changes the rotary map.",
        )
    return Composed(first, second)


@dataclass(frozen=True)
class Composed(ContextMethod):
    """What `compose` returns."""

    first: ContextMethod
    second: ContextMethod

    def __post_init__(self) -> None:
        pre_rope = "pre_rope" in (self.first.keys, self.second.keys)
        object.__setattr__(self, "keys", "pre_rope" if pre_rope else "post_rope")
        object.__setattr__(self, "needs_rotary", self.first.needs_rotary or self.second.needs_rotary)
        object.__setattr__(self, "session", self._owner("session").session)

    def _owner(self, place: str) -> ContextMethod:
        return self.first if _takes(self.first, place) else self.second

    def validate(self, config: Any) -> None:
        self.first.validate(config)
        self.second.validate(config)

    def applies_to(self, info: LayerInfo) -> bool:
        return self.first.applies_to(info) or self.second.applies_to(info)

    def make_layer(self, info: LayerInfo) -> CacheLayerMixin | None:
        owner = self._owner("make_layer")
        return owner.make_layer(info) if owner.applies_to(info) else None

    def attend(
        self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, pad_mask: Tensor | None, position_ids: Tensor, layer: Any
    ) -> Tensor | None:
        owner = self._owner("attend")
        return owner.attend(info, q, k, v, pad_mask, position_ids, layer) if owner.applies_to(info) else None

    def observe(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor, layer: Any) -> None:
        owner = self._owner("observe")
        if owner.applies_to(info):
            owner.observe(info, q, k, v, position_ids, layer)

    def rotary(self, rotary: RotaryMap) -> RotaryMap:
        return self.second.rotary(self.first.rotary(rotary))

    def to_dict(self) -> dict[str, Any]:
        return {"method": "Composed", "first": self.first.to_dict(), "second": self.second.to_dict()}


def _takes(method: ContextMethod, place: str) -> bool:
    if isinstance(method, Composed):
        return _takes(method.first, place) or _takes(method.second, place)
    return getattr(type(method), place) is not getattr(ContextMethod, place)
