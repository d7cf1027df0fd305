"""The guard's approximate mode: passages that are only close to the protected corpus cannot be written either.

MemFree stops every protected n-gram and nothing else: a model that changes one token in ten goes on with the rest of the passage, which
is what its authors show (system 001). Here the n tokens may also differ from the corpus by k token edits, an *edit* being one token
inserted, deleted or replaced. This is not in the paper.

The rule. Let c be the last n - 1 tokens of prompt and generation. A token v is banned when it *continues a passage within k edits of c*:
when some window w of a document has d(c, w) <= k and v comes right after w. While fewer than n - 1 tokens stand there, say n - 1 - i,
the same holds with k - i edits, and nothing is banned below n - 1 - k tokens. With k = 0 this is MemFree, token for token.

What it guarantees. *The n tokens that end with the j-th generated one are more than min(k, j - 1) edits away from every passage of the
corpus*: from the (k + 1)-st on they are more than k edits away, and all of them are where the prompt has at most n - 1 - k tokens or is
no context (`include_prompt=False`). EOS, and violations that were counted, are excepted. Why: let m(j, i) be the least distance between
a window and the last n - i tokens after the j-th. If v continues no passage within k edits of c, it continues none within k - i edits
of the last n - 1 - i tokens of c either, and a token that matches nothing costs one edit: so m(j, i) is at least k - i + 1 or
m(j - 1, i + 1) + 1, whichever is less, hence at least min(j, k - i + 1).

Why not more. A prompt of n - 1 tokens that stands in the corpus is within one edit of it whatever comes next: to forbid this would be to
forbid every token. The guard bans what goes on with the passage, step by step, until k + 1 edits lie between.
For the same reason it never bans everything but where the passages near the context are followed by the whole vocabulary.

The banned set of all rows is found at once, exactly, by seed and extend in the suffix array (`CorpusIndex.next_tokens_near`): no search
for every token of the vocabulary, and no state from one step to the next, so beams, batches and padding need nothing special. It costs
about as much as there are places in the corpus where a (k + 1)-th part of the context stands: `benchmarks/guard.py` measures it. Give at
least three tokens to every part, n >= 3 (k + 1), or phrases that everybody uses are banned, and slowly. Only an index can answer; a
Bloom filter holds no passages.
"""

from __future__ import annotations

import numpy as np

from palimpsest.corpus import CorpusIndex
from palimpsest.errors import InputError


class NearPassages:
    """The passages of an index, each with all that is within k edits of it, as the guard asks for them (`guard.ngrams.NgramSource`).

    Args:
        index: the protected corpus.
        n: tokens of a window, more than `max_edits` + 1.
        max_edits: k >= 0.

    Raises:
        InputError: n so small that every window is near to everything.
    """

    def __init__(self, index: CorpusIndex, n: int, max_edits: int) -> None:
        if n < max_edits + 2:
            raise InputError(
                f"With {max_edits} edits allowed, {n - 1} tokens of context are near to every passage.",
                f"Give n of at least {max_edits + 2}; three times {max_edits + 1} is a good one.",
            )
        self.index, self.n, self.max_edits = index, n, max_edits
        self.shortest = n - 1 - max_edits
        self.tokenizer_fingerprint = index.tokenizer_fingerprint

    def contains(self, ngrams: np.ndarray) -> np.ndarray:
        """Which windows int64 (M, n) are within k edits of a passage: bool (M,)."""
        return self.index.nearest_distance(ngrams, self.max_edits) <= self.max_edits

    def next_tokens_batch(self, contexts: np.ndarray, vocab_size: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Every id that continues a passage near to contexts int64 (B, n - 1 - i), 0 <= i <= k: offsets int64 (B + 1,) and ids int64."""
        offsets, ids, _ = self.index.next_tokens_near(contexts, self._edits(contexts.shape[1]))
        return offsets, ids

    def rarest_next(self, context: np.ndarray) -> int | None:
        """The id that continues the fewest passages near to `context` (the lowest among ties); None where nothing does."""
        _, ids, counts = self.index.next_tokens_near(context[None], self._edits(len(context)))
        return int(ids[np.argmin(counts)]) if len(ids) else None

    def _edits(self, length: int) -> int:
        """The edits that a context of so many tokens may have."""
        return self.max_edits - (self.n - 1 - length)
