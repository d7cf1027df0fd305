"""What leaks, word for word, and the documents that it comes from.

For each passage the model writes on from the prefix, greedily; what it writes is traced in the corpus index: the maximal runs of
tokens that stand there verbatim, how often, and in which documents; and the passage that is nearest to the whole of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from palimpsest.audit.samples import PrefixSuffix, require_samples
from palimpsest.corpus import CorpusIndex
from palimpsest.corpus.traced_text import trace_text
from palimpsest.evaluation.nearest import nearest_passages, require_share
from palimpsest.measurement import Measurement, environment
from palimpsest.models import LanguageModel
from palimpsest.models.base import Progress


def measure_leaks(
    model: LanguageModel,
    samples: Sequence[PrefixSuffix],
    index: CorpusIndex,
    *,
    min_len: int = 8,
    max_docs: int = 5,
    context: int = 24,
    share: float = 0.1,
    progress: Progress | None = None,
) -> Measurement:
    """Writes on from every prefix and traces what comes out.

    Args:
        model: needs "text".
        samples: passages; the model writes as many tokens as the suffix has.
        index: the corpus, of the model's tokenizer.
        min_len: shortest traced run, tokens.
        max_docs: documents named for each run.
        context: tokens shown before and after the run in its document.
        share: token edits within which a passage counts as near, as a share of the suffix's tokens (see `measure_nearest`).
        progress: called with (passages done, passages in all).

    Returns:
        One row per passage: id, copies, domain, prefix_text, output_text, true_text, exact, matched (tokens right before the first
        error), traced (share of the output inside traced runs), near_distance and near_document (of the nearest passage of the
        corpus; null where none is within `share`), spans (JSON: character offsets in output_text, count, documents).

    Raises:
        InputError, CapabilityError, TokenizerMismatchError: as the model and the index say.
    """
    require_samples(samples)
    require_share(share)
    model.require("text", "Writing out passages")
    if index.tokenizer_fingerprint is not None:
        model.tokenizer.require_same(index.tokenizer_fingerprint, f"the index {index.path}")
    rows: list[dict[str, Any]] = []
    longest = max(sample.suffix_len for sample in samples)
    stop = "weights" not in model.capabilities  # a server ends at EOS, whether one wants it or not
    outputs = model.generate([s.prefix for s in samples], longest, stop_at_eos=stop, progress=progress)
    for sample, continuations in zip(samples, outputs, strict=True):
        written = continuations[0][: sample.suffix_len]
        traced = trace_text(index, model.tokenizer, written, min_len=min_len, max_docs=max_docs, context=context)
        near = nearest_passages(index, written, sample.suffix_len, int(share * sample.suffix_len)).matches
        hits = written == sample.suffix[: len(written)]
        rows.append(
            {
                "id": str(sample.meta.get("id", len(rows))),
                "copies": sample.meta.get("copies"),
                "domain": sample.meta.get("domain"),
                "prefix_text": model.tokenizer.decode(sample.prefix),
                "output_text": traced.text,
                "true_text": model.tokenizer.decode(sample.suffix),
                "exact": bool(hits.all()) and len(written) == sample.suffix_len,
                "matched": len(hits) if hits.all() else int(np.argmin(hits)),
                "traced": traced.covered,
                "near_distance": near[0].distance if near else None,
                "near_document": near[0].hit.doc_id if near else None,
                "spans": json.dumps([asdict(span) for span in traced.spans], ensure_ascii=False),
            }
        )
    table = pl.DataFrame(rows, infer_schema_length=None)
    exact = int(table["exact"].sum())
    summary = {"passages": len(rows), "exact": exact, "traced": float(table["traced"].mean() or 0.0)}  # type: ignore[arg-type]
    provenance = {
        "model": model.describe(),
        "corpus": index.fingerprint,
        "min_len": min_len,
        "share": share,
        "decoding": "greedy",
        "environment": environment(),
    }
    return Measurement("leaks", table, summary, provenance)
