"""Texts matched by what they mean: the nearest of many items by the cosine of sentence embeddings, and how near unseen items come.

The matching of `palimpsest.audit.alignment` (Barbero et al. 2025, arXiv 2510.18554). The search is exact, in blocks of cosines; nothing is
approximate. A text that is longer than its embedder sees is matched by the best pair of its chunks with those of an item.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from rapidfuzz.distance import Indel, Levenshtein

from palimpsest.errors import InputError

Embedder = Callable[[Sequence[str]], np.ndarray]  # texts -> (texts, d) unit vectors
CALIBRATION = 0.999  # the quantile of held-out cosines that is taken for a threshold
_BLOCK = 1 << 22  # cosines held at once


class Matcher:
    """Training items, embedded once, to which texts are matched.

    Args:
        items: plain texts, none of them empty.
        embedder: texts to unit vectors; with a method `chunks`, longer texts are embedded in parts.

    Raises:
        InputError: no item, one without anything that the embedder reads, or vectors that are not of length 1.

    Example:
        >>> one_hot = lambda texts: np.eye(3)[[len(text) % 3 for text in texts]]
        >>> Matcher(["a", "bb"], one_hot).match(["cc"])["nearest"].to_list()
        [1]
    """

    def __init__(self, items: Sequence[str], embedder: Embedder) -> None:
        if isinstance(items, str) or not items or not all(item.strip() for item in items):
            raise InputError(f"There are {len(items)} items to match, {sum(not item.strip() for item in items)} of them empty.",
                             "Give one text or more, each with words.")  # fmt: skip
        self.items, self.embedder = list(items), embedder
        self._cut: Callable[[str], list[str]] | None = getattr(embedder, "chunks", None)
        self._vectors, self._starts = self._embedded(self.items)

    def reads(self, text: str) -> bool:
        """Whether the embedder finds anything in a text: not in white space, nor where its `chunks` cut nothing off (control characters).

        Example:
            >>> Matcher(["a"], lambda texts: np.ones((len(texts), 1))).reads(" ")
            False
        """
        return bool(text.strip()) and (self._cut is None or bool(self._cut(text)))

    def nearest(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """For each text the number of the nearest item (the lowest of equals) and its cosine, the best of all pairs of chunks."""
        vectors, starts = self._embedded(texts)
        found, cosines = np.empty(len(texts), np.int64), np.empty(len(texts))
        step = max(1, _BLOCK // len(self._vectors))
        first = 0
        while first < len(texts):
            last = int(np.searchsorted(starts, starts[first] + step, side="right")) - 1
            last = min(len(texts), max(first + 1, last))
            block = vectors[starts[first] : starts[last]] @ self._vectors.T
            block = np.maximum.reduceat(block, self._starts[:-1], axis=1)  # chunks of items
            block = np.maximum.reduceat(block, starts[first:last] - starts[first], axis=0)  # chunks of texts
            found[first:last] = block.argmax(axis=1)
            cosines[first:last] = block.max(axis=1)
            first = last
        return found, cosines

    def match(self, texts: Sequence[str]) -> pl.DataFrame:
        """One row a text: text, nearest, nearest_text, cosine, edit (Levenshtein's similarity) and indel of the two.

        Raises:
            InputError: no text, or an empty one.
        """
        found, cosines = self.nearest(texts)
        pairs = [(text, self.items[item]) for text, item in zip(texts, found, strict=True)]
        return pl.DataFrame(
            {
                "text": list(texts),
                "nearest": found,
                "nearest_text": [item for _, item in pairs],
                "cosine": cosines,
                "edit": [Levenshtein.normalized_similarity(text, item) for text, item in pairs],
                "indel": [Indel.normalized_similarity(text, item) for text, item in pairs],
            }
        )

    def calibrate(self, held_out: Sequence[str], quantile: float = CALIBRATION) -> float:
        """The cosine that only 1 − quantile of held-out texts of the same source exceed: what is this near need not have been seen.

        Raises:
            InputError: a quantile outside (0, 1).
        """
        if not 0 < quantile < 1:
            raise InputError(f"The quantile is {quantile}.", "Give a number between 0 and 1.")
        return float(np.quantile(self.nearest(held_out)[1], quantile))

    def _embedded(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of all chunks, (chunks, d) float32, and where each text's begin, (texts + 1,)."""
        if isinstance(texts, str) or not len(texts) or not all(text.strip() for text in texts):
            raise InputError("There is no text to match, or an empty one.", "Leave empty samples out; measure_alignment counts them.")
        parts = [self._cut(text) if self._cut is not None else [text] for text in texts]
        if not all(parts):  # it would be given the cosine of the text behind it
            raise InputError(f"The embedder reads nothing in {texts[[bool(part) for part in parts].index(False)]!r}.", "Leave it out.")
        starts = np.cumsum([0, *(len(part) for part in parts)])
        vectors = np.asarray(self.embedder([chunk for part in parts for chunk in part]), np.float32)
        if vectors.ndim != 2 or len(vectors) != starts[-1] or not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
            raise InputError(f"The embedder gave vectors of shape {vectors.shape} for {starts[-1]} texts.", "It must return unit vectors.")
        return vectors, starts
