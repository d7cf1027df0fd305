"""One protocol for every way to give a frozen model a longer or a cheaper context: what it loses, what it finds, what it costs.

All functions take (model, tokenizer, method or None, …) and return a `Measurement`, so that tables of methods can be put together:

* `stream_nll`: running text is read chunk by chunk through the cache; negative log-likelihood by position;
* `passkey`, `multi_needle`: keys in real text (see `context_prompts`). The question is **not** there while the context is read, and
  compressed, unless `query_aware` says so: this is a column. The answer is scored as it would be decoded, token after token on the cache:
  *exact* when each of its tokens is the likeliest one, and the summed log-probability of its tokens, which says more of small models;
* `throughput` and `kv_bytes` of `context_reading`: what it costs.

The bytes of the cache, of every tensor that a method keeps, stand beside each answer: after the context was read, at the peak, and after
the answer. `None` is the model as it is, read in the same chunks.

Departures from the usual harness: Machlab's and Kamradt's needles are judged by generated text, here by teacher forcing on the decoded
path, which is the same verdict for greedy decoding and has no judge. Compressing before the question is seen follows NVIDIA's kvpress.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from palimpsest.context.attach import ContextMethod, unwrap
from palimpsest.context.prefill import Prefilled, prefill
from palimpsest.context.writing import read_for
from palimpsest.errors import InputError
from palimpsest.evaluation.context_prompts import KeyPrompt, KeySample, named_key_samples, passkey_samples
from palimpsest.evaluation.context_reading import CHUNK, attached, describe, kv_bytes, literals, provenance_of, throughput, with_bos
from palimpsest.evaluation.haystack import Haystack
from palimpsest.measurement import Curve, Measurement, Series
from palimpsest.models.base import Progress
from palimpsest.stats import Interval, bootstrap_interval, clustered_interval
from palimpsest.tokenizer import Tokenizer

__all__ = ["ask", "key_summary", "kv_bytes", "multi_needle", "passkey", "stream_nll", "throughput"]

EDGES = (0, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


def stream_nll(
    model: Any,
    tokenizer: Tokenizer,
    method: ContextMethod | None,
    rows: Sequence[np.ndarray] | np.ndarray,
    *,
    chunk: int = CHUNK,
    edges: Sequence[int] = EDGES,
    batch: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Negative log-likelihood of running text by position, read in chunks on one cache.

    Args:
        model: a transformers causal language model, or a door that has one.
        tokenizer: the model's.
        method: how the context is kept; None for the model as it is.
        rows: token ids, all of one length, e.g. (n, tokens).
        chunk: tokens in one forward pass.
        edges: where buckets of positions begin and end, ascending; those beyond the rows are left out.
        batch: rows read at once.
        seed: of the bootstrap over rows.
        progress: called with (rows done, rows in all).

    Returns:
        One row a text and bucket: row, start, end, tokens, nll (mean, nat), bytes and peak_bytes of a row's cache. The summary has, for
        each bucket, nll with its 95 % interval over the rows, and perplexity; and bytes.

    Raises:
        InputError: rows of different length or shorter than two tokens, or edges that do not ascend.

    Example:
        >>> m = stream_nll(model, model.tokenizer, StreamingLLM(budget=256), rows)      # doctest: +SKIP
        >>> m.summary["buckets"][-1]["nll"]["estimate"]                                 # doctest: +SKIP
    """
    ids = _stacked(rows)
    length = ids.shape[1]
    cuts = [edge for edge in edges if edge < length] + [length]
    if len(cuts) < 2 or any(b <= a for a, b in pairwise(cuts)):
        raise InputError(f"The edges {list(edges)} cut {length} tokens into nothing.", "Give ascending edges, the first below the length.")
    began, table = time.perf_counter(), []
    with attached(model, method) as session:
        for first in range(0, len(ids), batch):
            part = ids[first : first + batch]
            nll, held, peak = _read_aloud(session, part, chunk)
            for number, row in enumerate(nll.tolist(), start=first):
                for start, end in pairwise(cuts):
                    inside = row[max(1, start) - 1 : end - 1]  # row[p - 1] is the loss of position p; position 0 has none
                    if inside:
                        mean = math.fsum(inside) / len(inside)
                        shares = {"bytes": held // len(part), "peak_bytes": peak // len(part)}
                        table.append({"row": number, "start": start, "end": end, "tokens": len(inside), "nll": mean, **shares})
            if progress:
                progress(first + len(part), len(ids))
    frame = pl.DataFrame(table)
    buckets: list[dict[str, Any]] = []
    for start, end in pairwise(cuts):
        values = frame.filter(pl.col("start") == start)["nll"].to_numpy()
        if len(values):
            found = _mean(values, seed)
            buckets.append({"start": start, "end": end, "nll": found._asdict(), "perplexity": math.exp(found.estimate)})
    summary: dict[str, Any] = {
        "length": length,
        "n": len(ids),
        "buckets": buckets,
        "bytes": int(frame["bytes"].max()),  # type: ignore[arg-type]
        "peak_bytes": int(frame["peak_bytes"].max()),  # type: ignore[arg-type]
        "seconds": time.perf_counter() - began,
    }
    what = describe(model, method)
    provenance = provenance_of(model, what, seed=seed, chunk=chunk, length=length)
    points = [
        {"x": (b["start"] + b["end"]) / 2, "y": b["nll"]["estimate"], "low": b["nll"]["low"], "high": b["nll"]["high"], "n": len(ids)}
        for b in buckets
    ]
    curve = Curve("stream", "Loss by position", "position (tokens)", "nat per token", [Series(what["method"], points)], x_scale="log")
    return Measurement("stream-nll", frame.with_columns(**literals(what)), summary, provenance, {"stream": curve})


def passkey(
    model: Any,
    tokenizer: Tokenizer,
    method: ContextMethod | None,
    haystack: Haystack,
    length: int,
    depths: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    n: int = 20,
    *,
    query_aware: bool = False,
    chunk: int = CHUNK,
    prompt: KeyPrompt | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Whether one key in a text of `length` tokens is found, by depth.

    Args:
        model, tokenizer, method: as in `stream_nll`.
        haystack: filler, of this tokenizer.
        length: tokens of context and question.
        depths: shares of the filler; n: samples a depth.
        query_aware: whether the question is read together with the context, before anything that a method does at the end of reading.
        chunk: tokens in one forward pass of reading.
        prompt: the wording; `KeyPrompt.chat(…)` for chat models.
        seed: of keys, filler and bootstrap.
        progress: called with (samples done, samples in all).

    Returns:
        See `ask`.

    Example:
        >>> m = passkey(model, model.tokenizer, H2O(budget=512), haystack, 1024, n=4)     # doctest: +SKIP
        >>> m.summary["exact"]["estimate"], m.summary["bytes"]["prefill"]                 # doctest: +SKIP
    """
    tokenizer.require_same(haystack.tokenizer.fingerprint, "the haystack")
    samples = passkey_samples(haystack, length, depths, n, seed=seed, prompt=prompt)
    return ask(model, tokenizer, method, samples, name="passkey", query_aware=query_aware, chunk=chunk, seed=seed, progress=progress)


def multi_needle(
    model: Any,
    tokenizer: Tokenizer,
    method: ContextMethod | None,
    haystack: Haystack,
    length: int,
    keys: int = 4,
    n: int = 20,
    *,
    every: bool = False,
    query_aware: bool = False,
    chunk: int = CHUNK,
    prompt: KeyPrompt | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Whether the right one of several keys of the same form is found; with `every`, whether each is, from one reading of the context.

    Args:
        keys: sentences of the same form.
        every: ask for each of them on a copy of the same cache: what a method that read for one question cannot do.
        model, tokenizer, method, haystack, length, n, query_aware, chunk, prompt, seed, progress: as in `passkey`.

    Returns:
        See `ask`.

    Raises:
        InputError: `every` together with `query_aware`.
    """
    tokenizer.require_same(haystack.tokenizer.fingerprint, "the haystack")
    samples = named_key_samples(haystack, length, keys, n, every=every, seed=seed, prompt=prompt)
    name = "multi-question" if every else "multi-needle"
    return ask(model, tokenizer, method, samples, name=name, query_aware=query_aware, chunk=chunk, seed=seed, progress=progress)


def ask(
    model: Any,
    tokenizer: Tokenizer,
    method: ContextMethod | None,
    samples: Sequence[KeySample],
    *,
    name: str = "keys",
    query_aware: bool = False,
    chunk: int = CHUNK,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Reads the context of every sample and scores the answers to its questions.

    Returns:
        One row a question: id, question (its number), length, keys, depth (asked for), reached, exact, logprob (of the whole answer),
        tokens, query_aware, bytes, peak_bytes, bytes_after, prefill_seconds, and what `describe` says. The summary has n, and exact and
        logprob with 95 % bootstrap intervals over samples, bytes (prefill, peak, after), seconds, and exact by depth.

    Raises:
        InputError: no sample, or several questions about one context with `query_aware`.
    """
    if not samples:
        raise InputError("There is no sample to ask about.", "Give at least one.")
    if query_aware and any(len(sample.questions) > 1 for sample in samples):
        raise InputError("Several questions are asked of one context that is read for a question.", "Set every or query_aware, not both.")
    began, table, what = time.perf_counter(), [], describe(model, method)
    with attached(model, method) as session:
        for done, sample in enumerate(samples, start=1):
            for row in _answers(session, with_bos(model, tokenizer, sample.context), sample, query_aware, chunk):
                known = {"id": sample.id, "length": sample.length, "keys": sample.keys, "depth": sample.depth, "seed": sample.seed}
                table.append({**known, **row, "query_aware": query_aware, **what})
            if progress:
                progress(done, len(samples))
    frame = pl.DataFrame(table, schema_overrides={"depth": pl.Float64, "budget": pl.Int64}, infer_schema_length=None)
    summary = key_summary(frame, seed) | {"seconds": time.perf_counter() - began}
    provenance = provenance_of(model, what, seed=seed, chunk=chunk, query_aware=query_aware)
    curves = {}
    if frame["depth"].null_count() == 0:
        points = [{"x": one["depth"], "y": one["exact"], "n": one["n"]} for one in summary["by_depth"]]
        shown = [Series(what["method"], points)]
        curves["depth"] = Curve("depth", "Keys found by depth", "depth", "found", shown, y_domain=(0, 1), y_format="percent")
    return Measurement(name, frame, summary, provenance, curves)


def key_summary(frame: pl.DataFrame, seed: int = 0) -> dict[str, Any]:
    """The figures of a table of `ask`, or of a part of it."""
    flags, found = frame["exact"].cast(pl.Float64).to_numpy(), frame["logprob"].to_numpy()
    clusters = frame["id"].to_numpy()
    by_depth = frame.drop_nulls("depth").group_by("depth").agg(exact=pl.col("exact").mean(), n=pl.len()).sort("depth")
    return {
        "n": frame.height,
        "samples": frame["id"].n_unique(),
        "exact": _clustered(flags, clusters, seed)._asdict(),
        "logprob": _clustered(found, clusters, seed)._asdict(),
        "bytes": {"prefill": frame["bytes"].mean(), "peak": frame["peak_bytes"].max(), "after": frame["bytes_after"].mean()},
        "by_depth": by_depth.to_dicts(),
    }


def _answers(session: Any, context: Tensor, sample: KeySample, query_aware: bool, chunk: int) -> Iterator[dict[str, Any]]:
    """One row a question about one context."""
    device = context.device
    questions = [torch.from_numpy(question.ids)[None].to(device) for question in sample.questions]
    began = time.perf_counter()
    read = read_for(session, context, questions[0], chunk) if query_aware else prefill(session, context, chunk, logits="none")
    took = time.perf_counter() - began
    for number, (question, asked) in enumerate(zip(sample.questions, questions, strict=True)):
        last = number + 1 == len(questions)
        cache = read.cache if last else copy.deepcopy(read.cache)  # the next question meets the context as this one did
        step = prefill(session, asked, asked.shape[1], cache=cache) if isinstance(read, Prefilled) else None
        logits = read.logits if step is None else step.logits
        total, exact, peak = 0.0, True, max(read.peak_bytes, step.peak_bytes if step else 0)
        for place, token in enumerate(question.answer.tolist()):
            if place:
                step = prefill(session, torch.tensor([[question.answer[place - 1]]], device=device), 1, cache=cache)
                logits, peak = step.logits, max(peak, step.peak_bytes)
            assert logits is not None
            logprobs = F.log_softmax(logits.flatten(0, -2)[-1].float(), dim=-1)
            total += float(logprobs[token])
            exact = exact and int(logprobs.argmax()) == token
        yield {
            "question": number, "reached": question.depth, "exact": exact, "logprob": total, "tokens": len(question.answer),
            "bytes": read.nbytes, "peak_bytes": peak, "bytes_after": kv_bytes(cache), "prefill_seconds": took,
        }  # fmt: skip


@torch.no_grad()
def _read_aloud(session: Any, ids: np.ndarray, chunk: int) -> tuple[Tensor, int, int]:
    """Losses (rows, tokens − 1) of rows that are read in chunks, and the bytes of the cache at the end and at its peak."""
    device = unwrap(getattr(session, "model", session)).device
    tokens = torch.from_numpy(ids).to(device)
    losses, peak, cache, held = [], 0, None, 0
    for begin in range(0, tokens.shape[1], chunk):
        read: Prefilled = prefill(session, tokens[:, begin : begin + chunk], chunk, cache=cache, logits="all")
        cache, held, peak = read.cache, read.nbytes, max(peak, read.peak_bytes)
        targets = tokens[:, begin + 1 : begin + chunk + 1]
        assert read.logits is not None
        logits = read.logits[:, : targets.shape[1]].float()
        losses.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape))
    return torch.cat(losses, dim=1).double().cpu(), held, peak


def _stacked(rows: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or lengths == {1} or lengths == {0}:
        raise InputError(f"The rows have lengths {sorted(lengths)}.", "Give rows of one length, of at least 2 tokens.")
    return np.stack([np.asarray(row, np.int64) for row in rows])


def _mean(values: np.ndarray, seed: int) -> Interval:
    """The mean with its bootstrap interval; of one value, which has none, the interval is the value."""
    return bootstrap_interval(values, seed=seed) if len(values) > 1 else Interval(float(values[0]), float(values[0]), float(values[0]))


def _clustered(values: np.ndarray, clusters: np.ndarray, seed: int) -> Interval:
    if len(np.unique(clusters)) > 1:
        return clustered_interval(values, clusters, seed=seed)
    mean = float(values.mean())
    return Interval(mean, mean, mean)
