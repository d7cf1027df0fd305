"""The door to a memory-based language model, so that whatever can be asked of a transformer can be asked of it.

Its distribution is `MemoryBasedLM.probabilities`; scoring reads it with the same code as a transformer's logits, and generation is
transformers' own `generate` over a view of the memory as a `PreTrainedModel` whose logits are log-probabilities. So samplers, beams,
logits processors and guards work unchanged. It has no weights: what needs hidden states is refused.

A row begins a document: the model never saw BOS, it knows the padding before a text. While it writes it can also remember what it
reads: the windows of the prompt, or of all text so far, its own included (self-memory, as OLIFANT has it), are added to the memory for
this one continuation, under the weights that the training text gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import GenerationMixin, LogitsProcessor, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from palimpsest.errors import CapabilityError, InputError
from palimpsest.files import sha256_json
from palimpsest.models.base import LanguageModel, Progress, Sampler, Scores
from palimpsest.models.batching import check_rows, check_starts
from palimpsest.models.decoding import Decoding, continue_rows
from palimpsest.models.hf import UNLIMITED_CONTEXT
from palimpsest.models.memory_based import MemoryBasedLM
from palimpsest.models.memory_files import fingerprint, load_memory
from palimpsest.models.quiet import quiet
from palimpsest.models.token_scores import token_scores
from palimpsest.tokenizer import Tokenizer

REMEMBER = ("nothing", "prompt", "text")
CELLS = 1 << 23  # probabilities that are held at once
BATCH_TOKENS = 1024


class MemoryModel(LanguageModel):
    """A memory-based model behind the contract of all models.

    Args:
        model: what answers; with `backoff="stop"` tokens without a vote have log-probability −inf.
        tokenizer: by default the model's own; needed when it was trained on token ids.
        name: what to call it.
        remember: what `generate` adds to the memory while it writes: "nothing", the "prompt", or all "text" so far.

    Raises:
        InputError: no tokenizer, or one with other ids than the model was trained with.

    Example:
        >>> door = MemoryModel(MemoryBasedLM(n=4).fit("corpus/", tokenizer))           # doctest: +SKIP
        >>> door.logprobs([tokenizer.encode("In the beginning")])                      # doctest: +SKIP
    """

    door = "memory"
    parameters = None
    prepends_bos = False
    context_length = UNLIMITED_CONTEXT

    def __init__(
        self,
        model: MemoryBasedLM,
        tokenizer: Tokenizer | None = None,
        name: str = "memory",
        remember: Literal["nothing", "prompt", "text"] = "nothing",
    ) -> None:
        if remember not in REMEMBER:
            raise InputError(f"remember is {remember!r}.", f"Choose one of {', '.join(REMEMBER)}.")
        own = tokenizer or model.tokenizer
        if own is None:
            raise InputError(f"{name} was trained on token ids and has no tokenizer.", "Give tokenizer=, the one that made the ids.")
        if tokenizer and model.tokenizer:
            tokenizer.require_same(model.tokenizer.fingerprint, f"the memory {name}")
        self.model, self.tokenizer, self.name, self.remember = copy(model), own, name, remember
        self.model.vocab_size = max(model.vocab_size, own.vocab_size)  # the tokenizer may have ids that were never learnt
        self.capabilities = frozenset({"logprobs", "text"})

    @classmethod
    def open(cls, path: str | Path, tokenizer: Tokenizer | None = None, *, bos: str = "auto", remember: Any = "nothing") -> MemoryModel:
        """Opens the folder of a saved model; `bos` may be "auto" or "never".

        Raises:
            InputError, ModelNotFoundError, IndexCorruptError, IndexVersionError: see `load_memory` and the class.
        """
        if bos not in ("auto", "never"):
            raise InputError(f"bos is {bos!r}.", "A memory-based model begins a text with padding: choose auto or never.")
        return cls(load_memory(path), tokenizer, Path(path).resolve().name, remember)

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """SHA-256 of the model (see `memory_files.fingerprint`), the tokenizer and what it remembers while it writes."""
        return sha256_json({"model": fingerprint(self.model), "tokenizer": self.tokenizer.fingerprint, "remember": self.remember})

    def lacks(self, capability: str, need: str) -> CapabilityError:
        """As the base class says; there are no weights to be loaded."""
        return CapabilityError(super().lacks(capability, need).problem, "A memory-based model has none: measure this on a transformer.")

    def score(
        self,
        batch_ids: Sequence[Sequence[int] | np.ndarray],
        *,
        start: int | Sequence[int] = 1,
        moments: bool = False,
        samplers: Sequence[Sampler] = (),
        progress: Progress | None = None,
    ) -> Scores:
        """See `LanguageModel.score`; every position costs a whole distribution, as it does a transformer."""
        rows = check_rows(batch_ids, self.model.vocab_size, self.context_length)
        starts = check_starts(start, rows)
        scores = Scores([], [], [] if moments else None, [] if moments else None, {sampler: [] for sampler in samplers})
        step = max(1, CELLS // self.model.vocab_size)
        for number, (row, first) in enumerate(zip(rows, starts, strict=True), start=1):
            found = [
                token_scores(
                    log_probabilities(self.model, [row[max(0, t - self.model.n) : t] for t in range(at, min(at + step, len(row)))]),
                    torch.from_numpy(row[at : at + step]),
                    moments=moments,
                    samplers=samplers,
                )
                for at in range(first, len(row), step)
            ] or [
                token_scores(torch.empty(0, self.model.vocab_size), torch.empty(0, dtype=torch.int64), moments=moments, samplers=samplers)
            ]
            for target, name in (
                (scores.logprobs, "logprobs"),
                (scores.greedy_hits, "greedy_hits"),
                (scores.mean, "mean"),
                (scores.var, "var"),
            ):
                if target is not None:
                    target.append(torch.cat([getattr(piece, name) for piece in found]).numpy())
            for sampler, values in scores.sampled.items():
                values.append(torch.cat([piece.sampled[sampler] for piece in found]).numpy())
            if progress:
                progress(number, len(rows))
        return scores

    def generate(
        self,
        prefixes: Sequence[Sequence[int] | np.ndarray],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        n: int = 1,
        num_beams: int = 1,
        seed: int = 0,
        stop_at_eos: bool = True,
        processors: Sequence[Any] = (),
        progress: Progress | None = None,
    ) -> list[list[np.ndarray]]:
        """See `LanguageModel.generate`."""
        decoding = Decoding(Sampler(temperature, top_k, top_p), max_new_tokens, n, num_beams, seed, tuple(processors))
        rows = check_rows(prefixes, self.model.vocab_size, self.context_length, max_new_tokens, "Prefix")
        eos = self.tokenizer.eos_id
        stops = [eos] if stop_at_eos and eos is not None else []
        view = MemoryView(self.model)
        if self.remember != "nothing":
            view.remembered = _Remembered(self.model, whole=self.remember == "text")
            decoding = replace(decoding, processors=(view.remembered, *decoding.processors))
        with quiet():
            return continue_rows(view, rows, decoding, stops, 8 * BATCH_TOKENS, True, progress)


class MemoryView(PreTrainedModel, GenerationMixin):
    """A memory as transformers sees a model: ids in, logits out, which are log-probabilities.

    Args:
        model: what answers.

    Example:
        >>> view = MemoryView(MemoryBasedLM(n=2).fit([[0, 1, 2, 0, 1, 3]]))
        >>> view(torch.tensor([[0, 1]])).logits.shape
        torch.Size([1, 2, 4])
    """

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, model: MemoryBasedLM) -> None:
        super().__init__(PretrainedConfig.from_dict({"vocab_size": model.vocab_size}))
        self.memory_based = model
        self.remembered: _Remembered | None = None
        self.anchor = torch.nn.Parameter(
            torch.empty(0), requires_grad=False
        )  # says where the model is and of which type: it has no weights

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, logits_to_keep: int = 0, **_: Any
    ) -> CausalLMOutput:
        """Logits (batch, kept, vocabulary) of the last `logits_to_keep` positions, of all for 0; padding stands on the left."""
        width = input_ids.shape[1]
        kept = min(logits_to_keep, width) or width
        pads = [0] * len(input_ids) if attention_mask is None else (width - attention_mask.sum(dim=1)).tolist()
        rows = [row[pad:] for row, pad in zip(input_ids.cpu().numpy(), pads, strict=True)]
        logits = []
        for index, row in enumerate(rows):
            model = self.memory_based if self.remembered is None else self.remembered.of(row, index, len(rows))
            lengths = range(len(row) - kept + 1, len(row) + 1)
            logits.append(log_probabilities(model, [row[max(0, length - model.n) : max(0, length)] for length in lengths]))
        return CausalLMOutput(logits=torch.stack(logits))

    def prepare_inputs_for_generation(self, input_ids: Any, attention_mask: Any = None, **_: Any) -> dict[str, Any]:  # type: ignore[override]
        """Only the next token is wanted, and there is nothing to keep from one step to the next."""
        return {"input_ids": input_ids, "attention_mask": attention_mask, "logits_to_keep": 1}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False


class _Remembered(LogitsProcessor):
    """Gives every row of a batch a memory that also knows its prompt, or with `whole` all of it; leaves the logits alone."""

    def __init__(self, model: MemoryBasedLM, *, whole: bool) -> None:
        self.model, self.whole = model, whole
        self.lengths: list[int] = []
        self.known: dict[bytes, MemoryBasedLM] = {}

    def start_batch(self, lengths: list[int], width: int) -> None:
        """Called by the decoder with the lengths of the prompts."""
        self.lengths = lengths

    def of(self, row: np.ndarray, index: int, count: int) -> MemoryBasedLM:
        """The model for row `index` of `count`, which are the prompts, each as often as there are beams."""
        text = row if self.whole else row[: self.lengths[index * len(self.lengths) // count]]
        if text.tobytes() not in self.known:
            if self.whole:
                self.known.clear()  # no text comes twice but by chance
            self.known[text.tobytes()] = self.model.remembering([text])
        return self.known[text.tobytes()]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return scores


def log_probabilities(model: MemoryBasedLM, contexts: Sequence[np.ndarray]) -> torch.Tensor:
    """The log-probabilities float32 (Q, vocab_size) after contexts."""
    with np.errstate(divide="ignore"):
        return torch.from_numpy(np.log(model.probabilities(contexts)).astype(np.float32))
