"""From a text to its sources: which passages of it stand in the corpus, and in which documents.

The spans are those of OLMoTrace (Liu et al., *OLMoTrace: Tracing Language Model Outputs Back to Trillions of Training Tokens*, 2025,
arXiv 2504.07096): a passage of the text that stands verbatim in the corpus and is not part of a longer one that does. With ms[i] the
length of the longest match that starts at i, [i, i + ms[i]) is such a passage exactly when i + ms[i] > max_{j < i} (j + ms[j]).
A passage is the rarer, and says the more, the lower the sum of the log unigram probabilities of its tokens is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from palimpsest.errors import InputError

if TYPE_CHECKING:
    from palimpsest.corpus.index import CorpusIndex
    from palimpsest.corpus.shard import Hit


@dataclass(frozen=True)
class Span:
    """A passage of a text that stands in the corpus.

    Attributes:
        start, end: where in the text, in tokens, half-open.
        count: how often the passage occurs in the corpus.
        score: sum of the log unigram probabilities of its tokens, in nats; lower is rarer.
        hits: documents that contain it.
    """

    start: int
    end: int
    count: int
    score: float
    hits: list[Hit]

    def __len__(self) -> int:
        return self.end - self.start


def trace_spans(index: CorpusIndex, ids: np.ndarray, min_len: int, max_docs: int, max_spans: int | None) -> list[Span]:
    """The maximal passages of `ids` that stand in the corpus.

    Args:
        index: the corpus.
        ids: int64 (T,).
        min_len: shorter passages are left out, at least 1.
        max_docs: documents to name for each passage.
        max_spans: keep only so many, the rarest ones (OLMoTrace keeps ⌈0.05 T⌉); None keeps all.

    Returns:
        the spans in the order of the text; they may overlap, none lies within another.

    Raises:
        InputError: `min_len` below 1, or ids that no document can contain.
    """
    if min_len < 1:
        raise InputError(f"Passages of {min_len} tokens cannot be traced.", "Give a min_len of at least 1.")
    lengths = index.matching_statistics(ids)
    starts = maximal(lengths, min_len)
    ends = starts + lengths[starts]
    scores = _scores(index, ids, starts, ends)
    if max_spans is not None and starts.size > max_spans:
        kept = np.sort(np.argsort(scores, kind="stable")[:max_spans])
        starts, ends, scores = starts[kept], ends[kept], scores[kept]
    counts = index.count_batch([ids[start:end] for start, end in zip(starts, ends, strict=True)])
    return [
        Span(start, end, count, score, index.documents(ids[start:end], limit=max_docs))
        for start, end, count, score in zip(starts.tolist(), ends.tolist(), counts.tolist(), scores.tolist(), strict=True)
    ]


def maximal(lengths: np.ndarray, min_len: int) -> np.ndarray:
    """Starts int64 (k,) of the passages of at least `min_len` tokens that no longer one contains, from matching statistics (T,)."""
    ends = np.arange(lengths.size) + lengths
    before = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]])
    return np.flatnonzero((ends > before) & (lengths >= min_len))


def covered(lengths: np.ndarray, n: int) -> np.ndarray:
    """Which tokens bool (T,) lie inside a match of at least `n` tokens, from matching statistics (T,)."""
    marks = np.zeros(lengths.size + 1, np.int64)
    starts = np.flatnonzero(lengths >= n)
    np.add.at(marks, starts, 1)
    np.add.at(marks, starts + lengths[starts], -1)
    return np.cumsum(marks)[:-1] > 0


def _scores(index: CorpusIndex, ids: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Log unigram probability of every passage; all of its tokens occur in the corpus."""
    values, counts = index.unigrams
    place = np.minimum(np.searchsorted(values, ids), values.size - 1)
    known = values[place] == ids
    logs = np.where(known, np.log(counts[place] / index.n_tokens), 0.0)
    sums = np.concatenate([[0.0], np.cumsum(logs)])
    return sums[ends] - sums[starts]
