"""What is going on while a context method is attached: the layers, the cache of the current forward pass, its bytes.

A `Session` is what `with method(model) as session:` gives. In front of every forward pass of the decoder it adopts the cache and
tells its layers which positions come; then it runs every marked attention module: `attend`, or dense attention over what the layer
holds, then `observe`. It counts the bytes of all layers, and keeps the peak.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from palimpsest.context.layers import EMPTY, PositionedLayer
from palimpsest.context.rotary import RotaryMap
from palimpsest.errors import InputError

if TYPE_CHECKING:
    from palimpsest.context.attach import ContextMethod


@dataclass(frozen=True, eq=False)
class LayerInfo:
    """One attention layer of the model, as a method sees it.

    Attributes:
        index: its number, also in the cache; `layers`: how many the model has.
        heads, kv_heads, head_dim: its shape; `groups` = heads / kv_heads query heads share a key-value head.
        scaling: what logits are multiplied with.
        sliding_window: the layer's own window, None for full attention.
        rotary: the map in force in the session (after the method changed it), None for a model without rotary positions.
    """

    index: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    scaling: float
    sliding_window: int | None
    rotary: RotaryMap | None

    @property
    def groups(self) -> int:
        """Query heads per key-value head."""
        return self.heads // self.kv_heads


@dataclass
class Step:
    """One forward pass: the positions of its tokens, (batch or 1, time) with `EMPTY` for padding; the padding mask; its cache."""

    positions: Tensor
    pad_mask: Tensor | None
    cache: Cache


class Session:
    """A method on a model, for the time of a `with` block.

    Attributes:
        model: the transformers model; `decoder`: the part with the attention layers.
        method: what is attached.
        infos: for every layer that the method is at work in, by number, its `LayerInfo`.
        cache: the cache of the last forward pass, None before the first.
        peak_bytes: the most bytes that the cache held at once since the session began or `reset_peak` was called.
    """

    def __init__(self, model: PreTrainedModel, decoder: Any, method: ContextMethod, infos: dict[int, LayerInfo]) -> None:
        self.model = model
        self.decoder = decoder
        self.method = method
        self.infos = infos
        self.cache: Cache | None = None
        self.peak_bytes = 0
        self.step: Step | None = None
        self.reading = False  # whether the current forward pass is part of a text that `prefill` reads
        self._bytes: dict[int, int] = {}
        self._total = 0
        self._arguments = list(inspect.signature(decoder.forward).parameters)

    def nbytes(self) -> int:
        """Bytes that the cache of the last forward pass holds now, in all layers."""
        return 0 if self.cache is None else sum(layer_bytes(layer) for layer in self.cache.layers)

    def reset_peak(self) -> None:
        """Starts measuring `peak_bytes` anew, from what the cache holds now."""
        self.peak_bytes = self.nbytes()

    def layer(self, index: int) -> Any:
        """The cache layer `index` of the last forward pass."""
        if self.cache is None:
            raise InputError("The session has no cache yet.", "Run the model first.")
        return self.cache.layers[index]

    @contextmanager
    def text(self) -> Iterator[None]:
        """What is run inside is one text in pieces; at its end the method is told that it has been read (`finish`)."""
        self.reading = True
        try:
            yield
        finally:
            self.reading = False
        if self.cache is not None:
            for index, info in self.infos.items():
                self.method.finish(info, self.cache.layers[index])

    # One forward pass

    def before_forward(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The hook in front of the decoder: adopts the cache and announces positions."""
        if torch.compiler.is_compiling():
            raise InputError("The model is being compiled inside of a context method's session.", "Compile nothing, or leave the session.")
        kwargs = {**dict(zip(self._arguments, args, strict=False)), **kwargs}
        if kwargs.get("output_attentions") or getattr(decoder.config, "output_attentions", False):
            raise InputError("output_attentions was asked for.", "Attention weights are not given out inside of a session: leave it out.")
        inputs = kwargs.get("input_ids")
        inputs = kwargs.get("inputs_embeds") if inputs is None else inputs
        if inputs is None:
            raise InputError("The decoder was called with neither input_ids nor inputs_embeds.", "Give one of them.")
        cache = kwargs.get("past_key_values")
        if cache is None:
            cache = DynamicCache(config=decoder.config)
        self._adopt(cache)
        kwargs["past_key_values"] = cache
        self.step = self._announce(cache, inputs, kwargs)
        return (), kwargs

    def _announce(self, cache: Cache, inputs: Tensor, kwargs: dict[str, Any]) -> Step:
        seen, count = cache.get_seq_length(), inputs.shape[1]
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(seen, seen + count, device=inputs.device)[None]
        elif positions.dim() != 2:
            raise InputError(f"position_ids has {positions.dim()} axes.", "Context methods take (batch, time): text models only.")
        pad_mask, padded = kwargs.get("attention_mask"), False
        if pad_mask is not None:
            if not isinstance(pad_mask, Tensor) or pad_mask.dim() != 2:
                raise InputError("A ready-made attention mask was given.", "Give the (batch, time) padding mask, or none.")
            if pad_mask.shape[1] != seen + count:
                raise InputError(
                    f"The attention mask has {pad_mask.shape[1]} columns, but {seen} tokens came before and {count} come now.",
                    "Give one column for every token so far.",
                )
            pad_mask = pad_mask.bool()
            new = pad_mask[:, seen:]
            padded = not bool(new.all())
            if padded:
                positions = torch.where(new, positions, EMPTY)
        for index, layer in enumerate(cache.layers):
            if isinstance(layer, PositionedLayer):
                layer.expect(positions, padded)
                layer.reading = self.reading
            else:  # grown in the pass before
                self._count(index, layer)
        return Step(positions, pad_mask, cache)

    def _adopt(self, cache: Cache) -> None:
        if cache is not self.cache:
            if not isinstance(cache, DynamicCache):
                raise InputError(f"The cache is a {type(cache).__name__}.", "Give a DynamicCache, or none.")
            if not cache.layers:  # a DynamicCache that was made without a configuration makes its layers as they are needed
                cache.layers.extend(DynamicLayer() for _ in range(self.decoder.config.num_hidden_layers))
            for index, info in self.infos.items():
                cache.layers[index] = self._own(cache.layers[index], info)
            self.cache = cache
            self._bytes, self._total = {}, 0
            for index, layer in enumerate(cache.layers):
                self._count(index, layer)

    def _own(self, layer: Any, info: LayerInfo) -> Any:
        if isinstance(layer, PositionedLayer):
            if layer.owner != self.method:
                raise InputError(f"The cache was written by {layer.owner!r}.", f"Start with a new cache for {self.method!r}.")
            return layer
        made = self.method.make_layer(info)
        if made is None and self.method.keys == "pre_rope":
            made = PositionedLayer()
        if made is None:
            return layer
        if type(layer) is not DynamicLayer:
            raise InputError(f"Layer {info.index} of the cache is a {type(layer).__name__}.", "Give a new DynamicCache, or none.")
        if layer.get_seq_length():
            raise InputError(
                f"The cache already holds {layer.get_seq_length()} tokens that were stored without {self.method!r}.",
                "Start with an empty cache inside of the session.",
            )
        if isinstance(made, PositionedLayer):
            made.owner = self.method
        return made

    def run(
        self, module: torch.nn.Module, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: dict[str, Any]
    ) -> Tensor:
        """The attention of one layer: (batch, time, heads, head_dim) from q (batch, heads, time, head_dim) and all keys and values."""
        step = self.step
        assert step is not None
        layer = step.cache.layers[info.index]
        self._count(info.index, layer)
        out = self.method.attend(info, q, k, v, step.pad_mask, step.positions, layer)
        if out is None:
            if isinstance(layer, PositionedLayer):
                if self.method.keys == "pre_rope":
                    assert info.rotary is not None
                    q, k = info.rotary.rotate(q, step.positions), info.rotary.rotate(k, layer.positions)
                out = attend_dense(info, q, k, v, layer)
            else:
                out = sdpa_attention_forward(module, q, k, v, mask, **options)[0]
        self.method.observe(info, q, k, v, step.positions, layer)
        self._count(info.index, layer)
        return out

    def _count(self, index: int, layer: Any) -> None:
        now = layer_bytes(layer)
        self._total += now - self._bytes.get(index, 0)
        self._bytes[index] = now
        self.peak_bytes = max(self.peak_bytes, self._total)


def attend_dense(info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, layer: PositionedLayer) -> Tensor:
    """Attention over everything that a layer holds, by the same kernel calls as transformers' sdpa.

    Args:
        info: the layer of the model.
        q: (batch, heads, queries, head_dim), rotated.
        k, v: (batch, kv_heads, columns, head_dim), rotated; the queries' own keys at the end if there are several.
        layer: says which columns hold something.

    Returns:
        (batch, queries, heads, head_dim).
    """
    mask = visible(layer, q.shape[2], k.shape[2])
    if mask is not None and mask.shape[1] > 1:
        mask = mask.repeat_interleave(info.groups, dim=1)
    shape: Any = _Shape(info.groups)
    return sdpa_attention_forward(shape, q, k, v, mask, scaling=info.scaling)[0]


def visible(layer: PositionedLayer, queries: int, columns: int) -> Tensor | None:
    """Which keys every query may attend to, (batch or 1, kv_heads or 1, queries, columns) bool; None where the kernel's own rule does.

    One query attends to all that is there. Of more, each attends to what was there before and, of their own keys at the end, to
    those up to its own.
    """
    valid = layer.valid()
    if valid is not None and not layer.given_up:  # heads hold the same
        valid = valid[:, :1]
    if queries == 1:
        return None if valid is None else valid[:, :, None]
    if valid is None:
        return None if queries == columns else causal(queries, columns, layer.positions.device)
    return causal(queries, columns, valid.device) & valid[:, :, None]


@lru_cache(maxsize=2)  # all layers of a forward pass ask for the same
def causal(queries: int, columns: int, device: torch.device) -> Tensor:
    """(1, 1, queries, columns) bool: the last `queries` columns are the queries' own keys, all others are older."""
    return torch.ones(queries, columns, dtype=torch.bool, device=device).tril_(columns - queries)[None, None]


@dataclass(frozen=True)
class _Shape:
    """What transformers' sdpa reads of an attention module."""

    num_key_value_groups: int
    is_causal: bool = True


def layer_bytes(layer: Any) -> int:
    """Bytes of memory behind a cache layer of any kind; what several of its tensors share counts once."""
    if isinstance(layer, PositionedLayer):
        return layer.nbytes()
    held = (value.untyped_storage() for value in vars(layer).values() if isinstance(value, Tensor))
    return sum({storage.data_ptr(): storage.nbytes() for storage in held}.values())
