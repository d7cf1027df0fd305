"""Continuations through transformers' own `generate`: greedy, sampling with a stream of numbers per row, beam search.

Sampling draws by inversion: the chain of logits processors ends in one that looks up a uniform number in the cumulative
distribution and leaves a single admissible id. Each (prefix, continuation) owns a generator seeded with (seed, prefix,
continuation), so a continuation does not depend on what else is in the batch. Several continuations of one prefix share its reading: its
keys and values are computed once and repeated for the copies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import Cache, DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from palimpsest.errors import InputError, NonFiniteError
from palimpsest.models.base import Progress, Sampler
from palimpsest.models.batching import batches_by_length, pad
from palimpsest.models.growing_cache import growing
from palimpsest.models.sampler_scores import warpers

MAX_ROWS = 64  # more rows at once gain nothing on the hardware that we know
MAX_BEAMS = 1_000  # every beam of a prompt has a cache of its own, all at once


@dataclass(frozen=True)
class Decoding:
    """How to continue: see `LanguageModel.generate` for the fields.

    Raises:
        InputError: numbers out of range, or a combination that means nothing.
    """

    sampler: Sampler
    max_new_tokens: int
    n: int = 1
    num_beams: int = 1
    seed: int = 0
    processors: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "n", "num_beams"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < 1:
                raise InputError(f"{name} is {value!r}.", "Give an integer of at least 1.")
        if self.num_beams > MAX_BEAMS:
            raise InputError(f"num_beams is {self.num_beams:,}.", f"Every beam keeps a cache of its own: give at most {MAX_BEAMS:,}.")
        if self.num_beams > 1 and self.sampler.temperature != 0:
            raise InputError(
                f"Beam search was asked for with temperature {self.sampler.temperature:g}.", "Give temperature 0, or num_beams 1."
            )
        if self.num_beams > 1 and self.n > self.num_beams:
            raise InputError(f"{self.n} continuations were asked of {self.num_beams} beams.", "Give at least as many beams.")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}.", "Give an integer >= 0.")


def continue_rows(
    model: PreTrainedModel,
    rows: Sequence[np.ndarray],
    decoding: Decoding,
    stop_ids: Sequence[int],
    batch_tokens: int,
    pads_left: bool,
    progress: Progress | None = None,
    *,
    keeps_keys: bool = False,
) -> list[list[np.ndarray]]:
    """For each row (BOS already in front) its `n` continuations, without the row and without what ends them.

    Args:
        model: the model; nothing else may use its `generate` meanwhile.
        rows: prefixes.
        decoding: how to continue them.
        stop_ids: ids that end a continuation.
        batch_tokens: the most tokens of rows and their continuations in one batch.
        pads_left: whether rows of different length may share a batch, padded on the left, masked and skipped by position ids.
        progress: called with (rows done, rows in all).
        keeps_keys: whether the model can be given a cache, and what it keeps of a prefix is the same whatever follows.

    Raises:
        NonFiniteError: the model returned NaN, or the processors left nothing to choose from.
    """
    sampling = decoding.sampler.temperature != 0
    copies = decoding.n if sampling else 1  # greedy continuations are all equal: made once
    units = [(row, copy) for row in range(len(rows)) for copy in range(copies)]
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    lengths = [(len(rows[row]) + decoding.max_new_tokens) * decoding.num_beams for row, _ in units]
    for batch in batches_by_length(lengths, batch_tokens, max(1, MAX_ROWS // decoding.num_beams), equal=not pads_left):
        members = [units[index] for index in batch]
        sequences = _generate_batch(model, [rows[row] for row, _ in members], members, decoding, stop_ids, keeps_keys)
        for unit, written in zip(members, sequences, strict=True):
            found[unit] = [until_stop(ids, stop_ids) for ids in written]
        if progress:
            progress(len(found) // copies, len(rows))
    if sampling:
        return [[found[row, copy][0] for copy in range(copies)] for row in range(len(rows))]
    if decoding.num_beams > 1:
        return [found[row, 0] for row in range(len(rows))]
    return [[found[row, 0][0].copy() for _ in range(decoding.n)] for row in range(len(rows))]


def _generate_batch(
    model: PreTrainedModel,
    rows: list[np.ndarray],
    units: list[tuple[int, int]],
    decoding: Decoding,
    stop_ids: Sequence[int],
    keeps_keys: bool,
) -> np.ndarray:
    """New ids (rows, continuations, time); `units` are (prefix number, continuation number) of the rows."""
    ids, mask, _ = pad(rows, "left", model.device)
    width = int(ids.shape[1])
    numbers = [number for number, _ in units]
    chain: list[Any] = [_RequireFinite("The model's logits are", numbers, decoding.num_beams, width)]
    if decoding.processors:
        chain += [*decoding.processors, _RequireFinite("The logits behind the processors are", numbers, decoding.num_beams, width)]
    if decoding.sampler.temperature != 0:
        chain += [*warpers(decoding.sampler), _DrawByInversion([(decoding.seed, number, copy) for number, copy in units])]
    for processor in decoding.processors:
        if hasattr(processor, "start_batch"):
            processor.start_batch([len(row) for row in rows], width)
    config = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,
        num_beams=decoding.num_beams,
        num_return_sequences=decoding.n if decoding.num_beams > 1 else 1,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=stop_ids[0] if stop_ids else 0,
        bos_token_id=None,
    )
    generate: Any = model.generate
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    with _only(model, config), torch.inference_mode():
        if keeps_keys:
            given["past_key_values"] = _cache(model, ids, mask, numbers, width + decoding.max_new_tokens)
        sequences = generate(**given, generation_config=config, logits_processor=LogitsProcessorList(chain))
    new = sequences[:, width:].cpu().numpy()
    return new.reshape(len(rows), -1, new.shape[1])


def _cache(model: Any, ids: torch.Tensor, mask: torch.Tensor, numbers: Sequence[int], capacity: int) -> Cache | None:
    """A cache that grows in place; None where the model keeps other things than keys and values.

    Where several rows continue one prefix (they stand side by side; `numbers` says which prefix a row is), it holds all tokens of theirs
    but the last, each distinct prefix computed once.
    """
    firsts = [index for index, number in enumerate(numbers) if index == 0 or number != numbers[index - 1]]
    if len(firsts) == len(numbers) or ids.shape[1] == 1:
        return growing(DynamicCache(config=model.config), capacity)
    seen = mask[firsts, :-1]
    positions = (seen.cumsum(dim=-1) - 1).clamp_(min=0)
    # the base model: no logits are needed yet
    cache = model.base_model(input_ids=ids[firsts, :-1], attention_mask=seen, position_ids=positions, use_cache=True).past_key_values
    copies = np.repeat(np.arange(len(firsts)), np.diff([*firsts, len(numbers)]))
    if growing(cache, capacity) is None:
        return None
    cache.batch_select_indices(torch.from_numpy(copies).to(ids.device))
    return cache


@contextlib.contextmanager
def _only(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Hides the model's own generation settings, which transformers would merge in (repetition penalties, samplers, EOS)."""
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own


def until_stop(ids: np.ndarray, stop_ids: Sequence[int]) -> np.ndarray:
    """The ids before the first that ends a text, all where none does; int64."""
    ends = np.flatnonzero(np.isin(ids, np.asarray(stop_ids, dtype=np.int64)))
    return (ids[: ends[0]] if len(ends) else ids).astype(np.int64)


class _RequireFinite(LogitsProcessor):
    """Raises `NonFiniteError` as soon as a row has no finite greatest logit."""

    def __init__(self, whose: str, numbers: Sequence[int], repeats: int, width: int) -> None:
        self.whose, self.numbers, self.repeats, self.width = whose, numbers, repeats, width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        finite = torch.isfinite(scores.amax(dim=-1))
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0]) // self.repeats
            raise NonFiniteError(
                f"{self.whose} not finite for prefix {self.numbers[row]}, new token {input_ids.shape[1] - self.width}.",
                "Check the weights for NaN, load the model in float32, or let the processors leave at least one token.",
            )
        return scores


class _DrawByInversion(LogitsProcessor):
    """Draws one id a row from softmax(scores), each row with its own generator, and admits only that id."""

    def __init__(self, owners: Sequence[tuple[int, int, int]]) -> None:
        self.generators = [np.random.Generator(np.random.PCG64(owner)) for owner in owners]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        uniform = torch.tensor([generator.random() for generator in self.generators], dtype=torch.float64, device=scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(-1, draw_by_inversion(scores, uniform)[:, None], 0.0)


def draw_by_inversion(scores: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """One id a row from softmax(`scores`), (rows, ids): the first whose cumulative probability exceeds `uniform` (rows,) float64."""
    cumulative = scores.double().softmax(dim=-1).cumsum_(dim=-1)
    # right=True never lands on an id of probability 0.
    drawn = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)
    return drawn.clamp_(max=scores.shape[-1] - 1)[:, 0]
