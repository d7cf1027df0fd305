"""How a context method gets into a transformers decoder and out again: `with method(model): model.generate(…)`.

What is done on entering, and undone in reverse order on leaving, also after an exception, so that the model computes bit for bit
what it computed before:

1. the attention modules get a mark that says which session and layer they belong to;
2. the decoder's configuration names the attention "palimpsest", which is registered once per process in transformers' tables of
   attention and of mask functions. A module without a mark is computed by transformers' own sdpa; no entry of the tables is changed;
3. if the method changes rotary positions, `rotary_emb.forward` computes cos and sin from the changed map;
4. if the method wants keys before rotation (`keys = "pre_rope"`), a hook in front of each of its attention modules sets cos = 1
   and sin = 0, and rotation is left to `attend`. A hook per module leaves layers that the method has nothing to do with alone;
5. a hook in front of the decoder adopts the cache: layers that are still empty are replaced, in the caller's own `Cache` object, by
   those of the method, and every layer is told the positions of the tokens that come.

One forward pass of one layer then is: cache layer `update` → `attend` (None: dense attention over what the layer holds) → `observe`,
where a method scores and evicts. So at most one layer at a time holds more than its budget.

Inside of a session gradients are off. Refused, with a reason: models whose attention does not go through transformers' interface,
latent (MLA), linear and chunked attention, soft-capped or sink logits, static and quantized caches, `torch.compile`,
`output_attentions`, ready-made 4-D masks. Assisted generation takes tokens back: that works until a method has given something up,
and raises `CannotRollbackError` from there on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from palimpsest.context.rotary import RotaryMap, rotary_maps
from palimpsest.context.session import LayerInfo, Session
from palimpsest.errors import AlreadyAttachedError, InputError, UnsupportedModelError

__all__ = ["ContextMethod", "LayerInfo", "Session", "attach", "unwrap"]

NAME = "palimpsest"
MARK = "_palimpsest_layer"


class ContextMethod:
    """A way to give a frozen decoder another context: a frozen dataclass of hyper-parameters, no tensors, no model.

    A subclass overrides what it changes. `with method(model) as session:` attaches it.

    Attributes:
        keys: whether the cache holds keys as the model rotates them, or before rotation.
        needs_rotary: whether the method cannot do without a rotary map (`pre_rope` and a changed `rotary` imply it).
        session: the class of its sessions.

    Example:
        >>> with H2O(budget=256)(model) as session:                           # doctest: +SKIP
        ...     out = model.generate(ids, max_new_tokens=64)
        >>> session.peak_bytes                                                # doctest: +SKIP
    """

    keys: ClassVar[Literal["post_rope", "pre_rope"]] = "post_rope"
    needs_rotary: ClassVar[bool] = False
    session: ClassVar[type[Session]] = Session

    def validate(self, config: Any) -> None:
        """Raises if the method cannot run on a model of this (text) configuration; called before anything is changed."""

    def applies_to(self, info: LayerInfo) -> bool:
        """Whether the method is at work in a layer; by default not in those that have a window of their own."""
        return info.sliding_window is None

    def make_layer(self, info: LayerInfo) -> CacheLayerMixin | None:
        """A new cache layer; None leaves the cache as it is (under `pre_rope`: a plain `PositionedLayer`)."""
        return None

    def attend(
        self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, pad_mask: Tensor | None, position_ids: Tensor, layer: Any
    ) -> Tensor | None:
        """The attention of one layer; None: dense attention over all that the layer holds.

        Args:
            info: the layer of the model.
            q: (batch, heads, queries, head_dim), rotated unless `keys` is "pre_rope".
            k, v: what the cache layer's `update` returned, (batch, kv_heads, columns, head_dim).
            pad_mask: (batch, tokens so far) bool, False for padding; None without a mask.
            position_ids: positions of the queries, (batch or 1, queries), `EMPTY` for padding.
            layer: the cache layer.

        Returns:
            (batch, queries, heads, head_dim), or None.
        """
        return None

    def observe(self, info: LayerInfo, q: Tensor, k: Tensor, v: Tensor, position_ids: Tensor, layer: Any) -> None:
        """Called after the attention of a layer, with the arguments of `attend`: where entries are scored and given up."""

    def finish(self, info: LayerInfo, layer: Any) -> None:
        """Called for every layer when `prefill` has read the whole of a text."""

    def join(self, other: ContextMethod) -> ContextMethod | None:
        """This method together with another, where it has its own way to go with it; None: by the rules of `compose`."""
        return None

    def __or__(self, other: ContextMethod) -> ContextMethod:
        """`compose(self, other)`."""
        from palimpsest.context.compose import compose

        return compose(self, other)

    def rotary(self, rotary: RotaryMap) -> RotaryMap:
        """The map to use in place of the model's own; the same object leaves the model's alone."""
        return rotary

    def __call__(self, model: Any) -> AbstractContextManager[Session]:
        """Attaches the method for a `with` block; `model` is a transformers model or a door with one (`HFModel`)."""
        return attach(model, self)

    def to_dict(self) -> dict[str, Any]:
        """The class's name and its hyper-parameters, as JSON can hold them."""
        return {"method": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]


@contextmanager
def attach(model: Any, method: ContextMethod) -> Iterator[Session]:
    """Puts a method on a model for the time of a `with` block.

    Args:
        model: a transformers causal language model, or a door that has one as `.model`.
        method: what to attach.

    Yields:
        The session.

    Raises:
        AlreadyAttachedError: the model has a method on it.
        UnsupportedModelError: the method cannot be put into this model.
        InputError: the model is in training mode.
    """
    transformer = unwrap(model)
    decoder: Any = transformer.get_decoder()
    config = decoder.config
    modules = _attention_modules(transformer, decoder)
    if any(MARK in vars(module) for module in modules.values()):
        raise AlreadyAttachedError("The model already has a context method on it.", "Leave its `with` block first, or use compose(a, b).")
    if transformer.training:
        raise InputError("The model is in training mode.", "Call model.eval() first.")
    method.validate(config)
    own = rotary_maps(decoder)
    changed = {key: method.rotary(rotary) for key, rotary in own.items()}
    infos = {}
    for index, module in modules.items():
        info = _describe(module, index, len(modules), config, changed)
        if method.applies_to(info):
            infos[index] = info
    if not infos:
        raise UnsupportedModelError(
            f"{type(transformer).__name__} has no layer that {method!r} can be at work in.",
            "Its layers have windows of their own: use a model with full attention.",
        )
    if method.keys == "pre_rope" or method.needs_rotary or _overrides(method, "rotary"):
        _check_rotation(decoder, modules, infos)
    session = method.session(transformer, decoder, method, infos)
    with ExitStack() as undo:
        undo.enter_context(torch.no_grad())
        for index, info in infos.items():
            undo.callback(vars(modules[index]).pop, MARK)
            setattr(modules[index], MARK, (session, info))
            if method.keys == "pre_rope":
                undo.callback(modules[index].register_forward_pre_hook(_without_rotation, with_kwargs=True).remove)
        _register()
        undo.callback(setattr, config, "_attn_implementation", config._attn_implementation)
        config._attn_implementation = NAME
        different = {key: rotary for key, rotary in changed.items() if rotary is not own[key]}
        if different:
            _replace_rotary(decoder.rotary_emb, different, undo)
        undo.callback(decoder.register_forward_pre_hook(session.before_forward, with_kwargs=True).remove)
        yield session


def unwrap(model: Any) -> PreTrainedModel:
    """The transformers model itself, or the one behind a door.

    Raises:
        UnsupportedModelError: there is none, as behind an endpoint.
    """
    for candidate in (model, getattr(model, "model", None)):
        if isinstance(candidate, PreTrainedModel):
            return candidate
    raise UnsupportedModelError(f"{type(model).__name__} has no transformers model.", "Context methods need the weights in this process.")


def palimpsest_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls for attention while a session is on: the session's own layers, sdpa for all others."""
    mark = vars(module).get(MARK)
    if mark is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    session, info = mark
    return session.run(module, info, query, key, value, attention_mask, options), None


def _register() -> None:
    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, palimpsest_attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)


def _attention_modules(model: PreTrainedModel, decoder: Any) -> dict[int, torch.nn.Module]:
    """The attention modules by layer number.

    Raises:
        UnsupportedModelError: says which property of the model is in the way.
    """
    name, config = type(model).__name__, decoder.config
    reasons = {
        "its attention does not go through transformers' interface": not getattr(model, "_supports_attention_backend", False),
        "it is an encoder-decoder": bool(getattr(config, "is_encoder_decoder", False)),
        "it has latent attention (MLA)": getattr(config, "kv_lora_rank", None) is not None,
        "its logits are soft-capped": getattr(config, "attn_logit_softcapping", None) is not None,
        "its layers share caches": bool(getattr(config, "num_kv_shared_layers", 0)),
        "it attends in both directions": bool(getattr(config, "use_bidirectional_attention", False)),
    }
    other = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    reasons[f"it has layers of the kind {', '.join(sorted(other))}"] = bool(other)
    found: dict[int, torch.nn.Module] = {
        module.layer_idx: module
        for module in decoder.modules()
        if isinstance(getattr(module, "layer_idx", None), int) and hasattr(module, "is_causal")
    }
    reasons["its attention modules were not found"] = sorted(found) != list(range(config.num_hidden_layers))
    reasons["its attention has sink logits"] = any(getattr(module, "sinks", None) is not None for module in found.values())
    for reason, applies in reasons.items():
        if applies:
            raise UnsupportedModelError(
                f"Context methods cannot be put on {name}: {reason}.", "Use a Llama, Qwen, Gemma-3, Mistral or like it."
            )
    return dict(sorted(found.items()))


def _describe(module: Any, index: int, layers: int, config: Any, maps: dict[str | None, RotaryMap]) -> LayerInfo:
    types = getattr(config, "layer_types", None)
    if types is not None:
        window = config.sliding_window if types[index] == "sliding_attention" else None
    else:
        window = getattr(config, "sliding_window", None)
    heads = config.num_attention_heads
    head_dim = int(getattr(module, "head_dim", None) or getattr(module, "head_size", None) or config.hidden_size // heads)
    rotary = maps.get(None) or maps.get(types[index] if types is not None else None)
    scaling = float(getattr(module, "scaling", head_dim**-0.5))
    return LayerInfo(index, layers, heads, getattr(config, "num_key_value_heads", None) or heads, head_dim, scaling, window, rotary)


def _check_rotation(decoder: torch.nn.Module, modules: dict[int, torch.nn.Module], infos: dict[int, LayerInfo]) -> None:
    """Raises if a layer has no fixed rotary map, or if the model lays out its pairs of channels in another way than `RotaryMap`."""
    for index, info in infos.items():
        apply: Callable[..., Any] | None = getattr(sys.modules[type(modules[index]).__module__], "apply_rotary_pos_emb", None)
        if info.rotary is None or apply is None:
            raise UnsupportedModelError(
                "The method needs fixed rotary positions, which this model does not have.",
                "Models with learned positions or with 'dynamic' or 'longrope' scaling cannot be used with it.",
            )
    rotary, positions = infos[min(infos)].rotary, torch.arange(3)[None]
    assert rotary is not None
    assert apply is not None
    sample = torch.linspace(-1, 1, 3 * infos[min(infos)].head_dim).view(1, 1, 3, -1)
    cos, sin = rotary.cos_sin(positions, sample.dtype)
    if not torch.allclose(apply(sample, sample, cos, sin)[0], rotary.rotate(sample, positions), atol=1e-5):
        raise UnsupportedModelError(
            f"{type(decoder).__name__} pairs the channels of a head in another way than (i, i + d/2).",
            "Use a model in the half-split layout.",
        )


def _without_rotation(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The hook that hands cos = 1 and sin = 0 to an attention module."""
    cos, sin = kwargs["position_embeddings"]
    kwargs["position_embeddings"] = (torch.ones_like(cos), torch.zeros_like(sin))
    return args, kwargs


def _replace_rotary(module: Any, maps: dict[str | None, RotaryMap], undo: ExitStack) -> None:
    """Makes `rotary_emb` answer from other maps, for the types of layer that have one."""
    original = module.forward

    def forward(x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, Tensor]:
        if layer_type in maps:
            return maps[layer_type].cos_sin(position_ids, x.dtype)
        return original(x, position_ids) if layer_type is None else original(x, position_ids, layer_type)

    before = vars(module).get("forward")
    undo.callback(vars(module).pop, "forward") if before is None else undo.callback(setattr, module, "forward", before)
    module.forward = forward


def _overrides(method: ContextMethod, name: str) -> bool:
    return getattr(type(method), name) is not getattr(ContextMethod, name)
