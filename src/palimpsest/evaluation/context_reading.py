"""What the measurements of long contexts share: a method put on a model, the columns that say so, and bytes and speed.

`throughput` is the price of a method: prefill and decode in tokens a second, the first round left out, median of the others, on a fixed
number of threads, with the bytes of the cache beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from palimpsest.context.attach import ContextMethod, unwrap
from palimpsest.context.prefill import prefill
from palimpsest.context.session import layer_bytes
from palimpsest.errors import InputError
from palimpsest.measurement import Measurement, environment
from palimpsest.models.onednn import fast_linear
from palimpsest.tokenizer import Tokenizer

CHUNK = 256


def kv_bytes(cache: Cache) -> int:
    """Bytes of every tensor that the layers of a cache hold: keys, values, positions, scores, representatives."""
    return sum(layer_bytes(layer) for layer in cache.layers)


@contextmanager
def attached(model: Any, method: ContextMethod | None) -> Iterator[Any]:
    """The session of a method on a model, or the model itself: what `prefill` reads with; products as fast as behind a door."""
    with fast_linear(unwrap(model)):
        if method is None:
            yield unwrap(model)
            return
        with method(model) as session:
            yield session


def describe(model: Any, method: ContextMethod | None) -> dict[str, Any]:
    """The columns that say what was measured."""
    return {
        "model": getattr(model, "name", None) or unwrap(model).config.name_or_path or type(unwrap(model)).__name__,
        "method": "Full" if method is None else type(method).__name__,
        "settings": "" if method is None else repr(method),
        "budget": None if method is None else getattr(method, "budget", None),
    }


def throughput(
    model: Any,
    tokenizer: Tokenizer,
    method: ContextMethod | None,
    ids: np.ndarray,
    *,
    new_tokens: int = 32,
    chunk: int = CHUNK,
    repeats: int = 3,
    threads: int = 2,
    seed: int = 0,
) -> Measurement:
    """Tokens a second of reading a context and of greedy decoding behind it; one round to warm up, then the median of `repeats`.

    Args:
        model, tokenizer, method, chunk: as in `stream_nll`.
        ids: the context, (tokens,).
        new_tokens: tokens decoded, one forward pass each.
        repeats: rounds that count.
        threads: of torch, put back afterwards.
        seed: goes into the provenance; nothing is drawn.

    Returns:
        One row a round: prefill_tokens_per_second, decode_tokens_per_second, bytes, peak_bytes, bytes_after. The summary has the medians.

    Raises:
        InputError: fewer than one token to read, to decode, or one round.
    """
    if min(len(ids), new_tokens, repeats, threads) < 1:
        raise InputError(
            f"{len(ids)} tokens to read, {new_tokens} to decode, {repeats} rounds on {threads} threads.", "Give at least one of each."
        )
    context, what, table = with_bos(model, tokenizer, np.asarray(ids)), describe(model, method), []
    before, decoder = torch.get_num_threads(), unwrap(model)
    torch.set_num_threads(threads)
    try:
        with attached(model, method) as session:
            for number in range(repeats + 1):
                began = time.perf_counter()
                read = prefill(session, context, chunk)
                ready = time.perf_counter()
                assert read.logits is not None
                token = read.logits[:, -1].argmax(-1, keepdim=True)
                with torch.no_grad():
                    for _ in range(new_tokens):  # as a loop of one's own would: the session sees what passes through the model
                        token = decoder(token, past_key_values=read.cache, use_cache=True).logits[:, -1].argmax(-1, keepdim=True)
                ended = time.perf_counter()
                peak = max(read.peak_bytes, kv_bytes(read.cache) if method is None else session.peak_bytes)
                if number:
                    table.append({
                        "round": number, "prefill_tokens_per_second": context.shape[1] / (ready - began),
                        "decode_tokens_per_second": new_tokens / (ended - ready), "bytes": read.nbytes,
                        "peak_bytes": peak, "bytes_after": kv_bytes(read.cache),
                    })  # fmt: skip
    finally:
        torch.set_num_threads(before)
    names = [name for name in table[0] if name != "round"]
    summary: dict[str, float] = {"length": int(context.shape[1]), "new_tokens": new_tokens, "threads": threads}
    summary |= {name: median(row[name] for row in table) for name in names}
    provenance = provenance_of(model, what, seed=seed, chunk=chunk, threads=threads)
    return Measurement("throughput", pl.DataFrame(table).with_columns(**literals(what)), summary, provenance)


def with_bos(model: Any, tokenizer: Tokenizer, context: np.ndarray) -> Tensor:
    """The context as a batch of one on the model's device, BOS in front where the model expects one and the template wrote none."""
    if getattr(model, "prepends_bos", False) and context[0] != tokenizer.bos_id:
        context = np.concatenate([[tokenizer.bos_id], context])
    return torch.from_numpy(np.asarray(context, np.int64))[None].to(unwrap(model).device)


def literals(what: dict[str, Any]) -> dict[str, pl.Expr]:
    """`describe`'s columns, for a table that lacks them."""
    return {name: pl.lit(value, pl.Int64 if name == "budget" else pl.String) for name, value in what.items()}


def provenance_of(model: Any, what: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """What it takes to repeat a measurement."""
    fingerprint = getattr(model, "fingerprint", None)
    return {**what, "fingerprint": fingerprint, **settings, "environment": environment()}
