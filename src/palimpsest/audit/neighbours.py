"""Neighbours of a text without a masked language model: spans replaced by what the corpus' bigrams let follow.

The neighbourhood attack (Mattern et al., ACL Findings 2023, arXiv 2305.18462) compares a text's likelihood with that of slightly
changed texts, which it draws from a masked language model. Offline, the replacements here are drawn from the next-token counts of
an index: a member loses more likelihood by the change than a text that is merely easy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from palimpsest.errors import InputError

if TYPE_CHECKING:
    from palimpsest.corpus import CorpusIndex


def ngram_neighbours(
    rows: Sequence[np.ndarray], index: CorpusIndex, n: int = 25, share: float = 0.3, span: int = 2, seed: int = 0
) -> list[np.ndarray]:
    """`n` changed copies of every row: about `share` of its tokens replaced, in spans of `span`.

    The first token is never replaced: it has no context. Every replacement differs from the token it replaces and is drawn from the
    tokens that follow its predecessor in the corpus, by their counts; where nothing else follows it, from all tokens of the corpus.

    Args:
        rows: ids, each of at least 2 tokens.
        index: the corpus; ids of the rows' tokenizer.
        n, share, span: see above; at least one span is replaced.
        seed: of the places and the draws.

    Returns:
        len(rows) * n rows, those of one text together.

    Raises:
        InputError: no row, a row of one token, or numbers out of range.
    """
    if not rows or min(map(len, rows)) < 2 or n < 1 or span < 1 or not 0 < share <= 1:
        raise InputError(f"{len(rows)} rows, n {n}, share {share}, span {span}.", "Give rows of at least 2 tokens, n and span >= 1.")
    rng = np.random.default_rng(seed)
    changed = [row.copy() for row in rows for _ in range(n)]
    place_row, place = [], []
    for number, row in enumerate(changed):
        starts = np.arange(1, len(row), span)
        chosen = rng.choice(starts, size=min(len(starts), max(1, round(share * len(row) / span))), replace=False)
        place_row.append(np.full(len(chosen), number))
        place.append(chosen)
    owner, start = np.concatenate(place_row), np.concatenate(place)
    lengths = np.array([len(row) for row in changed])
    begins = np.cumsum(lengths) - lengths
    flat = np.concatenate(changed)
    draw = _Bigrams(index, rng)
    for offset in range(span):
        inside = start + offset < lengths[owner]
        at = begins[owner[inside]] + start[inside] + offset
        flat[at] = draw(flat[at - 1], flat[at])
    return np.split(flat, np.cumsum(lengths)[:-1])


class _Bigrams:
    """Draws what follows a token in the corpus, never the token that stands there."""

    def __init__(self, index: CorpusIndex, rng: np.random.Generator) -> None:
        self.index, self.rng = index, rng
        self.tokens, self.counts = index.next_tokens([])
        if len(self.tokens) < 2:
            raise InputError(f"The corpus holds {len(self.tokens)} different tokens.", "Give a corpus with at least 2.")

    def __call__(self, previous: np.ndarray, present: np.ndarray) -> np.ndarray:
        out = np.empty_like(present)
        uniform = self.rng.random(len(present))
        for context in np.unique(previous).tolist():
            members = np.flatnonzero(previous == context)
            known = np.searchsorted(self.tokens, context)
            found = self.index.next_tokens([context]) if known < len(self.tokens) and self.tokens[known] == context else None
            drawn = self._draw(*found, present[members], uniform[members]) if found else np.full(len(members), -1)
            lost = drawn < 0
            drawn[lost] = self._draw(self.tokens, self.counts, present[members[lost]], uniform[members[lost]])
            out[members] = drawn
        return out

    @staticmethod
    def _draw(tokens: np.ndarray, counts: np.ndarray, present: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """One of `tokens` by its count for each of `present`, which is itself left out; -1 where nothing else is there."""
        if len(tokens) == 0:
            return np.full(len(present), -1)
        ends = np.cumsum(counts)
        at = np.minimum(np.searchsorted(tokens, present), len(tokens) - 1)
        mass = np.where(tokens[at] == present, counts[at], 0)  # the present token's share of the line, cut out of it
        left = ends[-1] - mass
        point = np.minimum(np.floor(uniform * left), left - 1)
        point = point + np.where((mass > 0) & (point >= ends[at] - mass), mass, 0)
        drawn = tokens[np.minimum(np.searchsorted(ends, point, side="right"), len(tokens) - 1)]
        return np.where(left > 0, drawn, -1)
