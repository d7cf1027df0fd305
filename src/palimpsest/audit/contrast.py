"""What is memorized against what is not, without the corpus: the groups compared by text, by probability and by hidden state.

Li, Zhao and Wen, *Memorization Insights from Text, Probability, and Hidden State in Large Language Models* (2024, arXiv 2403.00510;
no code was released). Items are clozes whose answer the prompt fixes: idioms, conventional relations, facts. The model's greedy answer
splits them; then every factor is compared between the groups:

* text: tokens and words of the prompt, letters and tokens of the answer, and, with an index, how often the corpus has the answer;
* probability: sum, mean and variance of the answer's log-probabilities; at its first token the largest log-probability, the entropy
  and the margin of the two likeliest tokens;
* hidden state: mean, variance and norm by layer at the last prompt token and over the answer; a linear probe's AUC and the silhouette of
  the groups; the cosine of the answers of one concept in different contexts.

Every factor has Cliff's δ and a Mann–Whitney p, over all items and within each category, adjusted together after Benjamini and Hochberg,
and once more on items matched in prompt length. Of the clozes of one concept the first is tested, because they are not independent; the
others serve the comparison of contexts.

What is partly circular: an answer that greedy decoding writes has the largest probability at each step, so confidence must differ. The
summary therefore also has the margin by what was right: all of the answer, its first token only, not even that.

Departures: the answer counts by its tokens as the tokenizer writes it after the prompt, so that another spelling is not memorized; parts
of speech are compared where items carry them. "Block in, block out" of the third version is `palimpsest.audit.contrast_blocks`.

    from palimpsest.audit.contrast import measure_contrast
    from palimpsest.audit.contrast_items import builtin_clozes
    measure_contrast(palimpsest.load_model("smollm2-135m"), builtin_clozes()).summary["tests"]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from palimpsest.audit.contrast_groups import comparable, compare_groups, concept_cosines, independence, matched, separation
from palimpsest.audit.contrast_readings import MOMENTS, PLACES, Cloze, Readings, encode_cloze, read_clozes
from palimpsest.corpus.word_ngrams import words
from palimpsest.errors import InputError
from palimpsest.measurement import Measurement, environment
from palimpsest.models.base import LanguageModel, Progress
from palimpsest.stats import benjamini_hochberg, wilson_interval

if TYPE_CHECKING:
    from palimpsest.corpus import CorpusIndex


def measure_contrast(
    model: LanguageModel,
    items: Sequence[Cloze],
    *,
    layers: Sequence[int] | None = None,
    index: CorpusIndex | None = None,
    readings: Readings | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Splits clozes by whether the model has them memorized and compares the groups.

    Args:
        model: needs "weights".
        items: clozes.
        layers: whose hidden states are compared; by default the embedding, the quarters and the last.
        index: the training corpus, of the model's tokenizer, for the answers' frequency.
        readings: of these items, where they were taken before; `layers` are then theirs.
        seed: of the matching, the folds and the shuffled labels.
        progress: called with (clozes done, clozes in all).

    Returns:
        One row a cloze: item, prompt, answer, category, concept, pos, tested, memorized, the text and probability factors and, as
        `<place>_<moment>_<layer>`, the hidden ones. The summary has the rates, `comparable`, and where that is True `tests`
        (factor, scope, both means, delta, p, adjusted, and the same after matching), `labels` (χ² of category and pos), `margin`,
        `layers` (probe and silhouette) and `concepts`; where it is False, `reason`.

    Raises:
        InputError, CapabilityError, ContextOverflowError, NonFiniteError: as for `read_clozes`; readings of another number of items.
        TokenizerMismatchError: the index belongs to another tokenizer.

    Example:
        >>> measure_contrast(model, items).summary["comparable"]    # doctest: +SKIP
        True
    """
    if index is not None and index.tokenizer_fingerprint is not None:
        model.tokenizer.require_same(index.tokenizer_fingerprint, f"the index {index.path}")
    readings = readings or read_clozes(model, items, layers, progress)
    if len(readings.memorized) != len(items):
        raise InputError(f"There are readings of {len(readings.memorized)} items for {len(items)}.", "Give those of the items.")
    factors = text_factors(model, items, readings, index) | probability_factors(readings) | hidden_factors(readings)
    seen: set[str] = set()
    tested = np.zeros(len(items), dtype=bool)
    for place, item in enumerate(items):
        tested[place] = item.concept is None or item.concept not in seen
        if item.concept is not None:
            seen.add(item.concept)
    table = pl.DataFrame(
        {
            "item": np.arange(len(items)),
            "prompt": [item.prompt for item in items],
            "answer": [item.answer for item in items],
            "category": [item.category for item in items],
            "concept": pl.Series([item.concept for item in items], dtype=pl.String),
            "pos": pl.Series([item.pos for item in items], dtype=pl.String),
            "tested": tested,
            "memorized": readings.memorized,
            **factors,
        }
    )
    summary = {"rates": _rates(table.filter(pl.col("tested")))}
    summary |= _contrasts(table, readings, list(factors), seed)
    provenance = {
        "model": model.describe(),
        "decoding": "greedy",
        "layers": list(readings.layers),
        "index": index.fingerprint if index is not None else None,
        "seed": seed,
        "environment": environment(),
    }
    return Measurement("contrast", table, summary, provenance)


def text_factors(
    model: LanguageModel, items: Sequence[Cloze], readings: Readings, index: CorpusIndex | None = None
) -> dict[str, np.ndarray]:
    """What the texts say; `answer_frequency` is log(1 + occurrences of the answer's tokens in the corpus)."""
    made = {
        "prompt_tokens": readings.prompt_tokens,
        "prompt_words": np.array([len(words(item.prompt)) for item in items]),
        "answer_letters": np.array([len(item.answer) for item in items]),
        "answer_tokens": readings.answer_tokens,
    }
    if index is not None:
        encoded = [encode_cloze(model.tokenizer, item) for item in items]
        made["answer_frequency"] = np.log1p(index.count_batch([ids[cut:] for ids, cut in encoded]))
    return made


def probability_factors(readings: Readings) -> dict[str, np.ndarray]:
    """How sure the model is of the answer, and at its first token of anything; in nats."""
    values = [np.asarray(row, dtype=np.float64) for row in readings.logprobs]
    return {
        "logprob": np.array([row.sum() for row in values]),
        "logprob_mean": np.array([row.mean() for row in values]),
        "logprob_variance": np.array([row.var() for row in values]),
        "max_logprob": readings.max_logprob,
        "entropy": readings.entropy,
        "margin": readings.margin,
    }


def hidden_factors(readings: Readings) -> dict[str, np.ndarray]:
    """Mean, variance and norm of the hidden states at both places, for the layers that were asked for."""
    return {
        f"{place}_{moment}_{layer}": readings.moments[:, p, layer, m].astype(np.float64)
        for layer in readings.layers
        for p, place in enumerate(PLACES)
        for m, moment in enumerate(MOMENTS)
    }


def _rates(own: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """Share of memorized items, of all and by category, with its Wilson interval."""
    rates = {}
    for scope in ("all", *own["category"].unique(maintain_order=True)):
        part = own["memorized"] if scope == "all" else own.filter(pl.col("category") == scope)["memorized"]
        rate = wilson_interval(int(part.sum()), len(part))
        rates[scope] = {"n": len(part), "memorized": int(part.sum()), "rate": rate.estimate, "low": rate.low, "high": rate.high}
    return rates


def _contrasts(table: pl.DataFrame, readings: Readings, factors: list[str], seed: int) -> dict[str, Any]:
    """The part of the summary that needs two groups."""
    chosen = table["tested"].to_numpy()
    own = table.filter(pl.col("tested"))
    memorized = own["memorized"].to_numpy()
    if not comparable(memorized):
        count = int(memorized.sum())
        return {"comparable": False, "reason": f"not comparable: {count} of {len(memorized)} items are memorized, a group needs 2"}
    categories = own["category"].to_numpy()
    scopes = {"all": np.ones(len(own), dtype=bool)}
    if len(set(categories)) > 1:
        scopes |= {str(name): categories == name for name in dict.fromkeys(categories)}
    tests = [
        entry
        for scope, inside in scopes.items()
        if comparable(memorized[inside])
        for entry in _tests(own.filter(pl.Series(inside)), scope, factors, seed)
    ]
    for entry, value in zip(tests, benjamini_hochberg([entry["p"] for entry in tests]), strict=True):
        entry["adjusted"] = float(value)
    marked = own.filter(pl.col("pos").is_not_null())
    first, margin = readings.first_hit[chosen], readings.margin[chosen]
    sides = {"all right": memorized, "first token right only": first & ~memorized, "first token wrong": ~first}
    vectors = readings.vectors[chosen]
    return {
        "comparable": True,
        "not_comparable": [scope for scope, inside in scopes.items() if not comparable(memorized[inside])],
        "tests": tests,
        "labels": {
            "category": independence(categories.tolist(), memorized),
            "pos": independence(marked["pos"].to_list(), marked["memorized"].to_numpy()) if len(marked) else None,
        },
        "margin": {
            name: {"n": int(side.sum()), "mean": float(margin[side].mean()) if side.any() else None} for name, side in sides.items()
        },
        "layers": [
            {"layer": layer, "place": place, "scope": scope, **found}
            for scope, inside in scopes.items()
            for number, layer in enumerate(readings.layers)
            for p, place in enumerate(PLACES)
            if (found := separation(vectors[inside, p, number], memorized[inside], seed))
        ],
        "concepts": _concepts(table, readings),
    }


def _tests(own: pl.DataFrame, scope: str, factors: list[str], seed: int) -> list[dict[str, Any]]:
    """Every factor of one scope, on all its items and on those matched in prompt length."""
    memorized = own["memorized"].to_numpy()
    kept = matched(memorized, own["prompt_tokens"].to_numpy(), seed)
    made = []
    for factor in factors:
        values = own[factor].to_numpy().astype(np.float64)
        found, again = compare_groups(values, memorized), compare_groups(values[kept], memorized[kept])
        if found:
            after = {f"matched_{name}": again[name] if again else None for name in ("delta", "p")}
            made.append({"factor": factor, "scope": scope, "n": len(own), **found, "matched_n": len(kept), **after})
    return made


def _concepts(table: pl.DataFrame, readings: Readings) -> list[dict[str, Any]]:
    """By layer: are the answers of memorized concepts more alike across contexts?"""
    made = []
    for number, layer in enumerate(readings.layers):
        _, cosines, labels = concept_cosines(readings.vectors[:, 1, number], readings.memorized, table["concept"].to_list())
        clear = np.array([label is not None for label in labels], dtype=bool)
        found = compare_groups(cosines[clear], np.array([label is True for label in labels], dtype=bool)[clear]) if clear.any() else None
        if found:
            made.append({"layer": layer, "n": int(clear.sum()), "mixed": int((~clear).sum()), **found})
    return made
