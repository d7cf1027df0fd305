"""A text traced to its sources, with everything in characters: what the command line, the page and the report show.

`CorpusIndex.trace` speaks of token ids; here the same spans stand in the text itself, with what surrounds them in their documents
and all documents ranked (Liu et al., *OLMoTrace*, 2025, arXiv 2504.07096).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from palimpsest.corpus.trace import merge_spans, rank_documents
from palimpsest.tokenizer import Tokenizer

if TYPE_CHECKING:
    from palimpsest.corpus.index import CorpusIndex

KEPT = 0.05  # share of the text's length that OLMoTrace keeps as spans


@dataclass(frozen=True)
class TracedSpan:
    """A passage of a text that stands in the corpus.

    Attributes:
        start, end: where in the text, in characters, half-open.
        tokens: the same in tokens.
        count: how often it occurs in the corpus.
        bits: −log2 of the product of its tokens' unigram probabilities: the more, the rarer.
        documents: {"document", "index", "before", "match", "after"}: documents that hold it, with their text around it.
    """

    start: int
    end: int
    tokens: tuple[int, int]
    count: int
    bits: float
    documents: list[dict[str, Any]]


@dataclass(frozen=True)
class TracedText:
    """A text and what of it stands in the corpus.

    Attributes:
        text: the text, `"".join(tokenizer.pieces(ids))`.
        tokens: its length.
        spans: the passages in the order of the text; they may overlap, none lies within another.
        passages: the stretches that they cover, (start, end) in characters; overlapping spans are one stretch.
        documents: {"document", "index", "score", "spans", "metadata"}: all documents, the nearest to the whole text first; "spans"
            are numbers of `spans`.
        covered: share of the tokens inside a span.
    """

    text: str
    tokens: int
    spans: list[TracedSpan]
    passages: list[tuple[int, int]]
    documents: list[dict[str, Any]]
    covered: float

    def to_dict(self) -> dict[str, Any]:
        """The traced text as plain JSON types."""
        return asdict(self)


def trace_text(
    index: CorpusIndex,
    tokenizer: Tokenizer,
    ids: Sequence[int] | np.ndarray,
    *,
    min_len: int = 8,
    max_docs: int = 10,
    context: int = 50,
    max_spans: int | None = None,
    whole_words: bool = False,
) -> TracedText:
    """Traces a text.

    Args:
        index: the corpus, of the tokenizer's ids.
        tokenizer: what made `ids`.
        ids: the text, (T,); no ids give a text without spans.
        min_len: shorter passages are left out, in tokens.
        max_docs: documents named for each passage.
        context: tokens of a document shown before and after a passage.
        max_spans: only so many passages, the rarest ones; `rarest(T)` is the paper's number. None: all.
        whole_words: passages begin and end between words; else they may begin or end inside one.

    Raises:
        InputError: `min_len` below 1, or ids that no document can contain.

    Example:
        >>> traced = trace_text(index, index.tokenizer, index.tokenizer.encode("It was the best of times"))  # doctest: +SKIP
        >>> [(traced.text[span.start : span.end], span.count) for span in traced.spans]                       # doctest: +SKIP
    """
    row = np.asarray(ids, np.int64)
    pieces = tokenizer.pieces(row)
    ends = np.cumsum([0, *(len(piece) for piece in pieces)])
    text = "".join(pieces)
    borders = word_borders(pieces) if whole_words else None
    found = index.trace(row, min_len, max_docs, max_spans, context=context, borders=borders) if row.size else []
    # A run of pieces that complete no character has no place in the text.
    found = [span for span in found if ends[span.start] < ends[span.end]]
    spans = [
        TracedSpan(
            int(ends[span.start]),
            int(ends[span.end]),
            (span.start, span.end),
            span.count,
            -span.score / math.log(2),
            [
                {
                    "document": hit.doc_id,
                    "index": hit.index,
                    **{name: tokenizer.decode(getattr(hit, name)) for name in ("before", "match", "after")},
                }
                for hit in span.hits
            ],
        )
        for span in found
    ]
    merged = merge_spans(found)
    documents = [
        {"document": d.doc_id, "index": d.index, "score": d.score, "spans": list(d.spans), "metadata": d.metadata}
        for d in rank_documents(index, row, found)
    ]
    covered = sum(end - start for start, end in merged) / row.size if row.size else 0.0
    return TracedText(text, row.size, spans, [(int(ends[a]), int(ends[b])) for a, b in merged], documents, covered)


def rarest(tokens: int) -> int:
    """How many passages OLMoTrace keeps of a text of so many tokens: ⌈0.05 T⌉.

    Example:
        >>> rarest(500), rarest(3)
        (25, 1)
    """
    return math.ceil(KEPT * tokens)


def word_borders(pieces: Sequence[str]) -> np.ndarray:
    """Where the text of `pieces` may be cut without cutting a word: bool (T + 1,), entry i the place before piece i.

    A place lies inside a word when a letter or digit stands on both of its sides, or when it lies inside a character that several
    tokens make up (all but the last of them carry no text).

    Example:
        >>> word_borders(["The", " pal", "im", "psest", "."]).tolist()
        [True, True, False, False, True, True]
    """
    text = "".join(pieces)
    borders = np.ones(len(pieces) + 1, np.bool_)
    place = 0  # in characters
    for i, piece in enumerate(pieces):
        within = i > 0 and not pieces[i - 1]
        borders[i] = not within and not (text[place - 1 : place].isalnum() and text[place : place + 1].isalnum())
        place += len(piece)
    return borders
