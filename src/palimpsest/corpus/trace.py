"""From a text to its sources: which passages of it stand in the corpus, and in which documents.

The spans are those of OLMoTrace (Liu et al., *OLMoTrace: Tracing Language Model Outputs Back to Trillions of Training Tokens*, 2025,
arXiv 2504.07096): a passage of the text that stands verbatim in the corpus and is not part of a longer one that does. With ms[i] the
length of the longest match that starts at i, [i, i + ms[i]) is such a passage exactly when i + ms[i] > max_{j < i} (j + ms[j]).
A passage is the rarer, and says the more, the lower the sum of the log unigram probabilities of its tokens is.

Where only some borders between tokens may begin or end a passage (those between words), it is cut back to the last such border and
then must be maximal among the passages so cut, as in the paper.

Documents are ranked by BM25 (Robertson & Zaragoza, *The Probabilistic Relevance Framework*, 2009) with the whole text as the query:
Σ_t q(t) · ln(1 + (N − n(t) + ½) / (n(t) + ½)) · f(t) (k + 1) / (f(t) + k (1 − b + b·length / mean length)), k = 1.2, b = 0.75, the
collection being the documents found. What counts of a document is what stands around its passages: a book that holds one of them is
not about the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from palimpsest.corpus.cluster_shards import ClusterShards
from palimpsest.corpus.occurrences import hits
from palimpsest.corpus.shard import Hit, Shards
from palimpsest.errors import InputError

if TYPE_CHECKING:
    from palimpsest.corpus.index import CorpusIndex

_K, _B = 1.2, 0.75  # of BM25, the usual ones
_AROUND = 250  # tokens on either side of a passage that speak for its document


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


@dataclass(frozen=True)
class RankedDocument:
    """A document that holds passages of a text.

    Attributes:
        doc_id, index, metadata: the document's name, number, and what the corpus says of it.
        score: BM25 of what stands around the passages against the whole text; higher is nearer.
        spans: which of the text's passages it holds, as numbers, ascending.
    """

    doc_id: str
    index: int
    metadata: dict[str, Any]
    score: float
    spans: tuple[int, ...]


def trace_spans(
    index: CorpusIndex,
    shards: Shards | ClusterShards,
    ids: np.ndarray,
    min_len: int,
    max_docs: int,
    max_spans: int | None,
    context: int,
    borders: np.ndarray | None,
) -> list[Span]:
    """The maximal passages of `ids` that stand in the corpus.

    Args:
        index, shards: the corpus.
        ids: int64 (T,).
        min_len: shorter passages are left out, at least 1.
        max_docs: documents to name for each passage.
        max_spans: keep only so many, the rarest ones (OLMoTrace keeps ⌈0.05 T⌉); None keeps all.
        context: tokens to give before and after a passage in its document.
        borders: bool (T + 1,), where a passage may begin or end: borders[i] is the place before token i. None: everywhere.

    Returns:
        the spans in the order of the text; they may overlap, none lies within another.

    Raises:
        InputError: `min_len` below 1, borders of another shape, or ids that no document can contain.
    """
    if min_len < 1:
        raise InputError(f"Passages of {min_len} tokens cannot be traced.", "Give a min_len of at least 1.")
    lengths = index.matching_statistics(ids)
    if borders is not None:
        lengths = _cut_back(lengths, borders)
    starts = maximal(lengths, min_len)
    ends = starts + lengths[starts]
    scores = _scores(index, ids, starts, ends)
    if max_spans is not None and starts.size > max_spans:
        kept = np.sort(np.argsort(scores, kind="stable")[:max_spans])
        starts, ends, scores = starts[kept], ends[kept], scores[kept]
    spans = []
    for start, end, score in zip(starts.tolist(), ends.tolist(), scores.tolist(), strict=True):
        ranges = index.find(ids[start:end])
        found = hits(shards, ranges, ids[start:end], max_docs, context) if max_docs else []
        spans.append(Span(start, end, sum(r.count for r in ranges), score, found))
    return spans


def rank_documents(index: CorpusIndex, ids: np.ndarray, spans: Sequence[Span]) -> list[RankedDocument]:
    """The documents among the hits of `spans`, the nearest to the whole text first; see the module's docstring.

    Args:
        index: the corpus.
        ids: int64 (T,), the text.
        spans: what `CorpusIndex.trace` found in it.

    Example:
        >>> import pathlib, tempfile
        >>> from palimpsest.corpus import CorpusIndex
        >>> docs = [[1, 2, 3, 9, 9], [1, 2, 3, 4, 5, 6]]
        >>> index = CorpusIndex.build(docs, None, pathlib.Path(tempfile.mkdtemp()) / "index")
        >>> text = np.array([1, 2, 3, 8, 4, 5, 6])
        >>> [(d.index, d.spans) for d in rank_documents(index, text, index.trace(text, min_len=3))]
        [(1, (0, 1)), (0, (0,))]
    """
    holders: dict[int, list[tuple[int, Hit]]] = {}
    for number, span in enumerate(spans):
        for hit in span.hits:
            holders.setdefault(hit.index, []).append((number, hit))
    if not holders:
        return []
    terms, wanted = np.unique(ids, return_counts=True)
    term_of = np.full(int(terms[-1]) + 2, terms.size, np.int64)  # the last entry stands for all greater ids
    term_of[terms] = np.arange(terms.size)
    parts, lengths = [], []
    for document, found in holders.items():
        pieces = [index.document_ids(document, start, stop) for start, stop in _windows([hit for _, hit in found])]
        parts += pieces
        lengths.append(sum(map(len, pieces)))
    tokens = term_of[np.minimum(np.concatenate(parts), term_of.size - 1)]
    owner = np.repeat(np.arange(len(lengths)), lengths)
    width = terms.size + 1
    frequency = np.bincount(owner * width + tokens, minlength=len(lengths) * width).reshape(-1, width)[:, :-1]
    length = np.array(lengths, np.float64)
    holding = (frequency > 0).sum(axis=0)
    weight = wanted * np.log1p((len(lengths) - holding + 0.5) / (holding + 0.5))
    damped = frequency + _K * (1 - _B + _B * length / length.mean())[:, None]
    scores = (weight * frequency * (_K + 1) / damped).sum(axis=1)
    ranked = [
        RankedDocument(found[0][1].doc_id, document, found[0][1].metadata, float(score), tuple(number for number, _ in found))
        for (document, found), score in zip(holders.items(), scores, strict=True)
    ]
    return sorted(ranked, key=lambda document: (-document.score, document.index))


def merge_spans(spans: Sequence[Span]) -> list[tuple[int, int]]:
    """The stretches (start, end) of the text that the spans cover, those that overlap made one, in the order of the text."""
    merged: list[tuple[int, int]] = []
    for span in spans:
        if merged and span.start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], span.end))
        else:
            merged.append((span.start, span.end))
    return merged


def _windows(found: Sequence[Hit]) -> list[tuple[int, int]]:
    """What stands around the passages of one document, as disjoint ranges of its tokens."""
    windows: list[tuple[int, int]] = []
    for start, stop in sorted((max(0, hit.offset - _AROUND), hit.offset + hit.match.size + _AROUND) for hit in found):
        if windows and start <= windows[-1][1]:
            windows[-1] = (windows[-1][0], max(stop, windows[-1][1]))
        else:
            windows.append((start, stop))
    return windows


def _cut_back(lengths: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """Matching statistics (T,) when a passage must begin and end at a border: 0 where none begins."""
    if borders.shape != (lengths.size + 1,) or borders.dtype != np.bool_:
        raise InputError(f"The borders have shape {borders.shape}, the text {lengths.size} ids.", "Give one truth value more than ids.")
    places = np.arange(lengths.size + 1)
    last = np.maximum.accumulate(np.where(borders, places, 0))  # the last border at or before each place
    ends = last[places[:-1] + lengths]
    return np.where(borders[:-1], np.maximum(ends - places[:-1], 0), 0)


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
