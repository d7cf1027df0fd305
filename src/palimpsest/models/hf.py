"""The door to any causal language model of transformers: a folder, a hub id, or a model that is already in memory.

Scoring is teacher-forced: ids right-padded, attention mask and position ids explicit, one forward pass a batch. The
language-model head, often half the work, is applied only to the positions that are scored: a hook in front of it picks their
hidden states. Whether a model's logits at a position depend on nothing but that position's hidden state (true of a plain head, of
soft-capped and scaled ones) is tried out on a few ids first; where it is not so, the full logits are computed.
"""

from __future__ import annotations

import hashlib
import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from palimpsest.errors import InputError, NonFiniteError
from palimpsest.models.base import LanguageModel, Progress, Sampler, Scores
from palimpsest.models.batching import batches_by_length, check_rows, check_starts, pad
from palimpsest.models.decoding import Decoding, continue_rows
from palimpsest.models.onednn import fast_linear
from palimpsest.models.quiet import quiet
from palimpsest.models.token_scores import NonFiniteLogitsError, token_scores
from palimpsest.tokenizer import Tokenizer

BOS_POLICIES = ("auto", "always", "never")
OWN_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")  # transformers' own
UNLIMITED_CONTEXT = 1 << 30  # for models without position limit


class HFModel(LanguageModel):
    """A transformers causal language model.

    Args:
        model: any transformers model with a language-model head; put into evaluation mode, otherwise left as it is.
        tokenizer: its tokenizer.
        name: what to call it; by default the name of its configuration.
        batch_tokens: the most padded tokens in one forward pass; by default 1024 on a processor and 16384 on a GPU, fewer for
            vocabularies so large that the logits would take more than half a gigabyte or eight.
        bos: "auto" prepends BOS where the tokenizer itself would, "always", or "never".
        door: how the model came in, "hf" or "gguf".

    Raises:
        InputError: an unknown BOS policy, "always" without a BOS id, or batch_tokens < 1.

    Example:
        >>> model = HFModel(LlamaForCausalLM(config), tokenizer)      # doctest: +SKIP
        >>> model.score([tokenizer.encode("In the beginning")]).logprobs[0]   # doctest: +SKIP
    """

    in_process = True  # whether a forward pass is made here, so that what it keeps can be used again

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        name: str | None = None,
        batch_tokens: int | None = None,
        bos: str = "auto",
        door: str = "hf",
    ) -> None:
        if bos not in BOS_POLICIES:
            raise InputError(f"bos is {bos!r}.", f"Choose one of {', '.join(BOS_POLICIES)}.")
        if bos == "always" and tokenizer.bos_id is None:
            raise InputError("bos is 'always', but the tokenizer has no BOS id.", "Give a Tokenizer with bos_id, or bos='never'.")
        if batch_tokens is not None and batch_tokens < 1:
            raise InputError(f"batch_tokens is {batch_tokens}.", "Give at least 1.")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name or model.config.name_or_path or type(model).__name__
        self.door = door
        self.capabilities = frozenset({"weights", "logprobs", "text"})
        self.prepends_bos = bos == "always" or (bos == "auto" and tokenizer.adds_bos and tokenizer.bos_id is not None)
        config = model.config.get_text_config()
        self.context_length = int(getattr(config, "max_position_embeddings", None) or UNLIMITED_CONTEXT)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        embeddings: Any = model.get_input_embeddings()
        self.vocab_size = int(embeddings.weight.shape[0])
        most, logits = (1024, 1 << 27) if self.device.type == "cpu" else (16384, 1 << 31)
        self.batch_tokens = batch_tokens or max(64, min(most, logits // self.vocab_size))
        # Two kinds of rotary scaling look at the length of the whole input: the scores of an id then depend on what comes behind it.
        self.length_free = not {"dynamic", "longrope"} & _scalings(config)
        self._generating = threading.Lock()  # transformers keeps generation settings on the model
        self._arguments = frozenset(inspect.signature(model.forward).parameters)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """SHA-256 over name, type, shape and bytes of every parameter, sorted by name."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.model.named_parameters()):
            value = parameter.detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def score(
        self,
        batch_ids: Sequence[Sequence[int] | np.ndarray],
        *,
        start: int | Sequence[int] = 1,
        moments: bool = False,
        samplers: Sequence[Sampler] = (),
        progress: Progress | None = None,
    ) -> Scores:
        """See `LanguageModel.score`."""
        rows = self._check(batch_ids)
        starts = check_starts(start, rows)

        def slots() -> list[Any]:
            return [None] * len(rows)

        scores = Scores(
            slots(), slots(), slots() if moments else None, slots() if moments else None, {sampler: slots() for sampler in samplers}
        )
        done = 0
        for batch in batches_by_length([len(row) for row in rows], self.batch_tokens):
            self._score_batch([rows[i] for i in batch], [starts[i] for i in batch], batch, scores, moments, samplers)
            done += len(batch)
            if progress:
                progress(done, len(rows))
        return scores

    def _score_batch(
        self, rows: list[np.ndarray], starts: list[int], numbers: list[int], scores: Scores, moments: bool, samplers: Sequence[Sampler]
    ) -> None:
        counts = [len(row) - first for row, first in zip(rows, starts, strict=True)]
        targets = np.concatenate([row[first:] for row, first in zip(rows, starts, strict=True)])
        # The logits for the id at position t stand at position t - 1 of the row, one later when BOS is in front; the last id is
        # never read, so it is not fed. A row of one id, never scored, is fed whole.
        inputs = [row[: max(1, len(row) - 1)] for row in rows]
        fed = [self._with_bos(row) for row in inputs]
        width = max(len(row) for row in fed)
        offset = int(self.prepends_bos) - 1
        chosen = [index * width + np.arange(first, len(row)) + offset for index, (row, first) in enumerate(zip(rows, starts, strict=True))]
        logits = torch.empty(0, self.vocab_size)
        if len(targets):
            logits = self._logits(fed, torch.from_numpy(np.concatenate(chosen)).to(self.device))
        try:
            found = token_scores(logits, torch.from_numpy(targets).to(logits.device), moments=moments, samplers=samplers)
        except NonFiniteLogitsError as error:
            ends = np.cumsum(counts)
            row = int(np.searchsorted(ends, error.index, side="right"))
            position = starts[row] + error.index - int(ends[row] - counts[row])
            raise NonFiniteError(
                f"{self.name} returned logits that are not finite for row {numbers[row]}, position {position}.",
                "Check the weights for NaN, or load the model in float32.",
            ) from error
        parts: list[tuple[list[Any] | None, torch.Tensor | None]] = [
            (scores.logprobs, found.logprobs),
            (scores.greedy_hits, found.greedy_hits),
            (scores.mean, found.mean),
            (scores.var, found.var),
            *((scores.sampled[sampler], found.sampled[sampler]) for sampler in samplers),
        ]
        cuts = np.cumsum(counts)[:-1]
        for target, values in parts:
            if target is not None and values is not None:
                for number, piece in zip(numbers, np.split(values.cpu().numpy(), cuts), strict=True):
                    target[number] = piece

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
        """See `LanguageModel.generate`. Sampled text depends on seed, prefix number and continuation number, not on the batch."""
        decoding = Decoding(Sampler(temperature, top_k, top_p), max_new_tokens, n, num_beams, seed, tuple(processors))
        rows = check_rows(prefixes, self.vocab_size, self.context_length, max_new_tokens + int(self.prepends_bos), "Prefix")
        with self._generating, quiet(), fast_linear(self.model):
            return continue_rows(
                self.model,
                [self._with_bos(row) for row in rows],
                decoding,
                self.stop_ids if stop_at_eos else [],
                self.batch_tokens * (16 if self.device.type == "cpu" else 8),
                "position_ids" in self._arguments,
                progress,
                keeps_keys=self._keeps_keys,
            )

    def hidden_states(self, batch_ids: Sequence[Sequence[int] | np.ndarray], layers: Sequence[int]) -> list[dict[int, np.ndarray]]:
        """See `LanguageModel.hidden_states`; the state after the last layer is the normed one that the head reads."""
        rows = self._check(batch_ids)
        last = int(self.model.config.get_text_config().num_hidden_layers)
        for layer in layers:
            if not 0 <= layer <= last:
                raise InputError(f"Layer {layer} was asked for, but {self.name} has the layers 0 to {last}.", "0 is the embedding.")
        out: list[dict[int, np.ndarray]] = [{} for _ in rows]
        skip = int(self.prepends_bos)
        for batch in batches_by_length([len(row) for row in rows], self.batch_tokens):
            fed = [self._with_bos(rows[i]) for i in batch]
            states = self._forward(fed, output_hidden_states=True).hidden_states
            for layer in layers:
                values = states[layer].float().cpu().numpy()
                for index, number in enumerate(batch):
                    out[number][layer] = values[index, skip : len(fed[index])].copy()
        return out

    @property
    def _keeps_keys(self) -> bool:
        """Whether the model can be given a cache, and what it keeps of a prefix is the same whatever follows.

        A context method (`palimpsest.context`) brings attention and cache layers of its own, and may score a prefix by what follows.
        """
        plain = self.model.config.get_text_config()._attn_implementation in OWN_ATTENTION
        return plain and self.length_free and {"position_ids", "past_key_values"} <= self._arguments

    def _check(self, batch_ids: Sequence[Sequence[int] | np.ndarray]) -> list[np.ndarray]:
        return check_rows(batch_ids, self.vocab_size, self.context_length, int(self.prepends_bos))

    def _with_bos(self, row: np.ndarray) -> np.ndarray:
        return np.concatenate([[self.tokenizer.bos_id], row]) if self.prepends_bos else row

    @cached_property
    def stop_ids(self) -> list[int]:
        """The ids that end a text: those of the model's generation settings and the tokenizer's EOS."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        stops = set(configured if isinstance(configured, list | tuple) else [] if configured is None else [configured])
        if self.tokenizer.eos_id is not None:
            stops.add(self.tokenizer.eos_id)
        return sorted(stop for stop in stops if 0 <= stop < self.vocab_size)

    @torch.inference_mode()
    def _forward(self, fed: Sequence[np.ndarray], **options: Any) -> Any:
        ids, mask, positions = pad(fed, "right", self.device)
        arguments: dict[str, Any] = {"attention_mask": mask, "position_ids": positions, "use_cache": False}
        usable = {name: value for name, value in arguments.items() if name in self._arguments}
        with fast_linear(self.model):
            return self.model(input_ids=ids, return_dict=True, **usable, **options)

    def _logits(self, fed: Sequence[np.ndarray], chosen: torch.Tensor) -> torch.Tensor:
        """Logits (positions, vocabulary) at `chosen`, flat positions in the padded batch."""
        if self._head_is_positionwise:
            return self._picked_logits(fed, chosen)
        logits = self._forward(fed).logits
        return logits.reshape(-1, logits.shape[-1])[chosen]

    def _picked_logits(self, fed: Sequence[np.ndarray], chosen: torch.Tensor) -> torch.Tensor:
        with picking(self.model, chosen):
            return self._forward(fed).logits[0]

    @cached_property
    def _head_is_positionwise(self) -> bool:
        """Whether the head may be applied to chosen positions only: tried out on a small batch against the full logits."""
        if not isinstance(self.model.get_output_embeddings(), torch.nn.Module):
            return False
        probe = [np.arange(6) % self.vocab_size, np.arange(7, 11) % self.vocab_size]
        chosen = torch.tensor([0, 3, 4, 8], device=self.device)
        full = self._forward(probe).logits
        full = full.reshape(-1, full.shape[-1])[chosen].float()
        try:
            picked = self._picked_logits(probe, chosen).float()
        except (IndexError, RuntimeError, TypeError, ValueError):
            return False  # this model's head is not fed hidden states of shape (batch, time, hidden)
        tolerance = 1e-4 if full.dtype == next(self.model.parameters()).dtype else 5e-2
        return picked.shape == full.shape and torch.allclose(picked, full, rtol=tolerance, atol=tolerance, equal_nan=True)


@contextmanager
def picking(model: PreTrainedModel, chosen: torch.Tensor) -> Iterator[None]:
    """The head of `model` is applied to the flat positions `chosen` alone, for this thread; logits are then (1, chosen, vocabulary)."""
    caller = threading.get_ident()

    def pick(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if threading.get_ident() != caller:  # another thread is using the same model
            return None
        hidden = args[0]
        return (hidden.reshape(-1, hidden.shape[-1])[chosen].unsqueeze(0), *args[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(pick)  # type: ignore[union-attr]
    try:
        with fast_linear(model):
            yield
    finally:
        hook.remove()


def _scalings(config: Any) -> set[str]:
    """The kinds of rotary scaling in a configuration, which holds one set of parameters or one for each kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return {str(part.get("rope_type", part.get("type"))) for part in (parameters, *parameters.values()) if isinstance(part, dict)}
