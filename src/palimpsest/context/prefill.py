"""Reading a long text into a cache in chunks, so that the peak of memory is bounded by budget and chunk, not by the text.

Transformers runs a prompt in one forward pass, whose attention at every layer sees all keys at once. Here the text goes through the
model `chunk` tokens at a time on the same cache; a method that evicts does so after every chunk, so no layer ever holds more than its
budget and one chunk. With full attention the result is that of one pass. Rows of different length are padded on the left, and only
the logits that are asked for are computed.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache

from palimpsest.context.attach import unwrap
from palimpsest.context.session import Session, layer_bytes
from palimpsest.errors import InputError

LOGITS = ("last", "all", "none")


@dataclass(frozen=True)
class Prefilled:
    """What a prefill leaves.

    Attributes:
        cache: the filled cache. `model.generate(ids, past_key_values=cache)` takes all ids so far and wants at least one that
            is not in the cache: read all but the last, then generate.
        logits: (batch, 1, vocabulary) of the last token, (batch, tokens, vocabulary) of all, or None.
        nbytes: what the cache holds afterwards.
        peak_bytes: the most that it held at once, in all layers together, the chunk being read included.
    """

    cache: Cache
    logits: Tensor | None
    nbytes: int
    peak_bytes: int


@torch.no_grad()
def prefill(
    model: Any,
    ids: Tensor,
    chunk: int = 256,
    *,
    attention_mask: Tensor | None = None,
    cache: Cache | None = None,
    logits: str = "last",
) -> Prefilled:
    """Reads `ids` into a cache, `chunk` tokens at a time.

    Args:
        model: a `Session`, or a model without a method (then the peak is that of the plain cache).
        ids: (batch, tokens), padded on the left where rows differ in length.
        chunk: tokens in one forward pass.
        attention_mask: (batch, tokens in the cache + tokens), 0 for padding; None without padding.
        cache: a cache to go on with; None starts one.
        logits: "last", "all" or "none".

    Returns:
        Cache, logits and bytes.

    Raises:
        InputError: no tokens, a chunk below 1, or a mask that does not fit.

    Example:
        >>> with H2O(budget=128)(model) as session:                           # doctest: +SKIP
        ...     read = prefill(session, ids[:, :-1], chunk=64)
        ...     out = model.generate(ids, past_key_values=read.cache, max_new_tokens=20)
    """
    if logits not in LOGITS:
        raise InputError(f"logits is {logits!r}.", f"Choose one of {', '.join(LOGITS)}.")
    if ids.dim() != 2 or ids.shape[1] == 0:
        raise InputError(f"ids has the shape {tuple(ids.shape)}.", "Give (batch, tokens) with at least one token.")
    if chunk < 1:
        raise InputError(f"chunk is {chunk}.", "Give at least 1.")
    session = model if isinstance(model, Session) else None
    transformer = session.model if session is not None else unwrap(model)
    cache = DynamicCache(config=transformer.get_decoder().config) if cache is None else cache
    past, count = cache.get_seq_length(), ids.shape[1]
    positions = None
    if attention_mask is not None:
        if attention_mask.shape != (ids.shape[0], past + count):
            raise InputError(
                f"attention_mask has the shape {tuple(attention_mask.shape)}, not {(ids.shape[0], past + count)}.",
                "Give one column for every token, those in the cache included.",
            )
        positions = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
    if session is not None:
        session.reset_peak()
    parts, peak = [], 0
    with nullcontext() if session is None else session.text():
        for begin in range(0, count, chunk):
            end = min(begin + chunk, count)
            options: dict[str, Any] = {}
            if attention_mask is not None and positions is not None:
                options = {"attention_mask": attention_mask[:, : past + end], "position_ids": positions[:, past + begin : past + end]}
            wanted = logits == "all" or (logits == "last" and end == count)
            out = transformer(
                ids[:, begin:end],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=0 if logits == "all" else 1,
                **options,
            )
            if wanted:
                parts.append(out.logits)
            if session is None:
                peak = max(peak, sum(layer_bytes(layer) for layer in cache.layers))
    held = sum(layer_bytes(layer) for layer in cache.layers)
    return Prefilled(cache, torch.cat(parts, dim=1) if parts else None, held, peak if session is None else session.peak_bytes)
