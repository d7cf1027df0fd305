"""Low-perplexity spans: what a model writes with near certainty, and whether it stands in the corpus.

Wuhrmann, Kucherenko and Kucharavy, ACL 2025 Student Research Workshop, arXiv 2507.01844. Text is sampled; a token is *low* when
log2 (1 / p) <= 0.152, that is p >= 0.9, under softmax(logits / T) at the temperature T of the sampling, before any cut by top-k or
top-p (the cut would raise p). A span is a maximal run of at least 6 low tokens; it is cut into windows of 6 tokens, L − 5 of them for
a span of length L, and every window is counted in the corpus:

    0           synthetic coherence: near certain, and yet in no training document
    1 … 5       memorization: traceable to a handful of documents
    6 … 50      segmental replication
    more        frequently encountered text

The borders are the authors' estimates and parameters here. The standalone perplexity of a window is that of its tokens without their
context (after BOS, or from the second token on where the model has none): low for frequent text, high for what only its context
makes certain. Guards against degeneration: a span of period <= 8 is dropped whole; of the others, windows that repeat an n-gram of
the prompt or of the text before them are dropped (the paper drops such spans whole, which loses long ones for one repeated phrase).
Windows with special tokens are dropped too. Shapes: one row of ids (time,) a continuation, prompt and output apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from palimpsest.audit.progress import stages
from palimpsest.corpus import CorpusIndex
from palimpsest.corpus.trace import covered, maximal
from palimpsest.errors import InputError, NonFiniteError
from palimpsest.measurement import Measurement, environment
from palimpsest.models.base import LanguageModel, Progress, Sampler

CLASSES = ("synthetic coherence", "memorization", "segmental replication", "frequent text")
MAX_LOG2_PPL = 0.152  # p >= 0.9
_MAX_PERIOD = 8


def low_perplexity_spans(logprobs: np.ndarray, max_log2_ppl: float = MAX_LOG2_PPL, min_len: int = 6) -> list[tuple[int, int]]:
    """The maximal runs of near-certain tokens.

    Args:
        logprobs: natural log-probability of each token, (time,).
        max_log2_ppl: greatest log2 perplexity of a token of a run.
        min_len: shorter runs are left out.

    Returns:
        (start, end), half-open, ascending, disjoint; two runs never touch.

    Raises:
        InputError: min_len below 1, a negative perplexity, or more than one row.
        NonFiniteError: NaN.

    Example:
        >>> low_perplexity_spans(np.log([0.5, 0.95, 0.99, 0.5, 0.95]), min_len=2)
        [(1, 3)]
    """
    values = np.asarray(logprobs, np.float64)
    if values.ndim != 1 or min_len < 1 or not max_log2_ppl >= 0:
        raise InputError(
            f"Log-probs of shape {values.shape}, min_len {min_len}, max_log2_ppl {max_log2_ppl}.", "Give one row, and both above 0."
        )
    if np.isnan(values).any():
        raise NonFiniteError(f"{int(np.isnan(values).sum())} log-probs are NaN.", "Check the weights, or load the model in float32.")
    low = np.concatenate([[False], -values / np.log(2) <= max_log2_ppl, [False]])
    borders = np.flatnonzero(low[1:] != low[:-1]).reshape(-1, 2)
    return [(start, end) for start, end in borders.tolist() if end - start >= min_len]


def classify_counts(counts: np.ndarray, cuts: tuple[int, int] = (5, 50)) -> np.ndarray:
    """The class of every window, as its number in `CLASSES`; `cuts` are the greatest counts of the second and third.

    Example:
        >>> classify_counts(np.array([0, 1, 5, 6, 50, 51])).tolist()
        [0, 1, 1, 2, 2, 3]
    """
    if not 1 <= cuts[0] < cuts[1]:
        raise InputError(f"The classes are cut at {cuts}.", "Give two ascending counts of at least 1.")
    return np.searchsorted([0, *cuts], counts, side="left")


def measure_low_perplexity(
    model: LanguageModel,
    prompts: Sequence[Sequence[int] | np.ndarray],
    index: CorpusIndex,
    *,
    window: int = 6,
    max_log2_ppl: float = MAX_LOG2_PPL,
    cuts: tuple[int, int] = (5, 50),
    new_tokens: int = 256,
    sampler: Sampler = Sampler(0.7, top_p=0.95),  # noqa: B008  (frozen)
    n: int = 1,
    stop_at_eos: bool = True,
    max_docs: int = 50,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Samples continuations, finds what the model was near certain of, and looks it up.

    Args:
        model: needs "text" and "logprobs".
        prompts: rows of ids.
        index: the corpus, of the model's tokenizer.
        window: tokens of a window, and the shortest span.
        max_log2_ppl, cuts: see `low_perplexity_spans`, `classify_counts`.
        new_tokens, sampler, n, stop_at_eos, seed: of the sampling; `n` continuations a prompt.
        max_docs: documents named for each window.
        progress: called with (continuations done, continuations in all).

    Returns:
        One row a window: prompt and continuation (numbers), start (token of the output), span_start, span_len, text, characters,
        log2_ppl (mean over the window, in context), standalone_log2_ppl, count, label, extent (tokens of the longest passage of
        prompt and output around it that stands in the corpus verbatim), documents, ids. The summary holds the shares of the classes; how
        often tokens inside and outside of spans lie in a passage of `window` tokens that the corpus holds; the same rate for all windows
        of the outputs, which is what windows drawn at random would have; and what the guards dropped.

    Raises:
        InputError: no prompt, greedy decoding (it has no softmax), windows of fewer than 2 tokens.
        CapabilityError, TokenizerMismatchError, NonFiniteError: as the model and the index say.
    """
    if not len(prompts) or window < 2 or sampler.temperature == 0:
        raise InputError(
            f"{len(prompts)} prompts, windows of {window} tokens, temperature {sampler.temperature:g}.",
            "Give a prompt, windows of at least 2 tokens, and a temperature above 0.",
        )
    classify_counts(np.zeros(1), cuts)
    model.require("text", "measure_low_perplexity")
    model.require("logprobs", "measure_low_perplexity")
    if index.tokenizer_fingerprint is not None:
        model.tokenizer.require_same(index.tokenizer_fingerprint, f"the index {index.path}")
    prefixes = [np.asarray(prompt, np.int64) for prompt in prompts]
    stage = stages(progress, 2 * len(prefixes) * n)
    how = {"temperature": sampler.temperature, "top_k": sampler.top_k, "top_p": sampler.top_p}
    written = model.generate(prefixes, new_tokens, n=n, seed=seed, stop_at_eos=stop_at_eos, progress=stage(len(prefixes) * n), **how)  # type: ignore[arg-type]
    units = [(p, c, out) for p, outs in enumerate(written) for c, out in enumerate(outs) if out.size]
    if not units:
        raise InputError(f"Nothing was written after {len(prompts)} prompts.", "Give stop_at_eos=False, or other prompts.")
    plain = Sampler(sampler.temperature)
    rows = [np.concatenate([prefixes[p], out]) for p, _, out in units]
    scores = model.score(rows, start=[len(prefixes[p]) for p, _, _ in units], samplers=[plain], progress=stage(len(prefixes) * n))
    special = [i for i in (model.tokenizer.bos_id, model.tokenizer.eos_id, model.tokenizer.pad_id) if i is not None]
    found: list[dict[str, Any]] = []
    dropped = {"periodic spans": 0, "repeated windows": 0, "special windows": 0}
    inside, outside, every = np.zeros(2, np.int64), np.zeros(2, np.int64), np.zeros(2, np.int64)
    lengths: list[int] = []
    for (p, c, out), row, logprobs in zip(units, rows, scores.sampled[plain], strict=True):
        spans = low_perplexity_spans(logprobs, max_log2_ppl, window)
        kept = [(start, end) for start, end in spans if not _periodic(out[start:end])]
        dropped["periodic spans"] += len(spans) - len(kept)
        lengths += [end - start for start, end in kept]
        low = np.zeros(out.size, np.bool_)
        for start, end in spans:
            low[start:end] = True
        statistics = index.matching_statistics(out)
        held = covered(statistics, window)
        inside += [held[low].sum(), low.sum()]
        outside += [held[~low].sum(), (~low).sum()]
        every += [(statistics[: max(0, out.size - window + 1)] >= window).sum(), max(0, out.size - window + 1)]
        if not kept:
            continue
        prefix = len(prefixes[p])
        again = _repeats(row, window)[prefix:]
        strange = np.isin(out, special)
        passages = _passages(index, row, window)
        pieces = model.tokenizer.pieces(out)
        for start, end in kept:
            for at in range(start, end - window + 1):
                if again[at] or strange[at : at + window].any():
                    dropped["repeated windows" if again[at] else "special windows"] += 1
                    continue
                text = "".join(pieces[at : at + window])
                found.append(
                    {
                        "prompt": p,
                        "continuation": c,
                        "start": at,
                        "span_start": start,
                        "span_len": end - start,
                        "text": text,
                        "characters": len(text),
                        "log2_ppl": float(-logprobs[at : at + window].mean() / np.log(2)),
                        "ids": out[at : at + window].tolist(),
                        "extent": _extent(passages, prefix + at, window),
                    }
                )
    table = _looked_up(model, index, found, plain, cuts, max_docs)
    summary = {
        "continuations": len(units),
        "tokens": int(sum(out.size for _, _, out in units)),
        "spans": len(lengths),
        "mean_span": float(np.mean(lengths)) if lengths else None,
        "low_tokens": int(inside[1]),
        "windows": len(table),
        "classes": {name: int((table["label"] == name).sum()) for name in CLASSES},
        "unmatched": float((table["count"] == 0).mean()) if len(table) else None,  # type: ignore[arg-type]
        "matched_inside": _share(inside),
        "matched_outside": _share(outside),
        "matched_windows": _share(every),
        "dropped": dropped,
    }
    provenance = {
        "model": model.describe(),
        "corpus": index.fingerprint,
        "sampler": how,
        "new_tokens": new_tokens,
        "window": window,
        "max_log2_ppl": max_log2_ppl,
        "cuts": list(cuts),
        "seed": seed,
        "environment": environment(),
    }
    return Measurement("low-perplexity", table, summary, provenance)


_SCHEMA: dict[str, Any] = {
    "prompt": pl.Int64,
    "continuation": pl.Int64,
    "start": pl.Int64,
    "span_start": pl.Int64,
    "span_len": pl.Int64,
    "text": pl.String,
    "characters": pl.Int64,
    "log2_ppl": pl.Float64,
    "standalone_log2_ppl": pl.Float64,
    "count": pl.Int64,
    "label": pl.String,
    "extent": pl.Int64,
    "documents": pl.List(pl.String),
    "ids": pl.List(pl.Int64),
}


def _looked_up(
    model: LanguageModel, index: CorpusIndex, found: list[dict[str, Any]], sampler: Sampler, cuts: tuple[int, int], max_docs: int
) -> pl.DataFrame:
    """The windows with what they are alone, and where and how often they stand in the corpus; every distinct one asked once."""
    if not found:
        return pl.DataFrame(schema=_SCHEMA)
    distinct, place = np.unique(np.stack([row["ids"] for row in found]), axis=0, return_inverse=True)
    place = place.reshape(-1)
    counts = index.count_batch(distinct)
    labels = classify_counts(counts, cuts)
    alone = _standalone(model, distinct, sampler)
    documents = [
        [hit.doc_id for hit in index.documents(ids, limit=max_docs, context=0)] if count else []
        for ids, count in zip(distinct, counts, strict=True)
    ]
    for row, i in zip(found, place.tolist(), strict=True):
        row |= {"standalone_log2_ppl": alone[i], "count": int(counts[i]), "label": CLASSES[labels[i]], "documents": documents[i]}
    return pl.DataFrame(found, schema=_SCHEMA)


def _standalone(model: LanguageModel, windows: np.ndarray, sampler: Sampler) -> list[float]:
    """Mean log2 perplexity of each window (rows, window) without context: after BOS, or from its second token on."""
    bos = model.tokenizer.bos_id
    rows = list(windows) if bos is None or model.prepends_bos else [np.concatenate([[bos], row]) for row in windows]
    scored = model.score(rows, samplers=[sampler]).sampled[sampler]
    return [float(-values.mean() / np.log(2)) for values in scored]


def _periodic(ids: np.ndarray) -> bool:
    """Whether `ids` repeats itself with a period of at most 8, at least twice."""
    return any(np.array_equal(ids[period:], ids[:-period]) for period in range(1, min(_MAX_PERIOD, ids.size // 2) + 1))


def _repeats(ids: np.ndarray, window: int) -> np.ndarray:
    """For every position of `ids` (time,) whether the window that begins there stood before; False where none fits."""
    repeated = np.zeros(ids.size, np.bool_)
    if ids.size >= window:
        rows = np.lib.stride_tricks.sliding_window_view(ids, window)
        _, first, place = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        repeated[: len(rows)] = first[place.reshape(-1)] < np.arange(len(rows))
    return repeated


def _passages(index: CorpusIndex, ids: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of the maximal passages of `ids` that stand in the corpus."""
    lengths = index.matching_statistics(ids)
    starts = maximal(lengths, window)
    return starts, starts + lengths[starts]


def _extent(passages: tuple[np.ndarray, np.ndarray], at: int, window: int) -> int:
    """Tokens of the longest passage around the window at `at`; 0 when it stands nowhere."""
    starts, ends = passages
    around = (starts <= at) & (ends >= at + window)
    return int((ends - starts)[around].max(initial=0))


def _share(counted: np.ndarray) -> float | None:
    return float(counted[0] / counted[1]) if counted[1] else None
