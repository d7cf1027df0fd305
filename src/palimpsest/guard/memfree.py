"""MemFree decoding: no protected n-gram can be written (system 001).

Ippolito, Tramèr, Nasr, Zhang, Jagielski, Lee, Choquette-Choo and Carlini, "Preventing Verbatim Memorization in Language Models Gives
a False Sense of Privacy", INLG 2023, arXiv 2210.17546.

Let D be the n-grams of the protected corpus and c the last n - 1 tokens of prompt and generation. Before a token is chosen, the
logit of every v with c v in D becomes -inf; what chooses (argmax, sampler, beams) then renormalises over the rest, which is the
same as to draw, check and draw again. So an n-gram of D never ends at a generated position, whatever the scheme. With fewer than
n - 1 tokens of context nothing is banned. Beams need nothing special: their contexts are the rows of `input_ids`.

The paper visits candidates from the most probable down and stops when enough are admitted. Here every banned token of the whole
vocabulary is found at once (a query of the suffix array, or a scan of a Bloom filter whose first stage leaves little to look up),
which is right for every decoding scheme without knowing it.

Decisions that the paper leaves open:

* **EOS is never banned** (`eos_id`): to end the text gives nothing away. Without `eos_id` no token is exempt; leave it out when
  generation goes on after EOS.
* **Everything is banned**: EOS is forced and counted. Without `eos_id` the least frequent continuation of the context in the corpus
  is let through and counted as a violation; a Bloom filter has no counts, so there it is the model's own first choice.
* **Left padding** never enters the context. `HFModel.generate` says how long every prompt is (`start_batch`). Under transformers'
  own `generate`, a run of `pad_id` at the left is taken for padding; a prompt that begins with real tokens of that id then
  loses these from its context, so call `start_batch` yourself where that can be.
* **Log-probs of beams** are not renormalised after the ban, as transformers does it for every processor unless
  `renormalize_logits` is set.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

from palimpsest.errors import InputError, TokenizerMismatchError
from palimpsest.guard.ngrams import NgramSource, Protected, as_source, banned_tokens
from palimpsest.models.base import LanguageModel


@dataclass
class GuardCounts:
    """What a guard did. A "choice" is one row at one step of decoding (for beam search, one beam).

    Attributes:
        choices: choices of rows that had not ended.
        guarded: choices at which at least one token was banned.
        blocked: choices at which the model's own first choice was banned.
        forced_eos: choices at which everything was banned and EOS forced.
        violations: choices at which everything was banned, there was no EOS, and a protected n-gram was let through.
    """

    choices: int = 0
    guarded: int = 0
    blocked: int = 0
    forced_eos: int = 0
    violations: int = 0

    def to_dict(self) -> dict[str, int]:
        """The counts as plain JSON types."""
        return asdict(self)


class MemFreeProcessor(LogitsProcessor):
    """A transformers `LogitsProcessor` that makes protected n-grams impossible.

    Args:
        source: what is protected: a `CorpusIndex`, a `BloomFilter`, an `NgramSet`, or a set of tuples of ids.
        n: tokens of an n-gram; None takes the source's own (10 for an index). n = 1 bans the vocabulary of the corpus.
        approximate: token edits k by which n tokens may differ from a passage and are still protected; more than 0 needs an index.
            What exactly is banned and guaranteed stands in `palimpsest.guard.approximate`; 0 is MemFree.
        tokenizer_fingerprint: of the model's tokenizer; compared with the source's when both are known.
        include_prompt: whether the tokens of the prompt are context too. False bans only n-grams that lie wholly in the
            generation (an n-gram that begins in the prompt may then be completed).
        eos_id: the id that ends a generation; see the module's docstring.
        pad_id: the id that pads prompts on the left, when `start_batch` is not called.

    Attributes:
        counts: `GuardCounts`, since the processor was made or `counts` was replaced.
        seconds: wall time spent in the guard, likewise.

    Raises:
        InputError: n < 1 or not the source's, or edits that the source cannot allow for.
        TokenizerMismatchError: source and model use different tokenizers.

    Example:
        >>> from palimpsest.guard import MemFreeProcessor, NgramSet
        >>> guard = MemFreeProcessor(NgramSet.from_documents([[1, 2, 3]], n=3))
        >>> guard(torch.tensor([[1, 2]]), torch.zeros(1, 5))
        tensor([[0., 0., 0., -inf, 0.]])
    """

    def __init__(
        self,
        source: Protected,
        n: int | None = None,
        *,
        approximate: int = 0,
        tokenizer_fingerprint: str | None = None,
        include_prompt: bool = True,
        eos_id: int | None = None,
        pad_id: int | None = None,
    ) -> None:
        self.source: NgramSource = as_source(source, n, approximate)
        own = self.source.tokenizer_fingerprint
        if tokenizer_fingerprint is not None and own is not None and own != tokenizer_fingerprint:
            raise TokenizerMismatchError(
                f"The protected n-grams were made with the tokenizer {own[:12]}, the model uses {tokenizer_fingerprint[:12]}.",
                "Build the index or filter again with this model's tokenizer.",
            )
        self.include_prompt, self.eos_id, self.pad_id = include_prompt, eos_id, pad_id
        self.counts = GuardCounts()
        self.seconds = 0.0
        self._prefix_lengths: np.ndarray | None = None
        self._padded_length = 0

    @classmethod
    def for_model(cls, model: LanguageModel, source: Protected, n: int | None = None, **options: Any) -> MemFreeProcessor:
        """A guard with the model's tokenizer, EOS and padding; `options` as for the constructor."""
        tokenizer = model.tokenizer
        special = {"tokenizer_fingerprint": tokenizer.fingerprint, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
        return cls(source, n, **{**special, **options})

    def start_batch(self, prefix_lengths: Sequence[int], padded_length: int) -> None:
        """Tells the guard what the next batch looks like; `HFModel.generate` does it.

        Args:
            prefix_lengths: tokens of every prompt, BOS included. A batch of k times as many rows (beams, several continuations)
                holds k consecutive rows for each prompt.
            padded_length: columns of `input_ids` before the first generated token.

        Raises:
            InputError: a prompt longer than `padded_length`, or none.
        """
        lengths = np.asarray(prefix_lengths, dtype=np.int64)
        if lengths.ndim != 1 or not len(lengths) or int(lengths.min()) < 0 or int(lengths.max()) > padded_length:
            raise InputError(
                f"Prompts of {list(prefix_lengths)} tokens do not fit {padded_length} columns.", "Give one length of at most that each."
            )
        self._prefix_lengths, self._padded_length = lengths, padded_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Bans what would end a protected n-gram.

        Args:
            input_ids: (rows, time), prompt and generation so far.
            scores: (rows, vocabulary), logits or log-probs of the next token.

        Returns:
            `scores` itself where nothing is banned, otherwise a copy with -inf.
        """
        began = time.perf_counter()
        guarded = self._guard(input_ids, scores)
        self.seconds += time.perf_counter() - began
        return guarded

    def _guard(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        starts, ended = self._rows(input_ids)
        self.counts.choices += int((~ended).sum())
        available = input_ids.shape[1] - starts
        if available.max() < self.source.shortest:
            return scores
        contexts = input_ids[:, max(0, input_ids.shape[1] - self.source.n + 1) :].cpu().numpy()
        owners, banned = banned_tokens(self.source, contexts, available, scores.shape[1])
        if self.eos_id is not None:
            owners, banned = owners[banned != self.eos_id], banned[banned != self.eos_id]
        if not len(banned):
            return scores
        at = (_index(owners, scores), _index(banned, scores))
        guarded = scores.clone()
        guarded[at] = -torch.inf
        touched, firsts = np.unique(owners, return_index=True)
        self._count(touched, firsts, ended, scores[at], scores)
        for row in np.intersect1d(touched, self._stuck(guarded)):
            context = contexts[row, max(0, contexts.shape[1] - available[row]) :]
            self._open_a_way(int(row), bool(ended[row]), context, scores, guarded)
        return guarded

    def _rows(self, input_ids: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """For every row the column at which its context may begin, and whether it has ended."""
        count, time = input_ids.shape
        ended = np.zeros(count, dtype=bool)
        if self._prefix_lengths is None:
            if not self.include_prompt:
                raise InputError(
                    "A guard with include_prompt=False does not know where the prompt ends.",
                    "Generate with HFModel.generate, or call start_batch(prefix_lengths, padded_length) before.",
                )
            if self.pad_id is None:
                return np.zeros(count, dtype=np.int64), ended
            padding = (input_ids == self.pad_id).cpu().numpy()
            return np.logical_and.accumulate(padding, axis=1).sum(axis=1), ended
        if count % len(self._prefix_lengths) or time < self._padded_length:
            raise InputError(
                f"A batch of {count} rows and {time} tokens does not belong to the {len(self._prefix_lengths)} prompts announced.",
                "Call start_batch(prefix_lengths, padded_length) before every batch, or use HFModel.generate.",
            )
        if self.eos_id is not None:
            ended = (input_ids[:, self._padded_length :] == self.eos_id).any(dim=1).cpu().numpy()
        lengths = self._prefix_lengths if self.include_prompt else np.zeros_like(self._prefix_lengths)
        return np.repeat(self._padded_length - lengths, count // len(lengths)), ended

    def _count(self, touched: np.ndarray, firsts: np.ndarray, ended: np.ndarray, lost: torch.Tensor, scores: torch.Tensor) -> None:
        """Counts the rows at which something was banned; those that had ended are still guarded, but choose nothing.

        Args:
            touched: rows that lose a token, ascending.
            firsts: where the lost scores of each of them begin in `lost`.
            ended: for every row whether it has ended.
            lost: the scores of all banned tokens, row after row.
        """
        highest = np.maximum.reduceat(lost.float().cpu().numpy(), firsts)
        blocked = highest >= scores.amax(dim=-1).float().cpu().numpy()[touched]
        self.counts.guarded += int((~ended[touched]).sum())
        self.counts.blocked += int((blocked & ~ended[touched]).sum())

    def _stuck(self, guarded: torch.Tensor) -> np.ndarray:
        """The rows that have no token left but EOS."""
        if not self._can_end(guarded):
            return np.flatnonzero((guarded.amax(dim=-1) == -torch.inf).cpu().numpy())
        kept = guarded[:, self.eos_id].clone()
        guarded[:, self.eos_id] = -torch.inf
        stuck = guarded.amax(dim=-1) == -torch.inf
        guarded[:, self.eos_id] = kept
        return np.flatnonzero(stuck.cpu().numpy())

    def _can_end(self, scores: torch.Tensor) -> bool:
        return self.eos_id is not None and self.eos_id < scores.shape[1]

    def _open_a_way(self, row: int, ended: bool, context: np.ndarray, scores: torch.Tensor, guarded: torch.Tensor) -> None:
        """Where no token is left but EOS: forces EOS, or lets the rarest continuation through (in place)."""
        if self._can_end(guarded):
            if guarded[row, self.eos_id] == -torch.inf:
                guarded[row, self.eos_id] = 0.0
            self.counts.forced_eos += not ended
            return
        rarest = self.source.rarest_next(context)
        guarded[row, int(scores[row].argmax()) if rarest is None else rarest] = 0.0
        self.counts.violations += not ended


def _index(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.device)
