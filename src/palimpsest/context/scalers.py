"""Position scaling: a decoder trained on L0 tokens reads s L0 tokens because its rotary angles are made smaller.

With d rotated channels, base b, w_i = b^(-2i/d) (see `rotary.py`) and the factor s >= 1:

* `PI`, position interpolation (Chen et al., arXiv 2306.15595): w_i / s, the same as positions m / s.
* `NTKAware` (bloc97, 2023): base b s^(d/(d-2)), so that the slowest pair is interpolated by s and the fastest not at all.
* `DynamicNTK` (emozilla, 2023): at the current length n > L0 the base b (s n / L0 - (s - 1))^(d/(d-2)). The base moves with n, and
  keys that were rotated with an older one are wrong, so keys are kept before rotation and all are turned when they are read.
  n is the length of each row, where transformers takes that of the longest row of the batch.
* `YaRN` (Peng et al., arXiv 2309.00071): fast pairs stay, slow pairs are interpolated, with a ramp between; cos and sin times
  0.1 ln s + 1. The paper's ramp is over rotations; transformers', which released models were tuned with and which is taken here,
  is over the index of the pair between the pairs that turn `beta_fast` and `beta_slow` times in L0 tokens.
* `ABF` (Xiong et al., arXiv 2309.16039): another base, for a model that is trained further; without training it is NTK by hand.

All but `DynamicNTK` change the map alone: they compose with every method that keeps rotated keys. Only layers of full attention
are scaled where a model has its own map for its sliding windows (Gemma-3); distances within a window do not grow with the text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.context.attach import ContextMethod, LayerInfo
from palimpsest.context.rotary import RotaryMap, abf, plain_frequencies
from palimpsest.context.session import attend_dense
from palimpsest.errors import InputError, UnsupportedModelError


@dataclass(frozen=True)
class PI(ContextMethod):
    """Position interpolation.

    Args:
        factor: s, how many times the trained length is wanted.

    Raises:
        InputError: a factor below 1.

    Example:
        >>> with PI(factor=4)(model):                                         # doctest: +SKIP
        ...     model.generate(ids, max_new_tokens=64)
    """

    factor: float = 2.0

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def rotary(self, rotary: RotaryMap) -> RotaryMap:
        if self.factor == 1:
            return rotary
        return replace(rotary, inv_freq=rotary.inv_freq / self.factor, base=None)


@dataclass(frozen=True)
class NTKAware(ContextMethod):
    """The base that interpolates the slowest pair of channels by `factor` and leaves the fastest.

    Args:
        factor: s, how many times the trained length is wanted.

    Raises:
        InputError: a factor below 1.
    """

    factor: float = 2.0

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def rotary(self, rotary: RotaryMap) -> RotaryMap:
        dim = rotary.rotary_dim
        return abf(rotary, _base(rotary) * self.factor ** (dim / (dim - 2)))


@dataclass(frozen=True)
class DynamicNTK(ContextMethod):
    """The base of `NTKAware` for the length that each text has now; the model's own map up to the trained length.

    Args:
        factor: s of the formula: with 1 the base grows with n / L0, with more it grows faster.
        trained_length: L0; by default that of the model's configuration.

    Raises:
        InputError: a factor below 1, or a length below 1.
    """

    factor: float = 1.0
    trained_length: int | None = None
    keys: ClassVar[Any] = "pre_rope"

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        if self.trained_length is not None and self.trained_length < 1:
            raise InputError(f"trained_length is {self.trained_length}.", "Give at least 1, or None for that of the model.")

    def applies_to(self, info: LayerInfo) -> bool:
        return info.sliding_window is None

    def attend(
        self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, pad_mask: Tensor | None, position_ids: Tensor, layer: Any
    ) -> Tensor | None:
        rotary = self.map_at(info.rotary, position_ids.amax(-1) + 1)
        q = rotary.rotate(q, position_ids[:, None].expand(-1, 1, -1))
        return attend_dense(info, q, rotary.rotate(k, layer.positions), v, layer)

    def map_at(self, rotary: RotaryMap | None, lengths: Tensor) -> RotaryMap:
        """The map for texts of these lengths, (batch,): its frequencies are (batch, 1, 1, rotary_dim / 2)."""
        assert rotary is not None
        trained, dim, base = self.trained_length or rotary.trained_length, rotary.rotary_dim, _base(rotary)
        assert trained is not None
        growth = (self.factor * lengths.double() / trained - (self.factor - 1)).clamp_min(1.0)
        exponents = torch.arange(0, dim, 2, dtype=torch.double, device=lengths.device) / dim
        bases = base * growth ** (dim / (dim - 2))
        moved = (1.0 / bases[:, None] ** exponents).float()
        own = rotary.inv_freq.to(lengths.device)
        frequencies = torch.where((growth > 1)[:, None], moved, own)
        return replace(rotary, inv_freq=frequencies[:, None, None], base=None)


@dataclass(frozen=True)
class YaRN(ContextMethod):
    """NTK by parts, with a temperature.

    Args:
        factor: s, how many times the trained length is wanted.
        beta_fast, beta_slow: pairs that turn more often than `beta_fast` in the trained length stay, less often than `beta_slow`
            are interpolated.
        trained_length: L0; by default that of the model's configuration.
        attention_factor: what cos and sin are multiplied with; by default 0.1 ln s + 1.

    Raises:
        InputError: a factor below 1, or betas in the wrong order.
    """

    factor: float = 2.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    trained_length: int | None = None
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        if not 0 < self.beta_slow < self.beta_fast:
            raise InputError(f"beta_slow is {self.beta_slow} and beta_fast {self.beta_fast}.", "Give 0 < beta_slow < beta_fast.")

    def rotary(self, rotary: RotaryMap) -> RotaryMap:
        if self.factor == 1 and self.attention_factor in (None, 1.0):
            return rotary
        base, dim = _base(rotary), rotary.rotary_dim
        length = self.trained_length or rotary.trained_length
        assert length is not None
        low = max(math.floor(_pair_turning(self.beta_fast, dim, base, length)), 0)
        high = min(math.ceil(_pair_turning(self.beta_slow, dim, base, length)), dim - 1)
        ramp = ((torch.arange(dim // 2, dtype=torch.float) - low) / (high - low if high > low else 0.001)).clamp(0, 1)
        periods = base ** (torch.arange(0, dim, 2, dtype=torch.float) / dim)
        kept = 1 - ramp
        frequencies = 1.0 / (self.factor * periods) * (1 - kept) + 1.0 / periods * kept
        scaling = self.attention_factor if self.attention_factor is not None else 0.1 * math.log(self.factor) + 1.0
        return replace(rotary, inv_freq=frequencies.to(rotary.inv_freq.device), scaling=rotary.scaling * scaling, base=None)


@dataclass(frozen=True)
class ABF(ContextMethod):
    """Adjusted base frequency: the map of another base.

    Args:
        base: the new base.

    Raises:
        InputError: a base that is not above 0.
    """

    base: float = 500_000.0

    def __post_init__(self) -> None:
        if self.base <= 0:
            raise InputError(f"base is {self.base}.", "Give a number above 0, such as 500_000.")

    def rotary(self, rotary: RotaryMap) -> RotaryMap:
        _base(rotary)
        return abf(rotary, self.base)


def _pair_turning(rotations: float, dim: int, base: float, length: int) -> float:
    """The (fractional) index of the pair that turns so many times in `length` tokens."""
    return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(base))


def _base(rotary: RotaryMap) -> float:
    if rotary.base is None or not torch.equal(rotary.inv_freq.cpu(), plain_frequencies(rotary.base, rotary.rotary_dim)):
        raise UnsupportedModelError(
            "The model's rotary frequencies are scaled already.", "Scale a model with plain rotary positions, and with one method."
        )
    return rotary.base


def _check_factor(factor: float) -> None:
    if not factor >= 1:
        raise InputError(f"factor is {factor}.", "Give at least 1: how many times the trained length is wanted.")
