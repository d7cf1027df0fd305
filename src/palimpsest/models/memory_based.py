"""A memory-based language model: the next token is a vote of the nearest stored contexts. No gradient, no weights, any processor.

Van den Bosch, Risco Patón, Buijse, Berck & Van Gompel, *Memory-based Language Models: An Efficient, Explainable, and Eco-friendly
Approach to Large Language Modeling*, 2025, arXiv 2510.22317. Their OLIFANT stands on TiMBL, whose rules are followed here to the tie.

Every position of every document is an instance: its class is the token, its feature j the token j places before, padding where the
document begins later. Feature j weighs its gain ratio (H(C) − H(C | f_j)) / H(f_j); the distance of two contexts is the weight of the
features in which they differ. With the features in the order of their weights,

* **igtree** answers from the deepest node of the tree of features that the context reaches;
* **ib1** from all instances at the k smallest distinct distances;
* **tribl2** descends like igtree and, where the next feature's value is missing, asks ib1 among the instances of that node.

The class with most votes wins. Of several, ib1 and tribl2 first ask one ring of neighbours more (tribl2 not after a full match), and
if that does not decide, the class that is more frequent in all of the text wins, then the lower id.

A vote leaves most tokens at 0. `backoff="stop"` takes it as the distribution, `backoff="interpolate"` discounts it along the path in
the tree (absolute discounting; Ney, Essen & Kneser, Computer Speech and Language 8, 1994):

    p_j(c) = max(m_j(c) − D, 0) / m_j + λ_j p_{j−1}(c),    p_{−1}(c) = 1 / vocabulary,

with m_j(c) instances of class c among the m_j at the node of level j, level 0 being all, and λ_j what the discounts leave, so that
rows sum to 1. Neighbours that are no node of the path (ib1, tribl2) stand on top as one level more.

Departures. *Pruning*: TiMBL cuts off branches of IGTree that do not change the answer; here nodes cost nothing, and an answer comes
with the votes of the deepest one. *Windowing*: OLIFANT leaves out the last token of every block; here every token is learnt.
*Last tie-break*: TiMBL's is which class it met first; here the lower id, so that the order of the documents changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from palimpsest.corpus.documents import Docs, as_documents
from palimpsest.corpus.staging import batches
from palimpsest.corpus.tokens import encode_documents
from palimpsest.errors import CorpusError, InputError
from palimpsest.models import _ragged as ragged
from palimpsest.models._explanation import Neighbour, explain
from palimpsest.models._memory import Contexts, Memory
from palimpsest.models._ragged import Votes
from palimpsest.models._voting import BLOCK, DECAYS, Voting, deepest
from palimpsest.models._window_index import Nodes
from palimpsest.tokenizer import Tokenizer

CHOICES = {
    "algorithm": ("igtree", "ib1", "tribl2"),
    "weights": ("gr", "ig", "none"),
    "decay": tuple(DECAYS),
    "backoff": ("interpolate", "stop"),
}
MAX_FEATURES = 255
WINNERS = 64 * BLOCK  # contexts whose winners are sought at once
DENSE = 1 << 24  # the largest vocabulary of which whole rows of probabilities are made


class MemoryBasedLM:
    """A language model that keeps its training text and predicts by analogy with it.

    Args:
        n: features, the length of a context: 0 (frequencies alone) to 255.
        algorithm: "igtree", "ib1" or "tribl2".
        k: how many distinct distances ib1 and tribl2 look at.
        weights: "gr" (gain ratio), "ig" (information gain) or "none" (all 1).
        decay: how a vote falls with the distance d: "none", "inverse" (1/d), "linear" (from 1 at the nearest to 0 at the furthest,
            Dudani 1976) or "exponential" (exp −d).
        backoff: "interpolate" or "stop", see the module's docstring.
        discount: D, between 0 and 1.

    Attributes:
        tokenizer: of the documents, or None.
        vocab_size: how many ids there are.
        memory: what is stored.

    Raises:
        InputError: a value out of range.

    Example:
        >>> model = MemoryBasedLM(n=2).fit([[0, 1, 2, 3], [5, 1, 2, 3, 4]])
        >>> model.predict([[1, 2], [2, 3]]).tolist()
        [3, 4]
        >>> [(near.document, near.offset) for near in model.explain([1, 2])]
        [(0, 3), (1, 3)]
    """

    def __init__(
        self,
        n: int = 4,
        algorithm: Literal["igtree", "ib1", "tribl2"] = "igtree",
        k: int = 1,
        weights: Literal["gr", "ig", "none"] = "gr",
        decay: Literal["none", "inverse", "linear", "exponential"] = "none",
        backoff: Literal["interpolate", "stop"] = "interpolate",
        discount: float = 0.75,
    ) -> None:
        for name, number, low in (("n", n, 0), ("k", k, 1)):
            if isinstance(number, bool) or not isinstance(number, int | np.integer) or not low <= number <= MAX_FEATURES:
                raise InputError(f"{name} is {number!r}.", f"Give an integer from {low} to {MAX_FEATURES}.")
        for name, choice in (("algorithm", algorithm), ("weights", weights), ("decay", decay), ("backoff", backoff)):
            if choice not in CHOICES[name]:
                raise InputError(f"{name} is {choice!r}.", f"Choose one of {', '.join(CHOICES[name])}.")
        if algorithm == "igtree" and (k != 1 or decay != "none"):
            raise InputError(f"igtree asks a single node; k={k} and decay={decay!r} mean nothing to it.", "Take ib1 or tribl2.")
        if not 0 < discount < 1:
            raise InputError(f"discount is {discount}.", "Give a number between 0 and 1, such as 0.75.")
        self.n, self.algorithm, self.k, self.decay = int(n), algorithm, int(k), decay
        self.backoff, self.discount, self.weighting = backoff, float(discount), weights
        self.tokenizer: Tokenizer | None = None
        self.vocab_size = 0
        self.memory = Memory(self.n, weights)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that make an empty model of this kind."""
        names = ("n", "algorithm", "k", "decay", "backoff", "discount")
        return {"weights": self.weighting} | {name: getattr(self, name) for name in names}

    def fit(self, docs: Docs, tokenizer: Tokenizer | None = None, *, vocab_size: int | None = None) -> MemoryBasedLM:
        """Learns `docs` and forgets what was there before.

        Args:
            docs: a path (see `read_documents`), or an iterable of `Document`, text, or rows of token ids.
            tokenizer: turns text into ids; None when all documents are ids.
            vocab_size: how many ids there are; by default the tokenizer's number, at least the greatest id and one.

        Raises:
            CorpusError: no documents, or no tokens in them.
            InputError: an id above 2³² − 2, text without a tokenizer, more than 2³² − 1 tokens.
        """
        learner = MemoryBasedLM(**self.settings)
        learner.tokenizer = tokenizer
        learner.vocab_size = max(vocab_size or 0, tokenizer.vocab_size if tokenizer else 0)
        learner.partial_fit(docs)
        if not len(learner.memory):
            raise CorpusError("There is nothing to learn: the documents have no tokens.", "Give at least one document with one token.")
        self.tokenizer, self.vocab_size, self.memory = learner.tokenizer, learner.vocab_size, learner.memory
        return self

    def partial_fit(self, docs: Docs) -> MemoryBasedLM:
        """Learns `docs` in addition: the answers are then those of one `fit` to everything. See `_memory` for what it costs."""
        return self._learn(docs)

    def forget(self, sources: Iterable[str]) -> MemoryBasedLM:
        """Forgets the documents of these names: the model is then one that was fitted to the others alone.

        Everything that is left is sorted anew; `vocab_size` stays.

        Raises:
            InputError: a name that no document has.
            CorpusError: nothing would be left.
        """
        gone = set(sources)
        if unknown := gone - set(self.memory.sources):
            raise InputError(f"There is no document {min(unknown)!r} to forget.", "Give names that are in memory.sources.")
        rows = [(row, name) for row, name in zip(self.memory.documents(), self.memory.sources, strict=True) if name not in gone]
        if not any(row.size for row, _ in rows):
            raise CorpusError("Nothing would be left of the model.", "Keep at least one document with one token.")
        self.memory = Memory(self.n, self.weighting)
        self.memory.learn([row for row, _ in rows], [name for _, name in rows])
        return self

    def remembering(self, docs: Docs) -> MemoryBasedLM:
        """A model that also knows `docs`, under the weights of this one, which stays as it is; both share what this one knows."""
        self.memory.settle()
        other = MemoryBasedLM(**self.settings)
        other.tokenizer, other.vocab_size, other.memory = self.tokenizer, self.vocab_size, self.memory.copy()
        return other._learn(docs, overlay=True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model to a folder; see `memory_files`."""
        from palimpsest.models.memory_files import save_memory

        save_memory(self, path)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], mode: Literal["mmap", "ram"] = "mmap", verify: bool | Literal["auto"] = "auto"
    ) -> MemoryBasedLM:
        """Opens what `save` wrote, by default without reading it into memory; see `memory_files`."""
        from palimpsest.models.memory_files import load_memory

        return load_memory(path, mode, verify)

    def _learn(self, docs: Docs, *, overlay: bool = False) -> MemoryBasedLM:
        found = list(self._rows(docs))
        if found:
            self.memory.learn([row for row, _ in found], [name for _, name in found], overlay=overlay)
            self.vocab_size = max(self.vocab_size, int(self.memory.ids.max(initial=0)) + 1)
        return self

    def _rows(self, docs: Docs) -> Iterator[tuple[np.ndarray, str]]:
        """The ids u32 and the name of every document."""
        for batch, _, _ in batches(as_documents(docs)):
            flat, lengths, _ = encode_documents(batch, self.tokenizer, np.dtype("<u4"))
            ends = np.cumsum(lengths + 1)
            for doc, end, length in zip(batch, ends.tolist(), lengths.tolist(), strict=True):
                yield flat[end - length : end], str(doc.id)

    # --- answers ------------------------------------------------------------------------------------------------------------------

    def predict(self, contexts: Contexts) -> np.ndarray:
        """The token that wins the vote after every context: int64 (Q,).

        Args:
            contexts: rows of ids, oldest first, of which the last n count; a shorter row begins a document.
        """
        codes = self.memory.encode(contexts)
        return self._winners(codes)

    def distribution(self, contexts: Contexts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The votes after every context.

        Returns:
            offsets int64 (Q + 1,), ids int64 and votes float64: row q is the stretch offsets[q] : offsets[q + 1] of the other two.
        """
        codes = self.memory.encode(contexts)
        tables = [self._voting.vote(codes[part], *self.memory.descend(codes[part])).votes for part in _parts(len(codes), BLOCK)]
        lengths = _joined([np.diff(table[0]) for table in tables], np.int64)
        ids = self.memory.ids[_joined([table[1] for table in tables], np.int64)].astype(np.int64)
        return np.concatenate([[0], np.cumsum(lengths)]), ids, _joined([table[2] for table in tables], np.float64)

    def probabilities(self, contexts: Contexts) -> np.ndarray:
        """The whole distribution after every context: float64 (Q, vocab_size).

        Raises:
            InputError: a vocabulary of more than 2²⁴ ids.
        """
        if self.vocab_size > DENSE:
            raise InputError(f"A row of {self.vocab_size:,} probabilities is too long.", "Use logprobs or distribution, or lower ids.")
        codes = self.memory.encode(contexts)
        out = np.zeros((len(codes), self.vocab_size))
        for part in _parts(len(codes), BLOCK):
            self._fill(codes[part], out[part])
        return out

    def logprobs(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Natural log-probability of every token of a document, the first one included: float64 (T,).

        With `backoff="stop"` a token without a vote has −inf.
        """
        codes, classes = self.memory.windows(ids)
        parts = _parts(len(codes), WINNERS if self.algorithm == "igtree" else BLOCK)  # igtree holds no neighbours
        with np.errstate(divide="ignore"):
            return np.log(_joined([self._targets(codes[part], classes[part]) for part in parts], np.float64))

    def evaluate(self, docs: Docs) -> dict[str, float]:
        """How well the model foretells documents that it has or has not learnt.

        Returns:
            tokens; accuracy, the share that wins the vote; nll, the mean of −log p in nat (infinite when a token has none);
            n_zero, tokens without a probability; depth, the mean number of features that the tree agrees in.

        Raises:
            CorpusError: no tokens.
        """
        hits, total, zero, deep, loss = 0, 0, 0, 0, 0.0
        for row, _ in self._rows(docs):
            codes, _ = self.memory.windows(row)
            hits += int(np.count_nonzero(self._winners(codes) == row))
            logprobs = self.logprobs(row)
            zero += int(np.count_nonzero(np.isneginf(logprobs)))
            loss -= float(logprobs.sum())
            deep += int(deepest(self.memory.descend(codes)[1]).sum())
            total += row.size
        if not total:
            raise CorpusError("There is nothing to evaluate: the documents have no tokens.", "Give at least one token.")
        return {"tokens": total, "accuracy": hits / total, "nll": loss / total, "n_zero": zero, "depth": deep / total}

    def explain(self, context: Sequence[int] | np.ndarray, top: int = 10, token: int | None = None) -> list[Neighbour]:
        """The training positions that have a vote after `context`, the nearest first, then the earliest.

        Args:
            context: ids, oldest first.
            top: at most so many.
            token: only those that vote for this one.
        """
        return explain(self._voting, context, top, token)

    @property
    def _voting(self) -> Voting:
        return Voting(self.memory, self.algorithm, self.k, self.decay)

    def _winners(self, codes: np.ndarray) -> np.ndarray:
        """The ids that win after the contexts: int64 (Q,)."""
        found = [self._voting.winners(codes[part]) for part in _parts(len(codes), WINNERS)]
        return self.memory.ids[_joined(found, np.int64)].astype(np.int64)

    def _targets(self, codes: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """The probability (Q,) of one class (Q,) after every context."""
        nodes, sizes = self.memory.descend(codes)
        rows, depth = np.arange(len(codes)), deepest(sizes)
        p = np.zeros(len(codes))
        if self.backoff == "stop" and self.algorithm == "igtree":
            return self.memory.count_occurrences(nodes, classes)[rows, depth] / sizes[rows, depth]
        if self.backoff == "interpolate":
            counts = self.memory.count_occurrences(nodes, classes)
            p += 1 / self.vocab_size
            for level in range(self.n + 1):
                some = sizes[:, level] > 0
                size, kinds = sizes[some, level], self.memory.count_classes(nodes, level)[some]
                p[some] = np.maximum(counts[some, level] - self.discount, 0) / size + self.discount * kinds / size * p[some]
        if self.algorithm != "igtree":
            ragged.discount_targets(p, *self._on_top(codes, nodes, sizes), classes, self._discount)
        return p

    def _fill(self, codes: np.ndarray, out: np.ndarray) -> None:
        """Writes the distributions (Q, vocab_size) after contexts to `out`, which is all 0."""
        nodes, sizes = self.memory.descend(codes)
        if self.backoff == "interpolate":
            total, kept = len(self.memory), np.maximum(self.memory.frequency - self.discount, 0)
            lowest = np.full(self.vocab_size, (total - kept.sum()) / total / self.vocab_size)
            lowest[self.memory.ids] += kept / total
            out[:] = lowest
            for level in range(1, self.n + 1):
                offsets, classes, votes = self.memory.votes(nodes, np.where(sizes[:, level] > 0, level, -1))
                ragged.discount_rows(out, offsets, self.memory.ids[classes], votes, self.discount)
        if self.backoff == "stop" or self.algorithm != "igtree":
            offsets, classes, votes = self._on_top(codes, nodes, sizes)
            ragged.discount_rows(out, offsets, self.memory.ids[classes], votes, self._discount)

    @property
    def _discount(self) -> float:
        return 0.0 if self.backoff == "stop" else self.discount

    def _on_top(self, codes: np.ndarray, nodes: list[Nodes], sizes: np.ndarray) -> Votes:
        """The votes that stand above the path in the tree: none where the voters are its deepest node and have been counted there."""
        ballot = self._voting.vote(codes, nodes, sizes, compare=self.backoff == "interpolate")
        if self.backoff == "stop":
            return ballot.votes
        rows = np.flatnonzero(ballot.on_path)
        return ragged.replace_rows(ballot.votes, rows, (np.zeros(rows.size + 1, np.int64), np.empty(0, np.int64), np.empty(0)))


def _parts(count: int, size: int) -> list[slice]:
    return [slice(begin, begin + size) for begin in range(0, count, size)]


def _joined(pieces: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *pieces])
