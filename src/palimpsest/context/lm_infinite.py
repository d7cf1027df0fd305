"""LM-Infinite: attention in the shape of a Λ, and no distance beyond one that the model was trained on.

Han et al., *LM-Infinite: Zero-Shot Extreme Length Generalization for Large Language Models*, NAACL 2024, arXiv 2308.16137;
Glaciohound/LM-Infinite. For the query of token m and the key of token n ≤ m, before rotation,

    near,  m − n < n_local:                     (R(m) q)ᵀ (R(n) k)
    far,   n < n_global and m − n ≥ n_local:    (R(min(ceiling, m)) q)ᵀ k            whatever the true distance
    all others are not seen,

with one softmax over both. The cache holds n_local keys, and n_global of the beginning a second time: a constant number at any length.
With `middle_topk`, in the layers from `middle_from_layer` on, each query and head also sees the middle_topk keys between the two parts
that have the largest logits at the distance `middle_distance`; these layers then store all keys, twice, and grow with the text.

Departures: the release takes min(ceiling, length − 1) as one angle for a whole forward pass, so that its result depends on how a text is
cut into passes; here every query has its own. The middle keys are chosen for every query, not in generation alone, for the same reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.context.attach import ContextMethod, LayerInfo
from palimpsest.context.session import attend_dense
from palimpsest.context.two_branch import branch, nearest, two_branch_attention
from palimpsest.context.window import WindowLayer, WindowSession
from palimpsest.errors import InputError


@dataclass(frozen=True)
class LMInfinite(ContextMethod):
    """The first n_global and the last n_local tokens, at distances that the model knows.

    Args:
        n_global: tokens of the beginning that stay visible.
        n_local: tokens of the window, the query's own included; by default half of the length that the model was trained on.
        distance_ceiling: the distance at which the beginning is seen; by default n_local.
        middle_topk: keys between the two parts that a query sees in addition, in each head.
        middle_from_layer: the first layer that does so.
        middle_distance: at which distance; by default n_local // 2.

    Raises:
        InputError: a number out of range. A ceiling beyond the trained length gives a warning.

    Example:
        >>> with LMInfinite(n_global=10, n_local=4096)(model) as session:              # doctest: +SKIP
        ...     model.generate(ids, max_new_tokens=100_000)
    """

    n_global: int = 10
    n_local: int | None = None
    distance_ceiling: int | None = None
    middle_topk: int = 0
    middle_from_layer: int = 5
    middle_distance: int | None = None

    keys: ClassVar = "pre_rope"
    session: ClassVar = WindowSession

    def __post_init__(self) -> None:
        positive = {"n_local": self.n_local, "distance_ceiling": self.distance_ceiling, "middle_distance": self.middle_distance}
        others = {"n_global": self.n_global, "middle_topk": self.middle_topk, "middle_from_layer": self.middle_from_layer}
        for name, value, least in [(*item, 1) for item in positive.items()] + [(*item, 0) for item in others.items()]:
            if value is not None and value < least:
                raise InputError(f"{name} is {value}.", f"Give at least {least}.")

    def validate(self, config: Any) -> None:
        """See `ContextMethod.validate`."""
        trained = config.max_position_embeddings
        ceiling = self.distance_ceiling or self.n_local or trained // 2
        if ceiling > trained:
            warnings.warn(f"The model was trained on {trained} tokens; it does not know the distance {ceiling}.", stacklevel=4)
        if self.middle_topk and self.middle_from_layer >= config.num_hidden_layers:
            raise InputError(
                f"middle_from_layer is {self.middle_from_layer}, but the model has {config.num_hidden_layers} layers.",
                "Give a smaller number, or middle_topk=0.",
            )

    def window(self, info: LayerInfo) -> int:
        """n_local on this model."""
        assert info.rotary is not None
        if self.n_local is None and info.rotary.trained_length is None:
            raise InputError("The length that the model was trained on is not known.", "Give n_local.")
        return self.n_local or max(1, (info.rotary.trained_length or 0) // 2)

    def make_layer(self, info: LayerInfo) -> WindowLayer:
        """See `ContextMethod.make_layer`."""
        assert info.rotary is not None
        with_middle = self.middle_topk > 0 and info.index >= self.middle_from_layer
        return (_MiddleLayer if with_middle else WindowLayer)(info.rotary, self.n_global, self.window(info))

    def attend(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, pad_mask: Tensor | None, position_ids: Tensor, layer: Any) -> Tensor:
        """See `ContextMethod.attend`: in blocks of queries, each with the keys of its window and those of the beginning."""
        n_local = self.window(info)
        if layer.seen <= n_local:
            # all is near: bit for bit the model's own
            return attend_dense(info, layer.near(q, position_ids), k, v, layer)
        queries, before = q.shape[2], layer.length - q.shape[2]
        outs = []
        for begin, end in _blocks(queries, n_local):
            # Columns from before stand in any order; of the queries' own, the window is a stretch.
            first = 0 if begin < n_local else before + begin - n_local + 1
            near = slice(first, before + end)
            block, ranks = q[:, :, begin:end], position_ids[:, begin:end]
            distance = ranks[:, :, None] - layer.ranks[:, None, near]
            close = (distance >= 0) & (distance < n_local) & (layer.ranks[:, None, near] >= 0)
            beginning = ranks[:, :, None] - torch.arange(self.n_global, device=q.device) >= n_local
            there = self._at(block, ranks, self.distance_ceiling or n_local, info)
            others = []
            if isinstance(layer, _MiddleLayer):
                distance = ranks[:, :, None] - layer.ranks[:, None]
                middle = (distance >= n_local) & (layer.ranks[:, None] >= self.n_global)
                halfway = self._at(block, ranks, self.middle_distance or max(1, n_local // 2), info)
                logits = branch(halfway, layer.slot("far_keys"), v, info.scaling, middle[:, None]).logits
                others.append(nearest(logits, v, self.middle_topk)[0])
            outs.append(
                two_branch_attention(
                    (layer.near(block, ranks), k[:, :, near], v[:, :, near], close[:, None]),
                    (there, layer.first_keys, layer.first_values, beginning[:, None]),
                    info.scaling,
                    others,
                )
            )
        return torch.cat(outs, dim=1)

    def observe(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor, layer: Any) -> None:
        """See `ContextMethod.observe`: what has left the window is given up."""
        n_local = self.window(info)
        if isinstance(layer, _MiddleLayer) or layer.length < n_local:
            return
        if layer.slots["keys"].shape[2] > n_local:
            layer.keep(layer.positions.topk(n_local, dim=-1).indices.sort(dim=-1).values, spare=0)
        layer.give_up(layer.positions.argmin(dim=-1))  # the next token does not see it any more; an empty column comes first

    def _at(self, q: Tensor, ranks: Tensor, distance: int, info: LayerInfo) -> Tensor:
        """Queries that see keys at position 0 at a distance, as far as the text goes back."""
        assert info.rotary is not None
        return info.rotary.rotate(q, ranks.clamp(0, distance))


class _MiddleLayer(WindowLayer):
    """Gives nothing up, and holds every key at position 0, too."""

    def take_in(self, new: dict[str, Tensor]) -> None:
        """See `PositionedLayer.take_in`."""
        at_zero = self.rotary.rotate(new["keys"], torch.zeros(1, device=new["keys"].device))
        self.fills["far_keys"] = 0
        super().take_in({**new, "far_keys": at_zero})


def _blocks(queries: int, n_local: int) -> Iterator[tuple[int, int]]:
    """Stretches of queries: longer ones look at many keys outside of the windows, shorter ones make many small products."""
    length = max(64, min(512, n_local))
    return ((begin, min(begin + length, queries)) for begin in range(0, queries, length))
