"""Factors of memorization: what the corpus, the sequence and the model say about why a passage is recited.

Prashanth et al., *Recite, Reconstruct, Recollect: Memorization in LMs as a Multifaceted Phenomenon* (ICLR 2025, arXiv 2406.17746;
EleutherAI/semantic-memorization). One row a passage of prompt and continuation (32 and 32 tokens in the paper):

* corpus: `duplicates` (occurrences of the window, the passage's own counted: unique = 1), the maximum, mean, minimum, median and
  quartiles of its tokens' frequencies in the corpus, `templates` (other passages whose prompts are alike letter for letter:
  Levenshtein similarity of at least 0.8) and `snowclones` (other passages whose embeddings have a cosine of at least 0.8);
* sequence: `code_length` and `huffman_length` in bits a character, `repeating`, `incrementing` and `templating` (either);
* model: the perplexities of prompt, continuation and the whole. The last two nearly encode whether the passage is memorized:
  `LEAKING` names them, so that a prediction can do without.

`memorized` is what is to be explained: greedy decoding after the prompt writes the continuation.

Departures: the count of neighbours is over the passages of `pool` (by default the passages themselves; the paper's is the sampled
corpus) and leaves the passage itself out; the window of the duplicates is a parameter, because the paper's code counts 32-gram hashes
and its documentation names 64; the score that tells prose from program code is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

from palimpsest.audit.progress import stages
from palimpsest.audit.samples import PrefixSuffix, require_samples
from palimpsest.audit.templating import huffman_code_length, period, shannon_code_length, step
from palimpsest.errors import InputError
from palimpsest.models.base import LanguageModel, Progress

if TYPE_CHECKING:
    from palimpsest.corpus import CorpusIndex

Embedder = Callable[[Sequence[str]], np.ndarray]
WINDOWS = ("suffix", "sequence")
CONTINUOUS = (
    "duplicates",
    "frequency_max",
    "frequency_mean",
    "frequency_min",
    "frequency_median",
    "frequency_p25",
    "frequency_p75",
    "perplexity_continuation",
    "perplexity_prompt",
    "perplexity_sequence",
    "templates",
    "snowclones",
    "code_length",
)
CATEGORICAL = ("templating",)
LEAKING = ("perplexity_continuation", "perplexity_sequence")
ALIKE = 0.8  # least similarity of a snowclone and of a template
_BLOCK = 1 << 22  # similarities held at once


def memorization_factors(
    model: LanguageModel,
    samples: Sequence[PrefixSuffix],
    index: CorpusIndex,
    *,
    window: str = "suffix",
    pool: Sequence[PrefixSuffix] | None = None,
    embedder: Embedder | None = None,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """The factors of every passage, and whether the model has it memorized.

    Args:
        model: needs "logprobs".
        samples: passages; meta "id", "domain" are used where present.
        index: the training corpus, of the model's tokenizer.
        window: what is counted as a duplicate: the "suffix", or the whole "sequence".
        pool: passages among which templates and snowclones are counted; by default `samples`. A passage is compared with all of
            them, so take thousands, not millions.
        embedder: texts -> (n, d) float, for the snowclones; without it the column is missing.
        progress: called with (passages done, passages in all).

    Returns:
        One row a sample, in order: sample, id, domain, text, memorized, `CONTINUOUS` (without snowclones where there is no
        embedder), huffman_length, repeating, incrementing, templating.

    Raises:
        InputError: no samples, an unknown window, or embeddings of the wrong shape, NaN or zero.
        CapabilityError: the door has no log-probs.
        TokenizerMismatchError: the index belongs to another tokenizer.

    Example:
        >>> memorization_factors(model, samples, index).select("duplicates", "templating")   # doctest: +SKIP
    """
    require_samples(samples)
    if window not in WINDOWS:
        raise InputError(f"The window {window!r} is unknown.", f"Choose one of {', '.join(WINDOWS)}.")
    model.require("logprobs", "The factors of memorization")
    if index.tokenizer_fingerprint is not None:
        model.tokenizer.require_same(index.tokenizer_fingerprint, f"the index {index.path}")
    # a prompt of one token has no probability unless BOS stands before it: where it does, every token is scored
    stage = stages(progress, len(samples))
    scores = model.score([sample.ids for sample in samples], progress=stage(len(samples)))
    losses = [-np.asarray(lp, dtype=np.float64) for lp in scores.logprobs]
    cuts = [sample.prefix_len - 1 for sample in samples]
    queries = [sample.suffix if window == "suffix" else sample.ids for sample in samples]
    texts = [model.tokenizer.decode(sample.ids.tolist()) for sample in samples]
    prompts = [model.tokenizer.decode(sample.prefix.tolist()) for sample in samples]
    repeating = np.array([period(text) is not None for text in texts])
    incrementing = np.array([step(text) is not None for text in texts])
    others = samples if pool is None else pool
    columns: dict[str, object] = {
        "sample": np.arange(len(samples)),
        "id": [str(sample.meta.get("id", i)) for i, sample in enumerate(samples)],
        "domain": pl.Series([sample.meta.get("domain") for sample in samples], dtype=pl.String),
        "text": texts,
        "memorized": [bool(hits[cut:].all()) for hits, cut in zip(scores.greedy_hits, cuts, strict=True)],
        "duplicates": index.count_batch(queries),
        **_frequencies(index, samples),
        "perplexity_prompt": [float(np.exp(loss[:cut].mean())) if cut else None for loss, cut in zip(losses, cuts, strict=True)],
        "perplexity_continuation": [float(np.exp(loss[cut:].mean())) for loss, cut in zip(losses, cuts, strict=True)],
        "perplexity_sequence": [float(np.exp(loss.mean())) for loss in losses],
        "templates": _alike_prompts(prompts, prompts if pool is None else [model.tokenizer.decode(s.prefix.tolist()) for s in others])
        - int(pool is None),
    }
    if embedder is not None:
        own = _embedded(embedder, texts)
        theirs = own if pool is None else _embedded(embedder, [model.tokenizer.decode(sample.ids.tolist()) for sample in others])
        columns["snowclones"] = _alike_vectors(own, theirs) - int(pool is None)
    columns |= {
        "code_length": [shannon_code_length(text) for text in texts],
        "huffman_length": [huffman_code_length(text) for text in texts],
        "repeating": repeating,
        "incrementing": incrementing,
        "templating": repeating | incrementing,
    }
    return pl.DataFrame(columns)


def _frequencies(index: CorpusIndex, samples: Sequence[PrefixSuffix]) -> dict[str, np.ndarray]:
    """Statistics of how often the tokens of every passage occur in the corpus; a token that does not occur counts 0."""
    ids, counts = index.unigrams
    largest = int(max(ids.max(initial=0), max(sample.ids.max() for sample in samples)))
    table = np.zeros(largest + 1, dtype=np.int64)
    table[ids] = counts
    rows = [table[sample.ids] for sample in samples]
    quartiles = np.array([np.quantile(row, (0.25, 0.5, 0.75)) for row in rows])
    return {
        "frequency_max": np.array([row.max() for row in rows]),
        "frequency_mean": np.array([row.mean() for row in rows]),
        "frequency_min": np.array([row.min() for row in rows]),
        "frequency_median": quartiles[:, 1],
        "frequency_p25": quartiles[:, 0],
        "frequency_p75": quartiles[:, 2],
    }


def _alike_prompts(prompts: Sequence[str], pool: Sequence[str]) -> np.ndarray:
    """How many texts of `pool` have a Levenshtein similarity of at least `ALIKE` to each prompt."""
    size = max(1, _BLOCK // len(pool))
    counts = [
        (
            process.cdist(
                prompts[begin : begin + size], pool, scorer=Levenshtein.normalized_similarity, score_cutoff=ALIKE, dtype=np.float32
            )
            >= ALIKE
        ).sum(axis=1)
        for begin in range(0, len(prompts), size)
    ]
    return np.concatenate(counts).astype(np.int64)


def _embedded(embedder: Embedder, texts: Sequence[str]) -> np.ndarray:
    """Unit vectors of texts."""
    vectors = np.asarray(embedder(texts), dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
        raise InputError(f"The embedder made {vectors.shape} of {len(texts)} texts.", "It must return one row of finite numbers a text.")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not norms.all():
        raise InputError(f"The embedding of {int((norms == 0).sum())} texts is zero.", "A cosine needs vectors that are not zero.")
    return vectors / norms


def _alike_vectors(own: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """How many rows of `pool` have a cosine of at least `ALIKE` to each row of `own`."""
    size = max(1, _BLOCK // len(pool))
    counts = [(own[begin : begin + size] @ pool.T >= ALIKE).sum(axis=1) for begin in range(0, len(own), size)]
    return np.concatenate(counts).astype(np.int64)
