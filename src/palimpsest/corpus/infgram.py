"""Which tokens follow a context in the corpus: n-gram and ∞-gram distributions.

The ∞-gram model is of Liu, Min, Zettlemoyer, Choi & Hajishirzi, *Infini-gram: Scaling Unbounded n-gram Language Models to a Trillion
Tokens*, COLM 2024, arXiv 2401.17377. Of the prompt p it takes the longest suffix that the corpus knows, of n* tokens:

    P(w | p) = count(p[-n*:] w) / total,   total = Σ_w count(p[-n*:] w).

It departs from the paper at the ends of documents. Infini-gram counts an end as one more token, so that a suffix that stands only at
ends predicts nothing else. Here n* is the longest suffix that occurs `min_count` times *and is followed by a token at least once*; ends
are counted apart (`eod_count`), and the probabilities of the tokens sum to 1. A prompt of which no suffix will do gives n* = 0: the
frequencies of all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from palimpsest.corpus import continuations, shard_answers
from palimpsest.corpus.cluster_shards import ClusterShards
from palimpsest.corpus.shard import Shards
from palimpsest.corpus.shard_answers import Stretch
from palimpsest.corpus.tokens import as_contexts, as_query, foreign_id, require_ids
from palimpsest.errors import InputError

_Stretches = list[Stretch]  # one for every shard


@dataclass(frozen=True)
class NextTokenDist:
    """Which tokens follow a context in the corpus, and how often.

    Attributes:
        ids: int64 (k,): the tokens, ascending.
        counts: int64 (k,): how often each follows, all positive.
        total: their sum: occurrences of the context that a token follows.
        suffix_len: tokens of the context: the whole prompt, or the suffix that the ∞-gram found.
        eod_count: occurrences at the end of a document, which no token follows; not in `total`. The empty context ends them all.
        approx: whether `counts` are estimated from a sample; `total` and `eod_count` are always exact.
    """

    ids: np.ndarray
    counts: np.ndarray
    total: int
    suffix_len: int
    eod_count: int
    approx: bool

    @property
    def probs(self) -> np.ndarray:
        """float64 (k,), summing to 1; empty when nothing follows."""
        return self.counts / self.total if self.total else np.empty(0)


class NextTokenQueries:
    """The part of `CorpusIndex` that says what follows a context.

    Prompts and contexts are token ids (list or integer array); an empty one is followed by every token of the corpus.
    """

    n_tokens: int
    n_documents: int
    _shards: Shards | ClusterShards
    _separator: int

    @cached_property
    def unigrams(self) -> tuple[np.ndarray, np.ndarray]:
        """All tokens of the corpus int64 (k,), ascending, and their counts int64 (k,)."""
        ids, counts = self._shards.merged(_sum, shard_answers.unigrams)
        for array in (ids, counts):
            array.flags.writeable = False  # every caller gets the same arrays
        return ids, counts

    def next_tokens(self, context: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which tokens follow `context` in the corpus, and how often: `ids` and `counts` of `ntd`.

        An occurrence at the end of a document is followed by none. An empty context gives the counts of all tokens.

        Returns:
            ids int64 (k,), ascending, and counts int64 (k,), all positive.
        """
        dist = self.ntd(context)
        return dist.ids, dist.counts

    def next_tokens_batch(self, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which tokens follow each of many contexts in the corpus.

        Args:
            contexts: int (rows, m). A row with an id that no document can contain (padding such as −1, or ids beyond the
                vocabulary that a model's output layer may have) occurs nowhere and is followed by nothing.

        Returns:
            offsets int64 (rows + 1,) and ids int64: ids[offsets[i]:offsets[i + 1]] follow contexts[i], ascending.
        """
        return self._shards.merged(_merge_rows, shard_answers.next_tokens_batch, as_contexts(contexts), self._separator)

    def ntd(self, prompt: Sequence[int] | np.ndarray, max_support: int | None = None, seed: int = 0) -> NextTokenDist:
        """The distribution of the token after the whole `prompt`.

        Equal tokens lie side by side in the suffix array, so k distinct ones are counted in O(k log N).

        Args:
            prompt: token ids (m >= 0).
            max_support: look at no more than so many occurrences. Beyond it the occurrences are cut, in the order of the suffix
                array, into so many equal stretches, and one of each, drawn uniformly, stands for all of its stretch: the counts are
                unbiased, sum to `total`, and differ from the true ones by less than two stretches in every shard. None is exact.
            seed: of that sample.

        Returns:
            `NextTokenDist`; with no ids when the prompt does not occur or ends a document wherever it does.

        Raises:
            InputError: an id that no document can contain, or `max_support` below 1.

        Example:
            >>> import pathlib, tempfile
            >>> from palimpsest.corpus import CorpusIndex
            >>> index = CorpusIndex.build([[1, 2, 3], [1, 2, 4], [1, 2]], None, pathlib.Path(tempfile.mkdtemp()) / "index")
            >>> dist = index.ntd([1, 2])
            >>> dist.ids.tolist(), dist.probs.tolist(), dist.eod_count
            ([3, 4], [0.5, 0.5], 1)
            >>> index.infgram_ntd([4, 4, 1, 2]).suffix_len, index.infgram_prob([4, 4, 1, 2], 3)
            (2, (1, 2, 2))
        """
        query = _as_prompt(prompt)
        return self._distribution(self._find(query), query.size, max_support, seed)

    def infgram_ntd(
        self, prompt: Sequence[int] | np.ndarray, min_count: int = 1, max_support: int | None = None, seed: int = 0
    ) -> NextTokenDist:
        """The ∞-gram distribution of the token after `prompt`.

        Args:
            prompt: token ids (m >= 0).
            min_count: occurrences that a suffix must have to be relied on.
            max_support, seed: as for `ntd`.

        Returns:
            `NextTokenDist`, never without ids: in the worst case all tokens of the corpus, with `suffix_len` 0.

        Raises:
            InputError: an id that no document can contain, `min_count` or `max_support` below 1.
        """
        suffix_len, stretches = self._longest_suffix(_as_prompt(prompt), min_count)
        return self._distribution(stretches, suffix_len, max_support, seed)

    def infgram_prob(self, prompt: Sequence[int] | np.ndarray, token: int, min_count: int = 1) -> tuple[int, int, int]:
        """The ∞-gram probability of `token` after `prompt`, as a fraction.

        Args:
            prompt: token ids (m >= 0).
            token: one id; it need not occur.
            min_count: occurrences that a suffix must have to be relied on.

        Returns:
            count, total, suffix_len: the probability is count / total, and total is positive.

        Raises:
            InputError: an id that no document can contain, or `min_count` below 1.
        """
        if not isinstance(token, int | np.integer):
            raise InputError(f"The token {token!r} is no id.", "Give an integer.")
        if not 0 <= token < self._separator:
            raise foreign_id(token, self._separator)
        suffix_len, stretches = self._longest_suffix(_as_prompt(prompt), min_count)
        found = self._shards.each(shard_answers.narrowed, suffix_len, int(token), self._separator, own=stretches)
        return sum(last - first for first, last, _ in found), sum(followed for _, _, followed in found), suffix_len

    def sequence_infgram(self, ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`infgram_prob(ids[:t], ids[t])` for every position t of a text, in one pass.

        With f[i] the length of the longest passage that starts at i, stands in the corpus and goes on there, the ends i + f[i] never
        decrease, and the suffix for t begins at the least i with i + f[i] >= t. While it begins at the same place, its
        stretch of the suffix array is only narrowed by the next token: a long copy costs a few searches, not one a token.

        Args:
            ids: token ids (T >= 1).

        Returns:
            count, total, suffix_len, each int64 (T,).

        Raises:
            InputError: no ids, or one that no document can contain.
        """
        query = as_query(ids)
        require_ids(query, self._separator)
        lengths = self._shards.merged(np.maximum, shard_answers.matches, query, self._separator)
        positions = np.arange(query.size)
        begins = np.searchsorted(positions + lengths, positions)
        counts, totals = self._shards.merged(np.add, shard_answers.next_rows, query, begins, self._separator)
        return counts, totals, positions - begins

    def _find(self, query: np.ndarray) -> _Stretches:
        """The stretch of every shard whose suffixes begin with `query` (m >= 0)."""
        if query.size == 0:
            return self._shards.each(shard_answers.everything)
        stretches = self._shards.each(shard_answers.stretch, query, self._separator)
        if stretches[0][0] < 0:
            raise foreign_id(query[stretches[0][1]], self._separator)
        return stretches

    def _longest_suffix(self, prompt: np.ndarray, min_count: int) -> tuple[int, _Stretches]:
        """n* and the stretches of that suffix. Counts add over the shards, and so does whether it goes on."""
        _require_positive("min_count", min_count)
        found = self._shards.each(shard_answers.longest_suffix, prompt, min_count, self._separator)
        if found[0][0] < 0:
            raise foreign_id(prompt[found[0][1]], self._separator)
        if len(found) == 1:
            return found[0][0], [found[0][1:]]
        longest = max(n for n, _, _ in found)
        if min_count > 1:  # a longer suffix may reach it over several shards, but none is longer than what one of them continues
            limit = max(n for n, _, _ in self._shards.each(shard_answers.longest_suffix, prompt, 1, self._separator))
            while longest < limit:
                n = (longest + limit + 1) // 2
                if sum(hi - lo for lo, hi in self._find(prompt[prompt.size - n :])) >= min_count:
                    longest = n
                else:
                    limit = n - 1
        return longest, self._find(prompt[prompt.size - longest :])

    def _distribution(self, stretches: _Stretches, depth: int, max_support: int | None, seed: int) -> NextTokenDist:
        """What comes at `depth` in the suffixes of `stretches`."""
        if max_support is not None:
            _require_positive("max_support", max_support)
        if depth == 0:
            return NextTokenDist(*self.unigrams, self.n_tokens, 0, self.n_documents, False)
        kept = self._shards.each(shard_answers.followed, depth, self._separator, own=stretches)
        total = sum(hi - lo for lo, hi in kept)
        eod_count = sum(hi - lo for lo, hi in stretches) - total
        approx = max_support is not None and total > max_support
        if max_support is not None and approx:
            parts = _sample(self._shards, kept, depth, max_support, seed)
        else:
            parts = self._shards.each(shard_answers.branches, depth, own=kept)
        return NextTokenDist(*_sum_over_shards(parts), total, depth, eod_count, approx)


def _as_prompt(prompt: Sequence[int] | np.ndarray) -> np.ndarray:
    """`prompt` as int64 (m,), m >= 0; raises `InputError` when it is not that."""
    ids = np.asarray(prompt)
    if ids.ndim == 1 and ids.size == 0:
        return np.empty(0, np.int64)
    return as_query(ids)


def _require_positive(name: str, value: int) -> None:
    if not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} is {value!r}.", "Give a whole number of at least 1.")


def _sample(shards: Shards | ClusterShards, stretches: _Stretches, depth: int, size: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """One suffix, drawn uniformly, from each of `size` equal parts of the stretches: its token at `depth`, counted as its whole part."""
    borders = np.cumsum([0] + [hi - lo for lo, hi in stretches])
    quotient, rest = divmod(int(borders[-1]), size)
    edges = np.arange(size + 1) * quotient + np.arange(size + 1) * rest // size
    ranks = np.random.default_rng(seed).integers(edges[:-1], edges[1:])
    weights = np.diff(edges)
    cuts = np.searchsorted(ranks, borders)
    chosen = [
        (ranks[first:last] - start + lo, weights[first:last])
        for (lo, _), start, first, last in zip(stretches, borders, cuts, cuts[1:], strict=False)
    ]
    return shards.each(shard_answers.weighted_tokens, depth, own=chosen)


def _sum_over_shards(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and counts of all shards together; ids ascend in every part and in the answer."""
    if len(parts) == 1:
        return parts[0]
    ids, place = np.unique(np.concatenate([part for part, _ in parts]), return_inverse=True)
    return ids, np.bincount(place, np.concatenate([counts for _, counts in parts]), ids.size).astype(np.int64)


def _sum(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return _sum_over_shards([one, other])


def _merge_rows(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return continuations.merge_rows(*one, *other)
