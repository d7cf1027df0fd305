"""Evictions that look at keys alone, no query: by norm (Knorm), by likeness to the others (KeyDiff), or at random.

* `Knorm` (Devoto, Zhao, Scardapane and Minervini, EMNLP 2024, arXiv 2406.11430): keys of a small L2 norm get much attention in most
  heads, so those with the smallest norm stay. A rotation does not change a norm.
* `KeyDiff` (Park et al., 2025, arXiv 2504.15364): keys that differ from the rest get attention. The anchor is the mean of the
  normalised keys of a head; those with the lowest cosine to it stay.
* `Random`: each entry draws a number once, when it comes in; the lowest go. The number is a hash of seed, layer, head and position,
  so that it depends neither on the batch nor on chunks. The baseline that any score has to beat.

`recent` protects the last tokens; the papers do not, and 0 is the default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palimpsest.context.attach import LayerInfo
from palimpsest.context.eviction import EvictingMethod, RankedLayer, protect_recent
from palimpsest.context.layers import PositionedLayer
from palimpsest.errors import InputError


@dataclass(frozen=True)
class KeysAlone(EvictingMethod):
    """Base of methods that look at keys alone.

    Args:
        budget: entries that every key-value head keeps.
        recent: last tokens that always stay.
    """

    recent: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.recent <= self.budget:
            raise InputError(f"recent is {self.recent} of a budget of {self.budget}.", "Give 0 to budget.")


@dataclass(frozen=True)
class KeyScored(KeysAlone):
    """Base of methods that give every entry a score when it comes in."""

    def score(self, info: LayerInfo, keys: Tensor, positions: Tensor) -> Tensor:
        """The score of new entries, (batch, kv_heads, time) float32, from keys (…, head_dim) and positions (…)."""
        raise NotImplementedError

    def make_layer(self, info: LayerInfo) -> PositionedLayer:
        return KeyScoredLayer(self, info)

    def priority(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor, layer: RankedLayer) -> Tensor:
        return protect_recent(layer.slot("score"), layer, position_ids, self.recent)


class KeyScoredLayer(RankedLayer):
    """A layer that notes a score with every entry that comes in."""

    def __init__(self, method: KeyScored, info: LayerInfo) -> None:
        self.method, self.info = method, info
        super().__init__()
        self.fills["score"] = 0.0

    def take_in(self, new: dict[str, Tensor]) -> None:
        super().take_in({**new, "score": self.method.score(self.info, new["keys"], new["positions"])})


@dataclass(frozen=True)
class Knorm(KeyScored):
    """The keys with the smallest L2 norm.

    Args:
        budget: entries that every key-value head keeps.
        recent: last tokens that always stay.
    """

    def score(self, info: LayerInfo, keys: Tensor, positions: Tensor) -> Tensor:
        return -keys.float().norm(dim=-1)


@dataclass(frozen=True)
class Random(KeyScored):
    """Entries drawn at random.

    Args:
        budget: entries that every key-value head keeps.
        recent: last tokens that always stay.
        seed: of the draw.
    """

    seed: int = 0

    def score(self, info: LayerInfo, keys: Tensor, positions: Tensor) -> Tensor:
        heads = torch.arange(positions.shape[1], device=positions.device)[:, None]
        place = (positions.long() * info.kv_heads + heads) * info.layers + info.index
        return _uniform(place, self.seed)


@dataclass(frozen=True)
class KeyDiff(KeysAlone):
    """The keys that are least like the mean key of their head.

    Args:
        budget: entries that every key-value head keeps.
        recent: last tokens that always stay.
    """

    def priority(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor, layer: RankedLayer) -> Tensor:
        directions = torch.nn.functional.normalize(k.float(), dim=-1)
        valid: Any = layer.valid()
        if valid is not None:
            directions = directions * valid[..., None]
        anchor = torch.nn.functional.normalize(directions.sum(2, keepdim=True), dim=-1)
        return protect_recent(-(directions @ anchor.transpose(-1, -2)).squeeze(-1), layer, position_ids, self.recent)


def _uniform(place: Tensor, seed: int) -> Tensor:
    """Numbers in [0, 1) that depend on place and seed alone (splitmix64, cut to 24 bits)."""
    x = place + (seed + 1) * 0x9E3779B97F4A7C1 % (1 << 62)
    for multiplier, shift in ((-0x40A7B892E31B1A47, 30), (-0x6B2FB644ECCEEE15, 27)):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * multiplier
    x = x ^ (x >> 31 & (1 << 33) - 1)
    return (x >> 40 & (1 << 24) - 1).float() / (1 << 24)
