"""How near what a model writes comes to the corpus: to the passage that it was asked for, or to any other.

Extraction asks whether the suffix comes out to the letter. A passage that comes out with one word changed, or one that belongs to another
document, is a leak too. Every continuation y is therefore looked for in the whole corpus: among all windows w of all documents, the one
with the fewest token edits d(y, w), if these are at most a given share of the suffix's tokens (`CorpusIndex.near`). A continuation
that ended so early that more tokens are missing is near to nothing: a few words stand in every corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from rapidfuzz.distance import Levenshtein

from palimpsest.audit.progress import stages
from palimpsest.audit.samples import PrefixSuffix, require_samples
from palimpsest.corpus import CorpusIndex, NearMatches
from palimpsest.errors import InputError
from palimpsest.measurement import Measurement, environment
from palimpsest.models import LanguageModel, Sampler
from palimpsest.models.base import Progress
from palimpsest.stats import wilson_interval

GREEDY = "greedy"


def measure_nearest(
    model: LanguageModel,
    samples: Sequence[PrefixSuffix],
    index: CorpusIndex,
    *,
    share: float = 0.1,
    sampler: Sampler | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Writes on from every prefix, greedily and once by sampling, and finds the nearest passage of the corpus.

    Args:
        model: needs "text".
        samples: passages; the model writes as many tokens as the suffix has.
        index: the corpus, of the model's tokenizer.
        share: token edits that count as near, as a share of the suffix's tokens, in [0, 0.5).
        sampler: of the second continuation; None writes greedily only.
        seed: of the sampling.
        progress: called with (continuations done, continuations in all).

    Returns:
        One row per passage and scheme: scheme, id, copies, domain, tokens, edits_allowed, own_distance (edits from the passage's own
        suffix), distance (from the nearest passage; null where none is that near), document, offset, passages (how many are that
        near), prefix_text, output_text, corpus_text (the nearest passage; null without one). The summary holds for every scheme how
        many continuations are `exact` (the own suffix), near their `own` suffix, near `any` passage, and near `other` passages only,
        with 95 % Wilson intervals; `complete` says that nothing was left out of the search.

    Raises:
        InputError, CapabilityError, TokenizerMismatchError: as the model and the index say; a share outside [0, 0.5).

    Example:
        >>> measure_nearest(model, samples, index).summary["schemes"]["greedy"]["any"]["estimate"]   # doctest: +SKIP
        0.34
    """
    require_samples(samples)
    require_share(share)
    model.require("text", "Writing out passages")
    if index.tokenizer_fingerprint is not None:
        model.tokenizer.require_same(index.tokenizer_fingerprint, f"the index {index.path}")
    schemes: dict[str, dict[str, Any]] = {GREEDY: {}}
    if sampler is not None:
        cuts = {"top_k": sampler.top_k, "top_p": sampler.top_p}
        schemes[str(sampler)] = {"temperature": sampler.temperature, **cuts, "seed": seed}
    stage = stages(progress, len(samples) * len(schemes))
    longest = max(sample.suffix_len for sample in samples)
    stop = "weights" not in model.capabilities  # a server ends at EOS, whether one wants it or not
    rows: list[dict[str, Any]] = []
    complete = True
    for scheme, how in schemes.items():
        outputs = model.generate([s.prefix for s in samples], longest, stop_at_eos=stop, progress=stage(len(samples)), **how)
        for sample, continuations in zip(samples, outputs, strict=True):
            written = continuations[0][: sample.suffix_len]
            allowed = int(share * sample.suffix_len)
            found = nearest_passages(index, written, sample.suffix_len, allowed)
            complete &= found.complete
            match = found.matches[0] if found.matches else None
            rows.append(
                {
                    "scheme": scheme,
                    "id": str(sample.meta.get("id", len(rows) % len(samples))),
                    "copies": sample.meta.get("copies"),
                    "domain": sample.meta.get("domain"),
                    "tokens": len(written),
                    "edits_allowed": allowed,
                    "own_distance": Levenshtein.distance(written.tolist(), sample.suffix.tolist()),
                    "distance": match.distance if match else None,
                    "document": match.hit.doc_id if match else None,
                    "offset": match.hit.offset if match else None,
                    "passages": found.total,
                    "prefix_text": model.tokenizer.decode(sample.prefix),
                    "output_text": model.tokenizer.decode(written),
                    "corpus_text": model.tokenizer.decode(match.hit.match) if match else None,
                }
            )
    table = pl.DataFrame(rows, schema=_SCHEMA)
    summary = {"share": share, "complete": complete, "schemes": {scheme: _rates(table, scheme) for scheme in schemes}}
    provenance = {
        "model": model.describe(),
        "corpus": index.fingerprint,
        "sampler": schemes.get(str(sampler)),
        "environment": environment(),
    }
    return Measurement("nearest", table, summary, provenance)


def nearest_passages(index: CorpusIndex, written: np.ndarray, length: int, max_edits: int) -> NearMatches:
    """The nearest passage of the corpus within `max_edits` edits of what was written, and how many are that near.

    Nothing is near to what falls short of `length` by more than the edits.
    """
    if len(written) < length - max_edits:
        return NearMatches([], 0, complete=True)
    return index.near(written, max_edits, limit=1, context=0)


def require_share(share: float) -> None:
    """Raises `InputError` unless a share of edits lies in [0, 0.5): beyond it, two passages have little in common."""
    if not 0 <= share < 0.5:
        raise InputError(f"The share of edits is {share}.", "Give at least 0 and less than 0.5; 0.1 is one token in ten.")


_SCHEMA = {
    "scheme": pl.String,
    "id": pl.String,
    "copies": pl.Int64,
    "domain": pl.String,
    "tokens": pl.Int64,
    "edits_allowed": pl.Int64,
    "own_distance": pl.Int64,
    "distance": pl.Int64,
    "document": pl.String,
    "offset": pl.Int64,
    "passages": pl.Int64,
    "prefix_text": pl.String,
    "output_text": pl.String,
    "corpus_text": pl.String,
}


def _rates(table: pl.DataFrame, scheme: str) -> dict[str, Any]:
    rows = table.filter(pl.col("scheme") == scheme)
    hits = {
        "exact": pl.col("own_distance") == 0,
        "own": pl.col("own_distance") <= pl.col("edits_allowed"),
        "any": pl.col("distance").is_not_null(),
        "other": pl.col("distance").is_not_null() & (pl.col("own_distance") > pl.col("edits_allowed")),
    }
    counted = {name: wilson_interval(rows.filter(hit).height, rows.height)._asdict() for name, hit in hits.items()}
    return {"n": rows.height, **counted}
