"""How original a text is, and what that has to do with its quality: discourse and memorization.

De Wynter, Wang, Sokolov, Gu and Chen, Natural Language Processing Journal 2023, arXiv 2304.08637. Per output: the share of its tokens
that lie in passages of at least 8 tokens of a corpus (the paper asked plagiarism checkers; an index is exact and can be repeated), and
labels by pluggable annotators. Then the correlation of the memorized share with every label (point-biserial for yes and no, Spearman
for figures) with bootstrap intervals and Holm's correction, pooled and within models (figures less their model's mean), for a
correlation across models alone can be Simpson's; and the effect of mitigations, paired by prompt.

An n-gram of the prompt is an echo and does not count as memorized. The built-in annotators are in `palimpsest.audit.annotators`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from palimpsest.audit.annotators import Annotator, Output, annotate
from palimpsest.corpus import CorpusIndex
from palimpsest.corpus.trace import covered
from palimpsest.errors import InputError
from palimpsest.measurement import Measurement, environment
from palimpsest.models.base import GREEDY, LanguageModel, Progress, Sampler
from palimpsest.stats import bootstrap_interval, holm
from palimpsest.tokenizer import Tokenizer

MIN_LEN = 8


@dataclass(frozen=True)
class Originality:
    """What of a text is its own.

    Attributes:
        memorized, original: shares of the tokens, adding up to 1.
        longest: tokens of the longest memorized stretch.
        spans: memorized stretches (start, end) in tokens, disjoint, ascending.
    """

    memorized: float
    original: float
    longest: int
    spans: list[tuple[int, int]]


def originality(
    ids: Sequence[int] | np.ndarray,
    index: CorpusIndex,
    min_len: int = MIN_LEN,
    *,
    prompt: Sequence[int] | np.ndarray = (),
    stock_bits: float = 0.0,
) -> Originality:
    """Which share of a text stands in the corpus.

    Args:
        ids: the text, (time,), at least one id.
        index: the corpus.
        min_len: shorter passages are nobody's.
        prompt: what the text was written after; its n-grams of `min_len` tokens do not count.
        stock_bits: passages of fewer bits (−log2 of their tokens' unigram probabilities) are stock phrases and do not count.

    Raises:
        InputError: no ids, min_len below 1, or ids that no document can contain.

    Example:
        >>> import pathlib, tempfile
        >>> index = CorpusIndex.build([[1, 2, 3, 4, 5]], None, pathlib.Path(tempfile.mkdtemp()) / "index")
        >>> originality([9, 1, 2, 3, 9], index, 3).memorized
        0.6
    """
    text = np.asarray(ids, np.int64)
    begins = np.zeros(text.size, np.int64)  # min_len where a memorized n-gram begins, else 0
    for span in index.trace(text, min_len, 0):
        if -span.score / math.log(2) >= stock_bits:
            begins[span.start : span.end - min_len + 1] = min_len
    if len(prompt) >= min_len and begins.any():
        shown = {tuple(row) for row in np.lib.stride_tricks.sliding_window_view(np.asarray(prompt), min_len).tolist()}
        for i in np.flatnonzero(begins):
            if tuple(text[i : i + min_len].tolist()) in shown:
                begins[i] = 0
    inside = covered(begins, min_len)
    borders = np.flatnonzero(np.diff(np.concatenate([[0], inside.view(np.int8), [0]]))).reshape(-1, 2)
    spans = [(int(start), int(end)) for start, end in borders]
    memorized = float(inside.mean())
    return Originality(memorized, 1.0 - memorized, max((end - start for start, end in spans), default=0), spans)


def measure_discourse(
    models: Sequence[LanguageModel],
    prompts: Sequence[Sequence[int] | np.ndarray],
    index: CorpusIndex,
    annotators: Mapping[str, Annotator],
    mitigations: Mapping[str, Callable[[LanguageModel], Sequence[Any]]] | None = None,
    *,
    new_tokens: int = 64,
    min_len: int = MIN_LEN,
    sampler: Sampler = GREEDY,
    seed: int = 0,
    stop_at_eos: bool = True,
    progress: Progress | None = None,
) -> Measurement:
    """Has every model go on from every prompt under every mitigation, and relates what is memorized to what annotators say.

    Args:
        models: each needs "text"; one tokenizer, the index's.
        prompts: rows of ids.
        annotators: name -> annotator.
        mitigations: name -> what gives the logits processors of a model; always with "none", by default alone.
        new_tokens, sampler, seed, stop_at_eos: of the writing.
        min_len: see `originality`.
        progress: called with (outputs done, outputs in all).

    Returns:
        One row an output: model, mitigation, prompt, text, tokens, memorized, original, longest, ids, and the annotators' columns. The
        summary holds means by model and mitigation, `correlations` (see `correlations`; unmitigated outputs) and `effects` (see
        `paired_effect`) of every mitigation on the memorized share and every label.

    Raises:
        InputError: no model, prompt or annotator, two models of one name, or nothing written.
        CapabilityError, TokenizerMismatchError: as models and index say.
    """
    if not models or not len(prompts) or not annotators or len({model.name for model in models}) < len(models):
        raise InputError(
            f"{len(models)} models, {len(prompts)} prompts, {len(annotators)} annotators.",
            "Give some of each, models of different names.",
        )
    treatments: dict[str, Callable[[LanguageModel], Sequence[Any]]] = {"none": lambda _: (), **(mitigations or {})}
    prefixes = [np.asarray(prompt, np.int64) for prompt in prompts]
    total, done = len(models) * len(treatments) * len(prefixes), 0
    frames = []
    for model in models:
        model.require("text", "measure_discourse")
        if index.tokenizer_fingerprint is not None:
            model.tokenizer.require_same(index.tokenizer_fingerprint, f"the index {index.path}")
        for name, processors in treatments.items():
            how = {"temperature": sampler.temperature, "top_k": sampler.top_k, "top_p": sampler.top_p, "processors": processors(model)}
            written = model.generate(prefixes, new_tokens, seed=seed, stop_at_eos=stop_at_eos, **how)  # type: ignore[arg-type]
            frames.append(judged(model.name, name, prefixes, [rows[0] for rows in written], index, model.tokenizer, annotators, min_len))
            done += len(prefixes)
            if progress:
                progress(done, total)
    table = pl.concat(frames)
    provenance = {
        "models": [model.describe() for model in models],
        "corpus": index.fingerprint,
        "sampler": str(sampler),
        "min_len": min_len,
        "seed": seed,
        "environment": environment(),
    }
    return Measurement("discourse", table, discourse_summary(table, list(annotators), seed), provenance)


def judged(
    model: str,
    mitigation: str,
    prompts: Sequence[np.ndarray],
    written: Sequence[np.ndarray],
    index: CorpusIndex,
    tokenizer: Tokenizer,
    annotators: Mapping[str, Annotator],
    min_len: int,
) -> pl.DataFrame:
    """The rows of one model under one mitigation: what it wrote, how original that is, and what the annotators say of it."""
    outputs = [Output(p, w, tokenizer.decode(p), tokenizer.decode(w)) for p, w in zip(prompts, written, strict=True)]
    own = [originality(o.ids, index, min_len, prompt=o.prompt) if o.ids.size else Originality(0.0, 1.0, 0, []) for o in outputs]
    columns = {
        "model": [model] * len(outputs),
        "mitigation": [mitigation] * len(outputs),
        "prompt": range(len(outputs)),
        "text": [output.text for output in outputs],
        "tokens": [int(output.ids.size) for output in outputs],
        "memorized": [one.memorized for one in own],
        "original": [one.original for one in own],
        "longest": [one.longest for one in own],
        "ids": pl.Series([output.ids.tolist() for output in outputs], dtype=pl.List(pl.Int64)),
    }
    return pl.DataFrame(columns).hstack(annotate(outputs, annotators))


def discourse_summary(table: pl.DataFrame, labels: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Means by model and mitigation, correlations of the unmitigated outputs, effects of the mitigations."""
    means = [pl.len().alias("n"), (pl.col("memorized") > 0).mean().alias("with_memorized")]
    means += [pl.col(name).cast(pl.Float64).mean() for name in ("memorized", "original", "longest", *labels)]
    effects = [
        {"model": model, "mitigation": name, "figure": figure, **paired_effect(rows, name, figure, seed)}
        for (model,), rows in table.group_by("model", maintain_order=True)
        for name in rows["mitigation"].unique(maintain_order=True)
        if name != "none"
        for figure in ("memorized", *labels)
    ]
    return {
        "by_model": table.group_by("model", "mitigation", maintain_order=True).agg(means).to_dicts(),
        "correlations": correlations(table.filter(pl.col("mitigation") == "none"), labels, seed),
        "effects": effects,
    }


def correlations(table: pl.DataFrame, labels: Sequence[str], seed: int = 0) -> list[dict[str, Any]]:
    """Correlation of the memorized share with every label, pooled and within models.

    Point-biserial (Pearson's) for yes and no, Spearman's for figures; within models both sides are first taken less their model's
    mean (ranks for figures). The p-values are corrected together by Holm. A label or share that never varies has no correlation:
    its entry says so in "reason".
    """
    found: list[dict[str, Any]] = []
    for label in labels:
        binary = table[label].dtype == pl.Boolean
        for scope in ("pooled", "within models"):
            x, y = table["memorized"].to_numpy(), table[label].cast(pl.Float64).to_numpy()
            if not binary:
                x, y = stats.rankdata(x), stats.rankdata(y)
            if scope == "within models":
                models = table["model"].to_numpy()
                x, y = (_within(side, models) for side in (x, y))
            entry: dict[str, Any] = {"label": label, "scope": scope, "kind": "point-biserial" if binary else "Spearman", "n": len(x)}
            if len(x) < 3 or np.ptp(x) < 1e-12 or np.ptp(y) < 1e-12:
                found.append(entry | {"reason": "one side never varies"})
                continue
            interval = bootstrap_interval(x, y, statistic=_pearson, paired=True, seed=seed)
            entry |= {"r": interval.estimate, "low": interval.low, "high": interval.high, "p": float(stats.pearsonr(x, y).pvalue)}
            found.append(entry)
    tested = [entry for entry in found if "p" in entry]
    adjusted = holm([entry["p"] for entry in tested]).tolist() if tested else []
    for entry, p in zip(tested, adjusted, strict=True):
        entry["p_holm"] = p
    return found


def paired_effect(rows: pl.DataFrame, mitigation: str, figure: str, seed: int = 0) -> dict[str, Any]:
    """What a mitigation changes, prompt by prompt: means before and after, their difference with a bootstrap interval.

    Raises:
        InputError: a prompt that has one of the two outputs only.
    """
    before, after = (rows.filter(pl.col("mitigation") == name).sort("prompt") for name in ("none", mitigation))
    if before["prompt"].to_list() != after["prompt"].to_list() or len(before) < 2:
        raise InputError(
            f"{len(before)} prompts without and {len(after)} with {mitigation!r} make no pairs.",
            "Give both the same prompts, at least 2.",
        )
    a, b = (side[figure].cast(pl.Float64).to_numpy() for side in (before, after))
    interval = bootstrap_interval(b - a, seed=seed)
    return {"before": float(a.mean()), "after": float(b.mean()), "change": interval.estimate, "low": interval.low, "high": interval.high}


def _within(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    _, place = np.unique(groups, return_inverse=True)
    return values - (np.bincount(place, values) / np.bincount(place))[place]


def _pearson(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Pearson's correlation along `axis`; 0 for a resample in which a side never varies."""
    x, y = x - x.mean(axis=axis, keepdims=True), y - y.mean(axis=axis, keepdims=True)
    spread = np.sqrt((x * x).sum(axis=axis) * (y * y).sum(axis=axis))
    return np.where(spread > 0, (x * y).sum(axis=axis) / np.where(spread > 0, spread, 1.0), 0.0)
