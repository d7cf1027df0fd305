"""Rotary position encoding (RoPE) as a value that can be read from a model, changed, and applied to stored keys.

Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, arXiv 2104.09864.

A head's first `rotary_dim` channels are pairs (x_i, x_{i+r}) with r = rotary_dim / 2 (the half-split layout of transformers). At
position m every pair is turned by the angle m w_i, where w_i = inv_freq_i = base^(-2i / rotary_dim), so the logit of a query at m
and a key at n depends on m - n only. `scaling` (YaRN's attention factor) multiplies cos and sin, so logits get its square.

A cache that must move keys needs three things besides `rotate`: `unrotate`, its inverse; `shift`, which turns keys that are already
rotated by some more positions (R(m + d) = R(d) R(m)); and the map that the model itself uses (`rotary_maps`, one for each type of
layer where a model such as Gemma-3 has several). Angles are computed in float32, bit for bit as transformers does it; those of
`shift` in float64, because streams shift by millions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from palimpsest.errors import InputError

PositionRule = Callable[[Tensor], Tensor]

# Scalings of transformers whose frequencies follow the length of the input: cached keys and new queries then turn differently.
MOVING = ("dynamic", "longrope")


@dataclass(frozen=True, eq=False)
class RotaryMap:
    """Which angle every pair of channels has at which position.

    Args:
        inv_freq: frequencies w, shape (rotary_dim / 2,), or with axes in front that broadcast against positions; float32.
        scaling: what cos and sin are multiplied with.
        base: the base of the frequencies, where they still are a power series of one; None otherwise.
        trained_length: the length that the model was trained on, where it is known.
        position_rule: maps positions (any shape, integer) to the positions that are used, before the angle is taken.

    Example:
        >>> m = RotaryMap.of_base(10_000.0, rotary_dim=64)
        >>> keys = torch.randn(1, 2, 5, 64)
        >>> there = m.rotate(keys, torch.arange(5))
        >>> torch.allclose(m.unrotate(there, torch.arange(5)), keys, atol=1e-5)
        True
    """

    inv_freq: Tensor
    scaling: float = 1.0
    base: float | None = None
    trained_length: int | None = None
    position_rule: PositionRule | None = None

    @classmethod
    def of_base(cls, base: float, rotary_dim: int, trained_length: int | None = None) -> RotaryMap:
        """The plain map w_i = base^(-2i / rotary_dim).

        Raises:
            InputError: a base that is not above 0, or an odd number of channels.
        """
        if base <= 0:
            raise InputError(f"The base of the frequencies is {base}.", "Give a number above 0, such as 10_000.")
        if rotary_dim < 2 or rotary_dim % 2:
            raise InputError(f"rotary_dim is {rotary_dim}.", "Channels are turned in pairs: give an even number.")
        return cls(plain_frequencies(base, rotary_dim), base=base, trained_length=trained_length)

    @property
    def rotary_dim(self) -> int:
        """How many channels are turned; the rest of a head passes through."""
        return 2 * self.inv_freq.shape[-1]

    def angles(self, positions: Tensor) -> Tensor:
        """Angles in float32, shape of `positions` and one more axis of rotary_dim / 2."""
        if self.position_rule is not None:
            positions = self.position_rule(positions)
        return positions[..., None].float() * self.inv_freq.to(positions.device)

    def cos_sin(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin as a model's `rotary_emb` returns them, shape of `positions` and one more axis of rotary_dim."""
        half = self.angles(positions)
        whole = torch.cat((half, half), dim=-1)
        return (whole.cos() * self.scaling).to(dtype), (whole.sin() * self.scaling).to(dtype)

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Turns `x` to its positions.

        Args:
            x: queries or keys, (batch, heads, time, head_dim).
            positions: (time,), (batch, time) or (batch, heads, time).

        Returns:
            As `x`, multiplied with `scaling` in the channels that are turned.
        """
        cos, sin = self.cos_sin(positions, x.dtype)
        return turn(x, _per_head(cos, x), _per_head(sin, x))

    def unrotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Takes `rotate` back: turns by the negative angle and divides by scaling squared."""
        cos, sin = self.cos_sin(positions, x.dtype)
        square = self.scaling * self.scaling
        return turn(x, _per_head(cos, x) / square, -_per_head(sin, x) / square)

    def shift(self, x: Tensor, delta: Tensor) -> Tensor:
        """Turns already rotated keys by `delta` more positions; scaling, which they have, is not applied again.

        Args:
            x: rotated keys, (batch, heads, time, head_dim).
            delta: how far, whole or not, positive or negative; shaped like the positions of `rotate`.

        Raises:
            InputError: the map has a position rule, under which a shift is no rotation by a fixed angle.
        """
        cos, sin = self.shift_cos_sin(delta, x.dtype)
        return turn(x, _per_head(cos, x), _per_head(sin, x))

    def shift_cos_sin(self, delta: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin of `shift`, shape of `delta` and one more axis of rotary_dim; raises as `shift` does."""
        if self.position_rule is not None:
            raise InputError("Keys cannot be shifted under a position rule.", "Keep them unrotated and rotate them when they are read.")
        half = delta[..., None].double() * self.inv_freq.to(delta.device).double()
        whole = torch.cat((half, half), dim=-1)
        return whole.cos().to(dtype), whole.sin().to(dtype)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotation itself, x cos + rotate_half(x) sin, on the first channels of `x` (as many as `cos` has)."""
    width = cos.shape[-1]
    front = x if width == x.shape[-1] else x[..., :width]
    first, second = front.chunk(2, dim=-1)
    turned = (front * cos) + (torch.cat((-second, first), dim=-1) * sin)
    return turned if width == x.shape[-1] else torch.cat((turned, x[..., width:]), dim=-1)


def plain_frequencies(base: float, rotary_dim: int) -> Tensor:
    """w_i = base^(-2i / rotary_dim), computed in float32 as transformers computes it."""
    return 1.0 / (base ** (torch.arange(0, rotary_dim, 2, dtype=torch.float) / rotary_dim))


def abf(rotary: RotaryMap, base: float = 500_000.0) -> RotaryMap:
    """Adjusted base frequency: the same map with another base, so that distant tokens turn less (Xiong et al., arXiv 2309.16039).

    Meant for a model that goes on training with it. With the base that the map has, it is the identity.

    Raises:
        InputError: a base that is not above 0, or a map whose frequencies are not of one base any more.
    """
    if rotary.base is None:
        raise InputError("The frequencies of this map are not of one base.", "Change the base before any other scaling.")
    if base == rotary.base:
        return rotary
    fresh = RotaryMap.of_base(base, rotary.rotary_dim)
    return replace(rotary, inv_freq=fresh.inv_freq.to(rotary.inv_freq.device), base=base)


def rotary_maps(decoder: torch.nn.Module) -> dict[str | None, RotaryMap]:
    """The maps that a transformers decoder uses itself.

    Args:
        decoder: what `model.get_decoder()` returns.

    Returns:
        For each type of layer its map; the key None where all layers share one. What is not a fixed map is left out: empty for a
        model without rotary positions, or with frequencies that follow the length of its input ("dynamic", "longrope").
    """
    rotary: Any = getattr(decoder, "rotary_emb", None)
    if rotary is None:
        return {}
    config = rotary.config
    kinds = rotary.rope_type if isinstance(rotary.rope_type, dict) else {None: rotary.rope_type}
    maps: dict[str | None, RotaryMap] = {}
    for layer_type, kind in kinds.items():
        if kind in MOVING:
            continue
        settings = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
        prefix = "" if layer_type is None else f"{layer_type}_"
        maps[layer_type] = RotaryMap(
            getattr(rotary, f"{prefix}inv_freq").float(),
            float(getattr(rotary, f"{prefix}attention_scaling")),
            float(settings["rope_theta"]) if kind == "default" else None,
            int(config.max_position_embeddings),
        )
    return maps


def _per_head(angle: Tensor, x: Tensor) -> Tensor:
    """Puts in the axis of the heads where positions are shared by all heads."""
    return angle.unsqueeze(1) if angle.dim() == 3 and x.dim() == 4 else angle
