"""Decoding that cannot leave a set: titles of a list, or passages of documents.

Constrained decoding as in De Cao et al., *Autoregressive Entity Retrieval* (ICLR 2021, arXiv 2010.00904; a trie of titles) and Bevilacqua
et al., *Autoregressive Search Engines* (NeurIPS 2022, arXiv 2204.10628; an index of a corpus): at every step all tokens get the logit −∞
but those with which what is written so far goes on to something in the set. Where it may be complete, EOS is admitted: a title that
begins another is reached as well as the other. The rest of the logits stay as they are: the scores of beam search are log-probabilities
of the unconstrained model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from transformers import LogitsProcessor

from palimpsest.errors import InputError

Ids = tuple[int, ...]


class Constraint(Protocol):
    """Says what may follow."""

    def allowed(self, written: Ids) -> tuple[np.ndarray, bool]:
        """Which ids may follow `written`, int64 ascending, and whether it may end there; nothing and False for what has left the set."""


class Followed(Protocol):
    """An index that knows what follows: a `CorpusIndex` or a `PassageIndex`."""

    def count(self, ids: Sequence[int]) -> int:
        """How often `ids` occurs."""

    def next_tokens(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Which tokens follow `ids`, and how often."""


class TrieConstraint:
    """What is written is one of a list of rows, to the end.

    Args:
        rows: token ids, each of at least one; equal rows count once.

    Raises:
        InputError: no row, or an empty one.

    Example:
        >>> trie = TrieConstraint([[5, 6], [5, 6, 7], [8]])
        >>> trie.allowed(()), trie.allowed((5, 6)), trie.allowed((9,))
        ((array([5, 8]), False), (array([7]), True), (array([], dtype=int64), False))
    """

    def __init__(self, rows: Iterable[Sequence[int]]) -> None:
        following: dict[Ids, set[int]] = {}
        self._whole: set[Ids] = set()
        for row in rows:
            ids = tuple(int(token) for token in row)
            if not ids:
                raise InputError("A row is empty.", "Give at least one id for each.")
            self._whole.add(ids)
            for cut in range(len(ids)):
                following.setdefault(ids[:cut], set()).add(ids[cut])
        if not self._whole:
            raise InputError("There are no rows.", "Give at least one.")
        self._following = {prefix: np.array(sorted(tokens), np.int64) for prefix, tokens in following.items()}

    def allowed(self, written: Ids) -> tuple[np.ndarray, bool]:
        """See `Constraint.allowed`."""
        return self._following.get(written, _NONE), written in self._whole


class IndexConstraint:
    """What is written is a passage of an index: `length` tokens, or fewer where a document ends with them.

    Args:
        index: a `CorpusIndex` or a `PassageIndex`.
        length: tokens of a passage.

    Raises:
        InputError: length < 1.

    Example:
        >>> from palimpsest.corpus.passages import PassageIndex
        >>> passages = IndexConstraint(PassageIndex([[1, 2, 3], [1, 2]]), 3)
        >>> passages.allowed((1, 2)), passages.allowed((2, 3)), passages.allowed((1, 2, 3))
        ((array([3]), True), (array([], dtype=int64), True), (array([], dtype=int64), True))
    """

    def __init__(self, index: Followed, length: int) -> None:
        if length < 1:
            raise InputError(f"A passage of {length} tokens cannot be written.", "Give at least 1.")
        self.index, self.length = index, length

    def allowed(self, written: Ids) -> tuple[np.ndarray, bool]:
        """See `Constraint.allowed`."""
        if not written:
            return self.index.next_tokens(written)[0], False
        if len(written) >= self.length:
            return _NONE, len(written) == self.length and self.index.count(written) > 0
        following, counts = self.index.next_tokens(written)
        return following, self.index.count(written) > int(counts.sum())


class ConstrainedLogits(LogitsProcessor):
    """A transformers `LogitsProcessor` that admits only what a constraint allows.

    Args:
        constraint: one for all prompts, or one for each: the ids of a prompt (as given to `HFModel.generate`) -> its constraint.
        eos_id: the id that ends a generation.
        bos_id: what the model puts in front of every prompt; None where it puts nothing.

    Raises:
        InputError: no prompt.

    Example:
        >>> processor = ConstrainedLogits(TrieConstraint([[2, 3]]), eos_id=0)
        >>> processor.start_batch([1], 1)
        >>> processor(torch.tensor([[4, 2]]), torch.zeros(1, 5))
        tensor([[-inf, -inf, -inf, 0., -inf]])
    """

    def __init__(self, constraint: Constraint | Mapping[Ids, Constraint], eos_id: int, bos_id: int | None = None) -> None:
        if isinstance(constraint, Mapping) and not constraint:
            raise InputError("There is no prompt.", "Give a constraint for at least one.")
        self.constraint, self.eos_id, self.bos_id = constraint, eos_id, bos_id
        self._lengths: list[int] | None = None
        self._width = 0

    def start_batch(self, prefix_lengths: Sequence[int], padded_length: int) -> None:
        """Tells where the prompts of the next batch stand, see `MemFreeProcessor.start_batch`; `HFModel.generate` does it."""
        self._lengths, self._width = list(prefix_lengths), padded_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Scores (rows, vocabulary) with −∞ for all that is not allowed; a row that has ended, or has left the set, gets EOS alone.

        Raises:
            InputError: rows that were not announced, or a prompt without a constraint.
        """
        if self._lengths is None or len(input_ids) % len(self._lengths) or input_ids.shape[1] < self._width:
            raise InputError(
                f"A batch of shape {tuple(input_ids.shape)} was not announced.",
                "Generate with HFModel.generate, or call start_batch(prefix_lengths, padded_length) before.",
            )
        beams = len(input_ids) // len(self._lengths)
        table = input_ids.tolist()
        owners, tokens = [], []
        for row, ids in enumerate(table):
            length = self._lengths[row // beams]
            written = tuple(ids[self._width :])
            following, may_end = _NONE, True
            if self.eos_id not in written:
                following, may_end = self._of(tuple(ids[self._width - length : self._width])).allowed(written)
            inside = following[following < scores.shape[1]]
            admitted = np.append(inside, self.eos_id) if may_end or not len(inside) else inside
            owners.append(np.full(len(admitted), row))
            tokens.append(admitted)
        at = tuple(torch.from_numpy(np.concatenate(part)).to(scores.device) for part in (owners, tokens))
        constrained = torch.full_like(scores, -torch.inf)
        constrained[at] = scores[at]
        return constrained

    def _of(self, prompt: Ids) -> Constraint:
        if not isinstance(self.constraint, Mapping):
            return self.constraint
        own = prompt[1:] if self.bos_id is not None and prompt[:1] == (self.bos_id,) and prompt not in self.constraint else prompt
        if own not in self.constraint:
            raise InputError(f"A prompt of {len(own)} ids has no constraint.", "Give one for every prompt that is continued.")
        return self.constraint[own]


_NONE = np.empty(0, np.int64)
